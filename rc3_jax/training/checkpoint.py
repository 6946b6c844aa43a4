"""State to disk and back, through Orbax.

A run's folder holds `checkpoints/<step>/state` and, beside it, `config.json` and
`tokenizer.json`. The stream of batches needs no file: its state is the step number. A folder of
converted weights holds `params` in place of checkpoints.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Collection, Iterator
from typing import Any, Self

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from rc3_jax.config import ConfigError
from rc3_jax.training.state import TrainState

PARAMS = "params"
"""Folder of parameters alone, within one that conversion made; their name in a `TrainState`."""

STATE = "state"
"""Folder of a `TrainState` within that of a checkpoint."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the run's folder.
      every: steps between two of them; 0 saves only at the end.
      keep: how many of the latest remain.
    """

    def __init__(self, folder: pathlib.Path, every: int, keep: int):
        training = ocp.training
        self._checkpointer = training.Checkpointer(
            (folder / "checkpoints").absolute(),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                every or sys.maxsize
            ),
            preservation_policy=training.preservation_policies.LatestN(keep),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: TrainState, force: bool = False) -> None:
        """Saves if the interval says so, or in any case with `force`."""
        if step != self.latest:
            self._checkpointer.save_checkpointables(step, {STATE: state}, force=force)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest by default), laid out as `abstract` says."""
        return self._checkpointer.load_checkpointables(step, {STATE: abstract})[STATE]


def save_params(folder: pathlib.Path, params: Any) -> None:
    """Writes parameters alone, for `config.init` and conversion."""
    ocp.save((folder / PARAMS).absolute(), params)


def load_params(
    folder: pathlib.Path,
    abstract: Any,
    step: int | None = None,
    parts: Collection[str] | None = None,
) -> Any:
    """Parameters from a folder of converted weights or of a run, laid out as `abstract` says.

    Args:
      abstract: nested dict of `jax.ShapeDtypeStruct` with shardings.
      step: of a run's checkpoint; the newest by default.
      parts: reads these alone of what is stored, by their first names; None reads all.

    Raises:
      ConfigError: if the folder holds none, or those of another model; it lists what differs.
    """
    path, in_run = _place_of_params(folder, step)
    stored = _stored(path, in_run)
    held = stored[PARAMS] if in_run else stored
    others = {} if parts is None else {name: held[name] for name in held.keys() - set(parts)}
    check_fit(
        path, shapes_of({k: v for k, v in held.items() if k not in others}), shapes_of(abstract)
    )
    skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, others)
    loaded = _load(path, in_run, stored, skipped | abstract)
    return {name: loaded[name] for name in abstract}


def load_some(
    folder: pathlib.Path, paths: Collection[str], step: int | None = None
) -> dict[str, np.ndarray]:
    """Some of the parameters that `load_params` reads, by their paths, in the host's memory.

    However many devices they were spread over when they were saved.
    """
    path, in_run = _place_of_params(folder, step)
    stored = _stored(path, in_run)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)
        if "/".join(name) in paths
        else ocp.PLACEHOLDER
        for name, leaf in flatten_dict(stored[PARAMS] if in_run else stored).items()
    }
    loaded = flatten_dict(_load(path, in_run, stored, unflatten_dict(wanted)), sep="/")
    return {name: np.asarray(loaded[name]) for name in paths}


def _load(path: pathlib.Path, in_run: bool, stored: Any, wanted: Any) -> Any:
    """Parameters as `wanted` says; the optimizer's numbers of a run stay on the disk."""
    if in_run:
        wanted = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored) | {PARAMS: wanted}
    with _readable(path):
        loaded = ocp.load(path, wanted, **_named(in_run))
    return loaded[PARAMS] if in_run else loaded


def stored_shapes(folder: pathlib.Path, step: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that `load_params` would read, by their paths.

    Raises:
      ConfigError: if the folder holds none.
    """
    path, in_run = _place_of_params(folder, step)
    stored = _stored(path, in_run)
    return shapes_of(stored[PARAMS] if in_run else stored)


def stored_step(folder: pathlib.Path, step: int | None = None) -> int | None:
    """The step of the checkpoint that `load_params` would read; None for converted weights.

    Raises:
      ConfigError: if the folder holds none.
    """
    path, in_run = _place_of_params(folder, step)
    return int(path.name) if in_run else None


def _stored(path: pathlib.Path, in_run: bool) -> dict[str, Any]:
    """What Orbax tells of the arrays in a folder."""
    with _readable(path):
        return dict(ocp.metadata(path, **_named(in_run)).metadata)


def _named(in_run: bool) -> dict[str, str]:
    """Which part of a checkpoint is meant; what `save_params` writes has one, named by Orbax."""
    return {"checkpointable_name": STATE} if in_run else {}


def _place_of_params(folder: pathlib.Path, step: int | None) -> tuple[pathlib.Path, bool]:
    """The Orbax folder that holds the parameters; whether it is a checkpoint of a run."""
    if (folder / PARAMS).is_dir():
        if step is not None:
            raise ConfigError(f"{folder} holds converted weights and no checkpoint of step {step}")
        return (folder / PARAMS).absolute(), False
    checkpoints = folder / "checkpoints"
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = {int(path.name): path for path in found if path.name.isdecimal()}
    if not steps:
        raise ConfigError(
            f"{folder} holds no parameters; name a folder that launch/convert.py made, or that "
            "of a run which has saved a checkpoint"
        )
    if step is not None and step not in steps:
        known = ", ".join(map(str, sorted(steps)))
        raise ConfigError(f"{folder} holds no checkpoint of step {step}, but of {known}")
    return steps[max(steps) if step is None else step].absolute(), True


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns the many ways in which Orbax fails on a damaged folder into one."""
    try:
        yield
    except Exception as error:  # Orbax raises nothing narrower for damaged arrays
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path} cannot be read as parameters: {reason}") from error


def shapes_of(params: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of nested parameters by their paths, parts joined by `/`."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}


def check_fit(
    path: pathlib.Path | str,
    stored: dict[str, tuple[int, ...]],
    wanted: dict[str, tuple[int, ...]],
    what: str = "config.model",
) -> None:
    """Raises ConfigError with every path whose shape differs between the two.

    Args:
      path: what is stored, for the message; `what` is that which it must fit.
    """
    differing = [f"missing: {p} {shape}" for p, shape in wanted.items() if p not in stored]
    differing += [f"extra: {p} {shape}" for p, shape in stored.items() if p not in wanted]
    differing += [
        f"mis-shaped: {p} is {stored[p]}, must be {shape}"
        for p, shape in wanted.items()
        if stored.get(p, shape) != shape
    ]
    if differing:
        first = f"{path} does not fit {what} ({len(differing)} differences):"
        raise ConfigError("\n  ".join([first, *differing]))
