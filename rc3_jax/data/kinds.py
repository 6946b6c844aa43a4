"""The kinds of training rows: what each kind has, and which texts of a record it takes.

METHOD.md sections 0, 3 and 4. Names of kinds are the keys of batches and of `config.batch_mix`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LanguagePair = tuple[str, ...]
"""The languages of a row's texts. Two codes, sorted; the same one twice for two texts of one
language; one code for a row of one text; none where each text draws a language of its own."""

Texts = Mapping[str, tuple[str, ...]]
"""Language → texts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a row of a kind has.

    Attributes:
      image: an image.
      texts: number of texts, which are drawn from one record.
      regions: `data.regions.per_image` texts instead, each about a part of the image.
      sentence: the number of a sentence, which all of the record's texts are.
    """

    image: bool = True
    texts: int = 1
    regions: bool = False
    sentence: bool = False


KINDS = {
    "strict": Kind(texts=2, sentence=True),
    "weak": Kind(texts=2),
    "parallel": Kind(image=False, texts=2, sentence=True),
    "captioned": Kind(),
    "region": Kind(regions=True),
}
"""Rows are drawn by a kind's place here, so new ones go to the end."""

RETRIEVAL = "retrieval"
"""Records for evaluation: an image with every text that describes it."""


def wanted(kinds: Iterable[str], batch_mix: Any) -> list[str]:
    """The kinds that have a part of each batch by `config.batch_mix`."""
    return [kind for kind in kinds if getattr(batch_mix, kind, 0) > 0]


def texts_of_kind(kind: str, translations: Texts, captions: Texts) -> Texts | None:
    """The texts that an image offers to a kind of record, None if not enough.

    Strict records take the translations, if there are two; weak ones the captions, if there are two
    in whatever languages; captioned ones both. Retrieval takes both too, but only the translation,
    which is comparable across languages, where a language has one.
    """
    if kind == "strict":
        return translations if len(translations) >= 2 else None
    if kind == "weak":
        return captions if sum(map(len, captions.values())) >= 2 else None
    if kind == RETRIEVAL:
        return {**captions, **translations} or None
    return joined([translations, captions]) or None


def joined(mappings: Sequence[Texts], languages: Sequence[str] = ()) -> Texts:
    """Language → the distinct texts of all mappings; in these languages only, if any are named."""
    codes = dict.fromkeys(code for texts in mappings for code in texts)
    return {
        code: tuple(dict.fromkeys(text for texts in mappings for text in texts.get(code, ())))
        for code in codes
        if not languages or code in languages
    }


def language_pairs(texts: Mapping[str, Sequence[str]]) -> list[LanguagePair]:
    """The pairs that a record's texts offer; that of a single language takes two texts in it."""
    if len(texts) == 1:
        return [(code, code) for code, in_language in texts.items() if len(in_language) > 1]
    return list(itertools.combinations(sorted(texts), 2))


def row_languages(kind: str, texts: Mapping[str, Sequence[str]]) -> list[LanguagePair]:
    """The languages of the rows of a kind that a record's texts offer."""
    if kind == RETRIEVAL or KINDS[kind].texts == 2:
        return language_pairs(texts)
    return [()] if KINDS[kind].regions else [(code,) for code in sorted(texts)]
