"""A head of a task on one device and on four; run in a process of its own."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rc3_jax.parallel.mesh import make_mesh, one_device_mesh
from rc3_jax.parallel.rules import shardings
from rc3_jax.tasks.make_head import make_head
from rc3_jax.training.load import load_model
from tests.tasks.test_task_heads import MORE, decoder_tuning, question_task


def main(folder: pathlib.Path) -> None:
    config, task = decoder_tuning(candidates=3), question_task(MORE)
    config.mesh.update(data=2, fsdp=2, fsdp_threshold=64)
    pretrained = load_model(folder, 40).with_settings(dropout=0.0)
    found = []
    for mesh in (one_device_mesh(), make_mesh(config.mesh)):
        head = make_head(config, task, pretrained, mesh)
        places = shardings(head.params, mesh, config.mesh)
        params = jax.device_put(head.params, places)
        batch = next(head.batches(task.splits["train"]["en"]).in_order())
        key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
        step = jax.jit(jax.value_and_grad(head.loss), out_shardings=(None, places))
        loss, gradients = step(params, batch, key)
        scored = head.score(params, task.splits["test"]["en"], final=True)
        found.append((float(loss), jax.device_get(gradients), scored.predictions))
    assert any(not place.is_fully_replicated for place in jax.tree.leaves(places))
    (loss, gradients, answers), (their_loss, their_gradients, their_answers) = found
    np.testing.assert_allclose(their_loss, loss, rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients))
    for one, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(their_gradients), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest)
    for one, other in zip(answers, their_answers, strict=True):
        assert (one["id"], one["prediction"]) == (other["id"], other["prediction"])
        np.testing.assert_allclose(other["probability"], one["probability"], rtol=1e-4)
