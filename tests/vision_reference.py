"""What the tests of the vision towers compare with: recordings, published names, PyTorch models."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rc3_jax.convert.mapping import to_flax

LAYERS = "encoder/layers/"


def require(name: str):
    """Imports a reference library; only outside of CI, or beside Python 3.11, may it lack."""
    if os.environ.get("CI") and sys.version_info[:2] == (3, 11):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} gives the reference values")


def published_names(
    tensors: Mapping[str, np.ndarray], renames: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch model under published names, with queries, keys and values as one.

    `renames` are regular expressions and what takes their place, one after another.
    """
    named, fused = {}, {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if match := re.fullmatch(r"(.*attn\.)([qkv])_proj\.(\w+)", name):
            fused.setdefault((match[1], match[3]), {})[match[2]] = tensor
        else:
            named[name] = tensor
    for (prefix, kind), parts in fused.items():
        if "k" in parts:
            named[f"{prefix}qkv.{kind}"] = np.concatenate([parts[part] for part in "qkv"])
        else:
            named |= {f"{prefix}{part}_{kind}": tensor for part, tensor in parts.items()}
    return named


def template_of(tower, images: np.ndarray) -> dict:
    return jax.eval_shape(tower.init, jax.random.key(0), images)["params"]


def random_params(tower, images: np.ndarray, scale: float = 0.3) -> dict:
    """Every parameter random, norms and biases too."""
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), template_of(tower, images)
    )


def randomise(model, torch, scale: float):
    """A PyTorch model in evaluation mode with every parameter random."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
    assert model.config._attn_implementation == "eager"
    return model.eval()


def compare_with_torch(torch, tower, images: np.ndarray, states, named: Mapping, rename, table):
    """Asserts outputs equal to 1e-5, and gradients to 1e-4 of a module's largest entry.

    The gradients are those of `sum(weights * output)` with normal weights. Kernel and bias count
    as one module: the gradient of a key bias is zero but for rounding.

    Args:
      states: what the PyTorch model gives, `[batch, tokens, width]`.
      named: its parameters by name.
      rename: tensors by those names to tensors by the names of `table`.
    """
    template = template_of(tower, images)
    tensors = {name: parameter.detach().numpy() for name, parameter in named.items()}
    params = to_flax(rename(tensors), table, template)
    weights = np.random.default_rng(1).normal(size=states.shape).astype(np.float32)
    (states * torch.from_numpy(weights)).sum().backward()

    def functional(params):
        ours = tower.apply({"params": params}, images)
        return (ours * weights).sum(), ours

    gradients, ours = jax.jit(jax.grad(functional, has_aux=True))(params)
    np.testing.assert_allclose(ours, states.detach().numpy(), rtol=0, atol=1e-5)
    tensors = {name: parameter.grad.numpy() for name, parameter in named.items()}
    compare_by_module(gradients, to_flax(rename(tensors), table, template), 1e-4)


def compare_by_module(ours: Mapping, theirs: Mapping, tolerance: float):
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert ours.keys() == theirs.keys()
    modules = {}
    for path in theirs:
        layers = range(len(theirs[path])) if path.startswith(LAYERS) else [...]
        for layer in layers:
            module = re.sub("/(kernel|bias|scale)$", "", path)
            modules.setdefault((module, layer), []).append((path, layer))
    for entries in modules.values():
        largest = max(np.abs(theirs[path][layer]).max() for path, layer in entries)
        assert largest > 0
        for path, layer in entries:
            np.testing.assert_allclose(
                ours[path][layer],
                theirs[path][layer],
                rtol=0,
                atol=tolerance * largest,
                err_msg=path,
            )
