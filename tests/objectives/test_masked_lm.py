"""Masked-LM loss against PyTorch's cross-entropy with ignored labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.text import IGNORED
from rc3_jax.objectives.masked_lm import masked_lm_loss


def test_equals_cross_entropy_with_ignored_labels():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 11)).astype(np.float32)
    labels = rng.integers(0, 11, (3, 5))
    labels[0, 2:], labels[2, :] = IGNORED, IGNORED
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        tensor.reshape(-1, 11), torch.tensor(labels).reshape(-1), ignore_index=IGNORED
    )
    expected.backward()
    value, gradient = jax.value_and_grad(lambda x: masked_lm_loss(x, jnp.array(labels))[0])(logits)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-7)
    accuracy = masked_lm_loss(logits, jnp.array(labels))[1]
    valid = labels != IGNORED
    assert float(accuracy) == pytest.approx(np.mean((logits.argmax(-1) == labels)[valid]))


def test_a_batch_without_any_masked_token_costs_nothing():
    loss, accuracy = masked_lm_loss(jnp.ones((2, 3, 4)), jnp.full((2, 3), IGNORED))
    assert (float(loss), float(accuracy)) == (0.0, 0.0)
