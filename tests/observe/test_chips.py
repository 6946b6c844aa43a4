"""Bounds on the time of a step, against arithmetic by hand."""

import pytest

from rc3_jax.observe.chips import CHIPS, Chip, roofline


def test_the_slowest_binds():
    chip = Chip(2, hbm=1e9, flops=100.0, bandwidth=10.0, interconnect=5.0)
    line = roofline(chip, model=300.0, flops=400.0, traffic=60.0, sent=10.0)
    assert (line.compute, line.memory, line.interconnect) == (4.0, 6.0, 2.0)
    assert (line.step, line.serial, line.binding) == (6.0, 12.0, "memory")
    assert line.mfu == pytest.approx(300 / 100 / 6)


def test_mfu_never_exceeds_one():
    line = roofline(CHIPS["v5e"], model=2e14, flops=1e14, traffic=0.0, sent=0.0)
    assert line.mfu == 1.0
