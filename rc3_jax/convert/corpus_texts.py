"""The texts of a corpus in chosen languages: caption files and plain text, as runs train on."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from pydantic import Field

from rc3_jax.data.jsonl import Captions, Row, Translations, read_lines, read_objects
from rc3_jax.data.record import BadRecord, DataError, Skips, checked_language
from rc3_jax.data.text import usable_text

Texts = dict[str, tuple[str, ...]]
"""Language → texts."""


class CaptionRow(Row):
    """What a line of a caption file (docs/data.md) says about its image."""

    translations: Translations = Field({})
    captions: Captions = Field({})


def corpus_texts(
    files: Sequence[pathlib.Path | str],
    languages: Sequence[str] | None,
    skips: Skips | None = None,
) -> Iterator[str]:
    """Yields the texts of all files, of every split.

    Args:
      files: caption files (`NAME.jsonl`) and plain text with one sentence a line (`NAME.LANGUAGE`
        or `NAME.LANGUAGE.txt`); either may end in `.gz` too.
      languages: those to take, such as `en` and `de`; None takes all, and plain text may then have
        any name.
      skips: counts the lines that cannot be used.

    Raises:
      DataError: for no files, a missing or damaged one, a name that does not end in a language,
        more bad lines in a file than `skips` allows, and, after the last text, for a language
        without any.
    """
    skips = skips or Skips()
    named = [(path, _language(path, languages)) for path in map(pathlib.Path, files)]
    found: set[str] = set()
    for path, language in named:
        if language and languages is not None and language not in languages:
            found.add(language)
            continue
        for texts in _rows(path, language, skips):
            found |= texts.keys()
            for code, several in texts.items():
                if languages is None or code in languages:
                    yield from several
    missing = [code for code in languages or () if code not in found]
    if missing or not named:
        raise DataError(
            f"{', '.join(map(str, files)) or 'no files'}: no text in {', '.join(missing)}; the "
            f"languages there are {', '.join(sorted(found)) or 'none'}. Add files or choose others"
        )


def _rows(path: pathlib.Path, language: str, skips: Skips) -> Iterator[Texts]:
    if _holds_captions(path):
        return skips.usable(read_objects(path), _of_captions, str(path))

    def of_line(place: object, line: str) -> Texts | None:
        try:
            return {language: (usable_text(line),)} if line.strip() else None
        except ValueError as error:
            raise BadRecord(place, str(error)) from error

    return skips.usable(read_lines(path), of_line, str(path))


def _of_captions(place: object, fields: dict) -> Texts:
    row = CaptionRow.parse(fields, place)
    languages = {**row.translations, **row.captions}
    if not languages:
        raise BadRecord(place, "no text; give captions or translations")
    return {
        code: (*row.translations.get(code, ()), *row.captions.get(code, ())) for code in languages
    }


def _holds_captions(path: pathlib.Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _language(path: pathlib.Path, languages: Sequence[str] | None) -> str:
    """The language that the name of a plain text ends in; empty where it does not matter."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path of the corpus")
    if languages is None or _holds_captions(path):
        return ""
    name, _, code = path.name.removesuffix(".gz").removesuffix(".txt").rpartition(".")
    try:
        return checked_language(code if name else "")
    except ValueError as error:
        raise DataError(
            f"{path}: {error}. Where languages are chosen, the name of a plain text ends in its own, "
            "such as train.de.gz or train.de.txt; rename the file, or choose no languages"
        ) from error
