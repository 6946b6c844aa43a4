"""CCLM on the tasks: from a pre-trained folder by `finetune` to scores."""

from __future__ import annotations

import ml_collections
import numpy as np
import pytest

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.downstream.batches import picture_fields
from rc3_jax.downstream.examples import Example, TaskData
from rc3_jax.downstream.finetune import evaluate, finetune
from rc3_jax.downstream.miniatures import miniature
from rc3_jax.downstream.pretrained import load_pretrained
from rc3_jax.evaluation.retrieval import ranks_of_right
from rc3_jax.models.cclm import build_cclm
from tests.downstream.colours import colour_task, picture
from tests.downstream.tuning import quiet, tuning, write_pretrained
from tests.tiny import tiny_cclm


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return write_pretrained(tiny_cclm(), tmp_path_factory.mktemp("pretrained"))


def two_red_pictures(count: int) -> list[Example]:
    """True of half of the pairs; one picture alone tells three quarters."""
    drawn = [("red", "red"), ("red", "blue"), ("red", "red"), ("blue", "red")]
    examples = []
    for number in range(count):
        colours = drawn[number % 4]
        shown = tuple(picture(c, 1000 * count + 2 * number + i) for i, c in enumerate(colours))
        examples.append(Example("", str(number), "red", shown, 1 - number % 2))
    return examples


def red_task() -> TaskData:
    sizes = {"train": 96, "dev": 12, "test": 16}
    splits = {split: {"en": two_red_pictures(count)} for split, count in sizes.items()}
    return TaskData(("false", "true"), splits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, data, epochs", [("xvnli", colour_task(1, 240), 6), ("marvl", red_task(), 8)]
)
def test_classes_are_learned_and_the_head_kept(pretrained, tmp_path, task, data, epochs):
    result = finetune(tuning(task, epochs), data, pretrained, tmp_path / "tuned", quiet())
    assert result["scores"]["en"]["accuracy"] >= 0.9
    again = evaluate(tuning(task), data, tmp_path / "tuned", console=quiet())
    assert again["scores"] == result["scores"]


@pytest.mark.slow
def test_retrieval_is_that_of_all_vectors_and_pairs(pretrained, tmp_path):
    data = miniature("xflickrco", sizes={"train": 24, "dev": 12, "test": 12})
    config = tuning("xflickrco", epochs=1, rerank=-1)
    result = finetune(config, data, pretrained, tmp_path / "tuned", quiet())
    tuned = load_pretrained(tmp_path / "tuned", config.max_length)
    bound = build_cclm(tuned.model, tuned.tokenizer.vocab_size).bind({"params": tuned.params})
    settings = ml_collections.ConfigDict(dict(model=tuned.model))
    examples = data.splits["test"]["de"]
    rows = [picture_fields(e.pictures[0], settings, "patches") for e in examples]
    visual = bound.encode_visual({"image": np.stack([row["image"] for row in rows])})
    ids = tuned.tokenizer.encode([e.text for e in examples])
    states, texts = bound.encode_text(ids)
    count = len(examples)
    pairs = np.divmod(np.arange(count * count), count)
    fused = bound.fusion(
        states[pairs[0]], ids[pairs[0]] != PAD_ID, visual.tokens[pairs[1]], visual.mask[pairs[1]]
    )
    found = {
        "": np.asarray(texts @ visual.vector.T),
        "re-ranked ": np.asarray(bound.match(fused)[:, 1]).reshape(count, count),
    }
    for prefix, scores in found.items():
        for name, values in (("IR", scores), ("TR", scores.T)):
            for k in (1, 5, 10):
                share = np.mean(ranks_of_right(values, np.eye(count, dtype=bool)) < k)
                assert result["scores"]["de"][f"{prefix}{name}@{k}"] == pytest.approx(share)
