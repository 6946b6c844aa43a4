"""The training step ahead of time: compiled for devices that are not attached, counted, estimated.

No data is read and nothing is computed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import topologies
from jax.extend.core import Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh

from rc3_jax.config import PretrainSettings, validate
from rc3_jax.data.shapes import abstract_batch
from rc3_jax.objectives.masked_lm import TILE
from rc3_jax.observe.aot_report import Work
from rc3_jax.observe.chips import find_chip
from rc3_jax.observe.counting import (
    memory_traffic,
    model_flops,
    peak_bytes,
    products,
    quadratic_arrays,
)
from rc3_jax.parallel.mesh import batch_devices, check_batch, make_mesh, rows_of_a_device
from rc3_jax.parallel.rules import bytes_on_device
from rc3_jax.settings import ConfigError, plain
from rc3_jax.systems import build_model, system_of
from rc3_jax.training.memory import explain_out_of_memory, in_gib
from rc3_jax.training.run import RunModel, model_and_optimizer
from rc3_jax.training.step import split_by_kind

Changes = Mapping[str, Any]
"""Full names of settings, such as `model.remat`, to values that differ from the run's."""
WORDS = 8 * TILE
"""A vocabulary of several tiles."""


XLM_R_VOCABULARY = 250_002
"""Pieces of XLM-R's vocabulary."""


def vocabulary_size(config: ml_collections.ConfigDict) -> int:
    """The setting, or the size of XLM-R's vocabulary where the setting names a stored one."""
    tokenizer = config.data.tokenizer
    return tokenizer.vocab_size if tokenizer.path is None else XLM_R_VOCABULARY


def topology_devices(name: str) -> list[jax.Device]:
    """The TPUs of a topology such as `v5e:16x16`, to compile for; none needs to be attached.

    Raises:
      ConfigError: for an unknown chip or topology, or where the package libtpu is missing.
    """
    find_chip(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={name} needs the package libtpu, which is not installed; make an "
            "environment with: pip install -r requirements.txt -e '.[tpu]'"
        )
    # The two cores of a v4 chip can be two devices or one; later chips leave no choice.
    cores = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **cores).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--topology={name}: libtpu refuses it: {reason}") from error


def abstract_run(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device],
    rows: Mapping[str, int],
    vocab_size: int,
) -> RunModel:
    """The model, optimizer and mesh of a run; no data is opened.

    Raises:
      ConfigError: for invalid settings, such as a batch that the devices cannot share.
    """
    config = validate(config)
    mesh = make_mesh(config.mesh, list(devices))
    check_batch(rows, mesh, config.microbatches)
    model, optimizer = model_and_optimizer(config, vocab_size, mesh, rows)
    return RunModel(config, mesh, model, optimizer)


def compile_ahead(run: RunModel, rows: Mapping[str, int]) -> jax.stages.Compiled:
    """The compiled step.

    Args:
      run: see `abstract_run`.
      rows: rows of each kind in a global batch.

    Raises:
      OutOfMemory: if the compiler knows the devices' memory, and the step needs more.
    """
    with explain_out_of_memory(lambda: advice(run, rows)):
        return run.train_step().lower(abstract_batch(run.config, rows)).compile()


def advice(run: RunModel, rows: Mapping[str, int]) -> list[str]:
    """Settings that take less memory, each with what it would leave, per device.

    Args:
      rows: rows of each kind in a global batch.
    """
    state, now = state_bytes(run), activation_bytes(run, rows)
    parts, fsdp = run.config.microbatches, run.mesh.shape["fsdp"]
    lines = [f"state {in_gib(state)} and activations, by estimate, {in_gib(now)}; change:"]
    options: list[tuple[str, str | int, str]] = [
        ("model.remat", "dots", "all but matrix products computed twice"),
        ("model.remat", "full", "one forward pass more"),
    ]
    if not any(count % (2 * parts * batch_devices(run.mesh)) for count in rows.values()):
        cost = "one forward pass in all, and collecting sharded parameters for each part, more"
        options.append(("microbatches", 2 * parts, cost))
    for name, value, cost in options:
        less = activation_bytes(run, rows, {name: value})
        if less < now:
            lines.append(f"--config.{name}={value}: activations to {in_gib(less)}; {cost}")
    if run.mesh.shape["data"] % 2 == 0:
        less = state_bytes(changed_run(run, rows, {"mesh.fsdp": 2 * fsdp, "mesh.data": -1}))
        lines.append(
            f"--config.mesh.fsdp={2 * fsdp} --config.mesh.data=-1: state to {in_gib(less)}; "
            "parameters collected for each layer"
        )
    lines.append("--config.batch_size: activations shrink with it; fewer negatives")
    return lines


def activation_bytes(
    run: RunModel, rows: Mapping[str, int], changes: Changes | None = None
) -> float:
    """An estimate of the intermediate arrays of a step on a device, see `peak_bytes`.

    Args:
      rows: rows of each kind in a global batch.
    """
    traced = loss_jaxprs(run, rows_of_a_device(rows, run.mesh), changes)
    return max(map(peak_bytes, traced)) / run.mesh.shape["tensor"]


def step_flops(run: RunModel, rows: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """FLOPs of each part of the model in a step, see `model_flops`.

    Args:
      rows: rows of each kind in a global batch.
    """
    once = {"model.remat": "none", "microbatches": 1}
    return model_flops(
        loss_jaxprs(run, rows, once, gradient=False),
        loss_jaxprs(run, rows, once),
        names=run.abstract_state.params,
    )


def device_flops(run: RunModel, rows: Mapping[str, int]) -> float:
    """What MFU divides by: model FLOPs of a step, see `model_flops`, by devices."""
    return sum(step for _, step in step_flops(run, rows).values()) / run.mesh.size


def count_work(run: RunModel, rows: Mapping[str, int], on_chip: float = 0.0) -> Work:
    """The work of a step. Attention counts as XLA computes it: its fused kernels hide their products.

    Args:
      rows: rows of each kind in a global batch.
      on_chip: see `memory_traffic`.
    """
    model = step_flops(run, rows)
    plain: dict[str, Any] = {"model.attention": "xla"}
    shared = loss_jaxprs(run, rows, plain, mesh=run.mesh)
    flops = sum(one.flops for jaxpr in shared for one in products(jaxpr))
    local = loss_jaxprs(run, rows_of_a_device(rows, run.mesh))
    traffic = sum(memory_traffic(jaxpr, on_chip) for jaxpr in local)
    # More than a tile of each kind and of the words, so that tiles do not grow with them.
    many = 2 * run.config.objective.pairs.tile * batch_devices(run.mesh) * run.config.microbatches
    own: dict[str, Any] = {"objective.relevance": "own", "objective.relevance_encoder": None}
    has_encoder = getattr(run.config.objective, "relevance_encoder", None) is not None
    changes = plain | own if has_encoder else plain  # an encoder's vocabulary has one size
    small, large = (
        loss_jaxprs(run, dict.fromkeys(rows, n * many), changes, mesh=run.mesh, words=n * WORDS)
        for n in (1, 2)
    )
    quadratic = itertools.chain.from_iterable(map(quadratic_arrays, small, large))
    return Work(
        model,
        flops / run.mesh.size,
        traffic / run.mesh.shape["tensor"],
        list(dict.fromkeys(quadratic)),
    )


def loss_jaxprs(
    run: RunModel,
    rows: Mapping[str, int],
    changes: Changes | None = None,
    gradient: bool = True,
    mesh: Mesh | None = None,
    words: int | None = None,
) -> list[Jaxpr]:
    """The traced loss of each update of a step.

    Args:
      rows: rows of each kind, on all devices of the mesh.
      gradient: traces the gradient too.
      mesh: None for a single device.
      words: a vocabulary of another size than the run's.
    """
    config = _changed(run.config, changes)
    model = build_model(config, words or run.model.text.vocab_size, mesh)
    function = system_of(config).loss(model, config, mesh)
    if gradient:
        function = jax.value_and_grad(function, has_aux=True)
    state = dataclasses.replace(run, config=config, model=model).abstract_state
    params, ema, step = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (state.params, state.ema, state.step),
    )
    batches = split_by_kind(abstract_batch(config, rows), system_of(config).updates(config))
    traced = (jax.make_jaxpr(function)(params, ema, step, batch).jaxpr for batch in batches)
    # Without what nobody uses, such as the gradients of pixels.
    return [dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0] for jaxpr in traced]


def state_bytes(run: RunModel) -> int:
    """What the state takes of a device."""
    return sum(map(bytes_on_device, jax.tree.leaves(run.abstract_state)))


def changed_run(run: RunModel, rows: Mapping[str, int], changes: Changes) -> RunModel:
    """The run on the same devices with some settings changed; see `abstract_run`."""
    config, devices = _changed(run.config, changes), list(run.mesh.devices.flat)
    return abstract_run(config, devices, rows, run.model.text.vocab_size)


def _changed(config: PretrainSettings, changes: Changes | None) -> PretrainSettings:
    """The configuration with some settings changed."""
    values = flatten_dict(plain(config), keep_empty_nodes=True)
    values |= {tuple(name.split(".")): value for name, value in (changes or {}).items()}
    return type(config).parse(unflatten_dict(values))
