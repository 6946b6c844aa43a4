"""Masked-LM loss against PyTorch's cross-entropy of the whole logits, and its memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.text import IGNORED
from rc3_jax.objectives.masked_lm import masked_lm_loss
from tests.processes import run_python


def example(vocab=37, rows=3, masked=5, width=6):
    rng = np.random.default_rng(0)
    hidden, words = rng.normal(size=(rows, masked, width)), rng.normal(size=(vocab, width))
    labels = rng.integers(0, vocab, (rows, masked))
    labels[0, 2:], labels[-1, :] = IGNORED, IGNORED
    return *(x.astype(np.float32) for x in (hidden, words, rng.normal(size=vocab))), labels


@pytest.mark.parametrize("tile", [1, 8, 36, 37, 100])
def test_equals_cross_entropy_with_ignored_labels(tile):
    torch = pytest.importorskip("torch")
    *arrays, labels = example()
    hidden, words, bias = (torch.tensor(x, requires_grad=True) for x in arrays)
    logits = hidden @ words.T + bias
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 37), torch.tensor(labels).reshape(-1), ignore_index=IGNORED
    )
    expected.backward()

    def loss(*arrays):
        return masked_lm_loss(*arrays, jnp.array(labels), tile=tile)

    (value, accuracy), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        *arrays
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    for ours, theirs in zip(gradients, (hidden, words, bias), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=5e-7)
    valid, guess = labels != IGNORED, logits.detach().numpy().argmax(-1)
    assert float(accuracy) == pytest.approx(np.mean((guess == labels)[valid]))


def test_a_batch_without_any_masked_token_costs_nothing():
    loss, accuracy = masked_lm_loss(
        jnp.ones((2, 3, 4)), jnp.ones((5, 4)), jnp.ones(5), jnp.full((2, 3), IGNORED)
    )
    assert (float(loss), float(accuracy)) == (0.0, 0.0)


DEVICES = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.parallel.mesh import BATCH
from tests.objectives.test_masked_lm import example
from tests.objectives.tile_cases import mesh_of

hidden, words, bias, labels = example(rows=16)
def gradient(mesh):
    loss = lambda h, w, b: masked_lm_loss(h, w, b, jnp.array(labels), mesh, 8)
    arrays = hidden, words, bias
    if mesh:
        arrays = jax.device_put(arrays, tuple(NamedSharding(mesh, s) for s in (BATCH, P(), P())))
    found = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return jax.tree.map(np.asarray, jax.tree.leaves(found))

expected = gradient(None)
worst = 0.0
for axes in ((8,), (4, 2), (2, 2, 2), (1, 2, 2, 2), (1, 1, 8)):
    for ours, theirs in zip(gradient(mesh_of(*axes)), expected, strict=True):
        worst = max(worst, float(np.abs(ours - theirs).max()))

def temporaries(vocab, mesh):
    f = jax.jit(jax.grad(lambda *x: masked_lm_loss(*x, mesh, 1024)[0], (0, 1, 2)))
    shapes = [(64, 12, 64), (vocab, 64), (vocab,)]
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    compiled = f.lower(*arrays, jax.ShapeDtypeStruct((64, 12), jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes
print(json.dumps([worst, [temporaries(v, mesh_of(1)) for v in (25_000, 100_000)]]))
"""


def test_words_spread_over_devices_give_the_same_and_memory_does_not_hold_the_logits():
    worst, (small, large) = json.loads(run_python(DEVICES, devices=8).splitlines()[-1])
    assert worst <= 1e-6
    logits = 4 * 64 * 12 * 75_000  # bytes of 75,000 more words at each position
    embeddings = 4 * 65 * 75_000
    assert large - small <= 4 * embeddings < logits / 2
