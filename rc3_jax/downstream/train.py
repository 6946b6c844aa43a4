"""Training on a task: epochs, selection on dev, and going on after an interruption."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rc3_jax.config import ConfigError
from rc3_jax.convert.output import write_json
from rc3_jax.downstream.batches import Batches
from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.learner import Learner
from rc3_jax.observe.log import Say
from rc3_jax.parallel.mesh import BATCH
from rc3_jax.parallel.rules import laid_out
from rc3_jax.training.checkpoint import PARAMS, Checkpoints, load_params, save_params
from rc3_jax.training.optimizer import make_optimizer

HISTORY = "history.json"
SECONDS = 30.0
"""Between two lines on the progress of an epoch."""


class Selection(NamedTuple):
    """What training has found.

    Attributes:
      params: those that are best on dev.
      best: their `epoch` and `lr`.
      history: of each epoch its number, `lr`, mean `loss` and the scores by language.
    """

    params: Any
    best: dict[str, Any]
    history: list[dict[str, Any]]


def train(
    config: ml_collections.ConfigDict,
    learner: Learner,
    batches: Batches,
    dev: Mapping[str, Sequence[Example]],
    mesh: Mesh,
    folder: pathlib.Path,
    identity: Mapping[str, Any],
    say: Say,
) -> Selection:
    """Trains for `config.epochs` with each learning rate, and keeps the epoch that is best on dev.

    What it does not finish it goes on with when it is called again for the same folder, from the
    last epoch that ended.

    Args:
      config: see `finetune_config`.
      batches: of the examples to train on.
      folder: for what an interrupted training needs; the caller removes it in the end.
      identity: what the training is a function of. Another one's folder is not gone on with.

    Raises:
      ConfigError: if the folder holds another training.
      FloatingPointError: if no epoch of any rate ends with a loss that is a number.
    """
    record = _Record(folder, identity)
    step = _compiled_step(config, learner, config.epochs * len(batches), mesh)
    rates = config.lrs or (config.optimizer.lr,)
    for rate in rates:
        try:
            _train(config, rate, step, learner, batches, dev, record, say)
        except FloatingPointError as error:
            if rate == rates[-1] and not record.history:
                raise
            say(f"{error}; the other rates and epochs remain")
    params = load_params(record.best(learner.main), step.state[PARAMS])
    best = record.history[record.best_place(learner.main)]
    return Selection(params, {name: best[name] for name in ("epoch", "lr")}, record.history)


def mean_score(epoch: Mapping[str, Any], name: str) -> float:
    """The mean over the languages of dev."""
    return float(np.mean([scores[name] for scores in epoch["dev"].values()]))


class _Record:
    """What an interrupted training needs: the epochs so far, the state, the best parameters."""

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any]):
        self.folder, self._identity = folder, json.loads(json.dumps(identity))
        self.history: list[dict[str, Any]] = []
        file = folder / HISTORY
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            differing = [
                name
                for name in self._identity.keys() | stored["identity"].keys()
                if self._identity.get(name) != stored["identity"].get(name)
            ]
            if differing:
                raise ConfigError(
                    f"{folder} holds an interrupted fine-tuning with another "
                    f"{', '.join(sorted(differing))}; go on with it as it was begun, remove the "
                    "folder, or choose another --workdir"
                )
            self.history = stored["epochs"]

    def epochs_of(self, rate: float) -> int:
        """How many have ended with this learning rate."""
        return sum(epoch["lr"] == rate for epoch in self.history)

    def best_place(self, name: str) -> int:
        """Which epoch is best on dev by a score, the earliest of equals."""
        return int(np.argmax([mean_score(epoch, name) for epoch in self.history]))

    def best(self, name: str) -> pathlib.Path:
        """The folder of its parameters."""
        return self.folder / f"best_{self.best_place(name)}"

    def states(self, rate: float) -> pathlib.Path:
        """The folder of the states after each epoch with a learning rate."""
        return self.folder / f"lr_{rate:g}"

    def add(self, epoch: dict[str, Any], name: str, params: Any) -> None:
        """Takes in an epoch that has ended, and its parameters if they are the best so far."""
        self.history.append(epoch)
        best = self.best(name)
        if self.best_place(name) == len(self.history) - 1:
            if jax.process_index() == 0:
                shutil.rmtree(best, ignore_errors=True)  # of an epoch that was cut short
            sync_global_devices("removed")
            save_params(best, params)

    def save(self, name: str) -> None:
        """Writes down all epochs so far; an interrupted training goes on from here."""
        if jax.process_index() == 0:
            write_json(self.folder / HISTORY, {"identity": self._identity, "epochs": self.history})
            for other in set(self.folder.glob("best_*")) - {self.best(name)}:
                shutil.rmtree(other)


class _Step(NamedTuple):
    """The compiled step of a training, for any learning rate.

    Attributes:
      initial: parameters to the state before the first step.
      state: shapes, types and shardings of a state.
      call: `(state, batch, number, rate)` to the next state and the loss of the batch.
    """

    initial: Callable[[Any], Any]
    state: Any
    call: Callable[..., tuple[Any, Any]]


def _compiled_step(config, learner: Learner, steps: int, mesh: Mesh) -> _Step:
    # AdamW's steps are proportional to the rate, which is given when they are taken.
    settings = ml_collections.ConfigDict(config.optimizer.to_dict() | {"lr": 1.0})
    optimizer = make_optimizer(settings, steps, learner.params)

    def initial(params):  # a copy: the step takes its state's memory
        return {PARAMS: jax.tree.map(jnp.copy, params), "moments": optimizer.init(params)}

    def step(state, batch, number, rate):
        params, moments = state[PARAMS], state["moments"]
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        loss, gradients = jax.value_and_grad(learner.loss)(params, batch, key)
        updates, moments = optimizer.update(gradients, moments, params)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return {PARAMS: optax.apply_updates(params, updates), "moments": moments}, loss

    state = laid_out(jax.eval_shape(initial, learner.params), mesh, config.mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = NamedSharding(mesh, PartitionSpec())
    call = jax.jit(
        step,
        in_shardings=(places, NamedSharding(mesh, BATCH), whole, whole),
        out_shardings=(places, whole),
        donate_argnums=0,
    )
    return _Step(jax.jit(initial, out_shardings=places), state, call)


def _train(config, rate, step: _Step, learner: Learner, batches, dev, record: _Record, say):
    """All epochs with one learning rate, from the last one that ended."""
    first = record.epochs_of(rate)
    if first == config.epochs:
        return
    # Two remain: the newest may be of an epoch that the record does not have yet.
    with Checkpoints(record.states(rate), every=1, keep=2) as checkpoints:
        if first:
            state = checkpoints.restore(step.state, first)
            say(f"goes on after epoch {first}")
        else:
            state = step.initial(learner.params)
        begun = saved = time.perf_counter()
        for epoch in range(first, config.epochs):
            state, loss = _epoch(step, rate, state, batches, config, epoch, say)
            scores = {
                code: learner.score(state[PARAMS], examples).scores
                for code, examples in dev.items()
            }
            found = {"epoch": epoch + 1, "lr": rate, "loss": loss, "dev": scores}
            record.add(found, learner.main, state[PARAMS])
            if epoch + 1 < config.epochs and _is_time(saved, config.save_minutes):
                checkpoints.save(epoch + 1, state, force=True)
                record.save(learner.main)
                saved = time.perf_counter()
            say(
                f"epoch {epoch + 1}/{config.epochs}  lr {rate:g}  loss {loss:.3f}  "
                f"dev {learner.main} {mean_score(found, learner.main):.1%}  "
                f"{time.perf_counter() - begun:.0f} s"
            )
    record.save(learner.main)
    if jax.process_index() == 0:
        shutil.rmtree(record.states(rate))


def _is_time(saved: float, minutes: float) -> bool:
    """Whether so many minutes have passed for the first process, which decides for all."""
    return bool(broadcast_one_to_all(time.perf_counter() - saved >= 60 * minutes))


def _epoch(step: _Step, rate, state, batches: Batches, config, epoch: int, say: Say):
    """The state after an epoch, and the mean loss in it.

    Raises:
      FloatingPointError: if the loss is no number.
    """
    losses, told = [], time.perf_counter()
    for place, batch in enumerate(batches.shuffled(config.seed, epoch)):
        number = np.int32(epoch * len(batches) + place)
        state, loss = step.call(state, batch, number, np.float32(rate))
        losses.append(loss)
        if time.perf_counter() - told > SECONDS:
            say(
                f"epoch {epoch + 1}/{config.epochs}  step {place + 1}/{len(batches)}  "
                f"loss {float(loss):.3f}"
            )
            told = time.perf_counter()  # after the wait for the loss
    mean = float(np.mean(jax.device_get(losses)))
    if not np.isfinite(mean):
        raise FloatingPointError(
            f"the loss of epoch {epoch + 1} with lr {rate:g} is {mean}; lower it"
        )
    return state, mean
