"""Training on a task: a run of the training loop for each learning rate, and selection on dev."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from jax.sharding import Mesh
from rich.console import Console

from rc3_jax.convert.output import write_json
from rc3_jax.observe.log import MEAN_LOSS, Log, is_evaluation, read_metrics, speaker
from rc3_jax.parallel.rules import with_shardings
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import Example
from rc3_jax.tasks.batches import Batches
from rc3_jax.tasks.head import TaskHead
from rc3_jax.training.checkpoint import CHECKPOINTS, Checkpoints, load_params, save_params
from rc3_jax.training.loop import Intervals, fit
from rc3_jax.training.optimizer import OptimizerSettings, make_optimizer, schedule
from rc3_jax.training.state import TrainState
from rc3_jax.training.step import Batch, TrainStep
from rc3_jax.training.watchdog import Watchdog

IDENTITY = "identity.json"


class Selection(NamedTuple):
    """What training has found.

    Attributes:
      params: those that are best on dev.
      best: their `epoch` and `lr`.
      history: of each epoch its number, `lr`, mean `loss` and the scores by language, `dev`.
    """

    params: Any
    best: dict[str, Any]
    history: list[dict[str, Any]]


def train(
    config: ml_collections.ConfigDict,
    head: TaskHead,
    batches: Batches,
    dev: Mapping[str, Sequence[Example]],
    mesh: Mesh,
    folder: pathlib.Path,
    identity: Mapping[str, Any],
    console: Console | None = None,
) -> Selection:
    """Trains for `config.epochs` with each learning rate, and keeps the epoch that is best on dev.

    Resumable: call it again with the same folder.

    Args:
      config: see `FinetuneSettings`.
      batches: of the examples to train on.
      folder: for the runs, one for each learning rate; the caller removes it in the end.
      identity: everything that the training depends on; a folder with another identity is refused.

    Raises:
      ConfigError: if the folder holds another training.
      FloatingPointError: if the loss of every learning rate becomes infinite or NaN in its first
        epoch.
    """
    _check_identity(folder, identity)
    trainer, say = _Trainer(config, head, batches, dev, mesh), speaker(console)
    rates = config.lrs or (config.optimizer.lr,)
    runs = {rate: _RunFolder(folder / f"lr_{rate:g}", head.main) for rate in rates}
    for rate, run in runs.items():
        try:
            trainer.train(rate, run, console)
        except FloatingPointError as error:
            sync_global_devices("diverged")
            if rate == rates[-1] and not any(run.history() for run in runs.values()):
                raise
            say(f"lr {rate:g}: {error}; the other rates and epochs remain")
    sync_global_devices("trained")
    history = [
        {"epoch": row["step"] // len(batches), "lr": rate, "loss": row["loss"], "dev": row["dev"]}
        for rate, run in runs.items()
        for row in run.history()
    ]
    place = int(np.argmax([mean_score(epoch, head.main) for epoch in history]))
    best = {name: history[place][name] for name in ("epoch", "lr")}
    chosen = runs[best["lr"]].params_of(best["epoch"] * len(batches))
    return Selection(load_params(chosen, trainer.abstract.params), best, history)


def mean_score(epoch: Mapping[str, Any], name: str) -> float:
    """The mean over the languages of dev."""
    return float(np.mean([scores[name] for scores in epoch["dev"].values()]))


class _RunFolder:
    """The folder of the run with one learning rate: metrics, checkpoints and the best parameters."""

    def __init__(self, path: pathlib.Path, main: str):
        self.path, self._main = path, main

    def history(self) -> list[dict[str, Any]]:
        """The evaluated epochs: `step`, mean `loss`, and `dev` scores by language."""
        rows = read_metrics(self.path)
        losses = {row["step"]: row[MEAN_LOSS] for row in rows if MEAN_LOSS in row}
        evaluated = (unflatten_dict(row, sep="/") for row in rows if is_evaluation(row))
        return [row | {"loss": losses[row["step"]]} for row in evaluated]

    def params_of(self, step: int) -> pathlib.Path:
        """The folder of the parameters after a step, which was the best one until then."""
        return self.path / f"best_{step}"

    def save_best(self, step: int, params: Any, kept: Sequence[int]) -> None:
        """Saves the best parameters so far, and removes former ones but those of some steps."""
        if jax.process_index() == 0:
            for other in set(self.path.glob("best_*")) - set(map(self.params_of, kept)):
                shutil.rmtree(other)
        sync_global_devices("removed")
        save_params(self.params_of(step), params)


class _Trainer:
    """Runs the training loop with any learning rate; the step is compiled once for all of them."""

    def __init__(self, config: Any, head: TaskHead, batches: Batches, dev: Any, mesh: Mesh):
        self._config, self._head, self._batches, self._dev = config, head, batches, dev
        self._steps = config.epochs * len(batches)
        # AdamW's updates are proportional to the rate, which is a value of the state.
        settings = OptimizerSettings.parse(config.optimizer).model_copy(update={"lr": 1.0})
        scheduled = make_optimizer(settings, self._steps, head.params)
        rate_of = schedule(settings, self._steps)

        def optimizer(rate: Any) -> optax.GradientTransformation:
            return optax.chain(scheduled, scale_by_stored_rate(rate))

        def initial(params: Any, rate: Any) -> TrainState:
            copies = jax.tree.map(jnp.copy, params)  # the step takes the memory of its state
            return TrainState(jnp.zeros((), jnp.int32), copies, optimizer(rate).init(params), None)

        def loss(params: Any, ema: Any, step: jax.Array, batch: Batch):
            del ema
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            return head.loss(params, batch, key), {}

        shapes = jax.eval_shape(initial, head.params, 1.0)
        self.abstract = with_shardings(shapes, mesh, config.mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        self._initial = jax.jit(initial, out_shardings=places)
        self._step = TrainStep(
            loss,
            optimizer(1.0),
            self.abstract,
            mesh,
            lambda state: state.opt_state[-1]["rate"] * rate_of(state.step),
        )

    def train(self, rate: float, run: _RunFolder, console: Console | None) -> None:
        """Trains with one learning rate, from its last checkpoint on."""
        config, steps, epoch_steps = self._config, self._steps, len(self._batches)
        first = jax.process_index() == 0
        if broadcast_one_to_all(any(row["step"] == steps for row in run.history())):
            return
        run.path.mkdir(parents=True, exist_ok=True)
        with (
            Log(run.path if first else None, console) as log,
            Watchdog(config.watchdog_minutes) as watchdog,
            Checkpoints(run.path, keep=1) as checkpoints,
        ):
            found = checkpoints.restore(self.abstract, log.say)
            newest = 0 if found is None else int(found.step)
            log.rewind(newest)
            sync_global_devices("rewound")
            scores_at = {row["step"]: mean_score(row, self._head.main) for row in run.history()}

            def evaluate(step: int, params: Any) -> tuple[dict[str, Any], str]:
                main = self._head.main
                dev = {code: self._head.score(params, of).scores for code, of in self._dev.items()}
                value = mean_score({"dev": dev}, main)
                if value > max(scores_at.values(), default=-np.inf):
                    saved = checkpoints.latest or 0  # an interrupted run returns to this step
                    until = {at: score for at, score in scores_at.items() if at <= saved}
                    run.save_best(
                        step, params, [max(until, key=until.__getitem__)] if until else []
                    )
                scores_at[step] = value
                epoch = f"epoch {step // epoch_steps}/{config.epochs}"
                return {"dev": dev}, f"{epoch}  lr {rate:g}  dev {main} {value:.1%}"

            if found is None:
                state = self._initial(self._head.params, rate)
            else:
                log.say(f"lr {rate:g}: resuming after epoch {newest // epoch_steps}")
                state = found
            rows, minutes = self._batches.batch_size, config.save_minutes
            intervals = Intervals(steps, rows, config.log_every, epoch_steps, epoch_steps, minutes)
            fit(
                self._step,
                state,
                self._batches_from,
                evaluate,
                intervals,
                checkpoints,
                log,
                watchdog,
            )
        if first:
            shutil.rmtree(run.path / CHECKPOINTS)

    def _batches_from(self, start: int) -> Iterator[Batch]:
        """Global batches from a step on: every epoch shuffles the examples anew."""
        per_epoch = len(self._batches)
        for epoch in itertools.count(start // per_epoch):
            skipped = max(0, start - epoch * per_epoch)
            shuffled = self._batches.shuffled(self._config.seed, epoch)
            yield from itertools.islice(shuffled, skipped, None)


def scale_by_stored_rate(rate: jax.Array | float) -> optax.GradientTransformation:
    """Multiplies updates by a rate that is kept in the state, so that one compiled step serves all."""

    def init(params):
        del params
        return {"rate": jnp.asarray(rate, jnp.float32)}

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda leaf: state["rate"] * leaf, updates), state

    return optax.GradientTransformation(init, update)


def _check_identity(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Raises ConfigError if the folder holds another training."""
    identity = json.loads(json.dumps(identity))
    file = folder / IDENTITY
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        names = sorted(identity.keys() | stored.keys())
        if differing := [name for name in names if identity.get(name) != stored.get(name)]:
            raise ConfigError(
                f"{folder} holds an interrupted fine-tuning with another {', '.join(differing)}; "
                "continue it as it was begun, remove the folder, or choose another --workdir"
            )
    sync_global_devices("compared")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(identity))
