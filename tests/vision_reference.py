"""What the tests of towers share: reference libraries, random parameters, equal gradients."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

LAYERS = "encoder/layers/"


def require(name: str):
    """Imports a reference library; only outside of CI, or beside Python 3.11, may it lack."""
    if os.environ.get("CI") and sys.version_info[:2] == (3, 11):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} gives the reference values")


def template_of(tower, images: np.ndarray) -> dict:
    return jax.eval_shape(tower.init, jax.random.key(0), images)["params"]


def random_params(tower, images: np.ndarray, scale: float = 0.3) -> dict:
    """Every parameter random, norms and biases too."""
    return random_like(template_of(tower, images), scale)


def random_like(template, scale: float = 0.3):
    """Random arrays of the template's shapes and types."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), template)


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


def compare_by_module(ours: Mapping, theirs: Mapping, tolerance: float):
    """Asserts that gradients are equal to a share of the largest entry of a module's.

    Kernel and bias count as one module: the gradient of a key bias is zero but for rounding.
    """
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
