"""The search for settings, against every choice by itself, on chips where some do not fit."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rc3_jax.models.layers import REMAT_POLICIES
from rc3_jax.observe.chips import Chip, chip_of
from rc3_jax.observe.counting import memory_traffic, peak_bytes
from rc3_jax.training.aot import abstract_run, activation_bytes, state_bytes
from rc3_jax.training.pretrain import device_speed
from rc3_jax.training.search import estimates, search, search_report, sent_bytes
from tests.tiny import tiny_config

ROWS = {"strict": 16, "weak": 8, "parallel": 8}
CHIP = Chip("none", 0, hbm=float("inf"), flops=1e9, bandwidth=1e8, interconnect=1e7, on_chip=1e3)
WIDTH, DEPTH = 64, 5


@pytest.fixture(scope="module")
def run():
    return abstract_run(tiny_config(), jax.devices()[:1], ROWS, 300)


def layers(run, rows, changes):
    """In place of a model, whose tracing takes seconds."""
    x = jax.ShapeDtypeStruct((sum(rows.values()), WIDTH), "float32")
    weights = jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), "float32")
    parts, remat = changes["microbatches"], changes["model.remat"]

    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w)), None

    def part(total, x, weights):
        step = layer if remat == "none" else jax.checkpoint(layer, policy=REMAT_POLICIES[remat])
        return total + lax.scan(step, x, weights)[0].sum()

    def loss(weights, x):
        x = x.reshape(parts, -1, WIDTH)
        one = part if parts == 1 else jax.checkpoint(part)
        return lax.scan(lambda total, x: (one(total, x, weights), None), 0.0, x)[0]

    return [jax.make_jaxpr(jax.grad(loss))(weights, x).jaxpr]


@pytest.mark.parametrize("fitting", [0, 1, 5, 12])
def test_the_fastest_choices_that_fit_come_first(run, fitting, monkeypatch):
    monkeypatch.setattr("rc3_jax.training.search.loss_jaxprs", layers)
    state = state_bytes(run)
    held = state + sum(leaf.size * 4 for leaf in jax.tree.leaves(run.abstract_state.params))
    forward = 2 * sum(ROWS.values()) * WIDTH * WIDTH * DEPTH
    every = []
    for parts in (1, 2, 4, 8):
        for remat in ("none", "dots", "full"):
            (jaxpr,) = layers(run, ROWS, {"microbatches": parts, "model.remat": remat})
            passes = 3 + (remat != "none") + (parts > 1)
            traffic = memory_traffic(jaxpr, CHIP.on_chip) + 2 * state
            seconds = passes * forward / CHIP.flops + traffic / CHIP.bandwidth
            every.append((seconds, held + peak_bytes(jaxpr), parts, remat))
    limit = [0, *sorted(memory for _, memory, *_ in every)][fitting]
    expected = sorted(one for one in every if one[1] <= limit)
    lines: list[str] = []
    found = search(run, ROWS, CHIP._replace(hbm=limit), lines.append)
    assert len(lines) == len(every)
    assert [one.time for one in found] == pytest.approx([one[0] for one in expected])
    settings = [(one.changes["microbatches"], one.changes["model.remat"]) for one in found]
    assert sorted(settings) == sorted(one[2:] for one in expected)
    report = search_report(found, 2)
    if not found:
        assert "Take more devices, or a smaller batch_size" in report
        fewer, least = (
            {kind: rows // 4 for kind, rows in ROWS.items()},
            min(m for _, m, *_ in every),
        )
        assert search(run, fewer, CHIP._replace(hbm=least - 1), print)
    assert "nothing fits" in report if not found else f"remat={settings[0][1]}" in report


@pytest.mark.slow
def test_a_model_takes_the_memory_that_its_traced_step_takes(run):
    rows = {"strict": 2, "weak": 1, "parallel": 1}
    held = state_bytes(run) + sum(
        leaf.size * 4 for leaf in jax.tree.leaves(run.abstract_state.params)
    )
    found = {one.changes["model.remat"]: one for one in estimates(run, rows, CHIP, print)}
    for remat, one in found.items():
        arrays = activation_bytes(run, rows, {"model.remat": remat})
        assert one.memory == pytest.approx(held + arrays)
    assert found["none"].compute < found["full"].compute
    assert found["none"].traffic > found["dots"].traffic


def test_a_run_counts_flops_for_devices_with_figures(run, monkeypatch):
    monkeypatch.setattr("rc3_jax.training.pretrain.device_flops", lambda run, rows: 3e12)
    assert device_speed(run, ROWS) == {}
    monkeypatch.setattr("rc3_jax.training.pretrain.chip_of", lambda kind: chip_of("TPU v5 lite"))
    assert device_speed(run, ROWS) == {}  # the figures are of bfloat16
    config = run.config.model_copy(
        update={"model": run.config.model.model_copy(update={"dtype": "bfloat16"})}
    )
    half = dataclasses.replace(run, config=config)
    assert device_speed(half, ROWS) == {"flops": 3e12, "peak": 197e12}
    assert chip_of("cpu") is None


@pytest.mark.parametrize(
    ("mesh", "parts", "expected"),
    [
        ({}, 1, 0),
        # The sum of gradients over 4 devices: each sends 3/4 of them twice.
        ({"data": 4}, 1, 2 * 3 / 4 * 1024),
        ({"data": 4}, 2, 2 * 3 / 4 * 1024),
        # Of 4 shards each sends its own to the 3 others: gradients once, parameters twice.
        ({"fsdp": 4}, 1, 3 * 3 / 4 * 1024),
        # With two parts gradients once, parameters three times for each part.
        ({"fsdp": 4}, 2, 7 * 3 / 4 * 1024),
        # Of 2 shards on 2 copies each: the shard's gradients are summed over the copies besides.
        ({"data": 2, "fsdp": 2}, 1, 3 * 1 / 2 * 1024 + 2 * 1 / 2 * 512),
    ],
)
def test_bytes_sent_for_gradients_and_sharded_parameters(mesh, parts, expected):
    axes = {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1} | mesh
    placed = NamedSharding(AbstractMesh(tuple(axes.values()), tuple(axes)), PartitionSpec("fsdp"))
    leaf = jax.ShapeDtypeStruct((256,), "float32", sharding=placed)
    run = types.SimpleNamespace(mesh=types.SimpleNamespace(shape=axes))
    assert sent_bytes(run, [leaf], parts) == pytest.approx(expected)
