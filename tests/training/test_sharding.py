"""Eight devices compute what one computes: losses and gradients of the first steps."""

import json

import pytest

from tests.processes import run_python

CODE = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.parallel.mesh import to_global
from rc3_jax.systems import build_model, system_of
from rc3_jax.training.run import prepare_run
from tests.objectives.tile_cases import mesh_of
from tests.tiny import tiny_cclm, tiny_config

WEAK = {"ema": ("kl", "mse"), "soft": ("soft",)}
OTHERS = ("itc", "xtcl", "xvtcl", "itm", "mclm")
# Each objective is trained by itself: the weight of its terms is 1, that of all others 0.
CCLM = ("ttc", "ttm", "text_mlm", "region_itc", "region_itm", "region_mlm")
OBJECTIVES = {
    "cclm": {name: [name] for name in CCLM} | {"boxes": ["box", "giou"]},
    "own": {name: [name] for name in OTHERS} | {"weighted + hinge": ["xvtcl_weak", "hinge"]},
    "ema": {name: ["xvtcl_weak", name] for name in WEAK["ema"]},
    "soft": {"soft": ["soft"]},
}
config = tiny_cclm() if sys.argv[1] == "cclm" else tiny_config()
config.steps, config.batch_size = 400, 32  # the first steps of a run: rates still rise
config.mesh.fsdp_threshold = 64  # every matrix of the tiny model is sharded
if sys.argv[1] == "cclm":
    config.batch_mix.captioned = 0.0  # whole images go the way of their regions
else:
    config.objective.update(relevance="ema" if sys.argv[1] == "ema" else "own", ramp=0.0)
if sys.argv[1] in WEAK:
    config.objective.regularizer = WEAK[sys.argv[1]]
    config.objective.weights.update({name: 0.0 for name in OTHERS})
run = prepare_run(config)
config = run.config
batches = make_batches(run.corpus.pools, run.tokenizer, config, Skips())

def functions(mesh):
    model = build_model(config, run.tokenizer.vocab_size, mesh)
    here = dataclasses.replace(run, mesh=mesh, model=model)
    loss = system_of(config).loss(model, config, mesh)

    def weighted(params, ema, step, weights, batch):
        _, terms = loss(params, ema, step, batch)
        return sum(weights.get(name, 0.0) * value for name, value in terms.items())

    def update(state, gradients):
        updates, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, here.abstract_state)
    state = here.create_state()
    # The texts of a fresh tower have nearly one vector, and the contrast's gradient is then a
    # difference of nearly equal numbers.
    noise = np.random.default_rng(0)
    state = state.replace(params=jax.tree.map(
        lambda p: jax.device_put(p + noise.normal(0, 0.3, p.shape).astype(p.dtype), p.sharding),
        state.params,
    ))
    split = [p for p in jax.tree.leaves(state.params) if not p.sharding.is_fully_replicated]
    assert (len(split) > 40) == (mesh.shape["fsdp"] > 1), len(split)
    read = [to_global(batches[number], mesh) for number in range(5)]
    gradient_of = jax.jit(jax.value_and_grad(weighted))
    return state, read, gradient_of, jax.jit(update, out_shardings=shardings)

def steps(state, read, gradient_of, update, terms):
    names = {term for wanted in OBJECTIVES[sys.argv[1]].values() for term in wanted}
    weights = {name: jnp.float32(name in terms) for name in names}
    for batch in read:
        loss, gradients = gradient_of(state.params, state.ema, state.step, weights, batch)
        state = update(state, gradients)
        gradient = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
        # As the optimizer sees it: clipped to a norm of 1.
        yield float(loss), gradient / max(1.0, np.linalg.norm(gradient))

meshes = {"1": mesh_of(1), "4x2": mesh_of(4, 2)}
if sys.argv[1] == "own":
    meshes["8"] = mesh_of(8)
compiled = {name: functions(mesh) for name, mesh in meshes.items()}
report = {}
for name, terms in OBJECTIVES[sys.argv[1]].items():
    one = list(steps(*compiled["1"], terms))
    for other in list(meshes)[1:]:
        worst_loss = worst_gradient = 0.0
        for (l1, g1), (l8, g8) in zip(one, steps(*compiled[other], terms), strict=True):
            assert np.any(g1 != 0)
            worst_loss = max(worst_loss, abs(l1 - l8) / abs(l1))
            worst_gradient = max(worst_gradient, np.abs(g1 - g8).max())
        report[f"{name} on {other}"] = (worst_loss, float(worst_gradient))
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "comparisons"), [("own", 12), ("ema", 2), ("soft", 1), ("cclm", 7)]
)
def test_losses_and_gradients_do_not_depend_on_the_number_of_devices(setting, comparisons):
    output = run_python(f"import sys; sys.argv = ['', '{setting}']\n{CODE}", devices=8)
    report = json.loads(output.splitlines()[-1])
    assert len(report) == comparisons
    for name, (loss, gradient) in report.items():
        print(f"{name}: loss differs by {loss:.1e} of it, a gradient entry by {gradient:.1e}")
        assert loss <= 1e-5, name
        assert gradient <= 1e-5, name
