"""FLOPs and memory counted from traces, against formulas, by hand and against compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from rc3_jax.data.shapes import abstract_batch
from rc3_jax.observe.counting import (
    memory_traffic,
    model_flops,
    peak_bytes,
    products,
    quadratic_arrays,
)
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.systems import system_of
from rc3_jax.training.aot import abstract_run, activation_bytes, loss_jaxprs, step_flops
from tests.observe import formulas
from tests.tiny import load_config, tiny_cclm, tiny_config

WORDS = 300
DEMO_ROWS = {"strict": 32, "weak": 16, "parallel": 16}
RC3_ROWS = {"strict": 8, "weak": 4, "parallel": 4}
CCLM_ROWS = {"captioned": 8, "parallel": 4, "region": 2}


def flops(function, *arguments) -> float:
    return sum(one.flops for one in products(jax.make_jaxpr(function)(*arguments).jaxpr))


def changed(config, settings):
    with config.unlocked():
        config.update_from_flattened_dict(settings)
    return config


@pytest.mark.parametrize(
    ("system", "settings", "rows"),
    [
        ("rc3", {}, RC3_ROWS),
        ("rc3", {}, {"strict": 8, "weak": 4}),
        ("rc3", {}, {"weak": 6, "parallel": 2}),
        ("rc3", {"weights.itc": 0.0, "weights.xtcl": 0.0}, RC3_ROWS),
        ("rc3", {"weights.itm": 0.0, "same_image_negatives": False}, RC3_ROWS),
        ("rc3", {"weights.mclm": 0.0, "weights.xvtcl": 0.0}, RC3_ROWS),
        ("rc3", {"weights.xvtcl_weak": 0.0, "weights.itm": 0.0}, RC3_ROWS),
        ("rc3", {"regularizer": ("off",), "weights.xtcl": 0.0}, RC3_ROWS),
        ("rc3", {"regularizer": ("soft",)}, RC3_ROWS),
        ("rc3", {"regularizer": ("kl", "mse"), "relevance": "ema"}, RC3_ROWS),
        ("cclm", {}, CCLM_ROWS),
        ("cclm", {"negative_floor": 1e-5}, CCLM_ROWS),
        ("cclm", {"weights.image.matching": 0.0, "weights.text.masked_lm": 0.0}, CCLM_ROWS),
        ("cclm", {"weights.region.box": 0.0, "weights.region.giou": 0.0}, CCLM_ROWS),
        ("cclm", {}, {"strict": 4, "captioned": 4}),
    ],
)
def test_every_objective_takes_the_flops_of_the_formulas(system, settings, rows):
    config = {"rc3": tiny_config, "cclm": tiny_cclm}[system]()
    changed(config, {f"objective.{name}": value for name, value in settings.items()})
    run = abstract_run(config, jax.devices()[:1], rows, WORDS)
    expected = {"rc3": formulas.rc3, "cclm": formulas.cclm}[system](run.config, rows, WORDS)
    forward = loss_jaxprs(run, rows, gradient=False)
    assert sum(one.flops for jaxpr in forward for one in products(jaxpr)) == pytest.approx(
        expected, rel=1e-9
    )


def test_patches_that_are_left_out_take_no_flops():
    config = changed(tiny_config(), {"model.roi.regions": 0, "model.patch.patch_dropout": 0.5})
    run = abstract_run(config, jax.devices()[:1], RC3_ROWS, WORDS)
    forward = loss_jaxprs(run, RC3_ROWS, gradient=False)
    assert sum(one.flops for jaxpr in forward for one in products(jaxpr)) == pytest.approx(
        formulas.rc3(run.config, RC3_ROWS, WORDS), rel=1e-9
    )


@pytest.mark.slow
def test_a_step_takes_three_times_the_forward_pass_except_for_pixels():
    run = abstract_run(tiny_config(), jax.devices()[:1], RC3_ROWS, WORDS)
    traced = [loss_jaxprs(run, RC3_ROWS, gradient=gradient) for gradient in (False, True)]
    parts = model_flops(*traced, names=run.abstract_state.params)
    assert parts.keys() >= {"text", "patch", "roi", "fusion", "losses"}
    for name, (forward, step) in parts.items():
        # Pixels and features get no gradient; draws of hard negatives have none.
        low = 2.5 if name in ("patch", "roi", "losses") else 3.0
        assert low <= step / forward <= 3.0, name
    recomputed = loss_jaxprs(run, RC3_ROWS, {"model.remat": "full"})
    total = sum(one.flops for jaxpr in recomputed for one in products(jaxpr))
    assert total > 1.2 * sum(step for _, step in parts.values())


def test_the_demos_step_takes_no_more_work_and_memory_than_it_did():
    """Raise these figures only where a change is worth its cost."""
    config = load_config("bench", "size=demo")
    run = abstract_run(config, jax.devices()[:1], DEMO_ROWS, config.data.tokenizer.vocab_size)
    work = sum(step for _, step in step_flops(run, DEMO_ROWS).values())
    assert work == pytest.approx(13.734e9, rel=1e-3)
    assert activation_bytes(run, DEMO_ROWS) == pytest.approx(262.4 * 2**20, rel=0.01)


def test_loops_recomputation_and_devices_count_as_often_as_they_run():
    x, w = jnp.ones((4, 8)), jnp.ones((7, 8, 8))

    def layers(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    one = 2 * 4 * 8 * 8
    assert flops(layers, x, w) == 7 * one
    both = jax.grad(lambda w: layers(x, w).sum())
    assert flops(both, w) == 7 * 3 * one
    again = jax.grad(lambda w: jax.checkpoint(layers)(x, w).sum())
    assert flops(again, w) == 7 * 4 * one
    mesh, spec = one_device_mesh(), PartitionSpec()
    assert flops(jax.shard_map(layers, mesh=mesh, in_specs=spec, out_specs=spec), x, w) == 7 * one
    branches = (lambda x: x @ w[0], lambda x: x @ w[0] @ w[1])
    assert flops(lambda i: lax.switch(i, branches, x), 0) == 2 * one
    kernel = jnp.ones((3, 3, 2, 5))
    image = jnp.ones((1, 6, 6, 2))
    convolution = lambda k: lax.conv_general_dilated(
        image, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(convolution, kernel) == 2 * (4 * 4 * 5) * (3 * 3 * 2)


def test_traffic_is_that_of_stacked_arrays_and_of_what_exceeds_the_chip():
    x, weights = jnp.ones((4, 8)), jnp.ones((7, 8, 8))

    def layers(x, weights):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights)

    def traffic(function, *arguments, on_chip):
        return memory_traffic(jax.make_jaxpr(function)(*arguments).jaxpr, on_chip)

    stacked = 7 * (8 * 8 + 4 * 8) * 4
    assert traffic(layers, x, weights, on_chip=1e3) == stacked
    in_an_iteration = 4 * (4 * 8 + 8 * 8 + 4 * 8)  # operands and result of the product
    handed_on = 2 * 4 * 4 * 8
    assert traffic(layers, x, weights, on_chip=0) == stacked + 7 * (in_an_iteration + handed_on)
    assert traffic(jnp.matmul, x, weights[0], on_chip=1e3) == in_an_iteration  # outside of loops


def test_the_peak_is_that_of_arrays_alive_together():
    def function(x):
        a = x + 1  # lives to the end
        b = jnp.tanh(a)
        return (jnp.tanh(b) * a).sum()

    x = jnp.ones(1000)
    jaxpr = jax.make_jaxpr(function)(x).jaxpr
    assert peak_bytes(jaxpr) == 3 * 4000  # a, b, tanh(b)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"model.remat": "full"}, {"microbatches": 4}])
def test_the_estimate_is_close_to_what_the_compiler_reserves(changes):
    config = tiny_config()
    for part in (config.model.text, config.model.patch):
        part.update(width=64, mlp_width=256, depth=6)
    rows = {kind: 4 * count for kind, count in RC3_ROWS.items()}
    run = abstract_run(changed(config, changes), jax.devices()[:1], rows, WORDS)
    loss = jax.value_and_grad(system_of(config).loss(run.model, run.config, None), has_aux=True)
    state, batch = run.abstract_state, abstract_batch(run.config, rows)
    compiled = jax.jit(loss).lower(state.params, state.ema, state.step, batch).compile()
    reserved = compiled.memory_analysis().temp_size_in_bytes
    assert activation_bytes(run, rows) == pytest.approx(reserved, rel=0.35)


def test_arrays_of_all_pairs_are_those_that_grow_with_the_square():
    def dense(x, y):
        return jnp.tanh(x @ y.T).sum(1)

    def tiled(x, y):
        tiles = y.reshape(-1, 4, y.shape[1])
        return lax.scan(lambda s, y: (s + jnp.tanh(x @ y.T).sum(1), None), jnp.zeros(len(x)), tiles)

    def found(function):
        small, large = (
            jax.make_jaxpr(function)(*[jnp.ones((rows, 3))] * 2).jaxpr for rows in (8, 16)
        )
        return list(quadratic_arrays(small, large))

    assert [array.split()[0] for array in found(dense)] == ["float32[16,16]"] * 2
    assert found(tiled) == []
