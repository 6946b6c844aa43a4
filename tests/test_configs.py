"""Every shipped configuration, in miniature: it runs, and goes on after a stop as if there was none."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from rc3_jax.config import validate
from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError
from rc3_jax.training import pretrain
from rc3_jax.training.checkpoint import read_params
from rc3_jax.training.pretrain import train
from tests.data.files import captioned, regions, write
from tests.tiny import itc_alone, load_config, quiet, shrink, tiny_cclm, tiny_config


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> pathlib.Path:
    """A folder as docs/data.md describes it: 24 pictures with boxes and captions, and sentences."""
    root = tmp_path_factory.mktemp("data") / "pairs"
    (root / "images").mkdir(parents=True)
    (root / "parallel").mkdir()
    records = []
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        records.append(
            {
                "id": str(i),
                "image": f"images/{i}.png",
                "split": "val" if i % 3 == 0 else "train",
                "translations": {"en": f"picture number {i}", "de": f"Bild Nummer {i}"},
                "captions": {"en": [f"noise {i}", "dots"], "cs": [f"šum {i}"]},
                "boxes_xywh": [[4, 4, 20, 20], [10, 12, 30, 20]],
            }
        )
    write(root / "captions.jsonl.gz", *records)
    for code, word in (("en", "sentence"), ("cs", "věta")):
        lines = "".join(f"{word} {i}\n" for i in range(20))
        (root / "parallel" / f"train.{code}.gz").write_bytes(gzip.compress(lines.encode()))
    return root


@pytest.fixture(scope="module")
def cclm_files(tmp_path_factory) -> pathlib.Path:
    """A folder in the published formats of CCLM."""
    root = tmp_path_factory.mktemp("data") / "cclm"
    lines = {
        "captions": [captioned(red=i) for i in range(20)],
        "heldout": [captioned(red=100 + i) for i in range(8)],
        "parallel": [
            {"source_text": f"sentence {i}", "target_text": f"věta {i}"} for i in range(20)
        ],
        "regions": [regions(red=i) for i in range(20)],
    }
    for name, rows in lines.items():
        (root / name).mkdir(parents=True)
        write(root / name / "part-0.jsonl", *rows)
    return root


PUBLISHED = {  # what CCLM-4M's published code does otherwise
    "objective.step": "separate",
    "objective.negatives": "local",
    "objective.negative_floor": 1e-5,
    "objective.group_positives": False,
    "objective.itc_grad_scale": 0.125,
    "data.mask_eos": True,
}
RUNS = {
    "rc3_demo": ("both", "cs de en fr ja zh"),
    "rc3_demo beit": ("both", "cs de en fr ja zh"),
    "rc3_demo swin": ("both", "cs de en fr ja zh"),
    "rc3_base": ("both", "cs de en"),
    "rc3_flickr": ("patches", "ar cs de en fr zh"),
    "cclm_demo": ("patches", "cs de en fr ja zh"),
    "cclm_demo photographs": ("patches", "ar cs de en fr zh"),
    "cclm_3m": ("patches", "de en"),
    "cclm_4m": ("patches", "de en"),
    "cclm_x2vlm_base": ("patches", "de en"),
    "cclm_x2vlm_large": ("patches", "de en"),
}
"""Name and variant of a configuration -> the visual parts that it evaluates first, the languages."""


@pytest.fixture(params=RUNS)
def config(request):
    """The miniature of a shipped configuration, on real data where the configuration is for these."""
    name, _, variant = request.param.partition(" ")
    if name == "rc3_demo":
        return request.param, tiny_config(variant or "vit")
    if request.param == "cclm_demo":
        return request.param, tiny_cclm()
    if name in ("rc3_flickr", "cclm_demo"):
        data = request.getfixturevalue("shared_data")
        argument = f"root={data / 'flickr8k'},parallel={data / 'parallel' / 'multi30k'}"
        return request.param, shrink(load_config(name, argument))
    if name == "rc3_base":
        return request.param, shrink(load_config(name, f"root={request.getfixturevalue('pairs')}"))
    config = shrink(load_config(name, f"root={request.getfixturevalue('cclm_files')},vocabulary="))
    config.batch_mix.update(captioned=2.0, parallel=1.0, region=float(name != "cclm_3m"))
    if name == "cclm_4m":
        config.update_from_flattened_dict(PUBLISHED)
    return request.param, config


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(config, tmp_path):
    name, config = config
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    scores = train(config, whole, console=quiet())
    mode, languages = RUNS[name]
    assert next(iter(scores["retrieval"])) == mode
    assert sorted(scores["retrieval"][mode]) == languages.split()

    shutil.copytree(whole, stopped)  # what is left of a run that is killed in its fourth step
    shutil.rmtree(stopped / "checkpoints" / "4")
    (stopped / "scores.json").unlink()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    for setting, value in {
        "name": "moved",
        "data.threads": 1,
        "data.prefetch": 1,
        "data.skip_limit": 0.5,
        "log_every": 2,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "watchdog_minutes": 5.0,
    }.items():
        config.update_from_flattened_dict({setting: value})
    assert train(config, stopped, resume=True, console=quiet()) == scores
    expected, found = read_params(whole), read_params(stopped)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").open()]
    assert steps == [1, 2, 4]


@pytest.mark.slow
def test_data_may_lie_elsewhere_when_a_run_resumes(pairs, tmp_path):
    def at(root):
        config = itc_alone(shrink(load_config("rc3_base", f"root={root}")))
        config.evaluation.update(images=0, dependence_rows=0)
        return config

    run = tmp_path / "run"
    train(at(pairs), run, console=quiet())
    shutil.rmtree(run / "checkpoints" / "4")
    moved = tmp_path / "moved"
    shutil.copytree(pairs, moved)
    config = at(moved)
    config.model.update(remat="full", unroll=2)
    config.objective.pairs.update(transport="ring", tile=4)
    config.microbatches = 2
    config.data.workers = 1
    train(config, run, resume=True, console=quiet())
    records = gzip.decompress((moved / "captions.jsonl.gz").read_bytes()).splitlines()
    (moved / "captions.jsonl.gz").write_bytes(gzip.compress(b"\n".join(records[:-1])))
    with pytest.raises(Exception, match="records"):
        train(config, run, resume=True, console=quiet())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", 1),
        ("batch_size", 32),
        ("data.max_length", 20),
        ("data.sources.scenes.seed", 1),
        ("model.fusion.depth", 2),
        ("objective.weights.itc", 2.0),
        ("optimizer.b1", 0.5),
    ],
)
def test_other_settings_are_refused_by_name_when_a_run_resumes(
    tmp_path, monkeypatch, setting, value
):
    config = tiny_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(ConfigError, match=f"--accept_changes={setting}") as caught:
        train(config, tmp_path, resume=True, console=quiet())
    assert f"{value!r}" in str(caught.value)

    def passed(*arguments):
        raise StopIteration

    monkeypatch.setattr(pretrain, "prepare_run", passed)
    for pattern in (setting, f"{setting[:4]}*"):  # what the message advises
        with pytest.raises(StopIteration):
            train(config, tmp_path, True, (console := quiet()), [pattern])
        assert setting in console.file.getvalue()
    with pytest.raises(ConfigError, match="optimizer.lr"):
        train(config, tmp_path, True, quiet(), [setting, "optimizer.learning_rate"])


def test_a_run_begins_or_goes_on_as_advised(tmp_path, monkeypatch):
    def passed(*arguments):
        raise StopIteration

    monkeypatch.setattr(pretrain, "prepare_run", passed)
    config, folder, file = tiny_config(), tmp_path / "run", tmp_path / "run" / "config.json"

    def refused(advice, *arguments):
        with pytest.raises(ConfigError, match=advice):
            train(config, folder, *arguments)

    def accepted(folder, resume):
        with pytest.raises(StopIteration):
            train(config, folder, resume, quiet())

    refused("--accept_changes is for --resume; leave it out", False, quiet(), ["seed"])
    accepted(folder, False)
    (folder / "checkpoints" / "2").mkdir(parents=True)
    refused("restore the file, or choose another --workdir", True)
    accepted(tmp_path / "another", True)
    file.write_text(json.dumps(config.to_dict()))
    accepted(folder, True)
    refused("continue it with --resume, or choose another --workdir")
    accepted(tmp_path / "another", False)


def test_other_data_are_refused_until_restored_or_accepted_when_a_run_resumes(tmp_path):
    one = types.SimpleNamespace(pairs={("en",): [0]})
    run = types.SimpleNamespace(
        config=validate(tiny_config()),
        corpus=types.SimpleNamespace(pools={"strict": one}),
        abstract_state=None,
        tokenizer=types.SimpleNamespace(to_json=str),
    )
    checkpoints = types.SimpleNamespace(latest=2, restore=lambda *_: types.SimpleNamespace(step=2))
    log = types.SimpleNamespace(say=print, rewind=print)
    file = tmp_path / "records.json"

    def resume(*accepted):
        assert pretrain._first_state(run, tmp_path, checkpoints, log, accepted).step == 2
        return file.read_text()

    begun = resume()
    one.pairs["en",].append(1)
    with pytest.raises(DataError, match="restore the data, take them with") as caught:
        resume("seed")
    assert file.read_text() == begun
    one.pairs["en",].pop()
    assert resume() == begun
    one.pairs["en",].append(1)
    advised = re.search(r"--accept_changes=(\S+),", str(caught.value))[1].split(",")
    assert resume(*advised) != begun
    assert resume() == file.read_text()
    for steps in (1, 3):
        run.config = run.config.model_copy(update=dict(steps=steps))
        if steps < 2:
            with pytest.raises(ConfigError, match="steps=1: .* has done 2 steps; give more"):
                resume()
    resume()
