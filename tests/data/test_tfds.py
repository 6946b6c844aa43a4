from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rc3_jax.data import image
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.rows import ImageTextSource
from rc3_jax.data.sources.tfds import read_tfds

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


def test_fields_become_records(data_dir):
    skips = Skips(limit=0.1)
    rows = read_tfds("some_pictures", data_dir, "train", FIELDS, skips)
    [reason] = skips.reasons.values()
    assert (
        reason.startswith("some_pictures/train:") and "translations['en'] holds an empty" in reason
    )
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
    fields = {
        "image": "image",
        "captions": {"text": "captions/text", "language": "captions/label"},
    }
    rows = read_tfds("some_pictures:1.0.0", data_dir, "train[:5]", fields)
    assert len(rows) == 5 and set(rows[0].captions) == {"de", "zh"}


def test_as_many_languages_as_texts_are_needed(data_dir):
    fields = {"image": "image", "captions": {"text": "captions/text", "language": "odd"}}
    with pytest.raises(DataError, match=r"12 of 12 (?s:.)*train:0: as many languages as texts"):
        read_tfds("some_pictures", data_dir, "train", fields)


@pytest.mark.parametrize(
    ("name", "split", "fields", "message"),
    [
        ("none_such", "train", {}, r"TFDS knows no such dataset, and .* holds \[.*some_pictures"),
        ("some_pictures:9.9.9", "train", {}, "TFDS knows no such dataset"),
        ("mnist", "train", {}, "does not exist\nPrepare it with .*array_record.*_prepare"),
        ("some_pictures", "test", {}, r"Unknown split 'test'. Should be one of \['train'\]"),
        ("some_pictures", "train[", {}, "cannot be read.*correct name, split"),
        ("some_pictures", "train", {"image": "photo"}, "no field 'photo'; .*english, image, mask"),
        ("some_pictures", "train", {"boxes": "objects/box"}, "no field .*objects/bbox, odd"),
        ("some_pictures", "train", {"captions": {"de": "more"}}, "no field 'more'; .*more/german"),
        ("some_pictures", "train", {"boxes": "odd"}, "'odd' is not a BBoxFeature; leave it out"),
        ("some_pictures", "train", {"caption": {"en": "english"}}, "give image, captions or"),
        ("some_pictures", "train", {"captions": {}, "translations": {}}, "give image, captions or"),
        ("some_pictures", "train", {"captions": {"xx": "english"}}, "unknown language code 'xx'"),
        ("some_pictures", "train", {"captions": {"en": "number"}}, "holds int .*, not a text"),
    ],
)
def test_mistakes_in_the_config_are_errors_with_the_remedy(data_dir, name, split, fields, message):
    with pytest.raises(DataError, match="(?s)" + message):
        read_tfds(name, data_dir, split, {**FIELDS, **fields})


def test_missing_folder_and_format_without_random_access(data_dir, tmp_path):
    with pytest.raises(DataError, match="data_dir .*none is missing; give the folder"):
        read_tfds("some_pictures", tmp_path / "none", "train", FIELDS)
    without_image = {key: value for key, value in FIELDS.items() if key != "image"}
    with pytest.raises(DataError, match="give image"):
        read_tfds("some_pictures", data_dir, "train", without_image)
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    [info] = tmp_path.glob("some_pictures/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="(?s)Random access .*not supported.*array_record"):
        read_tfds("some_pictures", tmp_path, "train", FIELDS)


def test_reading_takes_no_tensorflow(data_dir):
    script = (
        "import sys; from rc3_jax.data.sources.tfds import read_tfds\n"
        f"row = read_tfds('some_pictures', {str(data_dir)!r}, 'train[:1]', "
        "{'image': 'image', 'captions': {'de': 'more/german'}})[0]\n"
        "assert row.image()[:4] == b'\\x89PNG' and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
