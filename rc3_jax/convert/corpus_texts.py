"""The texts of a corpus, of chosen languages: caption files and plain text, as runs train on."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from rc3_jax.data.record import BadRecord, DataError, Skips, check_language
from rc3_jax.data.sources.lines import numbered_lines, parsed_object
from rc3_jax.data.sources.rows import checked_texts

CAPTIONS_SUFFIX = ".jsonl"


def corpus_texts(
    files: Sequence[pathlib.Path | str],
    languages: Sequence[str] | None,
    skips: Skips | None = None,
) -> Iterator[str]:
    """Yields the texts of all files, of every split, one after the other.

    Args:
      files: caption files (`NAME.jsonl`, docs/data.md), of which `translations` and `captions`
        are read, and plain text of one sentence a line (`NAME.LANGUAGE` or
        `NAME.LANGUAGE.txt`); either may end in `.gz` too. Blank lines are passed over.
      languages: those to take, such as `en` and `de`; None takes all, and then plain text may
        have any name.
      skips: gathers the lines that cannot be used.

    Raises:
      DataError: no file given, a file missing, plain text whose name does not tell its language,
        an unknown language code. And, while texts are drawn: a damaged file, more bad lines in
        a file than `skips` allows, or, after the last text, a language without any.
    """
    paths = [pathlib.Path(file) for file in files]
    if not paths or (languages is not None and not languages):
        raise DataError(
            "texts are chosen by files and languages: give at least one file, and at least one "
            "language or None for all of them"
        )
    for code in languages or ():
        check_language(code, "languages")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file; check the path of the corpus")
    by_path = [
        (path, None if languages is None or _holds_captions(path) else _language_of_name(path))
        for path in paths
    ]
    return _chosen(by_path, languages, skips)  # a generator would check all this only later


def _chosen(
    files: Sequence[tuple[pathlib.Path, str | None]],
    languages: Sequence[str] | None,
    skips: Skips | None,
) -> Iterator[str]:
    found = set()
    for path, language in files:
        if language is not None and language not in languages:
            found.add(language)
            continue
        bad = Skips((skips or Skips()).limit)
        total = 0
        for total, (where, line) in enumerate(numbered_lines(path), 1):
            try:
                if _holds_captions(path):
                    texts = _captions(line, where)
                else:
                    texts = [(language, text) for text in _sentence(line)]
            except BadRecord as error:
                bad.add(where, str(error))
                continue
            for code, text in texts:
                found.add(code)
                if languages is None or code in languages:
                    yield text
        bad.hand_over(skips, total, str(path))
    missing = [code for code in languages or () if code not in found]
    if missing:
        raise DataError(
            f"{', '.join(str(path) for path, _ in files)}: no text in {', '.join(missing)}; the "
            f"languages there are {', '.join(sorted(found)) or 'none'}. Add files or choose others"
        )


def _holds_captions(path: pathlib.Path) -> bool:
    return path.name.removesuffix(".gz").endswith(CAPTIONS_SUFFIX)


def _language_of_name(path: pathlib.Path) -> str:
    name, _, code = path.name.removesuffix(".gz").removesuffix(".txt").rpartition(".")
    try:
        check_language(code if name else "", str(path))
    except BadRecord as error:
        raise DataError(
            f"{error}. Where languages are chosen, plain text tells its own by its name, such as "
            "train.de.gz or train.de.txt; rename the file, or choose no languages"
        ) from error
    return code


def _captions(line: str | BadRecord, where: str) -> list[tuple[str, str]]:
    """Language and text of everything that a line says of its image; none for a blank one."""
    fields = parsed_object(line, where)
    if fields is None:
        return []
    texts = [
        (language, text)
        for field in ("translations", "captions")
        for language, in_language in checked_texts(field, fields.get(field), where).items()
        for text in in_language
    ]
    if not texts:
        raise BadRecord(f"{where}: no text; give captions or translations")
    return texts


def _sentence(line: str | BadRecord) -> list[str]:
    """The sentence on a line, none for a blank one."""
    if isinstance(line, BadRecord):
        raise line
    return [line] if line.strip() else []
