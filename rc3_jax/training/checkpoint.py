"""State and parameters to disk and back, through Orbax.

A run's folder holds `checkpoints/<step>/state` and, beside it, `config.json` and `tokenizer.json`.
The stream of batches needs no file: its state is the step number. A folder of converted or
fine-tuned weights holds `params` in place of checkpoints.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.multihost_utils import process_allgather, sync_global_devices
from orbax.checkpoint import v1 as ocp

from rc3_jax.observe.log import Say
from rc3_jax.paths import absolute
from rc3_jax.settings import ConfigError
from rc3_jax.training.state import TrainState
from rc3_jax.training.unreadable import CHECKPOINTS, STATE, UnreadableError, readable, silent

PARAMS = "params"
"""The folder of parameters alone, and the name of the parameters in a `TrainState`."""
DAMAGED = "damaged"
"""The folder of a run for checkpoints that could not be read."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes of nested parameters by their paths, parts joined by `/`."""


_MOST_BYTES = 1000  # of a problem that processes tell one another


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the run's folder.
      keep: how many of the latest remain.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        training = ocp.training
        with silent():
            self._checkpointer = training.Checkpointer(
                absolute(folder / CHECKPOINTS),
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                    sys.maxsize
                ),
                preservation_policy=training.preservation_policies.LatestN(keep),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state of a step, unless that is there already."""
        if step != self.latest:
            self._checkpointer.save_checkpointables(step, {STATE: state}, force=True)

    def restore(self, abstract: TrainState, say: Say) -> TrainState | None:
        """The newest state that can be read, sharded as `abstract` says; None if there is none.

        Newer ones that cannot be read are told, and moved to the folder `damaged` of the run.

        Raises:
          ConfigError: if no checkpoint can be read, or one is that of another model.
        """
        damaged: dict[int, str] = {}
        for step in self._steps():
            path = self._checkpointer.directory / str(step)
            problem, state = "", None
            try:
                with readable(path):
                    _check_state(path, abstract)
                    loaded = self._checkpointer.load_checkpointables(step, {STATE: abstract})
                    state = loaded[STATE]
            except UnreadableError as error:
                problem = str(error)
            if problem := _first_problem(problem):
                damaged[step] = problem
            else:
                self._move_away(damaged, step, say)
                return state
        if damaged:
            raise ConfigError(
                "\n  ".join(
                    [
                        "no checkpoint can be read:",
                        *damaged.values(),
                        f"remove {self._checkpointer.directory} and give the command again",
                    ]
                )
            )
        return None

    def _steps(self) -> list[int]:
        return [found.step for found in reversed(self._checkpointer.checkpoints)]

    def _move_away(self, damaged: Mapping[int, str], sound: int, say: Say) -> None:
        folder = self._checkpointer.directory.parent / DAMAGED
        for step, problem in damaged.items():
            say(f"{problem}; it is moved to {folder}, and the run goes on from step {sound}")
        if not damaged:
            return
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            for step in damaged:
                target = folder / str(step)
                if target.exists():
                    target.rmtree()
                (self._checkpointer.directory / str(step)).rename(target)
        sync_global_devices("moved")
        self._checkpointer.reload()


def _first_problem(problem: str) -> str:
    """What the first process that cannot read a checkpoint says; "" where all can.

    Raises:
      ConfigError: if processes only waited in vain for others, which is no damage.
    """
    data = np.frombuffer(problem.encode()[:_MOST_BYTES].ljust(_MOST_BYTES), np.uint8)
    told = np.atleast_2d(process_allgather(data))
    problems = [text for row in told if (text := bytes(row).decode(errors="ignore").strip())]
    reasons = [text for text in problems if "barrier" not in text]
    if problems and not reasons:
        raise ConfigError(
            f"{problems[0]}: a process did not answer in time; start all of them again"
        )
    return reasons[0] if reasons else ""


def save_params(folder: pathlib.Path, params: Any) -> None:
    """Writes parameters alone, for `config.init`, conversion and tasks."""
    ocp.save(absolute(folder / PARAMS), params)


def load_params(
    folder: pathlib.Path,
    abstract: Mapping[str, Any],
    step: int | None = None,
    parts: Collection[str] | None = None,
) -> dict[str, Any]:
    """Reads parameters of a run, or converted or fine-tuned ones, onto devices.

    Args:
      abstract: nested dict of `jax.ShapeDtypeStruct` with shardings.
      step: of a run's checkpoint; the newest by default.
      parts: reads only these of what is stored, by their first names; None reads all.

    Raises:
      ConfigError: if the folder holds none, those of another model, or numbers that are not finite;
        lists what differs.
    """
    stored = _find(folder, step)
    held = {name: tree for name, tree in stored.params.items() if parts is None or name in parts}
    check_shapes(stored.path, shapes_of(held), shapes_of(abstract))
    left_out = {name: stored.params[name] for name in stored.params.keys() - held.keys()}
    loaded = stored.load(jax.tree.map(lambda _: ocp.PLACEHOLDER, left_out) | dict(abstract))
    params = {name: loaded[name] for name in abstract}
    check_finite(folder, params)
    return params


def read_params(
    folder: pathlib.Path, paths: Collection[str] | None = None, step: int | None = None
) -> dict[str, np.ndarray]:
    """Reads parameters into the host's memory, by their paths.

    It does not matter over how many devices they were spread when they were saved.

    Args:
      paths: the parameters to read; None reads all.

    Raises:
      ConfigError: if the folder holds none.
    """
    stored = _find(folder, step)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)
        if paths is None or path in paths
        else ocp.PLACEHOLDER
        for path, leaf in flatten_dict(stored.params, sep="/").items()
    }
    loaded = flatten_dict(stored.load(unflatten_dict(wanted, sep="/")), sep="/")
    return {path: np.asarray(loaded[path]) for path in (loaded if paths is None else paths)}


def stored_shapes(folder: pathlib.Path, step: int | None = None) -> Shapes:
    """The shapes of the parameters that `load_params` would read.

    Raises:
      ConfigError: if the folder holds none.
    """
    return shapes_of(_find(folder, step).params)


def stored_step(folder: pathlib.Path, step: int | None = None) -> int | None:
    """The step of the checkpoint that `load_params` would read; None for converted weights.

    Raises:
      ConfigError: if the folder holds none.
    """
    stored = _find(folder, step)
    return int(stored.path.name) if stored.in_run else None


class _Stored(NamedTuple):
    """Parameters on disk.

    Attributes:
      in_run: whether they are in a checkpoint of a run, beside the optimizer's state.
      tree: what Orbax knows of all arrays of the folder.
    """

    path: pathlib.Path
    in_run: bool
    tree: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        return self.tree[PARAMS] if self.in_run else self.tree

    def load(self, wanted: Any) -> Any:
        """The parameters as `wanted` says; the optimizer's state of a run stays on disk."""
        if not self.in_run:
            with readable(self.path):
                return ocp.load(self.path, wanted)
        others = jax.tree.map(lambda _: ocp.PLACEHOLDER, self.tree)
        with readable(self.path):
            return ocp.load(self.path, others | {PARAMS: wanted}, checkpointable_name=STATE)[PARAMS]


def _find(folder: pathlib.Path, step: int | None) -> _Stored:
    """The parameters of a folder, and of a run those of one checkpoint."""
    path, in_run = folder / PARAMS, False
    if path.is_dir() and step is not None:
        raise ConfigError(f"{folder} holds converted weights and no checkpoint of step {step}")
    if not path.is_dir():
        found = (folder / CHECKPOINTS).glob("*")
        steps = {int(path.name): path for path in found if path.name.isdecimal()}
        if not steps:
            raise ConfigError(
                f"{folder} holds no parameters; name a folder that launch/convert.py made, or that "
                "of a run which has saved a checkpoint"
            )
        if step is not None and step not in steps:
            known = ", ".join(map(str, sorted(steps)))
            raise ConfigError(f"{folder} holds no checkpoint of step {step}, but of {known}")
        path, in_run = steps[max(steps) if step is None else step], True
    path = absolute(path)
    with readable(path):
        return _Stored(path, in_run, _metadata(path, STATE if in_run else None))


def _metadata(path: pathlib.Path, name: str | None) -> dict[str, Any]:
    """The shapes and types that Orbax finds in a folder, or under a name in that of a checkpoint."""
    found = ocp.metadata(path, **({} if name is None else {"checkpointable_name": name})).metadata
    if found is None:  # Orbax has told why, and raises nothing; reading the arrays does
        ocp.load(path, **({} if name is None else {"checkpointable_name": name}))
    return dict(found)


def _check_state(path: pathlib.Path, abstract: TrainState) -> None:
    """Raises ConfigError unless a checkpoint has the arrays of a state."""
    stored, wanted = (
        {
            "/".join(
                str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in at
            ): (tuple(leaf.shape))
            for at, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (_metadata(path, STATE), abstract)
    )
    check_shapes(path, stored, wanted, "the settings")


def check_finite(source: pathlib.Path, params: Any) -> None:
    """Raises ConfigError with the parameters that hold NaN or infinity."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params)
    if bad := [path for path, is_finite in flatten_dict(finite, sep="/").items() if not is_finite]:
        raise ConfigError(
            f"{source}: NaN or infinity in {', '.join(bad)}; take an undamaged checkpoint, such as "
            "an earlier one"
        )


def shapes_of(params: Any) -> Shapes:
    """The shapes of nested parameters."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}


def check_shapes(
    source: pathlib.Path | str, stored: Shapes, wanted: Shapes, target: str = "config.model"
) -> None:
    """Raises ConfigError with every path whose shape differs between the two.

    Args:
      source, target: names of the two for the message.
    """
    differing = [f"missing: {p} {shape}" for p, shape in wanted.items() if p not in stored]
    differing += [f"extra: {p} {shape}" for p, shape in stored.items() if p not in wanted]
    differing += [
        f"mis-shaped: {p} is {stored[p]}, must be {shape}"
        for p, shape in wanted.items()
        if stored.get(p, shape) != shape
    ]
    if differing:
        first = f"{source} does not fit {target} ({len(differing)} differences):"
        raise ConfigError("\n  ".join([first, *differing]))
