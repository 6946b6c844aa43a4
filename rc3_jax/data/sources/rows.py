"""Images with all their texts, as files list them, and the records of one kind among them."""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rc3_jax.data.record import BadRecord, DataError, ImageLike, Kind, Record, check_language
from rc3_jax.data.text import row_languages

Texts = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRow:
    """All that a file says about one image; records of several kinds are made from it.

    Attributes:
      translations: language → one text; all translate one another.
      captions: language → texts about the image, written independently.
      boxes: as in `Record`.
      load_regions: returns boxes and features of a detector; called when a record is asked for.
      The others: as in `Record`.
    """

    where: str
    group: int
    image: ImageLike
    translations: Texts
    captions: Texts
    boxes: np.ndarray | None = None
    load_regions: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None


class ImageTextSource:
    """The records of one kind that rows offer (a `Source`). Sources may share their rows.

    Groups are numbered alike for all kinds made from the same rows. A record may raise BadRecord
    when it is asked for, if its region file cannot be used.
    """

    def __init__(self, rows: Sequence[ImageRow], kind: Kind):
        """Raises DataError when no row offers the kind."""
        self._kind = kind
        self._rows = [row for row in rows if self._texts(row)]
        if not self._rows:
            needed = {
                "strict": "`translations` into at least two languages",
                "weak": "at least two `captions` of the same image, in one record",
                "retrieval": "`captions` or `translations`",
                "captioned": "`captions` or `translations`",
            }[kind]
            where = rows[0].where if rows else "no rows"
            raise DataError(
                f"{where}: none of {len(rows)} records offers {kind} pairs; these need {needed}. "
                f"Add them or take {kind!r} out of the config"
            )
        self.groups = 1 + max(row.group for row in rows)
        found = collections.defaultdict(lambda: array.array("i"))
        for number, row in enumerate(self._rows):
            for pair in row_languages(kind, self._texts(row)):
                found[pair].append(number)
        self.pairs = {pair: np.frombuffer(numbers, np.int32) for pair, numbers in found.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        boxes, features = row.load_regions() if row.load_regions else (row.boxes, None)
        return Record(row.where, row.group, self._texts(row), row.image, boxes, features)

    def _texts(self, row: ImageRow) -> Texts | None:
        return texts_of_kind(self._kind, row.translations, row.captions)


def texts_of_kind(kind: Kind, translations: Texts, captions: Texts) -> Texts | None:
    """Returns the texts that an image offers to a kind of record, None if not enough.

    Strict records take the translations, if there are two; weak ones the captions, if there
    are two in whatever languages; retrieval takes everything, where the translation, the text
    that is comparable across languages, replaces captions of the same language; captioned ones
    take everything.

    Raises:
      DataError: no kind of record that has an image.
    """
    if kind == "strict":
        return translations if len(translations) >= 2 else None
    if kind == "weak":
        return captions if sum(map(len, captions.values())) >= 2 else None
    if kind == "retrieval":
        return {**captions, **translations} or None
    if kind == "captioned":
        both = {
            language: (*translations.get(language, ()), *captions.get(language, ()))
            for language in {**translations, **captions}
        }
        return {language: tuple(dict.fromkeys(texts)) for language, texts in both.items()} or None
    raise DataError(
        f"images offer records of kind strict, weak, retrieval and captioned, not {kind!r}"
    )


def checked_texts(field: str, texts: object, where: str) -> Texts:
    """Checks what a file gives as texts: language code → a text or a list of texts, or None.

    Returns:
      Language code → its distinct texts, stripped. Languages with an empty list are left out.

    Raises:
      BadRecord: other types, unknown language code, empty text, not valid Unicode.
    """
    if texts is None:
        return {}
    if not isinstance(texts, Mapping):
        raise BadRecord(f"{where}: {field} is {shown(texts)}; write {{language: text}}")
    checked = {}
    for language, given in texts.items():
        check_language(language, where)
        in_language = [given] if isinstance(given, str) else given
        if not isinstance(in_language, Sequence):
            raise BadRecord(f"{where}: {field}[{language!r}] is {shown(given)}, not a text")
        for text in in_language:
            check_text(text, f"{where}: {field}[{language!r}]")
        if in_language:
            checked[language] = tuple(dict.fromkeys(text.strip() for text in in_language))
    return checked


def check_text(text: object, where: str) -> None:
    """Raises BadRecord unless this is a text with words that can be encoded."""
    if not isinstance(text, str):
        raise BadRecord(f"{where} holds {shown(text)}, not a text")
    if not text.strip():
        raise BadRecord(f"{where} holds an empty text; remove it, or write it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{where} is not Unicode ({error.reason}); write it anew") from error


def shown(value: object) -> str:
    """The type and the start of a value's representation; all of it may be a megabyte."""
    return f"{type(value).__name__} {repr(value)[:40]}"
