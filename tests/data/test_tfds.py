"""Datasets that TensorFlow Datasets has prepared."""

from __future__ import annotations

import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rc3_jax.data import image
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.images import ImageTextSource
from rc3_jax.data.sources.tfds import TFDSSource
from rc3_jax.settings import ConfigError

TEXTS = tfds.features.Sequence(tfds.features.Text())
COUNT = 12


class SomePictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Example i is a picture of colour 10 i; all but one are sound."""

    VERSION = tfds.core.Version("1.0.0")
    folder = None

    def _info(self):
        features = {
            "number": np.int64,
            "image": tfds.features.Image(),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "english": tfds.features.Text(),
            "more": {"german": tfds.features.Text(), "french": TEXTS},
            "captions": tfds.features.Sequence(
                {
                    "text": tfds.features.Text(),
                    "language": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["de", "zh"]),
                }
            ),
            "odd": TEXTS,
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
            "whole": tfds.features.BBoxFeature(),
            "kind": tfds.features.ClassLabel(names=["star", "moon"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            path = self.folder / f"{i}.png"
            Image.new("RGB", (8 + i, 6), (10 * i, 0, 0)).save(path)
            captions = [("Ein Bild.", "de", 0), ("一张图。", "zh", 1), ("两张图。", "zh", 1)]
            box = tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.9)
            yield (
                i,
                {
                    "number": i,
                    "image": str(path),
                    "mask": __file__,  # no image: decoding it would fail
                    "english": f"Picture {i}." if i != 7 else " ",
                    "more": {"german": f"Bild {i}.", "french": [f"Image {i}."]},
                    "captions": [
                        {"text": text, "language": language, "label": label}
                        for text, language, label in captions
                    ],
                    "odd": ["x"],
                    "objects": [{"bbox": box}] if i else [],
                    "whole": box,
                    "kind": i % 2 if i != 5 else -1,  # TFDS has -1 for an unknown class
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    SomePictures.folder = tmp_path_factory.mktemp("pictures")
    folder = tmp_path_factory.mktemp("tfds")
    SomePictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


FIELDS = {
    "image": "image",
    "translations": {"en": "english", "de": "more/german", "fr": "more/french"},
    "captions": {"text": "captions/text", "language": "captions/language"},
    "boxes": "objects/bbox",
}


def read(data_dir, split="train", fields=FIELDS, builder="some_pictures", skips=None):
    values = dict(type="tfds", builder=builder, data_dir=str(data_dir), fields=fields)
    source = TFDSSource.parse(values | dict(train_split="", heldout_split=""), "data.sources.x")
    return source.read(split, skips or Skips())


def test_fields_become_records(data_dir):
    skips = Skips(limit=0.1)
    rows = read(data_dir, skips=skips)
    [reason] = skips.reasons.values()
    assert reason.startswith("some_pictures/train:") and "translations['en']" in reason
    assert len(rows) == COUNT - 1

    strict, weak = ImageTextSource(rows, "strict"), ImageTextSource(rows, "weak")
    assert strict.pairs.keys() == {("de", "en"), ("de", "fr"), ("en", "fr")}
    assert weak.pairs.keys() == {("de", "zh")}
    assert all(len(of_pair) == 11 for source in (strict, weak) for of_pair in source.pairs.values())
    assert weak[0].texts == {"de": ("Ein Bild.",), "zh": ("一张图。", "两张图。")}
    for record in pickle.loads(pickle.dumps(strict)):  # as worker processes receive it
        number = int(record.texts["en"][0].split()[1].rstrip("."))
        assert record.texts["fr"] == (f"Image {number}.",)
        pixels = image.decode(record.image, record.where)
        assert pixels.shape == (6, 8 + number, 3) and np.all(pixels[..., 0] == 10 * number)
        if number:
            np.testing.assert_allclose(record.boxes, [[0.2, 0.1, 0.9, 0.5]])
        else:
            assert record.boxes is None
    assert len({record.group for record in strict}) == 11 and strict.groups <= COUNT


def test_languages_from_labels_and_a_part_of_a_split(data_dir):
    captions = {"text": "captions/text", "language": "captions/label"}
    fields = {"image": "image", "captions": captions}
    rows = read(data_dir, "train[:5]", fields, "some_pictures:1.0.0")
    assert len(rows) == 5 and set(rows[0].captions) == {"de", "zh"}


def test_one_box_of_each_example_and_an_unknown_class(data_dir):
    fields = {"image": "image", "captions": {"en": "kind"}, "boxes": "whole"}
    skips = Skips(limit=0.1)
    rows = read(data_dir, fields=fields, skips=skips)
    assert sorted(row.captions["en"][0] for row in rows) == ["moon"] * 5 + ["star"] * 6
    [(where, reason)] = skips.reasons.items()
    assert "some_pictures/train:" in where and "class -1" in reason
    for row in rows:
        np.testing.assert_allclose(row.boxes, [[0.2, 0.1, 0.9, 0.5]])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(builder="none_such"), r"none_such: .*\[.*some_pictures"),
        (dict(builder="some_pictures:9.9.9"), "some_pictures:9.9.9: "),
        (dict(builder="mnist"), "mnist: .*array_record"),
        (dict(split="test"), "some_pictures: split 'test'"),
        (dict(split="train["), r"some_pictures: split 'train\['"),
        (dict(fields={"image": "photo"}), "'photo'; .*'english'"),
        (dict(fields={"boxes": "objects/box"}), "'objects/box'; .*'bbox'"),
        (dict(fields={"captions": {"de": "more"}}), "'more'; .*'german'"),
        (dict(fields={"boxes": "odd"}), "'odd'"),
        (dict(fields={"captions": {"xx": "english"}}), r"train:0: .*captions\['xx'\]"),
        (dict(fields={"captions": {"en": "number"}}), r"train:0: .*captions\['en'\]"),
        (dict(fields={"captions": {"text": "captions/text", "language": "odd"}}), "train:0: "),
        (dict(data_dir="/nowhere"), "data_dir /nowhere"),
    ],
)
def test_mistakes_in_the_config_are_named(data_dir, wrong, named):
    wrong = wrong | {"fields": FIELDS | wrong.get("fields", {})}
    with pytest.raises(DataError, match="(?s)" + named) as refused:
        read(**{"data_dir": data_dir} | wrong)
    right = FIELDS | ({"boxes": None} if "leave it out" in str(refused.value) else {})
    assert len(read(data_dir, "train[:5]", right)) == 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image": "image"}, "fields"),
        ({"captions": {"en": "english"}}, "fields.image"),
        (FIELDS | {"caption": {"en": "english"}}, "fields.caption"),
    ],
)
def test_invalid_fields_are_named(fields, named):
    with pytest.raises(ConfigError, match=rf"data\.sources\.x\.{named}\b"):
        read("", fields=fields)


def test_a_format_without_random_access_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    [info] = tmp_path.glob("some_pictures/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))

    class Anew(SomePictures):  # registered, as TFDS's own are
        VERSION = SomePictures.VERSION

    with pytest.raises(DataError, match="(?s)split 'train'.*another folder") as refused:
        read(tmp_path, builder="anew")
    call = r"tfds\.builder\('(\w+)', .*file_format='(\w+)'\)\.download_and_prepare"
    name, kind = re.search(call, str(refused.value)).groups()
    tfds.builder(name, data_dir=tmp_path / "other", file_format=kind).download_and_prepare()
    assert len(read(tmp_path / "other", "train[:5]", builder="anew")) == 5


def test_reading_takes_no_tensorflow(data_dir):
    rows = read(data_dir, "train[:1]")
    assert rows[0].image()[:4] == b"\x89PNG" and "tensorflow" not in sys.modules
