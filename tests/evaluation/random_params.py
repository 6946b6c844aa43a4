"""Parameters large enough for every part of a model to be heard in its outputs."""

import jax
import numpy as np

from rc3_jax.data.shapes import example_batch


def random_params(model, config):
    """Random parameters of an RC³; nothing is compiled for them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_batch(config))["params"]
    rng = np.random.default_rng(0)

    def draw(path, shape):
        around, spread = {"scale": (1.0, 0.1), "bias": (0.0, 0.1)}.get(path[-1].key, (0.0, 1.0))
        return (around + spread * rng.standard_normal(shape.shape)).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
