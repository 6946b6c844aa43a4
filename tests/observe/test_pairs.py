"""Which arrays count as pairs of rows, or of positions and words."""

import pytest
from jax.sharding import AbstractMesh

from rc3_jax.observe.hlo import Shape
from rc3_jax.observe.pairs import forbidden, pair_buffers
from rc3_jax.observe.runs import Buffer
from rc3_jax.parallel.mesh import AXES
from tests.tiny import load_config

ROWS = {"strict": 4096, "weak": 2048, "parallel": 2048}


@pytest.fixture
def looked_for():
    """256 devices: 24 images on each, 32 texts with masks of 12 tokens."""
    config = load_config("rc3_base", "root=/any,batch=8192")
    config.objective.pairs.tile = 1024
    return forbidden(config, ROWS, 250_002, AbstractMesh((1, 32, 8, 1), AXES))


@pytest.mark.parametrize(
    ("dims", "what"),
    [
        ((24, 6144), "images x images"),
        ((6144, 1, 24), "images x images"),
        ((6144, 6144), "images x images"),
        ((6, 24, 1024), "images x images"),  # all tiles, kept
        ((256, 24, 24), "images x images"),  # all hops of the ring, kept
        ((8, 2048), "weak rows x weak rows"),
        ((24, 12, 250_002), "positions x words"),
        ((384, 250_002), "positions x words"),
        ((31, 384, 8192), "positions x words"),
        ((384, 8192), None),
        ((24, 1024), None),  # a tile
        ((6144, 256), None),  # all vectors
        ((250_002, 768), None),
        ((250_002,), None),  # a number for each word
        ((31, 8192), None),  # the same, in tiles
        ((250_008, 96), None),  # word embeddings shared by 8 devices
    ],
)
def test_forms(looked_for, dims, what):
    buffer = Buffer(Shape("f32", dims, 0, False), "fusion", "")
    found = pair_buffers([buffer], looked_for[0], [])
    assert [name for _, name in found] == ([what] if what else [])


def test_what_cannot_be_told_is_said(looked_for):
    # 8 parallel rows x 12 positions are as many as the numbers of a word on a device.
    assert looked_for[1] == ["96 positions x words"]
