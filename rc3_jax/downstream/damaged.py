"""Pictures that cannot be decoded, found before a training that would end at one of them."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Collection

from rc3_jax.data.image import decode
from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.downstream.examples import Example, Picture, TaskData
from rc3_jax.downstream.pictures import ENOUGH
from rc3_jax.observe.log import Say

MIN_SIDE = 32
"""JPEG files are decoded at a small size: all of their bytes are read nevertheless."""
SECONDS = 30.0
"""Between two lines on the progress."""


def without_damaged(data: TaskData, threads: int, allow_missing: bool, say: Say) -> TaskData:
    """The data without the examples about pictures that cannot be decoded.

    They count like missing ones: as rows left out, and of each split and language `ENOUGH` must be
    whole.

    Args:
      threads: that decode.
      say: is told what is left out, and of progress where that takes long.

    Raises:
      DataError: if fewer are whole, and that is not allowed.
    """
    reasons = _damaged(data.pictures().values(), threads, say)
    if not reasons:
        return data
    splits: dict[str, dict[str, list[Example]]] = {}
    left_out = {split: dict(counts) for split, counts in data.left_out.items()}
    for split, languages in data.splits.items():
        for language, examples in languages.items():
            names = {picture.name for example in examples for picture in example.pictures}
            lost = [name for name in names if name in reasons]
            if len(lost) > (1 - ENOUGH) * len(names) and not allow_missing:
                raise DataError(
                    f"{split} in {language}: {len(lost)} of {len(names)} pictures cannot be read; "
                    f"first: {reasons[lost[0]]}. Get them again, or set allow_missing to go on "
                    "without their rows; their scores do not compare with published ones"
                )
            kept = [e for e in examples if not any(p.name in reasons for p in e.pictures)]
            if kept:
                splits.setdefault(split, {})[language] = kept
            if dropped := len(examples) - len(kept):
                counts = left_out.setdefault(split, {})
                counts[language] = counts.get(language, 0) + dropped
    first = next(iter(reasons.values()))
    say(f"note: {len(reasons)} pictures cannot be read, their rows are left out; first: {first}")
    return TaskData(data.classes, splits, left_out)


def _damaged(pictures: Collection[Picture], threads: int, say: Say) -> dict[str, str]:
    """Name → why it cannot be decoded."""

    def reason(picture: Picture) -> str | None:
        try:
            decode(picture.image, picture.name, MIN_SIDE)
        except BadRecord as error:
            return str(error)
        return None

    reasons: dict[str, str] = {}
    told = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        checked = zip(pictures, pool.map(reason, pictures), strict=True)
        for place, (picture, why) in enumerate(checked):
            if why is not None:
                reasons[picture.name] = why
            if time.monotonic() - told > SECONDS:
                told = time.monotonic()
                say(f"looked at {place + 1:,} of {len(pictures):,} pictures")
    return reasons
