"""Checkpoints that cannot be read: what is told, and which state a run goes on from."""

from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from rc3_jax.settings import ConfigError
from rc3_jax.training.checkpoint import Checkpoints, load_params, read_params, save_params
from rc3_jax.training.state import TrainState
from tests.processes import ROOT, environment


def state_of(step: int, size: int = 4) -> TrainState:
    params = {"text": {"kernel": jnp.full((size, 3), float(step)), "bias": jnp.zeros(3)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(jnp.int32(step), params, optimizer.init(params), None)


def abstract_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


ABSTRACT = abstract_of(state_of(0))


def cut(folder):
    for file in folder.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder):
    for file in folder.rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)


DAMAGES = {
    "cut": (cut, "state/d/"),
    "flipped": (flip, "state/d/"),
    "no manifest": (lambda f: (f / "state" / "manifest.ocdbt").unlink(), "state"),
    "no metadata": (lambda f: (f / "state" / "_METADATA").unlink(), "state/_METADATA"),
    "cut metadata": (lambda f: (f / "state" / "_METADATA").write_text("{"), "state/_METADATA"),
    "no state": (lambda f: shutil.rmtree(f / "state"), "state"),
}


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state_of(step))
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_newest_step_that_can_be_read(folder, damage):
    harm, file = DAMAGES[damage]
    newest = folder / "checkpoints" / "4"
    harm(newest)
    said: list[str] = []
    with Checkpoints(folder, keep=2) as checkpoints:
        restored = checkpoints.restore(ABSTRACT, said.append)
        assert restored is not None and int(restored.step) == 2
        assert float(restored.params["text"]["kernel"][0, 0]) == 2.0
        [line] = said
        assert f"{newest}/{file}" in line and "step 2" in line and "\n" not in line
        assert (folder / "damaged" / "4").is_dir() and not newest.exists()
        checkpoints.save(4, state_of(4))  # the run comes to this step again
    assert read_params(folder)["text/kernel"][0, 0] == 4.0


@pytest.mark.parametrize("damage", ["cut", "no manifest"])
def test_a_damaged_checkpoint_is_told_in_one_line(folder, damage):
    DAMAGES[damage][0](folder / "checkpoints" / "4")
    code = (
        "import pathlib, tests.training.test_checkpoint as here\n"
        f"with here.Checkpoints(pathlib.Path({str(folder)!r}), keep=2) as checkpoints:\n"
        "    checkpoints.restore(here.ABSTRACT, print)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoints/4" in done.stdout and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "4/state" not in done.stderr


def test_nothing_is_moved_where_no_checkpoint_can_be_read(folder):
    for step in (2, 4):
        cut(folder / "checkpoints" / str(step))
    with (
        Checkpoints(folder, keep=2) as checkpoints,
        pytest.raises(ConfigError, match="/2 .*\n.*remove .*checkpoints"),
    ):
        checkpoints.restore(ABSTRACT, pytest.fail)
    assert (folder / "checkpoints" / "4").is_dir()
    shutil.rmtree(folder / "checkpoints")  # what the message advises
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(ABSTRACT, pytest.fail) is None


def test_a_checkpoint_of_another_model_is_not_damaged(folder):
    with (
        Checkpoints(folder, keep=2) as checkpoints,
        pytest.raises(ConfigError, match=r"mis-shaped: params/text/kernel is \(4, 3\)"),
    ):
        checkpoints.restore(abstract_of(state_of(0, size=5)), pytest.fail)
    assert (folder / "checkpoints" / "4").is_dir()


def test_a_lack_of_memory_is_no_damage(folder, monkeypatch):
    with Checkpoints(folder, keep=2) as checkpoints:

        def load(*_):
            try:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GiB")
            except jax.errors.JaxRuntimeError as error:
                raise KeyError("no handler") from error  # as Orbax wraps what goes wrong

        monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", load)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            checkpoints.restore(ABSTRACT, pytest.fail)
    assert (folder / "checkpoints" / "4").is_dir() and not (folder / "damaged").exists()


def test_parameters_that_cannot_be_read_are_named(folder):
    cut(folder / "checkpoints" / "4")
    for read in (read_params, lambda path: load_params(path, ABSTRACT.params)):
        with pytest.raises(ConfigError, match="checkpoints/4/state/d/"):
            read(folder)
    assert read_params(folder, step=2)["text/kernel"][0, 0] == 2.0


def test_folders_and_steps_that_are_not_there_are_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint of step 3, but of 2, 4"):
        read_params(folder, step=3)
    assert [read_params(folder, step=n)["text/kernel"][0, 0] for n in (2, 4)] == [2.0, 4.0]
    with pytest.raises(ConfigError, match="name a folder that launch/convert.py made, or that"):
        read_params(tmp_path / "new")
    save_params(tmp_path / "new", state_of(4).params)  # as the program does
    read_params(tmp_path / "new")
