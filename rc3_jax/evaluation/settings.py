"""The settings of the evaluation of a run."""

from __future__ import annotations

from typing import Literal

import pydantic

from rc3_jax.settings import Settings


class EvaluationSettings(Settings):
    """What a run measures of itself on held-out data."""

    every: int = pydantic.Field(5000, ge=0)
    """Steps between two evaluations; 0 evaluates at the end only."""
    batch_size: int = pydantic.Field(128, ge=1)
    """Rows that are encoded at a time."""
    images: int = pydantic.Field(1000, ge=0)
    """Held-out images that retrieval ranks, at most."""
    languages: tuple[str, ...] = ()
    """Languages of the texts; () for all that the held-out images have."""
    modes: tuple[Literal["both", "patches", "regions"], ...] = ("both", "patches", "regions")
    """Visual parts in use: `regions` needs regions for every held-out image, `both` for one. The
    matching head is scored with the first that the images serve."""
    rerank: int = pydantic.Field(0, ge=-1)
    """Candidates of each query that the matching head re-ranks; -1 for all. 0 leaves out re-ranking
    and the accuracy of the head."""
    dependence_rows: int = pydantic.Field(256, ge=0)
    """Held-out weak rows for the dependence figures."""
