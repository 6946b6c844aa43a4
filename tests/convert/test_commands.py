"""The conversion of checkpoints as a user meets it: folders, files, runs, mistakes."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from rc3_jax.config_cclm import cclm_model
from rc3_jax.convert import cclm_files
from rc3_jax.convert.cclm import layout_of, to_published
from rc3_jax.convert.cclm_files import cclm_to_flax, flax_to_cclm
from rc3_jax.convert.torch_file import TensorFileError, read_tensors, write_tensors
from rc3_jax.models.cclm import CLIP_MEAN, CLIP_STD
from rc3_jax.settings import ConfigError
from rc3_jax.systems import abstract_params
from rc3_jax.training.load import load_model
from rc3_jax.training.pretrain import train
from rc3_jax.training.run import prepare_run
from tests import processes
from tests.parity.recordings import PRETRAINING, folders, read, require_folder
from tests.tiny import tiny_cclm
from tests.vision_reference import require

RECORDINGS = folders(PRETRAINING) or [None]


@pytest.fixture(params=RECORDINGS, ids=str)
def recording(request):
    require_folder(request.param)
    return read(request.param)


@pytest.fixture(scope="module")
def params():
    """Those of a tiny model."""
    shapes = abstract_params("cclm", tiny_cclm().model, 100)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.05, 0.15, x.shape).astype(x.dtype), shapes)


@pytest.fixture
def source(params, tmp_path):
    """The file that the published code would save of them."""
    path = tmp_path / "source.safetensors"
    write_tensors(path, to_published(params, layout_of(tiny_cclm().model)))
    return path


@pytest.fixture
def folder(source, tmp_path):
    """The same model, converted."""
    cclm_to_flax(source, tmp_path / "converted", text_heads=2)
    return tmp_path / "converted"


def assert_equal(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), left, right)


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_a_recording_survives_both_commands(recording, tmp_path, suffix):
    if suffix == ".th":
        require("torch")
    model = recording.settings.model
    tensors = to_published(recording.params, layout_of(model))
    first, second = tmp_path / f"first{suffix}", tmp_path / "deep" / f"second{suffix}"
    folder = tmp_path / "deep" / "folder"
    write_tensors(first, {f"module.{name}": tensor for name, tensor in tensors.items()})
    cclm_to_flax(first, folder, text_heads=model.text.heads)
    flax_to_cclm(folder, second)
    assert_equal(read_tensors(second), tensors)
    assert {path.name for path in folder.parent.iterdir()} == {"folder", second.name}
    assert {path.name for path in folder.iterdir()} == {"params", "config.json"}
    settings = json.loads((folder / "config.json").read_text())
    assert settings["model"]["patch"]["image_size"] == model.patch.image_size
    assert settings["model"]["text"]["heads"] == model.text.heads
    assert settings["vocab_size"] == recording.config["model"]["text"]["vocab_size"]
    assert settings["max_words"] == 40
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert settings["source"] == {"file": first.name, "sha256": digest}
    assert settings["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_a_run_starts_from_a_converted_folder_and_is_exported(params, source, tmp_path):
    folder, workdir = tmp_path / "converted", tmp_path / "run"
    config = tiny_cclm()
    vocab_size = prepare_run(config).tokenizer.vocab_size
    shapes = abstract_params("cclm", config.model, vocab_size)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes)
    write_tensors(source, to_published(params, layout_of(config.model)))
    cclm_to_flax(source, folder, text_heads=config.model.text.heads)
    config.model.update(image_mean=CLIP_MEAN, image_std=CLIP_STD)  # as published
    config.model.text.position_offset = 0
    config.model.roi = cclm_model("cclm_3m").roi
    config.seed, config.init = 5, str(folder)
    assert_equal(jax.tree.map(np.asarray, prepare_run(config).create_state().params), params)

    config.evaluation.images = 0
    for view, terms in config.objective.weights.items():  # one term, which compiles soon
        terms.update({name: float((view, name) == ("image", "contrast")) for name in terms})
    train(config, workdir, console=Console(quiet=True))
    trained = load_model(workdir).params
    newest, earlier = tmp_path / "newest.safetensors", tmp_path / "earlier.safetensors"
    flax_to_cclm(workdir, newest)
    assert_equal(read_tensors(newest), to_published(trained, layout_of(config.model)))
    flax_to_cclm(workdir, earlier, step=2)
    assert np.any(read_tensors(earlier)["temp"] != read_tensors(newest)["temp"])
    with pytest.raises(ConfigError, match="step 3, but of 2, 4"):
        flax_to_cclm(workdir, tmp_path / "none.safetensors", step=3)


def test_a_run_of_another_model_is_refused(folder):
    config = tiny_cclm()
    config.model.tied_decoder = False
    config.init = str(folder)
    with pytest.raises(ConfigError, match=f"{folder}.*model.tied_decoder"):
        prepare_run(config).create_state()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_folders_that_cannot_be_converted(folder, tmp_path):
    target = tmp_path / "out.safetensors"
    empty = tmp_path / "empty"
    (empty / "params").mkdir(parents=True)
    for place, options in ((tmp_path, {}), (empty, {}), (folder, {"step": 1})):
        with pytest.raises(ConfigError, match=str(place)):
            flax_to_cclm(place, target, **options)
    settings = json.loads((folder / "config.json").read_text())
    for text in (
        json.dumps(settings | {"system": "rc3"}),
        json.dumps(settings | {"model": {}}),
        "{",
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=str(folder)):
            flax_to_cclm(folder, target)
    (folder / "config.json").write_text(json.dumps(settings))
    files = [path for path in (folder / "params").rglob("*") if path.is_file()]
    os.truncate(max(files, key=lambda path: path.stat().st_size), 1000)
    with pytest.raises(ConfigError, match=f"{folder}/params"):
        flax_to_cclm(folder, target)
    gc.collect()  # Orbax's other reads of the same folder have failed unseen
    assert not target.exists()


def test_files_that_cannot_be_converted(source, tmp_path):
    tensors = read_tensors(source) | {"queue": np.zeros((2, 3), np.float32)}
    tensors["itm_head.1.bias"] = np.zeros(3, np.float32)
    del tensors["vision_encoder.norm.bias"]
    write_tensors(source, tensors)
    with pytest.raises(ConfigError, match=str(source)) as error:
        cclm_to_flax(source, tmp_path / "new" / "out", text_heads=2)
    for line in (
        "3 problems",
        "extra: queue (2, 3)",
        "mis-shaped: itm_head.1.bias is (3,), must be (32,)",
        "missing: vision_encoder.norm.bias (16,)",
    ):
        assert line in str(error.value)
    write_tensors(source, {"x": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="name --model to list all that differs"):
        cclm_to_flax(source, tmp_path / "out")
    for model, named in (("cclm_3m", "text_encoder.bert.encoder.layer.11"), ("cclm_5m", "cclm_3m")):
        with pytest.raises(ConfigError, match=named):
            cclm_to_flax(source, tmp_path / "new" / "out", model_name=model)
    with pytest.raises(TensorFileError, match="none.safetensors"):
        cclm_to_flax(tmp_path / "none.safetensors", tmp_path / "out")
    write_tensors(source, {**tensors, "temp": np.ones((), np.int64)})
    with pytest.raises(ConfigError, match="temp holds int64"):
        cclm_to_flax(source, tmp_path / "out", text_heads=2)
    with pytest.raises(TensorFileError, match="out.npz"):
        flax_to_cclm(tmp_path, tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_an_existing_target_stays(source, folder, tmp_path):
    with pytest.raises(ConfigError, match="width 16; name --text_heads"):  # as `folder` does
        cclm_to_flax(source, tmp_path / "none")
    file = tmp_path / "out.safetensors"
    flax_to_cclm(folder, file)
    for convert, given in (
        (cclm_to_flax, dict(source=source, target=folder, text_heads=2)),
        (flax_to_cclm, dict(source=folder, target=file)),
    ):
        with pytest.raises(ConfigError, match="--overwrite"):
            convert(**given)
        convert(**given, overwrite=True)
    assert_equal(read_tensors(file), read_tensors(source))
    with pytest.raises(ConfigError, match=f"{file} is a file"):
        cclm_to_flax(source, file, text_heads=2, overwrite=True)
    (folder / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=f"{folder} holds more"):
        cclm_to_flax(source, folder, text_heads=2, overwrite=True)
    shutil.move(folder, tmp_path / "folder.safetensors")
    with pytest.raises(ConfigError, match="folder.safetensors is a folder"):
        flax_to_cclm(tmp_path, tmp_path / "folder.safetensors", overwrite=True)


def test_a_full_disk_leaves_what_was_there(source, folder, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))

    def fails(path, *_):
        path.mkdir(exist_ok=True)
        (path / "begun").write_bytes(b"0")
        raise OSError(28, "No space left on device")

    def convert_both(message):
        with pytest.raises(ConfigError, match=f"{folder} {message}"):
            cclm_to_flax(source, folder, text_heads=2, overwrite=True)
        with pytest.raises(ConfigError, match=f"{tmp_path}/out.safetensors {message}"):
            flax_to_cclm(folder, tmp_path / "out.safetensors")
        assert sorted(tmp_path.rglob("*")) == before

    with monkeypatch.context() as patched:
        patched.setattr(cclm_files, "save_params", fails)
        patched.setattr(cclm_files, "write_tensors", fails)
        convert_both("could not be written")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    convert_both("needs .* 1.0 kB free")


def test_images_of_another_size(tmp_path, recording):
    """One token more along each side of the last grid, whatever the recorded sizes are."""
    model = recording.settings.model
    patch, is_swin = model.patch, model.patch.type == "swin"
    stride = patch.patch * (2 ** (len(patch.depths) - 1) if is_swin else 1)
    grid = patch.image_size // stride + 1
    options = dict(text_heads=model.text.heads, image_size=grid * stride)
    source, target = tmp_path / "source.safetensors", tmp_path / "out"
    write_tensors(source, to_published(recording.params, layout_of(model)))
    if is_swin and patch.window == 2:  # such windows are too small to be resized
        with pytest.raises(ConfigError, match=f"image_size={grid * stride}"):
            cclm_to_flax(source, target, **options)
        return
    cclm_to_flax(source, target, **options)
    flax_to_cclm(target, tmp_path / "back.safetensors")
    before, back = read_tensors(source), read_tensors(tmp_path / "back.safetensors")
    tables = [name for name in before if name.endswith("relative_position_bias_table")]
    cls = 0 if is_swin else 3  # relations of the class token stand behind those of patches
    assert tables
    for name in tables:
        assert back[name].shape == ((2 * grid - 1) ** 2 + cls, before[name].shape[1])
        index = back[name.replace("bias_table", "index")]
        assert index.shape == (grid**2 + bool(cls),) * 2 and index.max() == len(back[name]) - 1


launch = functools.partial(processes.launch, "convert.py")


def assert_reason(done, named):
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_commands(source, tmp_path):
    folder, back = tmp_path / "out", tmp_path / "back.safetensors"
    done = launch("cclm-to-flax", source, folder, "--text_heads=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "swin for 32 x 32 pixels, 1 text and 1 fusion layers of width 16" in done.stdout
    assert f"wrote {folder}" in done.stdout
    done = launch("flax-to-cclm", folder, back)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal(read_tensors(back), read_tensors(source))
    assert_reason(launch("flax-to-cclm", folder, back), "--overwrite")
    write_tensors(back, read_tensors(source) | {"queue": np.zeros(3, np.float32)})
    done = launch("cclm-to-flax", back, tmp_path / "new", "--text_heads=2")
    assert "  extra: queue (3,)" in done.stderr.splitlines()
    assert_reason(done, str(back))


def test_the_check_prints_a_table_and_fails_beyond_the_tolerance(exported):
    require("torch")
    done = launch("check", exported.run, exported.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "text.layers.1" in done.stdout and "largest relative difference" in done.stdout
    done = launch("check", exported.run, exported.folder, "--tolerance=1e-12", "--seed=1")
    assert_reason(done, "--tolerance")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["cclm-to-flax", "a.th", "b", "c"], "SOURCE TARGET"),
        (["from-hf", "a"], "--text, --patch"),
        (["from-hf", "a", "--text=b", "--languages=de"], "--corpus"),
        (["from-hf", "a", "--text=b", "--text_layers=1,b"], "--text_layers"),
        (["cclm-to-flax", "a.th", "b", "--checkpoint=3"], "--checkpoint"),
        (["cclm-to-flax", "a.th", "b", "--image_size=big"], "image_size"),
        (["cclm-to-flax", "a.th", "b", "--size=3"], "'size'"),
        (["cclm-to-flax", "/nowhere/a.th", "b"], "/nowhere/a.th"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(arguments, named):
    assert_reason(launch(*arguments), named)


def test_help_shows_how_to_start():
    done = launch("--help")
    assert "python launch/convert.py cclm-to-flax CCLM_3M.th converted/cclm_3m" in done.stdout
    assert "--image_size" in done.stdout
