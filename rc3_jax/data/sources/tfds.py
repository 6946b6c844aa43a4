"""Any TFDS dataset of images and texts that is prepared in a random-access format.

Reading takes no TensorFlow. Texts come from one field a language, or from a field `text` with a
field `language` beside it. A field holds one text or a sequence of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pydantic
from pydantic import Field

from rc3_jax.data.groups import image_key
from rc3_jax.data.jsonl import Captions, Row, Translations
from rc3_jax.data.record import BadRecord, DataError, Kinds, Skips
from rc3_jax.data.regions import usable_boxes
from rc3_jax.data.sources.images import ImageRow, ImageRows, heldout_kinds, train_kinds
from rc3_jax.paths import as_path
from rc3_jax.settings import Settings

Example = Mapping[str, Any]


class Fields(Settings):
    """Which field of a dataset is what; `/` enters nested fields."""

    image: str
    translations: dict[str, str] = Field({})
    captions: dict[str, str] = Field({})
    boxes: str | None = None
    """A `BBoxFeature`."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if not self.translations and not self.captions:
            raise ValueError("give captions or translations or both")
        return self


class TFDSRow(Row):
    """The texts of an example."""

    translations: Translations
    captions: Captions

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if not self.translations and not self.captions:
            raise ValueError("no text; remove the example")
        return self


class TFDSSource(Settings):
    """A dataset that TensorFlow Datasets has prepared."""

    type: Literal["tfds"] = "tfds"
    builder: str
    """Such as `coco_captions` or `my_dataset/my_config:1.0.0`."""
    data_dir: str
    """The folder that TFDS wrote to."""
    train_split: str
    """As TFDS writes it, such as `train` or `train[:10%]`."""
    heldout_split: str
    fields: Fields

    def open(self, config: Any, skips: Skips) -> tuple[Kinds, Kinds]:
        """Returns the kinds of records to train on, and those held out."""
        train, heldout = (
            self.read(split, skips) for split in (self.train_split, self.heldout_split)
        )
        return train_kinds(train, config.batch_mix), heldout_kinds(heldout)

    def read(self, split: str, skips: Skips) -> ImageRows:
        """Reads the texts and boxes of a split once; images are fetched when they are decoded.

        Raises:
          DataError: unknown builder, split or field, data that are not there or cannot be read at
            random, no example, or more bad ones than `skips` allows.
        """
        examples, features = self._opened(split)
        labels = self._class_labels(features)
        what = f"{self.builder}/{split}"

        def use(where: str, index: int) -> ImageRow:
            example = examples[index]
            given = {
                "translations": _texts(example, self.fields.translations, labels, where),
                "captions": _texts(example, self.fields.captions, labels, where),
            }
            texts = TFDSRow.parse(given, where)
            boxes = self._boxes(example, where, skips)
            key = image_key(_values(example, self.fields.image)[0])
            image = _Fetch(examples, index, self.fields.image)
            row = ImageRow(where, image, texts.translations, texts.captions, boxes)
            rows.add(key, row.translations, row.captions)
            return row

        places = ((f"{what}:{index}", index) for index in range(len(examples)))
        found: list[ImageRow] = []
        rows = ImageRows(found)
        found.extend(skips.usable(places, use, what))
        if not found:
            raise DataError(f"{self.builder}: split {split!r} is empty; choose another")
        return rows

    def _boxes(self, example: Example, where: str, skips: Skips) -> np.ndarray | None:
        """float32 `[regions, 4]` x1, y1, x2, y2 of TFDS's y1, x1, y2, x2 in [0, 1], one or many."""
        given = _values(example, self.fields.boxes) if self.fields.boxes else []
        if not given:
            return None
        boxes = np.asarray(given, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        return usable_boxes(boxes, where, skips, None, (1, 1))

    def _opened(self, split: str) -> tuple[Sequence[Example], Any]:
        """Opens a prepared dataset, whose images stay encoded."""
        import tensorflow_datasets as tfds

        name, folder = self.builder, as_path(self.data_dir, "data_dir")
        if not folder.is_dir():
            raise DataError(f"{name}: data_dir {folder} is missing; give the folder TFDS wrote to")
        try:
            builder = tfds.builder(name, data_dir=folder)
            if not builder.data_path.exists():
                raise FileNotFoundError(f"{builder.data_path} does not exist")
            features = builder.info.features
            return builder.as_data_source(split, decoders=_skip_decoding(features)), features
        except tfds.core.DatasetNotFoundError as error:
            found = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise DataError(
                f"{name}: TFDS knows no such dataset, and {folder} holds {found}; correct the name"
            ) from error
        except (OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{name}: split {split!r} in {folder} cannot be read: {str(error)[:500]}\nCorrect "
                "name, split and data_dir, or prepare it, in another folder if it is there in another "
                f"format, with tfds.builder({name!r}, data_dir=..., file_format='array_record')"
                ".download_and_prepare()"
            ) from error

    def _class_labels(self, features: Any) -> dict[str, Any]:
        """Checks that the fields are there; returns those whose values are numbers of classes."""
        from tensorflow_datasets.core.features import BBoxFeature, ClassLabel

        given = self.fields
        texts = [*given.translations.values(), *given.captions.values()]
        leaves = {path: _leaf(features, path) for path in (given.image, *texts, given.boxes or "")}
        for path, leaf in leaves.items():
            if path and leaf is None:
                known = str(features)[:2000]
                raise DataError(f"{self.builder}: no field {path!r}; the fields are {known}")
        if given.boxes and not isinstance(leaves[given.boxes], BBoxFeature):
            raise DataError(
                f"{self.builder}: field {given.boxes!r} is no BBoxFeature; leave it out"
            )
        return {path: leaves[path] for path in texts if isinstance(leaves[path], ClassLabel)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Fetch:
    """Returns the encoded image of an example when called."""

    examples: Sequence[Example]
    index: int
    field: str

    def __call__(self) -> bytes:
        return _values(self.examples[self.index], self.field)[0]


def _skip_decoding(features: Any) -> dict[str, Any]:
    """Returns decoders that leave images encoded; TFDS has none such within sequences."""
    import tensorflow_datasets as tfds

    return {
        key: _skip_decoding(inner)
        if isinstance(inner, tfds.features.FeaturesDict)
        else tfds.decode.SkipDecoding()
        for key, inner in features.items()
        if not isinstance(inner, tfds.features.Sequence)
    }


def _leaf(feature: Any, path: str) -> Any:
    """Returns the feature at a path, None where there is none or one with others in it."""
    for key in path.split("/"):
        feature = getattr(feature, "feature", feature)  # of a sequence
        if key not in getattr(feature, "keys", tuple)():
            return None
        feature = feature[key]
    feature = getattr(feature, "feature", feature)
    return None if hasattr(feature, "keys") else feature


def _values(example: Example, path: str) -> list[Any]:
    """Returns the values of a field; one alone as a list, too."""
    values: Any = example
    for key in path.split("/"):
        values = values[key]
    return list(values) if isinstance(values, list | np.ndarray) else [values]


def _texts(
    example: Example, fields: Mapping[str, str], labels: Mapping[str, Any], where: str
) -> dict[str, list[Any]]:
    """Returns language → texts as an example has them, unchecked."""
    texts = {key: _strings(example, path, labels.get(path), where) for key, path in fields.items()}
    if fields.keys() != {"text", "language"}:
        return texts
    if len(texts["text"]) != len(texts["language"]):
        raise BadRecord(where, "as many languages as texts are needed; remove the example")
    by_language: dict[str, list[Any]] = {}
    for language, text in zip(texts["language"], texts["text"], strict=True):
        by_language.setdefault(language, []).append(text)
    return by_language


def _class_name(label: Any, number: int, where: str) -> str:
    if not 0 <= number < label.num_classes:
        raise BadRecord(where, f"class {number} is none of {label.num_classes}; remove the example")
    return label.int2str(number)


def _strings(example: Example, path: str, label: Any, where: str) -> list[Any]:
    """Returns the texts of a field; a class label stands for its name."""
    return [
        _class_name(label, int(value), where)
        if label
        else value.decode("utf-8", "surrogateescape")
        if isinstance(value, bytes)
        else value
        for value in _values(example, path)
    ]
