"""All tasks of a folder from one model: what is run, what is not and why, and the report."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError
from rc3_jax.downstream.config import finetune_config
from rc3_jax.downstream.suite import Options, plan, run_suite, task_configs
from tests.downstream import iglue_rows as rows
from tests.downstream.tuned import pretrain
from tests.tiny import tiny_config

SMALL = {
    "generated.train": 16,
    "generated.dev": 4,
    "generated.test": 6,
    "batch_size": 8,
    "threads": 2,
    "max_length": 24,
    "epochs": 1,
}
FULL = {
    "train": ["en", "de"],
    "dev": ["en"],
    "test": ["en", "de", "ja"],
    "test_mt": ["de", "ja"],
    "train_1": ["de", "ja", "en", "tr"],
    "train_10x2": ["de"],
}


def quiet():
    return Console(file=io.StringIO(), width=200)


def steps(splits, protocols, **options):
    not_run = {}
    config = finetune_config("xvnli")
    config.annotations = "/data/XVNLI"
    found = plan(config, splits, Options(protocols=protocols, **options), not_run)
    return {step.folder: step for step in found}, not_run


def test_every_protocol_has_its_steps():
    found, not_run = steps(FULL, ("zero-shot", "translate-test", "few-shot", "languages"))
    assert list(found) == [
        *("zero_shot", "translate_test", "few_shot_1_de", "few_shot_1_ja", "few_shot_10x2_de"),
        *("single_language_de", "all_languages"),
    ]
    assert not_run == {}
    assert [name for name, step in found.items() if step.keeps] == ["zero_shot"]
    assert not found["translate_test"].trains
    few = found["few_shot_10x2_de"]
    assert few.after == "zero_shot"
    assert few.changes["train.languages"] == few.changes["test.languages"] == ("de",)
    assert "select.languages" not in few.changes  # English dev, never the test
    assert few.changes["epochs"] == 20
    assert few.changes["lrs"] == (1e-4, 5e-5, 1e-5)
    assert found["all_languages"].changes["train.languages"] == ("en", "de")
    assert found["single_language_de"].changes["select.languages"] == ("en",)


def test_shots_are_chosen():
    found, not_run = steps(FULL, ("few-shot",), shots=("10x2",))
    assert list(found) == ["zero_shot", "few_shot_10x2_de"]
    found, not_run = steps(FULL, ("few-shot",), shots=("3",))
    assert not_run == {"xvnli, few-shot": "no training set with 3 shots"}


def test_what_files_do_not_serve_is_told():
    some = {split: FULL[split] for split in ("dev", "test")} | {"train": ["en"]}
    protocols = ("zero-shot", "translate-test", "few-shot", "translate-train", "languages")
    found, not_run = steps(some, protocols)
    assert list(found) == ["zero_shot"]
    assert list(not_run) == [f"xvnli, {name}" for name in protocols[1:]]
    for missing, said in (("train", "no train in English"), ("test", "no test")):
        with pytest.raises(DataError, match=f"/data/XVNLI has {said}"):
            steps({k: v for k, v in some.items() if k != missing}, protocols)
    with pytest.raises(ConfigError, match="one-shot unknown"):
        steps(some, ("one-shot",))


def test_folders_are_known_by_their_names(tmp_path):
    for name in ("XVNLI", "xGQA", "GQA", "wit", "notes"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("gqa", "Flickr30k"):
        (tmp_path / "images" / name).mkdir(parents=True)
    changes = {"wit/epochs": 4, "epochs": 3, "xgqa/head": "decoder"}
    data, images = tmp_path / "data", tmp_path / "images"
    found = task_configs(str(data), str(images), Options(changes=changes))
    assert list(found) == ["xvnli", "xgqa", "wit"]
    assert found["xgqa"].english == str(data / "GQA")
    assert found["xgqa"].images == f"{images / 'gqa'}:{images}"
    assert found["xvnli"].english == ""
    assert [found[task].epochs for task in found] == [3, 3, 4]
    assert [found[task].head for task in found] == ["class", "decoder", "class"]
    assert list(task_configs(str(data), "", Options(tasks=["wit"]))) == ["wit"]
    with pytest.raises(ConfigError, match="has no marvl, but xvnli, xgqa, wit"):
        task_configs(str(data), "", Options(tasks=["marvl"]))
    for wrong in ({"xvnil/epochs": 3}, {"seed": 3}):
        with pytest.raises(ConfigError, match="settings are NAME or TASK/NAME"):
            task_configs(str(data), "", Options(changes=wrong))
    for wrong in ({"epoch": 3}, {"epochs": "many"}):
        with pytest.raises(ConfigError, match="xvnli: .*epoch"):
            task_configs(str(data), "", Options(changes=wrong))
    with pytest.raises(ConfigError, match="no such folder"):
        task_configs(str(tmp_path / "nowhere"), "", Options())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.mark.slow
def test_miniatures_are_run_once_and_reported(pretrained, tmp_path):
    options = Options(
        protocols=("zero-shot", "few-shot", "translate-test"),
        shots=("1",),
        changes=SMALL | {"few_shot.epochs": 2, "few_shot.lrs": (1e-3, 1e-4)},
        tasks=("xvnli",),
    )
    report = run_suite(pretrained, "miniature", "", tmp_path / "out", options, quiet())
    files = sorted(path for path in (tmp_path / "out").rglob("scores.json"))
    assert len(files) == 1 + 5
    results = [json.loads(file.read_text()) for file in files]
    assert {r["protocol"] for r in results} == {"zero-shot", "few-shot"}
    assert {r["shots"] for r in results} == {None, "1"}
    few = [r for r in results if r["shots"]]
    assert {tuple(r["scores"]) for r in few} == {("de",), ("fr",), ("cs",), ("zh",), ("ja",)}
    assert {len(r["dev"]) for r in few} == {2 * 2}
    text = report.read_text()
    assert "| xvnli, translate-test | no machine-translated test set |" in text
    assert not list((tmp_path / "out").rglob("few_shot_*/params"))
    times = [file.stat().st_mtime_ns for file in files]
    run_suite(pretrained, "miniature", "", tmp_path / "out", options, quiet())
    assert times == [file.stat().st_mtime_ns for file in files]
    assert report.read_text() == text
    others = [("epochs", 2), ("generated.test", 7)]
    for name, value in others:
        changed = dataclasses.replace(options, changes=options.changes | {name: value})
        with pytest.raises(ConfigError, match="has another config_sha256: .* choose another"):
            run_suite(pretrained, "miniature", "", tmp_path / "out", changed, quiet())
    other = tiny_config()
    other.seed = 1
    again = pretrain(tmp_path / "again", other)
    with pytest.raises(ConfigError, match="has another model_sha256"):
        run_suite(again, "miniature", "", tmp_path / "out", options, quiet())


@pytest.mark.slow
def test_real_files_in_every_protocol(pretrained, tmp_path):
    folder, images = tmp_path / "data" / "XVNLI", tmp_path / "images"
    rng = np.random.default_rng(0)
    images.mkdir()
    labels = ("entailment", "neutral", "contradiction", "-")
    for split, languages in {
        "train": ("en", "fr"),
        "dev": ("en",),
        "test": ("en", "fr", "ru"),
        "train_5": ("fr",),
    }.items():
        for language in languages:
            made = [rows.xvnli(number, labels[number % 4]) for number in range(8)]
            rows.write(folder / language / f"{split}.jsonl", *made)
    translated = folder / "annotations_machine-translate" / "fr" / "test.jsonl"
    rows.write(translated, *[rows.xvnli(number) for number in range(7)])
    for number in range(8):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.jpg")
    (tmp_path / "data" / "WIT").mkdir()
    rows.write(tmp_path / "data" / "WIT" / "test_ar.jsonl", rows.wit())
    small = {name: SMALL[name] for name in ("batch_size", "threads", "max_length", "epochs")}
    options = Options(
        protocols=("zero-shot", "translate-test", "few-shot", "languages"),
        changes=small | {"few_shot.epochs": 1, "few_shot.lrs": (1e-3,)},
        seeds=(3,),
    )
    data = str(tmp_path / "data")
    report = run_suite(pretrained, data, str(images), tmp_path / "out", options, quiet())
    folders = {file.parent.name for file in (tmp_path / "out").rglob("scores.json")}
    assert folders == {
        *("zero_shot", "translate_test", "few_shot_5_fr", "single_language_fr", "all_languages")
    }
    seed = tmp_path / "out" / "xvnli" / "seed_3"
    zero = json.loads((seed / "zero_shot" / "scores.json").read_text())
    assert zero["train"]["examples"] == 6  # the two of no class teach nothing
    assert zero["test"]["examples"] == {"en": 8, "fr": 8, "ru": 8}  # and count as wrong
    lines = (seed / "zero_shot" / "predictions" / "fr.jsonl").read_text().splitlines()
    gold = [labels[number % 4] for number in range(8)]
    right = [
        json.loads(line)["prediction"] == label for line, label in zip(lines, gold, strict=True)
    ]
    assert zero["scores"]["fr"]["accuracy"] == np.mean(right)
    text = report.read_text()
    assert "WIT has no train in English, no dev in English" in text
    assert "UC2" in text


def test_nothing_to_run_is_an_error(tmp_path):
    (tmp_path / "WIT").mkdir()
    rows.write(tmp_path / "WIT" / "test_ar.jsonl", rows.wit())
    with pytest.raises(DataError, match="no task could be run:\n  wit: .* no train in English"):
        run_suite(tmp_path, str(tmp_path), "", tmp_path / "out", Options(), quiet())
    assert not (tmp_path / "out").exists()
