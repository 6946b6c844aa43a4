"""The published downstream models' outputs, reproduced by the heads that fine-tuning uses.

Recorded images are normalised already. With a mean of 0 and a deviation of 1 / 255 the models read
them as they are, but for the last bit.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import pytest

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.objectives import terms
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.tasks.base import Example, Picture
from rc3_jax.tasks.classification import answer_head, class_head
from rc3_jax.tasks.retrieval import retrieval_head
from rc3_jax.training.load import LoadedModel
from tests.parity.downstream import METRICS, task_params
from tests.parity.recordings import DOWNSTREAM, folders, read, require_folder

FOLDERS = pytest.mark.parametrize("folder", folders(DOWNSTREAM) or [None], ids=str)
KEY = jax.random.key(0)
FILLING = 2
"""Rows that fill the last batch."""


class Ids(NamedTuple):
    """A vocabulary whose texts are numbers of recorded rows."""

    rows: np.ndarray
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.rows[[int(text) for text in texts]].astype(np.int32)


class Recorded(NamedTuple):
    """What reads batches of examples: here a single one."""

    batch: dict[str, np.ndarray]

    def __call__(self, examples: Sequence[Example]) -> Recorded:
        return self

    def in_order(self) -> Iterator[dict[str, np.ndarray]]:
        count = len(self.batch["ids"]) + FILLING
        yield {
            name: np.resize(value, (count, *value.shape[1:])) for name, value in self.batch.items()
        }


def batch_of(image: np.ndarray, ids: np.ndarray, mask: np.ndarray, label: np.ndarray) -> dict:
    np.testing.assert_array_equal(mask.astype(bool), ids != PAD_ID)
    return {"image": image, "ids": ids.astype(np.int32), "label": label.astype(np.int32)}


def inputs(folder: pathlib.Path, task: str) -> dict[str, np.ndarray]:
    found = read(folder).inputs.items()
    return {k.removeprefix(f"{task}."): v for k, v in found if k.startswith(f"{task}.")}


def model_of(folder: pathlib.Path, params: dict, rows=None, task: str | None = None) -> LoadedModel:
    recording = read(folder)
    model = recording.settings.model.copy_and_resolve_references()
    model.update(image_mean=(0.0,) * 3, image_std=(1 / 255,) * 3)
    model.patch.drop_path = 0.0
    words = Ids(rows, recording.config["model"]["text"]["vocab_size"])
    return LoadedModel("cclm", model, words, params, task, (), None, {})


def examples_of(labels: Sequence[int]) -> list[Example]:
    return [Example("", str(n), "", (), int(label)) for n, label in enumerate(labels)]


def check_classes(head, batch, expected, name):
    """Loss, classes and their probabilities are the recorded ones."""
    loss = jax.jit(head.loss)(head.params, batch, KEY)
    np.testing.assert_allclose(loss, expected[f"{name}.loss"], rtol=0, atol=1e-5)
    found = head.score(head.params, examples_of(batch["label"]), final=True)
    logits = expected[f"{name}.logits"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = logits.argmax(axis=1)
    assert [row["prediction"] for row in found.predictions] == [str(at) for at in best]
    given = [row["probability"] for row in found.predictions]
    np.testing.assert_allclose(given, probabilities.max(axis=1), rtol=0, atol=1e-5)
    assert found.scores["accuracy"] == np.mean(best == batch["label"])


@pytest.mark.slow
@FOLDERS
def test_classes_of_one_picture(folder):
    require_folder(folder)
    x = inputs(folder, "xvnli")
    batch = batch_of(x["image"], x["text_ids"], x["text_atts"], x["targets"])
    stored = task_params(folder, "classifier", True)
    classes = [str(n) for n in range(read(folder).outputs["xvnli.logits"].shape[1])]
    start = model_of(folder, read(folder).params)
    head = class_head(start, classes, 1, one_device_mesh(), Recorded(batch), 0)
    params = {**head.params, "class_head": stored["class_head"]}  # the trunk has none
    check_classes(head._replace(params=params), batch, read(folder).outputs, "xvnli")


@pytest.mark.slow
@FOLDERS
@pytest.mark.parametrize("variant", ["as_loaded", "distinct"])
def test_classes_of_two_pictures(folder, variant):
    require_folder(folder)
    x, stored = inputs(folder, "nlvr"), task_params(folder, "two_images", True)
    pictures = np.stack(np.split(x["image"], 2), axis=1)
    batch = batch_of(pictures, x["text_ids"], x["text_atts"], x["targets"])
    given = (read(folder).params, None) if variant == "as_loaded" else (stored, "marvl")
    start = model_of(folder, given[0], task=given[1])
    head = class_head(start, ("0", "1"), 2, one_device_mesh(), Recorded(batch), 0)
    params = {**head.params, "class_head": stored["class_head"]}
    check_classes(head._replace(params=params), batch, read(folder).outputs, f"nlvr.{variant}")


@pytest.mark.slow
@FOLDERS
@pytest.mark.parametrize("variant", ["as_loaded", "distinct"])
def test_answers(folder, variant):
    require_folder(folder)
    x, expected = inputs(folder, "vqa"), read(folder).outputs
    asked = np.repeat(np.arange(len(x["train_n"])), x["train_n"])
    as_loaded = variant == "as_loaded"
    params = read(folder).params if as_loaded else task_params(folder, "answers", True)
    task = None if as_loaded else "xgqa"

    def head_of(answers, batch, k=1):
        names = [str(n) for n in range(len(answers))]
        start = model_of(folder, params, answers, task)
        return answer_head(start, names, one_device_mesh(), Recorded(batch), k, True)

    question = x["image"], x["question_ids"], x["question_atts"]
    batch = batch_of(*(value[asked] for value in question), np.arange(len(asked)))
    head = head_of(x["train_answer_ids"], batch)
    one = jax.jit(head.loss)
    losses = [
        one(head.params, {name: value[n : n + 1] for name, value in batch.items()}, KEY)
        for n in range(len(asked))
    ]
    np.testing.assert_allclose(losses, expected[f"vqa.{variant}.decoder_nll"], rtol=0, atol=1e-5)
    loss = x["train_weights"] @ np.array(losses) / len(x["train_n"])
    np.testing.assert_allclose(loss, expected[f"vqa.{variant}.train_loss"], rtol=0, atol=1e-5)
    mean = jax.jit(head.loss)(head.params, batch, KEY)
    np.testing.assert_allclose(mean, np.mean(losses), rtol=1e-6)

    listed = x["answer_list_ids"]
    for suffix, k in (("", int(x["k"])), (f"_k{len(listed)}", len(listed))):
        places, probabilities = (
            expected[f"vqa.{variant}.topk_{name}{suffix}"] for name in ("ids", "probs")
        )
        right = places[:, 0].copy()
        right[0] = -1
        head = head_of(listed, batch_of(*question, right), k)
        found = head.score(head.params, examples_of(right), final=True)
        assert [row["prediction"] for row in found.predictions] == [str(n) for n in places[:, 0]]
        given = [row["probability"] for row in found.predictions]
        np.testing.assert_allclose(given, probabilities[:, 0], rtol=0, atol=1e-5)
        assert found.scores["accuracy"] == pytest.approx(1 - 1 / len(right))


@FOLDERS
def test_retrieval(folder, monkeypatch):
    require_folder(folder)
    recording, x = read(folder), inputs(folder, "re")
    expected, params = recording.outputs, recording.params
    start = model_of(folder, params, x["text_ids"])
    k = recording.config["retrieval_eval"]["k_test"]

    def fields_of(picture: Picture):
        return {"image": x["image"][int(picture.name)]}

    head = retrieval_head(start, one_device_mesh(), None, fields_of, 4, k, 2)
    images, texts = x["train_image_rows"], x["train_text_rows"]
    batch = batch_of(
        x["image"][images], x["text_ids"][texts], x["text_atts"][texts], x["train_idx"]
    )
    drawn = iter([x["image_neg_idx"], x["text_neg_idx"]])
    monkeypatch.setattr(terms, "sample_negatives", lambda *given: next(drawn))
    loss = jax.jit(head.loss)(params, batch, KEY)
    both = expected["re.train.loss_itc"] + expected["re.train.loss_itm"]
    np.testing.assert_allclose(loss, both, rtol=0, atol=2e-5)

    owners = np.repeat(np.arange(len(x["image"])), np.diff(x["img2txt"]))
    examples = [
        Example("", str(n), str(n), (Picture(str(owner), None),)) for n, owner in enumerate(owners)
    ]
    scores = head.score(params, examples, final=True).scores
    names = [METRICS[key] for key in recording.config["metric_keys"]]
    recorded = {
        prefix: dict(zip(names, expected[f"re.eval.metrics_{kind}"] / 100, strict=True))
        for prefix, kind in (("", "dual"), ("re-ranked ", "reranked"))
    }
    compared = [f"{side}@{k}" for side in ("IR", "TR") for k in (1, 5, 10)] + ["mean"]
    for name in compared:
        np.testing.assert_allclose(scores[name], recorded[""][name], rtol=0, atol=1e-6)
    for name in ("IR@1", "TR@1"):  # the others are not comparable, see test_downstream.py
        again = scores[f"re-ranked {name}"]
        np.testing.assert_allclose(again, recorded["re-ranked "][name], rtol=0, atol=1e-6)
