"""AdamW, its masks, rates and schedule, against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from rc3_jax.config import default_config
from rc3_jax.training.optimizer import make_optimizer, mask, schedule

PARAMS = {
    "text": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "matching_head": {"kernel": jnp.full((2,), 2.0)},
    "temperature_fused": jnp.float32(0.07),
}


def settings(**changes):
    config = default_config().optimizer
    config.no_decay = (".*/bias", "temperature_.*")
    config.lr_multipliers = ml_collections.ConfigDict(
        dict(
            new=dict(factor=2.0, parameters=("matching_head/.*",)),
            temperature=dict(factor=0.1, parameters=("temperature_.*",)),
        )
    )
    config.update(dict(lr=1e-2, warmup=0.0, decay="constant", weight_decay=0.1) | changes)
    return config


def test_updates_equal_pytorch_adamw_with_parameter_groups():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    config = settings(clip=0.5)
    flat, structure = jax.tree.flatten(PARAMS)
    gradients = [[rng.normal(size=p.shape).astype(np.float32) for p in flat] for _ in range(4)]

    tensors = [torch.tensor(np.array(p), requires_grad=True) for p in flat]
    # In the order of the flattened tree: matching_head, temperature, text bias, text kernel.
    groups = [(2e-2, 0.1), (1e-3, 0.0), (1e-2, 0.0), (1e-2, 0.1)]
    reference = torch.optim.AdamW(
        [
            dict(params=[t], lr=lr, weight_decay=decay)
            for t, (lr, decay) in zip(tensors, groups, strict=True)
        ],
        betas=(config.b1, config.b2),
        eps=config.eps,
    )
    optimizer = make_optimizer(config, 100, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in gradients:
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(tensors, config.clip)
        reference.step()
        updates, state = optimizer.update(jax.tree.unflatten(structure, step), state, params)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(jax.tree.leaves(params), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5)


def test_schedule_rises_linearly_then_falls():
    config = settings(lr=1.0, warmup=0.1, decay="cosine", final_lr=0.2)
    rate = schedule(config, 100)
    np.testing.assert_allclose([rate(s) for s in range(10)], np.arange(1, 11) / 10, rtol=1e-6)
    for step in (10, 37, 99):
        along = (step - 10) / 90
        expected = 0.2 + 0.8 * (1 + np.cos(np.pi * along)) / 2
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
    linear = schedule(settings(lr=1.0, warmup=0.1, decay="linear", final_lr=0.2), 100)
    assert float(linear(55)) == pytest.approx(0.6)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(
        ValueError, match=r"optimizer.lr_multipliers.new: 'fusio/\.\*' matches no parameter"
    ) as refused:
        mask(PARAMS, ("fusio/.*",), "optimizer.lr_multipliers.new")
    for name in str(refused.value).partition("named like ")[2].split(", "):
        assert sum(jax.tree.leaves(mask(PARAMS, (name,), "x"))) == 1
    chosen = mask(PARAMS, (".*/kernel",), "x")
    assert chosen["text"] == {"kernel": True, "bias": False}


def test_a_clip_of_zero_does_not_clip():
    gradients = jax.tree.map(lambda p: jnp.full(p.shape, 1e3), PARAMS)
    updates = {}
    for clip in (0.0, 1.0, 1e9):
        optimizer = make_optimizer(settings(clip=clip, eps=1.0, weight_decay=0.0), 100, PARAMS)
        state = optimizer.init(PARAMS)
        updates[clip] = optimizer.update(gradients, state, PARAMS)[0]
    off, clipped, far = (jax.tree.leaves(updates[clip]) for clip in (0.0, 1.0, 1e9))
    for one, other in zip(off, far, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.all(np.abs(c) < np.abs(o)) for c, o in zip(clipped, off, strict=True))
