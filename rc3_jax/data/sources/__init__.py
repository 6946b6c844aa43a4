"""The types of data sources, each in a file of its own: settings, rows, records. This is the list."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from rc3_jax.data.sources.cclm import CCLMSource
from rc3_jax.data.sources.folder import FolderSource
from rc3_jax.data.sources.parallel import ParallelSource
from rc3_jax.data.sources.tfds import TFDSSource
from rc3_jax.scenes.source import ScenesSource
from rc3_jax.settings import ConfigError, check_choice

AnySource = ScenesSource | FolderSource | ParallelSource | TFDSSource | CCLMSource
SourceSettings = Annotated[AnySource, pydantic.Field(discriminator="type")]
_TYPES = {source.model_fields["type"].default: source for source in typing.get_args(AnySource)}


def parse_source(values: AnySource | Mapping[str, Any], where: str) -> AnySource:
    """The typed settings of a source, by its `type`.

    Args:
      where: the source's name in messages, such as `data.sources.pairs`.

    Raises:
      ConfigError: for an unknown type or an invalid setting.
    """
    if isinstance(values, AnySource):
        return values
    if "type" not in values:
        raise ConfigError(f"{where}.type is missing; use one of {', '.join(_TYPES)}")
    check_choice(f"{where}.type", values["type"], _TYPES)
    return _TYPES[values["type"]].parse(values, where)
