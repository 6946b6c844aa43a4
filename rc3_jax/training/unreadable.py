"""Errors of Orbax and TensorStore about damaged folders, as one line that names the file."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from rc3_jax.settings import ConfigError

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints, by step."""
STATE = "state"
"""The folder of a `TrainState` within that of a checkpoint."""


class UnreadableError(ConfigError):
    """A folder whose arrays cannot be read."""


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Turns the many ways in which Orbax fails on a damaged folder into one."""
    try:
        with silent():
            yield
    except ConfigError:
        raise
    except Exception as error:  # Orbax raises nothing narrower for damaged arrays
        for cause in _chain(error):
            if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
                raise cause from error  # the folder is sound, and the device lacks memory
        raise UnreadableError(_problem(path, error)) from error


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keeps what Orbax and TensorStore print about a damaged folder, pages of it, from the terminal.

    After an error, reads that nobody waits for any more fail too, at any time until the process
    ends; they are not shown either.
    """
    disabled, shown = logging.root.manager.disable, sys.unraisablehook

    def show(unraisable: Any) -> None:
        of_orbax = inspect.iscoroutine(unraisable.object)
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            shown(unraisable)

    logging.disable(logging.ERROR)
    sys.unraisablehook = show
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:
        logging.getLogger("asyncio").addFilter(_was_awaited)
        raise
    else:
        sys.unraisablehook = shown
    finally:
        logging.disable(disabled)


def _was_awaited(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def _problem(path: pathlib.Path, error: BaseException) -> str:
    """One line about a folder that cannot be read, with the file as far as the errors tell it."""
    chain = _chain(error)
    texts = [str(error) for error in chain]
    files = re.findall(rf"{re.escape(str(path))}/[^\s\"'\\]+", " ".join(texts))
    described = path / STATE / "_METADATA"
    broken = any(isinstance(error, json.JSONDecodeError) for error in chain)
    if path.parent.name == CHECKPOINTS and (broken or not described.is_file()):
        files.append(f"{described}")
    reason = next((text for text in reversed(texts) if text), type(error).__name__).strip()
    file = f"{max(files, key=len)}: " if files else ""
    return f"{path} cannot be read as parameters ({file}{_short(reason)})"


def _short(reason: str) -> str:
    """The last clause of a message of TensorStore, without its specification."""
    first = reason.partition("\n")[0].partition(" [tensorstore_spec")[0]
    return first if len(first) <= 160 else first[:60] + " ... " + first[-95:]
