"""Multi30K and MSCOCO: retrieval by captions, from a file in the format of `folder` sources.

Each line of `captions.jsonl` (or `.jsonl.gz`) has `image`, `split` (`val` and `valid` mean `dev`),
`translations` and `captions` (docs/data.md). Each text, translation or caption, is one example.
"""

from __future__ import annotations

from pydantic import Field

from rc3_jax.data.jsonl import Name, RawCaptions
from rc3_jax.data.kinds import texts_of_kind
from rc3_jax.data.sources.folder import FolderRow
from rc3_jax.tasks.base import Annotation, ImageRef, RowContext, Task, TaskFiles
from rc3_jax.tasks.files import SPLITS


class CaptionsRow(FolderRow):
    """An image, all its texts and its split."""

    image: Name
    split: Name
    translations: RawCaptions = Field({})
    captions: RawCaptions = Field({})


def read(row: CaptionsRow, context: RowContext) -> list[Annotation]:
    """The texts in all languages."""
    image, split = ImageRef(row.image, (row.image,)), SPLITS.get(row.split, row.split)
    texts = texts_of_kind("captioned", row.translations, row.captions) or {}
    return [
        Annotation(text, (image,), split=split, language=language)
        for language, in_language in texts.items()
        for text in in_language
    ]


def _task(name: str, order: int) -> Task:
    files = TaskFiles(
        folder=name,
        rows=(CaptionsRow,),
        read=read,
        names=("captions.jsonl", "captions.jsonl.gz"),
    )
    return Task(name=name, order=order, files=files, scores=("IR@1", "TR@1", "mean"))


MULTI30K, MSCOCO = _task("multi30k", 6), _task("mscoco", 7)
