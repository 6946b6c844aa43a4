"""All tasks of a folder from one model: what is run, what is not and why, and the report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError
from rc3_jax.tasks import images
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import finetune_config
from rc3_jax.tasks.evaluate import examples_of
from rc3_jax.tasks.head import Scored
from rc3_jax.tasks.results import result_of, write_result
from rc3_jax.tasks.suite import Options, OtherResult, plan, run_suite, task_configs
from rc3_jax.training.load import load_model, params_checksum
from tests.tasks import task_files
from tests.tasks.tuned import pretrain
from tests.tiny import quiet, tiny_config

SMALL = {"batch_size": 8, "threads": 2, "max_length": 24, "epochs": 1}
FULL = {
    "train": ["en", "de"],
    "dev": ["en"],
    "test": ["en", "de", "ja"],
    "test_mt": ["de", "ja"],
    "train_1": ["de", "ja", "en", "tr"],
    "train_10x2": ["de"],
}


def steps(splits, protocols, **options):
    not_run = {}
    config = finetune_config("xvnli")
    config.annotations = "/data/XVNLI"
    config.update_from_flattened_dict(options.get("changes", {}))
    found = plan(config, splits, Options(protocols=protocols, **options), not_run)
    return {step.folder: step for step in found}, not_run


def test_every_protocol_has_its_steps():
    found, not_run = steps(FULL, ("zero-shot", "translate-test", "few-shot", "languages"))
    assert list(found) == [
        *("zero_shot", "translate_test", "few_shot_1_de", "few_shot_1_ja", "few_shot_10x2_de"),
        *("single_language_de", "all_languages"),
    ]
    assert not_run == {}
    assert not found["translate_test"].trains
    few = found["few_shot_10x2_de"]
    assert few.after == "zero_shot"
    assert few.changes["train.languages"] == few.changes["test.languages"] == ("de",)
    assert "select.languages" not in few.changes  # English dev, never the test
    assert few.changes["epochs"] == 20
    assert few.changes["lrs"] == (1e-4, 5e-5, 1e-5)
    assert found["all_languages"].changes["train.languages"] == ("en", "de")
    assert "select.languages" not in found["single_language_de"].changes  # no German dev


def test_shots_are_chosen():
    found, not_run = steps(FULL, ("few-shot",), shots=("10x2",))
    assert list(found) == ["zero_shot", "few_shot_10x2_de"]
    found, not_run = steps(FULL, ("few-shot",), shots=("3",))
    assert list(not_run) == ["xvnli, few-shot"] and "3 shots" in not_run["xvnli, few-shot"]
    found, not_run = steps(FULL, ("few-shot",), shots=("10x2", "3"))
    assert list(found) == ["zero_shot", "few_shot_10x2_de"]
    assert "3 shots" in not_run["xvnli, few-shot"]


def test_test_languages_choose_the_steps():
    every = ("zero-shot", "translate-test", "few-shot", "languages")
    found, not_run = steps(FULL, every, changes={"test.languages": ("en", "ja")})
    assert list(found) == ["zero_shot", "translate_test", "few_shot_1_ja"]
    assert found["translate_test"].changes["test.languages"] == ("ja",)
    assert list(not_run) == ["xvnli, languages"]  # German alone has training data
    with pytest.raises(DataError, match=r"test.languages.*jp.*mean ja\?"):
        steps(FULL, every, changes={"test.languages": ("jp",)})


def test_protocols_without_files_are_named():
    some = {split: FULL[split] for split in ("dev", "test")} | {"train": ["en"]}
    protocols = ("zero-shot", "translate-test", "few-shot", "translate-train", "languages")
    found, not_run = steps(some, protocols)
    assert list(found) == ["zero_shot"]
    assert list(not_run) == [f"xvnli, {name}" for name in protocols[1:]]
    for missing, said in (("train", "no train in English"), ("test", "no test")):
        with pytest.raises(DataError, match=f"/data/XVNLI .*{said}"):
            steps({k: v for k, v in some.items() if k != missing}, protocols)


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
    with pytest.raises(ConfigError, match="marvl.*xvnli, xgqa, wit; folders are") as refused:
        task_configs(str(data), "", Options(tasks=["marvl"]))
    for name in str(refused.value).rpartition("named ")[2].split(", "):
        (tmp_path / "named" / name).mkdir(parents=True)
    assert list(task_configs(str(tmp_path / "named"), "", Options())) == list(TASKS)
    for wrong in ("xvnil/epochs", "seed"):  # changes with a task's own name are above
        with pytest.raises(ConfigError, match=f"{wrong}: write NAME or TASK/NAME, and seeds as --"):
            task_configs(str(data), "", Options(changes={wrong: 3}))
    for wrong in ({"epoch": 3}, {"epochs": "many"}):
        with pytest.raises(ConfigError, match="xvnli: .*epoch"):
            task_configs(str(data), "", Options(changes=wrong))
    with pytest.raises(ConfigError, match="nowhere"):
        task_configs(str(tmp_path / "nowhere"), "", Options())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def model_sha256(pretrained):
    return params_checksum(load_model(pretrained, 16).params)


@pytest.fixture
def suite(pretrained, model_sha256, tmp_path):
    """Runs a suite whose model is always half right; returns the report's text and what was run."""

    def run(data, images="", source=pretrained, **options):
        runs = []

        def write(config, data, folder, parts):
            read = {f"{p} {config[p].split}": examples_of(data, config[p], p) for p in parts}
            found = {
                code: Scored({"accuracy": 0.5}, [{"id": e.identity} for e in examples])
                for code, examples in read[f"test {config.test.split}"].items()
            }
            origin = {"system": "rc3", "from": "runs/base", "model_sha256": model_sha256}
            train = dict(config.train.to_dict(), examples=8)
            result = result_of(config, data, read, found, train=train, **origin)
            folder.mkdir(parents=True)
            write_result(folder, result, found)
            runs.append(folder.name)
            return json.loads((folder / "scores.json").read_text())

        def train(config, data, begin, folder, console, keep):
            assert keep == (folder.name == "zero_shot")
            assert begin == (folder.parent / "zero_shot" if "few" in folder.name else source)
            return write(config, data, folder, ("train", "select", "test"))

        def score(config, data, begin, folder, console):
            assert begin == folder.parent / "zero_shot"
            return write(config, data, folder, ("test",))

        chosen = Options(**{"changes": SMALL, **options})
        given = source, str(data), str(images), tmp_path / "out", chosen, quiet()
        return run_suite(*given, train, score).read_text(), runs

    return run


@pytest.fixture
def files(tmp_path):
    """XVNLI with eight pictures in three languages, and WIT without English."""
    labels = ("entailment", "neutral", "contradiction", "-")
    made = [task_files.xvnli(number, labels[number % 4]) for number in range(8)]
    split_files = ["en/train", "fr/train", "en/dev", "en/test", "fr/test", "ru/test", "fr/train_5"]
    for name in (*split_files, "annotations_machine-translate/fr/test"):
        task_files.write(tmp_path / "data" / "XVNLI" / f"{name}.jsonl", *made)
    task_files.write(tmp_path / "data" / "WIT" / "test_ar.jsonl", task_files.wit())
    (tmp_path / "images").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path / "data", tmp_path / "images"


EVERY = {"protocols": ("zero-shot", "translate-test", "few-shot", "languages"), "seeds": (3, 5)}
FOLDERS = ["zero_shot", "translate_test", "few_shot_5_fr", "single_language_fr", "all_languages"]


def test_every_step_is_run_once_and_reported(suite, files):
    report, runs = suite(*files, **EVERY)
    assert runs == [name for name in FOLDERS for _ in EVERY["seeds"]]
    assert "WIT has no train in English, no dev in English" in report
    assert "UC2" in report
    assert suite(*files, **EVERY) == (report, [])
    assert suite(*files, **(EVERY | {"seeds": (3, 7)}))[1] == FOLDERS


def test_images_are_decoded_once_for_all_steps_of_a_task(suite, files, monkeypatch):
    decoded = []
    original = images.decode
    monkeypatch.setattr(
        images, "decode", lambda image, *more: decoded.append(image.name) or original(image, *more)
    )
    _, runs = suite(*files, **EVERY)
    assert len(set(runs)) == len(FOLDERS)
    assert sorted(decoded) == [f"{number}.jpg" for number in range(8)]


def test_one_language_is_scored_without_the_files_of_others(suite, files, tmp_path):
    data, pictures = files
    task_files.write(data / "XVNLI/ru/test.jsonl", task_files.xvnli(99))  # its picture is missing
    _, runs = suite(data, pictures, changes=SMALL | {"test.languages": ("fr",)})
    result = json.loads((tmp_path / "out/xvnli/seed_0/zero_shot/scores.json").read_text())
    assert list(result["scores"]) == ["fr"] and runs == ["zero_shot", "translate_test"]


def test_results_are_known_wherever_their_data_lie(suite, files, tmp_path, monkeypatch):
    data, images = files
    suite(data, images, **EVERY)
    shutil.move(data, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert suite("moved", "images", **EVERY)[1] == []
    file = tmp_path / "moved" / "XVNLI" / "fr" / "test.jsonl"
    file.write_text(file.read_text().replace("Hypothesis 1", "Hypothesis 9"))
    one = EVERY | {"seeds": (3,)}
    with pytest.raises(OtherResult, match="zero_shot.* data_sha256") as refused:
        suite("moved", "images", **one)
    shutil.rmtree(str(refused.value).rpartition(" or remove ")[2])
    assert suite("moved", "images", **one)[1] == FOLDERS  # also what started from zero_shot


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"epochs": 2}, "config_sha256"),
        ({"generated.test": 7}, "config_sha256"),
        (None, "model_sha256"),
    ],
)
def test_results_of_other_settings_or_another_model_are_refused(suite, tmp_path, changes, named):
    sizes = {"generated.train": 16, "generated.dev": 4, "generated.test": 6}
    options = {"changes": SMALL | sizes, "tasks": ("xvnli",)}
    report, runs = suite("miniature", **options)
    assert runs == ["zero_shot"]
    assert "| xvnli, translate-test |" in report  # in the table of what was not run
    if changes is None:
        config = tiny_config()
        config.seed = 1
        options["source"] = pretrain(tmp_path / "again", config)
    else:
        options["changes"] |= changes
    with pytest.raises(OtherResult, match=named) as refused:
        suite("miniature", **options)
    shutil.rmtree(str(refused.value).rpartition(" or remove ")[2])
    assert suite("miniature", **options)[1] == ["zero_shot"]


def test_nothing_to_run_is_an_error(suite, files, tmp_path):
    with pytest.raises(DataError, match="wit: .* no train in English"):
        suite(*files, tasks=("wit",))
    with pytest.raises(ConfigError, match="one-shot"):
        suite(*files, protocols=("one-shot",))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_to_report(pretrained, files, tmp_path):
    data, images = map(str, files)
    changes = SMALL | {"few_shot.epochs": 1, "few_shot.lrs": (1e-3, 1e-4)}
    options = Options(("zero-shot", "translate-test", "few-shot"), changes=changes)
    report = run_suite(pretrained, data, images, tmp_path / "out", options, quiet())
    seed = tmp_path / "out" / "xvnli" / "seed_0"
    results = {path.parent.name: json.loads(path.read_text()) for path in seed.rglob("scores.json")}
    assert {name: r["protocol"] for name, r in results.items()} == {
        "zero_shot": "zero-shot",
        "translate_test": "translate-test",
        "few_shot_5_fr": "few-shot",
    }
    zero, few = results["zero_shot"], results["few_shot_5_fr"]
    assert zero["train"]["examples"] == 6  # the two of no class teach nothing
    assert zero["test"]["examples"] == {"en": 8, "fr": 8, "ru": 8}  # and count as wrong
    assert few["shots"] == "5" and [epoch["lr"] for epoch in few["dev"]] == [1e-3, 1e-4]
    assert (seed / "zero_shot" / "params").exists() and not (seed / "few_shot_5_fr/params").exists()
    lines = (seed / "zero_shot" / "predictions" / "fr.jsonl").read_text().splitlines()
    labels = ("entailment", "neutral", "contradiction", "-")
    right = [json.loads(line)["prediction"] == labels[n % 4] for n, line in enumerate(lines)]
    assert zero["scores"]["fr"]["accuracy"] == np.mean(right)
    assert "few-shot, 5" in report.read_text()
