"""Eight devices compute what one computes: losses and gradients of the first steps."""

import json

import pytest

from tests.processes import run_python

CODE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import to_global
from rc3_jax.training.run import prepare_run
from rc3_jax.training.step import make_step
from tests.objectives.tile_cases import mesh_of
from tests.tiny import tiny_config

# Keeps the last gradient in the optimizer's state, before clipping.
capture = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params=None: (g, g)
)
OBJECTIVES = {
    "itc": {}, "xtcl": {}, "xvtcl": {}, "itm": {}, "mclm": {},
    "xvtcl_weak": {"ramp": 0.0},
    "xvtcl_weak soft": {"ramp": 0.0, "regularizer": ("soft",)},
    "xvtcl_weak kl mse": {"ramp": 0.0, "regularizer": ("kl", "mse"), "relevance": "ema"},
}
meshes = {"1": mesh_of(1), "8": mesh_of(8), "4x2": mesh_of(4, 2)}

def steps(config, mesh, run):
    model = build_rc3(config.model, run.tokenizer.vocab_size, mesh)
    run = run._replace(mesh=mesh, model=model, optimizer=optax.chain(capture, run.optimizer))
    state = run.create_state()
    step = make_step(run, state)
    batches = make_batches(run.corpus.pools, run.tokenizer, config, Skips())
    split = [p for p in jax.tree.leaves(state.params) if not p.sharding.is_fully_replicated]
    assert (len(split) > 40) == (mesh.shape["fsdp"] > 1), len(split)
    for number in range(5):
        state, metrics = step(state, to_global(batches[number], mesh))
        gradient = np.concatenate([np.ravel(g) for g in jax.tree.leaves(state.opt_state[0])])
        # As the optimizer sees it: clipped to a norm of 1.
        yield float(metrics["loss"]), gradient / max(1.0, np.linalg.norm(gradient))

report = {}
for name, settings in OBJECTIVES.items():
    if name.split()[0] != sys.argv[1]:
        continue
    config = tiny_config()
    config.steps, config.batch_size = 400, 32  # the first steps of a run: rates still rise
    config.objective.update(settings)
    config.mesh.fsdp_threshold = 64  # every matrix of the tiny model is sharded
    for term in config.objective.weights:
        config.objective.weights[term] = float(term == name.split()[0])
    run = prepare_run(config)
    one = list(steps(config, meshes["1"], run))
    for other in ("8", "4x2"):
        worst_loss = worst_gradient = 0.0
        for (l1, g1), (l8, g8) in zip(one, steps(config, meshes[other], run), strict=True):
            assert np.any(g1 != 0)
            worst_loss = max(worst_loss, abs(l1 - l8) / abs(l1))
            worst_gradient = max(worst_gradient, np.abs(g1 - g8).max())
        report[f"{name} on {other}"] = (worst_loss, float(worst_gradient))
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.parametrize("term", ["itc", "xtcl", "xvtcl", "xvtcl_weak", "itm", "mclm"])
def test_losses_and_gradients_do_not_depend_on_the_number_of_devices(term):
    output = run_python(f"import sys; sys.argv = ['', '{term}']\n{CODE}", devices=8)
    report = json.loads(output.splitlines()[-1])
    assert report
    for name, (loss, gradient) in report.items():
        print(f"{name}: loss differs by {loss:.1e} of it, a gradient entry by {gradient:.1e}")
        assert loss <= 1e-5, name
        assert gradient <= 1e-5, name
