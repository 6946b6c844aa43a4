"""Folders of Hugging Face models: hub names, settings, sentence encoders, pixels' normalisation."""

from __future__ import annotations

import json
import math
import pathlib
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.huggingface import read_tower, template_of, tower_files
from rc3_jax.convert.huggingface_source import image_normalisation, locate, sentence_encoder
from rc3_jax.convert.torch_file import TensorFileError
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import visual_settings
from rc3_jax.settings import ConfigError
from tests.vision_reference import random_like

NAME = "FacebookAI/xlm-roberta-base"
SIZES = dict(width=12, depth=4, heads=3, mlp_width=14)
TEXT = TextSettings(**SIZES, max_positions=9)


def _write(folder: pathlib.Path, kind: str = "text", **changes) -> pathlib.Path:
    """A folder with the text tower or a visual tower of a type; `changes` of its config."""
    image = dict(image_size=18, patch=6)
    settings = TEXT if kind == "text" else visual_settings(dict(type=kind, **image, **SIZES))
    tensors, config = tower_files(settings, random_like(template_of(settings, 11)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    assert locate(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name").mkdir()
    assert locate("name") == pathlib.Path("name")
    for missing in ("a/b/c", "/no/folder", "../a", "beit.pth", "a b"):
        with pytest.raises(ConfigError, match=missing):
            locate(missing)


@pytest.mark.parametrize("allow_pickle", [True, False])
def test_names_are_looked_up_on_the_hub(tmp_path, monkeypatch, allow_pickle):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(NAME, allow_pickle) == tmp_path
    assert asked["name"] == NAME and "*.safetensors" in asked["allow_patterns"]
    assert any("bin" in pattern for pattern in asked["allow_patterns"]) == allow_pickle


@pytest.mark.parametrize("error", [OSError("no route\nto it"), ValueError("bad name")])
def test_failures_of_the_hub_name_the_model(monkeypatch, error):
    def download(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match=f"{NAME} .*or name a folder that holds") as caught:
        locate(NAME)
    assert "to it" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, changes, named",
    [
        ("text", dict(model_type="bert"), "model_type='bert'"),
        ("text", dict(model_type="vit"), "model_type='vit'"),
        ("text", dict(model_type=None), "model_type=None"),
        ("text", dict(model_type=["vit"]), "model_type="),
        ("text", dict(model_type="x", auto_map={"AutoConfig": "x.C"}), "model_type='x'"),
        ("text", dict(pad_token_id=0), "pad_token_id=0"),
        ("text", dict(position_embedding_type="relative_key"), "position_embedding_type="),
        ("text", dict(is_decoder=True), "is_decoder=True"),
        ("text", dict(hidden_act="quick_gelu"), "hidden_act='quick_gelu'"),
        ("text", dict(hidden_size=13), "width=13"),
        ("text", dict(num_hidden_layers="4"), "num_hidden_layers"),
        ("text", dict(num_hidden_layers=10**9), "depth=1000000000"),
        ("text", dict(vocab_size=True), "vocab_size"),
        ("text", dict(layer_norm_eps="x"), "layer_norm_eps"),
        ("text", dict(vocab_size=12), "mis-shaped: embeddings.word_embeddings.weight"),
        ("text", dict(num_hidden_layers=3), "extra: encoder.layer.3.attention.self.query.weight"),
        ("vit", dict(model_type="xlm-roberta"), "model_type='xlm-roberta'"),
        ("vit", dict(hidden_act="relu"), "hidden_act='relu'"),
        ("vit", dict(num_channels=1), "num_channels=1"),
        ("vit", dict(qkv_bias=False), "qkv_bias=False"),
        ("vit", dict(image_size=[18, 12]), "image_size=.18, 12."),
        ("vit", dict(patch_size=20), "image_size=0"),
        ("vit", dict(layer_norm_eps=math.inf), "epsilon=inf"),
        ("vit", dict(layer_norm_eps=10**400), "layer_norm_eps"),
        ("vit", dict(image_size=10**7, patch_size=1), "image_size"),
        ("vit", dict(num_hidden_layers=5), "missing: encoder.layer.4.layernorm_before.weight"),
        ("vit", dict(model_type="clip", vision_config=3), "vision_config"),
        ("beit", dict(use_absolute_position_embeddings=True), "use_absolute_position_embeddings"),
    ],
)
def test_settings_that_no_tower_has_are_refused(tmp_path, kind, changes, named):
    folder = _write(tmp_path, kind, **changes)
    with pytest.raises(ConfigError, match=named) as error:
        read_tower(folder, part="text" if kind == "text" else "patch")
    assert str(folder) in str(error.value)
    if known := re.search(r"; use one of ([\w-]+)", str(error.value)):
        _write(folder, kind, model_type=known[1])
        read_tower(folder, part="text" if kind == "text" else "patch")


def test_sizes_as_two_numbers_and_defaults_of_nested_settings(tmp_path):
    found = read_tower(_write(tmp_path / "a", "vit", image_size=[19, 19]), part="patch")
    assert found.settings.image_size == 18
    assert any("18 pixels" in note for note in found.notes)
    folder = _write(tmp_path / "b", "siglip")
    config = json.loads((folder / "config.json").read_text())
    given = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for key in ("vision_config", "vision_config_dict"):  # the second in files of 2021
        vision = {name: config[name] for name in (*given, "image_size", "patch_size")}
        (folder / "config.json").write_text(json.dumps({"model_type": "siglip", key: vision}))
        if key == "vision_config":
            found = read_tower(folder, part="patch").settings
            assert (found.epsilon, found.activation) == (1e-6, "gelu_tanh")


def test_damaged_tensors_are_refused(tmp_path):
    folder = _write(tmp_path, "beit")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: x for name, x in tensors.items() if "relative" not in name}
    twice = tensors | {f"beit.{name}": x for name, x in tensors.items()}
    whole = {name: x.astype(np.int32) for name, x in tensors.items()}
    for damaged, named in ((kept, "missing: "), (twice, "twice"), (whole, "quantisation")):
        save_file(damaged, path)
        with pytest.raises((ConfigError, TensorFileError), match=named):
            read_tower(folder, part="patch")
    save_file(tensors, path)
    read_tower(folder, part="patch")
    single = _write(tmp_path / "vit", "vit") / "model.safetensors"
    with pytest.raises(TensorFileError, match="name the folder that holds config.json"):
        read_tower(single, part="patch")
    read_tower(single.parent, part="patch")


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000])
def test_broken_settings_are_refused(tmp_path, content):
    folder = _write(tmp_path)
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(TensorFileError, match="config.json"):
        read_tower(folder, part="text")


def test_options_of_the_other_part_are_refused(tmp_path):
    for options in (dict(part="text", image_size=6), dict(part="patch", layers=[1])):
        with pytest.raises(ConfigError, match="image_size is for patch towers"):
            read_tower(tmp_path, **options)
    with pytest.raises(ConfigError, match="part='roi'"):
        read_tower(tmp_path, part="roi")
    with pytest.raises(ConfigError, match="position_offset=0"):
        tower_files(TEXT.model_copy(update=dict(position_offset=0)), {})


TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True}


def _encoder(folder: pathlib.Path, modules: object, pooling: object = None) -> pathlib.Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or MEAN))
    return folder


@pytest.mark.parametrize(
    "pooling, expected",
    [
        (MEAN, "mean"),
        (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), "cls"),
        (dict(pooling_mode="cls"), "cls"),
        (dict(pooling_mode=["mean"]), "mean"),
    ],
)
@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_sentence_encoders(tmp_path, pooling, expected, place):
    modules = [TRANSFORMER | dict(path=place), POOLING, NORMALIZE]
    folder = _encoder(tmp_path, modules, pooling)
    assert sentence_encoder(folder) == (folder / place, expected)
    assert read_tower(_write(folder / place) and folder, part="text").pooling == expected


def test_other_folders_are_transformers(tmp_path):
    assert sentence_encoder(tmp_path) == (tmp_path, None)


@pytest.mark.parametrize(
    "modules, pooling, named",
    [
        ([TRANSFORMER, POOLING, DENSE], None, "Dense"),
        ([TRANSFORMER], None, "Pooling"),
        ([POOLING, TRANSFORMER], None, "Pooling, Transformer"),
        ([TRANSFORMER, POOLING, POOLING], None, "Pooling, Pooling"),
        ([TRANSFORMER | dict(path="../a"), POOLING], None, "'../a'"),
        ([TRANSFORMER | dict(path="/a"), POOLING], None, "'/a'"),
        ([{"path": ""}], None, "modules.json"),
        ({"a": 1}, None, "modules.json"),
        (3, None, "modules.json"),
        ([TRANSFORMER, POOLING], dict(pooling_mode_max_tokens=True), "'max'"),
        ([TRANSFORMER, POOLING], MEAN | dict(pooling_mode_cls_token=True), "'mean', 'cls'"),
        ([TRANSFORMER, POOLING], dict(dim=3), "pooling_mode"),
        ([TRANSFORMER, POOLING], dict(pooling_mode="lasttoken"), "'lasttoken'"),
    ],
)
def test_other_encoders_are_refused(tmp_path, modules, pooling, named):
    with pytest.raises(ConfigError, match=named) as refused:
        sentence_encoder(_encoder(tmp_path, modules, pooling))
    if "; use an encoder" in str(refused.value):
        shutil.rmtree(tmp_path / "1_Pooling")
        other = _encoder(tmp_path, [TRANSFORMER, POOLING, NORMALIZE], MEAN)
        assert sentence_encoder(other)[1] == "mean"


PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@pytest.mark.parametrize(
    "file, settings, expected",
    [
        (PREPROCESSOR, dict(image_mean=[0.1, 0.2, 1]), dict(image_mean=(0.1, 0.2, 1))),
        (PREPROCESSOR, dict(size=18), {}),
        (
            PREPROCESSOR,
            dict(do_normalize=False, image_mean=[3, 3, 3]),
            dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3),
        ),
        (PROCESSOR, dict(image_processor=dict(image_std=[0.5] * 3)), dict(image_std=(0.5,) * 3)),
        (PROCESSOR, dict(image_processor=3), {}),
        ("other.json", dict(image_mean=3), {}),
    ],
)
def test_normalisation_of_pixels(tmp_path, file, settings, expected):
    (tmp_path / file).write_text(json.dumps(settings))
    assert image_normalisation(tmp_path, 18, []) == expected
    assert read_tower(_write(tmp_path, "vit"), part="patch").normalisation == expected


IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
IN_255 = dict(image_mean=[123.675, 116.28, 103.53], image_std=[58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    "settings",
    [
        IMAGENET,
        IMAGENET | dict(do_rescale=True, rescale_factor=0.00392156862745098),
        IMAGENET | dict(rescale_factor=0.0039),  # as some write it
        IN_255 | dict(do_rescale=False),
        IN_255 | dict(do_rescale=False, rescale_factor=1 / 255),
        IN_255 | dict(rescale_factor=1),
        IMAGENET | dict(rescale_factor=1 / 127.5),
        IMAGENET | dict(rescale_factor=1 / 127.5, rescale_offset=True),
        dict(do_normalize=False, rescale_factor=1 / 127.5, offset=True),
        dict(do_normalize=False, do_rescale=False),
        dict(do_rescale=False, image_mean=[0, 0, 0], image_std=[1, 1, 1]),
        dict(do_rescale=True, do_normalize=False),
    ],
)
def test_normalisation_is_what_the_image_processor_computes(tmp_path, settings):
    """Against the steps of transformers' processors: a factor, an offset, statistics."""
    (tmp_path / PREPROCESSOR).write_text(json.dumps(settings))
    found = image_normalisation(tmp_path, 18, [])
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3)).astype(np.float64)
    expected = pixels
    if settings.get("do_rescale", True):
        expected = pixels * settings.get("rescale_factor", 1 / 255)
        expected = expected - (settings.get("offset") or settings.get("rescale_offset") or 0)
    if settings.get("do_normalize", True):
        expected = (expected - settings["image_mean"]) / settings["image_std"]
    ours = (pixels / 255 - found["image_mean"]) / found["image_std"]
    np.testing.assert_allclose(ours, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    "settings, named",
    [
        (IN_255, ("123.675", "do_rescale=True")),
        (IN_255 | dict(do_rescale=True), ("123.675", "do_rescale=True")),
        (IMAGENET | dict(do_rescale=False), ("0.229", "do_rescale=False")),
        (IMAGENET | dict(rescale_factor=1), ("0.229", "rescale_factor=1")),
        (IN_255 | dict(rescale_factor=1 / 127.5), ("123.675", "rescale_factor=0.00784")),
        (dict(image_mean=[0.5] * 3, image_std=[58.0] * 3), ("58.0", "rescale_factor=0.0039")),
        (dict(image_mean=[123.0] * 3, do_rescale=False), ("image_std", "do_rescale=False")),
        (dict(do_rescale="no"), ("do_rescale",)),
        (dict(rescale_factor=0), ("rescale_factor",)),
    ],
)
def test_statistics_of_other_pixels_are_refused(tmp_path, settings, named):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=PREPROCESSOR) as error:
        read_tower(_write(tmp_path, "vit"), part="patch")
    assert all(name in str(error.value) for name in named)
    if pixels := re.search(r"pixels of (\S+) to ([\d.]+).*; (write|correct)", str(error.value)):
        low, high = float(pixels[1]), float(pixels[2])
        given = dict(image_mean=[(low + high) / 2] * 3, image_std=[(high - low) / 4] * 3)
        (tmp_path / PREPROCESSOR).write_text(json.dumps(settings | given))
        read_tower(tmp_path, part="patch")


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(size={"height": 18, "width": 18}, resample=3, do_center_crop=False), None),
        (dict(size=18), None),
        (dict(size=24), "size=24"),
        (dict(size={"shortest_edge": 18}), "shortest_edge"),
        (dict(resample=2), "resample=2"),
        (dict(do_center_crop=True), "do_center_crop"),
    ],
)
def test_other_preparation_of_images_is_told(tmp_path, settings, named):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(settings | IMAGENET))
    notes = read_tower(_write(tmp_path, "vit"), part="patch").notes
    assert len(notes) == (named is not None) and (not notes or named in notes[0])


@pytest.mark.parametrize(
    "values",
    [
        dict(image_mean=[1, 2]),
        dict(image_mean="abc"),
        dict(image_mean=[1, 2, "3"]),
        dict(image_mean=[1, 2, math.nan]),
        dict(image_mean=[1, 2, 10**400]),
        dict(image_std=[1, 0, 1]),
    ],
)
def test_invalid_normalisation_is_refused(tmp_path, values):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"{PREPROCESSOR}.*{next(iter(values))}"):
        image_normalisation(tmp_path, 18, [])
