"""Fine-tuning from a folder to a folder: learning, selecting, scoring, going on from it."""

from __future__ import annotations

import json

import jax
import ml_collections
import numpy as np
import pytest

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation.ranking import ranks_of_right
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.tasks import miniature
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import read_config
from rc3_jax.tasks.batches import picture_fields
from rc3_jax.tasks.config import task_config
from rc3_jax.tasks.evaluate import evaluate, tell_coverage
from rc3_jax.tasks.finetune import finetune
from rc3_jax.tasks.load import load_task
from rc3_jax.training.checkpoint import read_params
from rc3_jax.training.load import load_model
from rc3_jax.training.memory import OutOfMemory
from tests.tasks import task_files
from tests.tasks.colours import colour_task
from tests.tasks.tuning import tuning
from tests.tiny import quiet, tiny_config, write_pretrained


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return write_pretrained(tiny_config(), tmp_path_factory.mktemp("pretrained"))


@pytest.mark.slow
@pytest.mark.parametrize("pictures, task", [(1, "xvnli"), (2, "marvl")])
def test_a_simple_task_is_learned(pretrained, tmp_path, pictures, task):
    result = finetune(tuning(task), colour_task(pictures), pretrained, tmp_path / "tuned", quiet())
    assert result["dev"][-1]["loss"] < result["dev"][0]["loss"]
    assert result["scores"]["en"]["accuracy"] >= 0.8
    assert json.loads((tmp_path / "tuned" / "scores.json").read_text()) == result
    best = max(epoch["dev"]["en"]["accuracy"] for epoch in result["dev"])
    again = tuning(task, epochs=1)
    again.optimizer.lr = 1e-50  # none in 32 bits
    kept = finetune(again, colour_task(pictures), tmp_path / "tuned", tmp_path / "again", quiet())
    assert kept["dev"][0]["dev"]["en"]["accuracy"] == best
    assert kept["scores"] == result["scores"]
    jax.tree.map(
        np.testing.assert_array_equal,
        read_params(tmp_path / "tuned"),
        read_params(tmp_path / "again"),
    )


@pytest.mark.slow
def test_retrieval_scores_are_those_of_all_vectors(pretrained, tmp_path):
    data = miniature("xflickrco", sizes={"train": 24, "dev": 12, "test": 12})
    config = tuning("xflickrco", epochs=1, rerank=-1)
    result = finetune(config, data, pretrained, tmp_path / "tuned", quiet())
    assert set(result["scores"]) == set(LANGUAGES)
    again = evaluate(config, data, tmp_path / "tuned", console=quiet())
    assert again["scores"] == result["scores"]
    tuned = load_model(tmp_path / "tuned", config.max_length)
    model = build_rc3(tuned.settings, tuned.tokenizer.vocab_size)
    bound = model.bind({"params": tuned.params})
    settings_of_rows = ml_collections.ConfigDict(dict(model=tuned.settings))
    for code, examples in data.splits["test"].items():
        rows = [picture_fields(e.pictures[0], settings_of_rows, "both") for e in examples]
        visual = bound.encode_visual({k: np.stack([r[k] for r in rows]) for k in rows[0]})
        ids = tuned.tokenizer.encode([e.text for e in examples])
        states, texts = bound.encode_text(ids)
        similarity = np.asarray(texts @ visual.embedding.T)
        right = np.eye(len(examples), dtype=bool)
        logits = np.zeros(right.shape)
        for image in range(len(examples)):
            tokens, mask = (np.repeat(x[image : image + 1], len(ids), axis=0) for x in visual[:2])
            fused = bound.fusion(states, ids != PAD_ID, tokens, mask)
            logits[:, image] = bound.match(fused)[:, 1]
        for prefix, scores in (("", similarity), ("re-ranked ", logits)):
            for name, values in (("IR", scores), ("TR", scores.T)):
                for k in (1, 5, 10):
                    share = np.mean(ranks_of_right(values, right) <= k)
                    assert result["scores"][code][f"{prefix}{name}@{k}"] == pytest.approx(share)
    assert len({round(s["mean"], 6) for s in result["scores"].values()}) > 1


@pytest.mark.slow
def test_recomputing_changes_nothing_that_is_learned(pretrained, tmp_path):
    def tuned(remat):
        config = tuning("xvnli", epochs=2, dropout=0.1, remat=remat)
        return finetune(config, colour_task(1), pretrained, tmp_path / str(remat), quiet())

    kept, recomputed = tuned(None), tuned("full")
    assert read_config(tmp_path / "None")["model"]["remat"] == "none"
    assert read_config(tmp_path / "full")["model"]["remat"] == "full"
    assert recomputed["config_sha256"] == kept["config_sha256"]
    for one, other in zip(kept["dev"], recomputed["dev"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    with pytest.raises(ConfigError, match="remat=.some."):
        tuned("some")


def test_lack_of_memory_ends_with_what_to_change(pretrained, tmp_path, monkeypatch):
    def too_much(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    config, data = tuning("xflickrco"), miniature("xflickrco", {"train": 8, "dev": 4, "test": 4})
    monkeypatch.setattr("rc3_jax.tasks.finetune.train", too_much)
    with pytest.raises(OutOfMemory, match=r"allocating 9 bytes(.|\n)*remat=full(.|\n)*batch_size"):
        finetune(config, data, pretrained, tmp_path / "tuned", quiet())
    monkeypatch.setattr("rc3_jax.tasks.evaluate.score_languages", too_much)
    with pytest.raises(OutOfMemory, match=r"allocating 9 bytes(.|\n)*batch_size"):
        evaluate(config, data, pretrained, console=quiet())


def test_texts_that_are_cut_are_told_with_what_to_raise(pretrained):
    read = {"test test": miniature("xflickrco", {"train": 1, "dev": 1, "test": 12}).splits["test"]}
    room = load_model(pretrained, 8).settings.text.room

    def told(length):
        said = []
        figures = tell_coverage(load_model(pretrained, length), read, said.append)
        return figures, said[1:]

    figures, warnings = told(8)
    assert set(figures) == {f"test {code}" for code in LANGUAGES}
    assert figures["test de"]["texts"] == 12 and figures["test de"]["cut"] == 1
    assert sum("raise max_length" in line for line in warnings) >= len(LANGUAGES)
    figures, warnings = told(room)  # more is asked for than the model's table of positions holds
    assert all("raise max_length" not in line for line in warnings)
    assert any(f"{room} tokens at most" in line for line in warnings)


def test_settings_of_the_generated_task_are_not_taken_for_files(tmp_path):
    config = task_config("xvnli", "")
    named = dict(annotations=str(tmp_path / "files"), images=str(tmp_path / "pictures"))
    config.update(**named, english="/english")
    with pytest.raises(ConfigError, match="xvnli.py:annotations=.*,images=") as refused:
        load_task(config)
    for split in ("train", "dev", "test"):
        task_files.write(tmp_path / "files" / "en" / f"{split}.jsonl", task_files.xvnli())
    task_files.draw(tmp_path / "pictures", "1.jpg")
    advised = task_config("xvnli", str(refused.value).rpartition(":")[2])
    assert {name: advised[name] for name in named} == named
    with pytest.raises(ConfigError, match="files in annotations: name that folder too"):
        task_config("xvnli", f"images={named['images']}")  # as above
    assert set(task_files.counts(load_task(advised))) == {"train/en", "dev/en", "test/en"}
