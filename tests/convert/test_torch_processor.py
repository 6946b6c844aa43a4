"""The exported processor: pixels, token ids and regions as our own evaluation makes them."""

from __future__ import annotations

import copy
import importlib
import json
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.example import evaluation_row
from rc3_jax.data.record import Record
from rc3_jax.data.text import MAX_CHARACTERS, clean_caption, usable_text
from rc3_jax.data.tokenizer import from_json
from rc3_jax.models.base import normalise_pixels
from tests.convert.exported import (
    FEATURE_SIZE,
    MAX_LENGTH,
    REGIONS,
    scene_captions,
    tiny_tokenizer,
)
from tests.vision_reference import require

torch = require("torch")
transformers = require("transformers")
processing_rc3 = importlib.import_module("rc3_jax.convert.torch_model.processing_rc3")

TEXTS = [
    *(text for several in scene_captions("test", 10).values() for text in several),
    "  Zwei   rote Kreise,\tund ein blaues Dreieck! ",
    "ｆｕｌｌ　ｗｉｄｔｈ 猫が二匹います。",
    "Příliš žluťoučký kůň – úpěl; l'été <mask> <person> #1",
    "très long " * 60,
]


def load(folder):
    return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def processor(exported):
    return load(exported.folder)


@pytest.fixture(scope="module")
def cleaning(exported, tmp_path_factory):
    """A processor that keeps five words of a cleaned text."""
    folder = shutil.copytree(exported.folder, tmp_path_factory.mktemp("cleaning") / "folder")
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(settings | {"max_words": 5}))
    return load(folder)


def photograph(mode: str) -> Image.Image:
    """A smooth picture with some noise, 61 x 45."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:45, :61]
    waves = [np.sin(rows / (5 + i)) + np.cos(columns / (7 - i)) for i in range(4)]
    pixels = 60 * np.stack(waves, axis=-1) + 127 + rng.normal(0, 8, (45, 61, 4))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def save(place, case: str):
    """A file of a photograph: its mode and suffix, and after an @ its EXIF orientation."""
    kind, _, orientation = case.partition("@")
    mode, suffix = kind.split(".")
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = int(orientation)
    path = place / f"image.{suffix}"
    options = dict(transparency=3) if case == "P.gif" else {}
    photograph(mode).save(path, exif=exif, **options)
    return path


CASES = ["RGB.jpg", "RGB.png", "RGBA.png", "LA.png", "P.png", "P.gif", "L.jpg", "1.png"]
CASES += ["I;16.png", "CMYK.jpg", "RGBA.webp", "I;16.tiff", "RGB.tiff@6", "I;16.png@6"]
CASES += [f"RGB.jpg@{orientation}" for orientation in range(2, 9)]


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_those_of_evaluation(exported, processor, tmp_path, case):
    path, model = save(tmp_path, case), exported.config.model
    row = evaluation_row(Record(str(path), 0, {}, path), exported.config)
    mean, std = (np.array(model[name], np.float32) for name in ("image_mean", "image_std"))
    expected = (row["image"].astype(np.float32) / 255 - mean) / std
    # XLA divides by a constant in its own way.
    by_model = normalise_pixels(row["image"], mean, std)
    np.testing.assert_allclose(expected, by_model, rtol=0, atol=5e-7)
    with Image.open(path) as opened:
        given = processor(images=[path, str(path), opened])["pixel_values"]
    assert given.dtype == torch.float32 and given.shape == (3, 3, 32, 32)
    for image in given.numpy():
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_arrays_and_damaged_exif_data(processor, tmp_path):
    pixels = np.asarray(photograph("RGB"))
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    one = processor(images=pixels)["pixel_values"]
    both = processor(images=np.stack([pixels, pixels]), return_tensors="np")["pixel_values"]
    assert isinstance(both, np.ndarray) and both.shape == (2, 3, 32, 32)
    for other in (both[1:], processor(images=tmp_path / "image.png")["pixel_values"]):
        torch.testing.assert_close(torch.as_tensor(other), one, rtol=0, atol=0)


def test_token_ids_and_texts_equal_ours(processor, cleaning):
    tokenizer, ids = tiny_tokenizer(), processor(text=TEXTS)["input_ids"]
    assert ids.dtype == torch.int64
    texts = [usable_text(text) for text in TEXTS]
    np.testing.assert_array_equal(ids, tokenizer.encode(texts))
    np.testing.assert_array_equal(processor(text=TEXTS[0])["input_ids"], ids[:1])
    assert processor.batch_decode(ids) == [tokenizer.decode(row) for row in ids.tolist()]
    cleaned = from_json(tokenizer.to_json(), MAX_LENGTH, lambda text: clean_caption(text, 5))
    np.testing.assert_array_equal(cleaning(text=TEXTS)["input_ids"], cleaned.encode(texts))


def test_regions_equal_ours(exported, processor, tmp_path):
    rng = np.random.default_rng(4)
    rows = []
    for count, features in ((REGIONS + 2, True), (1, False), (0, True), (0, False)):
        boxes = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        found = rng.normal(size=(count, FEATURE_SIZE)).astype(np.float32)
        rows.append({"boxes": boxes} | ({"features": found} if features else {}))
    path = save(tmp_path, "RGB.png")
    expected = [
        evaluation_row(Record("", 0, {}, path, row["boxes"], row.get("features")), exported.config)
        for row in rows
    ]
    given = processor(regions=[*rows[:3], None])
    for name in ("region_features", "region_boxes", "region_mask", "has_features"):
        ours = np.stack([row[name] for row in expected])
        np.testing.assert_array_equal(given[name].numpy(), ours, strict=True)
    one = processor(regions={"boxes": rows[1]["boxes"].tolist()})
    np.testing.assert_array_equal(one["region_boxes"], given["region_boxes"][1:2])


def test_inputs_that_are_refused_are_mended_as_advised(processor, tmp_path):
    pixels, box = photograph("RGB"), {"boxes": [[0.1, 0.1, 0.5, 0.5]]}
    array, two = np.asarray(pixels), [pixels] * 2
    with_features = dict(regions=box | {"features": np.zeros((1, FEATURE_SIZE))})
    for wrong, advice, mended in (
        (dict(images=np.zeros((4, 4), np.uint8)), r"or uint8 \[height", dict(images=array)),
        (dict(images=array / 255), "float64 .* give a Pillow image", dict(images=pixels)),
        (dict(images=[]), "give one or several", dict(images=two)),
        (dict(images=two, regions=box), "None where", dict(images=two, regions=[box, None])),
        (dict(regions=[]), "give those of each image", dict(regions=[box])),
        (dict(regions={"boxes": [[0, 0, 20, 30]]}), "0 to 1, and have an area", dict(regions=box)),
        (dict(regions=box | {"features": np.zeros((1, 4))}), r"must be \[1, 5\]", with_features),
        (dict(regions=box | {"features": np.full((1, FEATURE_SIZE), 1e39)}), "float32", {}),
        (dict(regions=box | {"features": np.full((1, FEATURE_SIZE), np.nan)}), "NaN", {}),
        (dict(regions={"boxes": [[0.1, np.nan, 0.5, 0.5]]}), "boxes", {}),
        (dict(regions={"boxes": [[0.5, 0.5, 0.2, 0.2]]}), "boxes", {}),  # width and height
        (dict(text="a " * 1001), "shorten or split", dict(text=["a " * 500, "a"])),
        (dict(text=["a", "."]), "write it, or leave it out", dict(text=["a"])),
    ):
        with pytest.raises(ValueError, match=advice):
            processor(**wrong)
        processor(**mended)
    bare = copy.copy(processor)
    bare.regions = 0
    with pytest.raises(ValueError, match="leave the regions out"):
        bare(images=pixels, regions=box)
    bare(images=pixels)
    with pytest.raises(FileNotFoundError):
        processor(images=tmp_path / "nothing.png")


def accepted(usable, text):
    try:
        return usable(text)
    except ValueError:
        return None


ODD = ".!…\u3164\u2800\u200b\u200d\u200e\u202e\u2066\ufeff\x00\x07\x85\t\n \u3000\ud800e\u0301☃#a中"


@hypothesis.given(st.one_of(st.text(), st.text(st.sampled_from(ODD))))
@hypothesis.example("a" * MAX_CHARACTERS)
@hypothesis.example("a" * (MAX_CHARACTERS + 1))
@hypothesis.example("\u200b")
@hypothesis.example(".")
def test_texts_are_those_that_training_takes(text):
    """The exported file holds a copy of the rules."""
    assert accepted(processing_rc3.usable_text, text) == accepted(usable_text, text)


@pytest.mark.parametrize("text", ["", " ", ".", "...", "\u200b", "\u3164", "\x00\x07", "a" * 2001])
def test_texts_that_training_refuses_are_refused(processor, cleaning, text):
    for one in (processor, cleaning):
        with pytest.raises(ValueError):
            one(text=["a dog", text])


def test_texts_are_normalised_as_in_training(processor):
    given = processor(text=["e\u0301te\u0301\u202e", "a\x00 dog\x85runs"])["input_ids"]
    np.testing.assert_array_equal(given, tiny_tokenizer().encode(["été", "a dog runs"]))


def test_damaged_images_are_refused(processor, tmp_path):
    whole = save(tmp_path, "RGB.png").read_bytes()
    contents = {"cut.png": whole[: len(whole) // 2], "text.jpg": b"no image", "empty.png": b""}
    Image.new("F", (4, 4), 700.0).save(tmp_path / "range.tiff")
    Image.new("F", (4, 4), float("nan")).save(tmp_path / "nan.tiff")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "range.tiff", "nan.tiff"):
        with pytest.raises(ValueError, match=name):
            processor(images=tmp_path / name)
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(ValueError, match="decoded"):
        processor(images=[opened])
    with pytest.raises(ValueError, match="images"):
        processor(images=[])


def test_large_images_are_refused_before_they_are_decoded(processor, tmp_path):
    Image.new("1", (2**13, 2**13 + 1)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png"):
        processor(images=tmp_path / "large.png")


def test_float_and_deep_images_are_scaled(processor):
    grey = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    expected = processor(images=Image.fromarray((grey * 255).astype(np.uint8)))["pixel_values"]
    deep = Image.fromarray((grey * 65535).astype(np.int32))
    for image in (Image.fromarray(grey), Image.fromarray(grey * 255), deep):
        found = processor(images=image)["pixel_values"]
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert stored["image_size"] == 32 and stored["regions"] == REGIONS
    given = dict(text=TEXTS, images=[photograph("RGB")] * len(TEXTS))
    first, second = (one(**given) for one in (processor, load(tmp_path / "saved")))
    assert all(torch.equal(first[name], second[name]) for name in first)
