"""How well a vocabulary and a length serve the texts of each language, and languages that are named.

A text that is cut, or that the vocabulary does not know, is read and scored all the same; what is
lost is told here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import langcodes
import numpy as np

from rc3_jax.data.record import DataError
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import FRAME_IDS, PAD_ID, SPECIAL_TOKENS, Tokenizer

TOO_MUCH = 0.05
"""Share of a language's texts that are cut, or of its pieces that are unknown, that is warned of."""
_UNKNOWN_ID = SPECIAL_TOKENS.index("<unk>")
_CHUNK = 4096


class Coverage(NamedTuple):
    """What a tokenizer makes of the texts of a language.

    Attributes:
      texts: their number.
      cut: share of them that are longer than the tokenizer's `max_length`, once they are cleaned.
      unknown: share of the pieces, up to that length, that are `<unk>`.
      shortened: share of the texts that lose words beyond `max_words` when they are cleaned.
    """

    texts: int
    cut: float
    unknown: float
    shortened: float = 0.0


def text_coverage(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, Coverage]:
    """Counts texts that are cut and pieces that are unknown.

    Args:
      texts: language, or what else names a set of texts → the texts.
    """
    longer = tokenizer.with_length(tokenizer.max_length + 1)  # a text that fills it is cut
    found = {}
    for name, several in texts.items():
        counts = np.zeros(3, np.int64)
        for start in range(0, len(several), _CHUNK):
            ids = longer.encode(several[start : start + _CHUNK])
            pieces = ~np.isin(ids, FRAME_IDS)
            counts += (ids[:, -1] != PAD_ID).sum(), (ids == _UNKNOWN_ID).sum(), pieces.sum()
        cut, unknown, pieces_of_all = counts.tolist()
        of_texts, of_pieces = max(len(several), 1), max(pieces_of_all, 1)
        long = 0 if tokenizer.cleaning is None else sum(_loses_words(tokenizer, t) for t in several)
        shares = cut / of_texts, unknown / of_pieces, long / of_texts
        found[name] = Coverage(len(several), *shares)
    return found


def _loses_words(tokenizer: Tokenizer, text: str) -> bool:
    """Whether cleaning leaves fewer words than a text has."""
    return len(tokenizer.clean(text).split()) < len(clean_caption(text, len(text)).split())


def coverage_lines(
    coverage: Mapping[str, Coverage],
    max_length: int,
    setting: str = "data.max_length",
    room: int | None = None,
    room_setting: str | None = None,
) -> list[str]:
    """Lines for the beginning of a run: all figures in one, and a warning for each above `TOO_MUCH`.

    Args:
      coverage: as `text_coverage` returns it.
      max_length: the tokenizer's.
      setting: what the user calls it.
      room: tokens that the model can read at most; None where it is not known.
      room_setting: the setting that gives more room; None for a model that is trained already.
    """
    shown = (
        f"{name} {of.texts:,} ({of.cut:.1%}, {of.unknown:.1%})" for name, of in coverage.items()
    )
    lines = [
        f"texts (share cut at {max_length} tokens, share of unknown pieces): {', '.join(shown)}"
    ]
    more = f"raise {setting}"
    if room is not None and max_length >= room and room_setting:
        more = f"raise {setting} and {room_setting}"
    elif room is not None and max_length >= room:
        more = f"the model reads {room} tokens at most, so that {setting} cannot be raised"
    for name, of in coverage.items():
        if of.cut > TOO_MUCH:
            lines.append(
                f"warning: {name}: {of.cut:.1%} of the texts are cut at {setting}={max_length} "
                f"tokens; {more}"
            )
        if of.shortened > TOO_MUCH:
            lines.append(
                f"warning: {name}: {of.shortened:.1%} of the texts lose words when they are cleaned; "
                "raise data.max_words"
            )
        if of.unknown > TOO_MUCH:
            lines.append(
                f"warning: {name}: {of.unknown:.1%} of the pieces are unknown to the vocabulary; use "
                "a model whose vocabulary (data.tokenizer) was made from this language too"
            )
    return lines


def check_languages(setting: str, named: Collection[str], there: Collection[str]) -> None:
    """Checks that the languages which a setting names are there.

    Raises:
      DataError: some are not; the message has the nearest names, and all that there are.
    """
    if missing := [code for code in named if code not in there]:
        near = dict.fromkeys(found for code in missing for found in _near(code, there))
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        has = f"there are {', '.join(there)}" if there else "there are none"
        raise DataError(f"{setting}: there are no texts in {', '.join(missing)}{hint}; {has}")


def _near(code: str, there: Collection[str]) -> Iterator[str]:
    """Languages that may be meant: `zh-CN` by `zh`, `ja` by the country `jp`, `zh-Hant` by `zh-hant`."""
    primary = re.split("[-_]", code)[0].lower()
    country = langcodes.Language.make(territory=primary.upper())
    meant = {primary, country.maximize().language if country.is_valid() else primary}
    yield from (known for known in there if known.split("-")[0] in meant)
    yield from difflib.get_close_matches(code, list(there), n=2)
