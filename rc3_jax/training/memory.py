"""What a compiled step takes of a device's memory, and an error that says what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax

GIB = 2**30


class OutOfMemory(RuntimeError):
    """A device's memory did not suffice; the message says what to change, and to what effect."""


def describe_memory(compiled: jax.stages.Compiled) -> str:
    """One line: what the compiled step takes of each device, and what a device has."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return "memory a device: not known to the backend"
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    parts = f"state and batch {in_gib(arguments)}, temporaries {in_gib(temporaries)}"
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    of = f" of {in_gib(limit)}" if limit else ""
    return f"memory a device: {in_gib(arguments + temporaries + new)}{of} ({parts})"


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turns a device's lack of memory into `OutOfMemory` with the lines that `advise` returns."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).strip().splitlines()[0][:300]
        raise OutOfMemory("\n  ".join([f"out of memory: {first}", *advise()])) from error


def in_gib(count: float) -> str:
    """A number of bytes in GiB."""
    return f"{count / GIB:.2f} GiB"
