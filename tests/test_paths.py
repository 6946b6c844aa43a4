"""Folders of runs in an object store; URLs that nothing reads are refused, with what to install."""

from __future__ import annotations

import json
import pathlib
import re
import tomllib

import fsspec
import pytest

from rc3_jax.config import stored_settings, validate
from rc3_jax.observe.log import Log, read_metrics
from rc3_jax.paths import EXTRAS, as_path, local_path
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import read_config, save_config
from rc3_jax.training import pretrain
from rc3_jax.training.checkpoint import Checkpoints, read_params
from rc3_jax.training.load import load_model
from tests.processes import launch
from tests.remote import register_memory
from tests.tiny import ROOT, itc_alone, quiet, tiny_config


@pytest.fixture
def store(monkeypatch):
    register_memory(monkeypatch)
    return as_path("memory://bucket/run")


def test_a_path_of_this_machine_stays_one():
    assert as_path("runs/demo") == local_path("runs/demo", "--workdir") == pathlib.Path("runs/demo")


@pytest.mark.parametrize("scheme", EXTRAS)
def test_a_store_without_its_file_system_names_the_extra(scheme, monkeypatch):
    def missing(name):
        raise ImportError(f"Install something to access {name}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    extra, package = EXTRAS[scheme]
    with pytest.raises(ConfigError, match=rf"--workdir={scheme}://.*\[{extra}\].*{package}"):
        as_path(f"{scheme}://bucket/run", "--workdir")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(wanted.startswith(package) for wanted in extras["optional-dependencies"][extra])


def test_the_extras_that_messages_name_are_there():
    code = "".join(
        file.read_text() for top in ("rc3_jax", "launch") for file in (ROOT / top).rglob("*.py")
    )
    named = {*re.findall(r"""(?:'\.\[|import_extra\([\w"]+, ")(\w+)["\]]""", code)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"tpu", "torch", "onnx"} <= named <= extras["optional-dependencies"].keys()


def test_an_unknown_scheme_names_those_that_are_known(monkeypatch):
    with pytest.raises(ConfigError, match="use a folder .* or one of gs://, s3://") as refused:
        as_path("ftp://host/run")
    monkeypatch.setattr(fsspec, "get_filesystem_class", str)
    for scheme in re.findall(r"\w+://", str(refused.value).partition("one of ")[2]):
        assert str(as_path(f"{scheme}bucket/run")) == f"{scheme}bucket/run"


@pytest.mark.parametrize(
    "setting", ["data.tokenizer.path", "data.sources.pairs.captions", "data.sources.pairs.root"]
)
def test_data_in_a_store_are_refused_by_setting(setting):
    config = tiny_config()
    pairs = dict(type="folder", captions="/a.jsonl", root="/a", train_split="a", heldout_split="b")
    with config.unlocked(), config.ignore_type():
        config.data.sources = dict(pairs=pairs)
        config.update_from_flattened_dict({setting: "gs://bucket/file"})
    with pytest.raises(ConfigError, match=f"{setting}=gs://bucket/file.*copy the files here"):
        validate(config)
    config.update_from_flattened_dict({setting: "/mounted/file"})
    validate(config)


@pytest.mark.parametrize(
    "command",
    [
        ("train.py", "--config=configs/rc3_demo.py", "--workdir=ftp://host/run"),
        ("train.py", "--resume", "--workdir=ftp://host/run"),
        ("evaluate.py", "--config=configs/downstream/xvnli.py", "--from=ftp://host/run"),
        ("iglue.py", "--data=miniature", "--from=ftp://host/run", "--notune"),
        ("convert.py", "to-hf", "ftp://host/run", "out", "--part=text"),
    ],
)
def test_no_program_takes_a_url_for_a_folder_here(command, tmp_path, monkeypatch):
    done = launch(*command)
    assert done.returncode != 0
    assert "ftp://host/run" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (ROOT / "ftp:").exists()
    if command[0] in ("iglue.py", "evaluate.py"):
        assert ("--notune turns this off" in done.stderr) == ("--notune" not in command)


def test_metrics_and_settings_in_a_store(store):
    with Log(store, quiet()) as log:
        log.write(1, {"loss": 2.0})
        log.write(1, {"dev/en": 0.5})
        log.write(2, {"loss": 1.0})
    with Log(store, quiet()) as log:
        log.rewind(1)
        log.write(2, {"loss": 1.5})
    assert read_metrics(store) == [
        {"step": 1, "loss": 2.0, "dev/en": 0.5},
        {"step": 2, "loss": 1.5},
    ]
    settings = validate(tiny_config())
    save_config(settings, store / "config.json")
    assert type(settings).parse(read_config(store)) == settings


@pytest.mark.slow
def test_a_run_in_a_store_and_back(store, tmp_path, monkeypatch):
    """Orbax writes arrays with TensorStore, which knows no memory:// of fsspec: they lie on disk."""
    monkeypatch.setattr(pretrain, "Checkpoints", lambda folder, keep: Checkpoints(tmp_path, keep))
    config = itc_alone(tiny_config())
    config.steps = 2
    config.evaluation.update(images=0, dependence_rows=0)
    pretrain.train(config, store, console=quiet())
    names = {path.name for path in store.iterdir()}
    assert {"config.json", "metrics.jsonl", "records.json", "scores.json", "skipped.jsonl"} <= names
    assert json.loads((store / "scores.json").read_text())["step"] == 2
    assert not list(pathlib.Path().glob("memory:*"))

    settings = stored_settings(store).model_copy(update={"steps": 3})
    pretrain.train(settings, store, resume=True, console=quiet())
    assert [row["step"] for row in read_metrics(store)] == [1, 2, 3]
    assert read_config(store)["steps"] == 3

    monkeypatch.setattr("rc3_jax.training.load.read_params", lambda *_, step: read_params(tmp_path))
    assert load_model(store).config == settings
