"""Any TFDS dataset of images and texts that is prepared in a random-access format.

Reading takes no TensorFlow. A config says which field is what; `/` enters nested fields:

    fields = {
        "image": "image",
        "translations": {"en": "caption_en", "de": "caption_de"},
        "captions": {"text": "captions/text", "language": "captions/language"},
        "boxes": "objects/bbox",
    }

Texts come from one field a language, or from a field `text` with a field `language` beside it.
A field holds one text or a sequence of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.regions import boxes_as_fractions
from rc3_jax.data.sources.rows import ImageRow, checked_texts


def read_tfds(
    name: str,
    data_dir: pathlib.Path | str,
    split: str,
    fields: Mapping[str, Any],
    skips: Skips | None = None,
) -> list[ImageRow]:
    """Reads the texts and boxes of a split once, for `ImageTextSource`s of any kind.

    Images are fetched when they are decoded, not before.

    Args:
      name: builder, such as `coco_captions` or `my_dataset/my_config:1.0.0`.
      split: as TFDS writes it, such as `train` or `train[:10%]`.
      fields: which field is what (see above); `image` is needed.
      skips: gathers the examples that cannot be used.

    Raises:
      DataError: unknown builder, split or field, data that are not there or cannot be read at
        random, no example, or more bad ones than `skips` allows.
    """
    examples, features = _open(name, data_dir, split)
    texts = {key: fields.get(key, {}) for key in ("translations", "captions")}
    unknown = fields.keys() - {"image", "translations", "captions", "boxes"}
    if unknown or "image" not in fields or not any(texts.values()):
        raise DataError(
            f"{name}: fields are {sorted(fields)}; give image, captions or translations or both, "
            "and boxes if there are any"
        )
    kinds = {path: _feature(features, path, name) for path in _paths(fields)}
    boxes = fields.get("boxes")
    if boxes and not isinstance(kinds[boxes], tfds.features.BBoxFeature):
        raise DataError(f"{name}: field {boxes!r} is not a BBoxFeature; leave it out")

    bad = Skips((skips or Skips()).limit)
    rows = []
    for index in range(len(examples)):
        where = f"{name}/{split}:{index}"
        example = examples[index]
        try:
            read = {
                key: checked_texts(key, _texts(example, of_key, kinds, where), where)
                for key, of_key in texts.items()
            }
            if not any(read.values()):
                raise BadRecord(f"{where}: no text in {texts}; remove the example")
            rows.append(
                ImageRow(
                    where,
                    index,
                    _Fetch(examples, index, fields["image"]),
                    **read,
                    boxes=_boxes(_values(example, boxes), where) if boxes else None,
                )
            )
        except BadRecord as error:
            bad.add(where, str(error))
    bad.hand_over(skips, len(examples), f"{name}/{split}")
    if not rows:
        raise DataError(f"{name}: split {split!r} is empty; choose another")
    return rows


@dataclasses.dataclass(frozen=True, slots=True)
class _Fetch:
    """Returns the encoded image of an example when called."""

    examples: Sequence[Mapping[str, Any]]
    index: int
    field: str

    def __call__(self) -> bytes:
        return _at(self.examples[self.index], self.field)


def _open(
    name: str, data_dir: pathlib.Path | str, split: str
) -> tuple[Sequence[Mapping[str, Any]], tfds.features.FeaturesDict]:
    """Opens a prepared dataset, whose images stay encoded."""
    if not pathlib.Path(data_dir).is_dir():
        raise DataError(f"{name}: data_dir {data_dir} is missing; give the folder TFDS wrote to")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.data_path.exists():
            raise FileNotFoundError(f"{builder.data_path} does not exist")
        undecoded = _skip_decoding(builder.info.features)
        return builder.as_data_source(split, decoders=undecoded), builder.info.features
    except tfds.core.DatasetNotFoundError as error:
        found = sorted(path.name for path in pathlib.Path(data_dir).iterdir() if path.is_dir())
        raise DataError(
            f"{name}: TFDS knows no such dataset, and {data_dir} holds {found}; correct the name"
        ) from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{name}: split {split!r} in {data_dir} cannot be read: {str(error)[:500]}\nPrepare "
            f"it with tfds.builder({name!r}, data_dir=..., file_format='array_record')"
            ".download_and_prepare(), or correct name, split and data_dir"
        ) from error


def _skip_decoding(features: tfds.features.FeaturesDict) -> dict[str, Any]:
    """Returns decoders that leave images encoded; TFDS has none such within sequences."""
    return {
        key: _skip_decoding(inner)
        if isinstance(inner, tfds.features.FeaturesDict)
        else tfds.decode.SkipDecoding()
        for key, inner in features.items()
        if not isinstance(inner, tfds.features.Sequence)
    }


def _leaves(feature: tfds.features.FeatureConnector, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the feature of every leaf."""
    if isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path)
    elif isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _leaves(inner, f"{path}/{key}" if path else key)
    else:
        yield path, feature


def _feature(features: tfds.features.FeaturesDict, path: str, name: str) -> Any:
    leaves = dict(_leaves(features))
    if path not in leaves:
        raise DataError(f"{name}: no field {path!r}; the fields are {', '.join(sorted(leaves))}")
    return leaves[path]


def _paths(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yields the path of every field in a mapping of fields."""
    for path in fields.values():
        yield from _paths(path) if isinstance(path, Mapping) else [path]


def _at(example: Mapping[str, Any], path: str) -> Any:
    for key in path.split("/"):
        example = example[key]
    return example


def _values(example: Mapping[str, Any], path: str) -> list[Any]:
    """Returns the values of a field; one alone as a list, too."""
    values = _at(example, path)
    return list(values) if isinstance(values, list | np.ndarray) else [values]


def _texts(
    example: Mapping[str, Any], fields: Mapping[str, str], kinds: Mapping[str, Any], where: str
) -> dict[str, list[str]]:
    """Returns language → texts as an example has them, unchecked."""
    strings = {key: _strings(example, path, kinds) for key, path in fields.items()}
    if fields.keys() != {"text", "language"}:
        return strings
    if len(strings["text"]) != len(strings["language"]):
        raise BadRecord(f"{where}: as many languages as texts are needed; remove the example")
    texts: dict[str, list[str]] = {}
    for language, text in zip(strings["language"], strings["text"], strict=True):
        texts.setdefault(language, []).append(text)
    return texts


def _strings(example: Mapping[str, Any], path: str, kinds: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a field; a class label stands for its name."""
    values = _values(example, path)
    if isinstance(kinds[path], tfds.features.ClassLabel):
        return [kinds[path].int2str(int(value)) for value in values]
    return [
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        for value in values
    ]


def _boxes(boxes: list[np.ndarray], where: str) -> np.ndarray | None:
    """Returns float32 `[regions, 4]` x1, y1, x2, y2 of TFDS's y1, x1, y2, x2 in [0, 1]."""
    if not boxes:
        return None
    y1, x1, y2, x2 = np.stack(boxes).T
    return boxes_as_fractions(np.stack([x1, y1, x2, y2], axis=1), 1, 1, where, tolerance=0.01)
