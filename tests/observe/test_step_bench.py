"""The timed step: its random rows, and the protocol of its worker."""

import io
import json
import math

import jax
import numpy as np
import pytest

from rc3_jax.data.shapes import abstract_batch
from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from rc3_jax.observe.step_bench import StepBench, random_batch
from tests.tiny import load_config, tiny_cclm, tiny_config, with_tower

WORDS = 120


@pytest.mark.parametrize(
    ("make_config", "rows"),
    [
        (tiny_config, {"strict": 4, "weak": 2, "parallel": 2}),
        (tiny_cclm, {"captioned": 4, "parallel": 2, "region": 2}),
    ],
)
def test_random_rows_have_the_shapes_of_a_batch_and_values_that_a_row_may_have(make_config, rows):
    config = with_tower(make_config())
    batch = random_batch(config, rows, WORDS)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_batch(config, rows))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) == shapes
    for fields in batch.values():
        for name in ("ids_a", "masked_ids"):
            ids = fields[name].reshape(-1, fields[name].shape[-1])
            assert (ids[:, 0] == BOS_ID).all() and ids.max() < WORDS
            assert ((ids == EOS_ID).sum(axis=1) == 1).all()
            assert (np.diff(ids == PAD_ID, axis=1).sum(axis=1) <= 1).all()  # padding comes last
        labels = fields["masked_labels"]
        assert ((labels == IGNORED) | ((labels > EOS_ID) & (labels < WORDS))).all()
        if "region_boxes" in fields:
            boxes = fields["region_boxes"]
            assert (boxes >= 0).all() and (boxes <= 1).all()
            assert (boxes[..., :2] < boxes[..., 2:]).all()


@pytest.mark.slow
def test_a_worker_answers_every_line_with_the_times_of_its_steps():
    config = tiny_config()
    answers = io.StringIO()
    StepBench(config, WORDS).work(["0\n", "0.01\n"], answers)
    about, *chunks = map(json.loads, answers.getvalue().splitlines())
    assert (
        about["name"] == config.name and about["batch"] == config.batch_size and about["flops"] > 0
    )
    assert len(chunks) == 2
    for chunk in chunks:
        assert chunk["n"] >= 3 and 0 < chunk["min"] <= chunk["median"] <= chunk["max"]
        assert math.isfinite(chunk["loss"])


@pytest.mark.parametrize("size", ["demo", "wide", "quarter"])
def test_every_size_is_a_configuration_that_can_be_checked(size):
    from rc3_jax.config import validate

    assert validate(load_config("bench", f"size={size}")).name == f"bench_{size}"
