"""The conversion of checkpoints as a user meets it: folders, files, runs, mistakes."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.config_cclm import CLIP_MEAN, CLIP_STD
from rc3_jax.convert import cclm_files as convert
from rc3_jax.convert.cclm import to_published
from rc3_jax.convert.torch_file import TensorFileError, read_tensors, write_tensors
from rc3_jax.training.checkpoint import load_params, save_params
from rc3_jax.training.loop import train
from rc3_jax.training.run import load_run, prepare_run
from tests.parity.recordings import PRETRAINING, folders, read, require_folder
from tests.processes import FAST_COMPILATION, ROOT
from tests.tiny import tiny_cclm, tiny_config
from tests.vision_reference import require

RECORDINGS = folders(PRETRAINING) or [None]


@pytest.fixture(params=RECORDINGS, ids=str)
def recording(request):
    require_folder(request.param)
    return read(request.param)


@pytest.fixture(scope="module")
def tiny():
    """A tiny model's settings and the tensors that the published code would save of it."""
    config = tiny_cclm()
    shapes = prepare_run(config).abstract_params()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.uniform(0.05, 0.15, x.shape).astype(x.dtype), shapes)
    return config, params, to_published(params, config.model)


@pytest.fixture
def source(tiny, tmp_path):
    path = tmp_path / "source.safetensors"
    write_tensors(path, tiny[2])
    return path


def assert_equal(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), left, right)


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_a_recording_survives_both_commands(recording, tmp_path, suffix):
    if suffix == ".th":
        require("torch")
    model = recording.settings.model
    tensors = to_published(recording.params, model)
    first, second = tmp_path / f"first{suffix}", tmp_path / "deep" / f"second{suffix}"
    folder = tmp_path / "deep" / "folder"
    write_tensors(first, {f"module.{name}": tensor for name, tensor in tensors.items()})
    convert.cclm_to_flax(first, folder, text_heads=model.text.heads)
    convert.flax_to_cclm(folder, second)
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
def test_a_run_starts_from_a_converted_folder_and_is_exported(tiny, source, tmp_path):
    config, params, _ = tiny
    folder, workdir = tmp_path / "converted", tmp_path / "run"
    convert.cclm_to_flax(source, folder, text_heads=config.model.text.heads)
    config = tiny_cclm()
    config.model.update(image_mean=CLIP_MEAN, image_std=CLIP_STD)  # as published
    config.model.text.position_offset = 0
    config.seed, config.init = 5, str(folder)
    state = prepare_run(config).create_state()
    assert int(state.step) == 0
    assert_equal(jax.tree.map(np.asarray, state.params), params)

    config.evaluation.images = 0
    for view, terms in config.objective.weights.items():  # one term, which compiles soon
        terms.update({name: float((view, name) == ("image", "contrast")) for name in terms})
    train(config, workdir, console=Console(quiet=True))
    run, trained = load_run(workdir)
    newest, earlier = tmp_path / "newest.safetensors", tmp_path / "earlier.safetensors"
    convert.flax_to_cclm(workdir, newest)
    assert_equal(read_tensors(newest), to_published(trained, run.config.model))
    convert.flax_to_cclm(workdir, earlier, step=2)
    assert np.any(read_tensors(earlier)["temp"] != read_tensors(newest)["temp"])
    with pytest.raises(ConfigError, match="no checkpoint of step 3, but of 2, 4"):
        convert.flax_to_cclm(workdir, tmp_path / "none.safetensors", step=3)
    abstract = prepare_run(config).abstract_state().params
    assert_equal(load_params(workdir, abstract), trained)


def test_parameters_of_another_model_are_listed(tiny, source, tmp_path):
    convert.cclm_to_flax(source, tmp_path / "out", text_heads=2)
    config = tiny_cclm()
    config.model.update(projection_size=9, tied_decoder=False)
    config.model.patch.depths = (1, 1)
    config.init = str(tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        prepare_run(config).create_state()
    for line in (
        "mis-shaped: image_projection/linear/kernel is (16, 8), must be (16, 9)",
        "missing: decoder (",
        "extra: vision/stage_1/block_1/mlp_in/kernel (16, 64)",
    ):
        assert line in str(error.value)


def test_folders_without_parameters(tiny, source, tmp_path):
    target = tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match="holds no parameters"):
        convert.flax_to_cclm(tmp_path, target)
    (tmp_path / "params").mkdir()
    with pytest.raises(ConfigError, match="params cannot be read as parameters"):
        convert.flax_to_cclm(tmp_path, target)
    folder = tmp_path / "converted"
    convert.cclm_to_flax(source, folder, text_heads=2)
    with pytest.raises(ConfigError, match="no checkpoint of step 1"):
        convert.flax_to_cclm(folder, target, step=1)
    settings = json.loads((folder / "config.json").read_text())
    for text, reason in (
        (json.dumps(settings | {"system": "rc3"}), "is of rc3; this conversion"),
        (json.dumps(settings | {"model": {}}), "lacks a setting"),
        ("{", "cannot be read as settings"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            convert.flax_to_cclm(folder, target)
    assert not target.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_arrays_are_one_error(source, tmp_path):
    folder = tmp_path / "converted"
    convert.cclm_to_flax(source, folder, text_heads=2)
    files = [path for path in (folder / "params").rglob("*") if path.is_file()]
    os.truncate(max(files, key=lambda path: path.stat().st_size), 1000)
    with pytest.raises(ConfigError, match="cannot be read as parameters"):
        convert.flax_to_cclm(folder, tmp_path / "out.safetensors")
    gc.collect()  # Orbax's other reads of the same folder have failed unseen


def test_an_rc3_run_has_no_published_layout(tmp_path):
    config = tiny_config()
    shapes = prepare_run(config).abstract_state().params
    save_params(tmp_path, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ConfigError, match="is of rc3; this conversion is of models of cclm"):
        convert.flax_to_cclm(tmp_path, tmp_path / "out.safetensors")


def test_a_checkpoint_that_does_not_fit_leaves_nothing(tiny, tmp_path):
    tensors = dict(tiny[2], queue=np.zeros((2, 3), np.float32))
    tensors["itm_head.1.bias"] = np.zeros(3, np.float32)
    del tensors["vision_encoder.norm.bias"]
    source, target = tmp_path / "source.safetensors", tmp_path / "new" / "out"
    write_tensors(source, tensors)
    with pytest.raises(ConfigError) as error:
        convert.cclm_to_flax(source, target, text_heads=2)
    for line in (
        "3 problems",
        "extra: queue (2, 3)",
        "mis-shaped: itm_head.1.bias is (3,), must be (32,)",
        "missing: vision_encoder.norm.bias (16,)",
    ):
        assert line in str(error.value)
    with pytest.raises(ConfigError, match="missing: text_encoder.bert.encoder.layer.11"):
        convert.cclm_to_flax(source, target, model_name="cclm_3m")
    with pytest.raises(ConfigError, match="use one of cclm_3m"):
        convert.cclm_to_flax(source, target, model_name="cclm_5m")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_an_existing_target_stays(source, tmp_path):
    folder, file = tmp_path / "out", tmp_path / "out.safetensors"
    convert.cclm_to_flax(source, folder, text_heads=2)
    convert.flax_to_cclm(folder, file)
    for call in (
        lambda **given: convert.cclm_to_flax(source, folder, text_heads=2, **given),
        lambda **given: convert.flax_to_cclm(folder, file, **given),
    ):
        with pytest.raises(ConfigError, match="exists; choose another name"):
            call()
        call(overwrite=True)
    assert_equal(read_tensors(file), read_tensors(source))
    with pytest.raises(ConfigError, match="is a file and stays"):
        convert.cclm_to_flax(source, file, text_heads=2, overwrite=True)
    (folder / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="more than a conversion writes"):
        convert.cclm_to_flax(source, folder, text_heads=2, overwrite=True)
    shutil.move(folder, tmp_path / "folder.safetensors")
    with pytest.raises(ConfigError, match="is a folder and stays"):
        convert.flax_to_cclm(tmp_path, tmp_path / "folder.safetensors", overwrite=True)


def test_a_full_disk_leaves_what_was_there(source, tmp_path, monkeypatch):
    folder, file = tmp_path / "out", tmp_path / "out.safetensors"
    convert.cclm_to_flax(source, folder, text_heads=2)
    before = sorted(tmp_path.rglob("*"))

    def fails(path, *_):
        path.mkdir(exist_ok=True)
        (path / "begun").write_bytes(b"0")
        raise OSError(28, "No space left on device")

    def convert_both():
        with pytest.raises(ConfigError) as first:
            convert.cclm_to_flax(source, folder, text_heads=2, overwrite=True)
        with pytest.raises(ConfigError) as second:
            convert.flax_to_cclm(folder, file)
        assert sorted(tmp_path.rglob("*")) == before
        return str(first.value), str(second.value)

    with monkeypatch.context() as patched:
        patched.setattr("rc3_jax.convert.cclm_files.save_params", fails)
        patched.setattr("rc3_jax.convert.cclm_files.write_tensors", fails)
        assert all("could not be written" in reason for reason in convert_both())
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert all("has 1.0 kB free" in reason for reason in convert_both())


def test_images_of_another_size(tmp_path, recording):
    model = recording.settings.model
    source, target = tmp_path / "source.safetensors", tmp_path / "out"
    write_tensors(source, to_published(recording.params, model))
    if model.patch.type == "swin":  # windows of 2 are too small to be resized
        with pytest.raises(ConfigError, match="of window 2 cannot be resized to window 3"):
            convert.cclm_to_flax(source, target, text_heads=4, image_size=96)
        return
    convert.cclm_to_flax(source, target, text_heads=4, image_size=96)
    convert.flax_to_cclm(target, tmp_path / "back.safetensors")
    back = read_tensors(tmp_path / "back.safetensors")
    assert back["vision_encoder.blocks.0.attn.relative_position_bias_table"].shape == (124, 4)
    assert back["vision_encoder.blocks.0.attn.relative_position_index"].shape == (37, 37)


def test_files_that_are_refused(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(TensorFileError, match="no such file"):
        convert.cclm_to_flax(tmp_path / "none.safetensors", target)
    with pytest.raises(TensorFileError, match="must end in one of"):
        convert.flax_to_cclm(tmp_path, tmp_path / "out.npz")


def launch(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILATION}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "convert.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


def test_the_commands(source, tmp_path):
    folder, back = tmp_path / "out", tmp_path / "back.safetensors"
    done = launch("cclm-to-flax", source, folder, "--text_heads=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "swin for 32 x 32 pixels, 1 text and 1 fusion layers of width 16" in done.stdout
    assert f"wrote {folder}" in done.stdout
    done = launch("flax-to-cclm", folder, back)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal(read_tensors(back), read_tensors(source))
    done = launch("flax-to-cclm", folder, back)
    assert_reason(done, "exists; choose another name, or give --overwrite")
    tensors = dict(read_tensors(source), queue=np.zeros(3, np.float32))
    write_tensors(back, tensors)
    done = launch("cclm-to-flax", back, tmp_path / "new", "--text_heads=2")
    assert "  extra: queue (3,)" in done.stderr.splitlines()
    assert_reason(done, "does not fit the model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of from-hf, to-hf, to-torch"),
        (["cclm-to-jax", "a", "b"], "name one of from-hf"),
        (["cclm-to-flax", "a.th", "b", "c"], "cclm-to-flax takes SOURCE TARGET and flags"),
        (["from-hf", "a"], "name a checkpoint with --text, --patch, or both"),
        (["from-hf", "a", "--text=b", "--languages=de"], "name its files with --corpus"),
        (["from-hf", "a", "--text=b", "--text_layers=1,b"], "takes numbers between commas"),
        (["to-hf", "a", "b"], "name it with --part=text"),
        (["cclm-to-flax", "a.th", "b", "--checkpoint=3"], "takes no --checkpoint"),
        (["flax-to-cclm", "a", "b.th", "--model=cclm_3m"], "takes no --model"),
        (["cclm-to-flax", "a.th", "b", "--image_size=big"], "image_size"),
        (["cclm-to-flax", "a.th", "b", "--size=3"], "Unknown command line flag 'size'"),
        (["cclm-to-flax", "/nowhere/a.th", "b"], "/nowhere/a.th: no such file"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(arguments, message):
    assert_reason(launch(*arguments), message)


def assert_reason(done, message):
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_shows_how_to_start():
    done = launch("--help")
    assert "python launch/convert.py cclm-to-flax CCLM_3M.th converted/cclm_3m" in done.stdout
    assert "--image_size" in done.stdout
