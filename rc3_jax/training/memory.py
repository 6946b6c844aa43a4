"""What a step takes of a device's memory, and what to change where that is too much."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from rc3_jax.data.stream import KINDS, batch_rows
from rc3_jax.parallel.mesh import batch_devices
from rc3_jax.training.run import Run

GIB = 2**30


class OutOfMemory(RuntimeError):
    """A device's memory did not suffice; the message says what to change, and to what effect."""


def describe_memory(compiled: Any) -> str:
    """One line: what the compiled step takes of each device, and what a device has."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return "memory a device: the backend does not tell"
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    parts = f"state and batch {_size(arguments)}, temporaries {_size(temporaries)}"
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    of = f" of {_size(limit)}" if limit else ""
    return f"memory a device: {_size(arguments + temporaries + new)}{of} ({parts})"


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turns a device's lack of memory into `OutOfMemory` with the lines that `advise` gives."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).strip().splitlines()[0][:300]
        raise OutOfMemory("\n  ".join([f"out of memory: {first}", *advise()])) from error


def advice(run: Run) -> list[str]:
    """Settings that take less memory, each with what it would leave, per device."""
    config, fsdp = run.config, run.mesh.shape["fsdp"]
    state = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(run.abstract_state())
    )
    kinds = KINDS if run.corpus is None else list(run.corpus.pools)
    rows, parts = batch_rows(config.batch_size, config.shares, kinds), config.microbatches
    now = activation_bytes(config, run.mesh, rows)
    more = activation_bytes(config, run.mesh, rows, microbatches=2 * parts)
    full = activation_bytes(config, run.mesh, rows, remat="full")
    lines = [f"state {_size(state)} and activations, by estimate, {_size(now)} a device; change:"]
    if not any(count % (2 * parts * batch_devices(run.mesh)) for count in rows.values()):
        lines.append(
            f"--config.microbatches={2 * parts}: activations to {_size(more)}; one forward pass "
            "in all, and collecting sharded parameters for each part, more"
        )
    if config.model.remat != "full":
        lines.append(
            f"--config.model.remat=full: activations to {_size(full)}, one forward pass more"
        )
    if run.mesh.shape["data"] % 2 == 0:
        lines.append(
            f"--config.mesh.fsdp={2 * fsdp}: state to about {_size(state / 2)}, parameters "
            "collected for each layer"
        )
    lines.append("--config.batch_size: activations shrink with it; fewer negatives")
    return lines


def activation_bytes(
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    rows: Mapping[str, int],
    microbatches: int | None = None,
    remat: str | None = None,
) -> float:
    """Estimate of the activations that a step keeps on a device for its backward pass.

    Per layer, row and token 17 numbers of the width and 2.5 for each pair of tokens and head, or
    the layer's input alone where it is recomputed (Korthikanti et al., arXiv 2205.05198, section
    4); with micro-batches also what the towers give for all rows.
    """
    parts = microbatches or config.microbatches
    remat = remat or config.model.remat
    model = config.model
    texts, regions = model.text, model.roi.regions
    pairs = sum(rows.get(kind, 0) for kind in ("strict", "weak", "captioned"))
    parts_of_images = rows.get("region", 0) * config.data.regions.per_image
    images, parallel = pairs + rows.get("region", 0), rows.get("parallel", 0)
    length = config.data.max_length
    visual = _visual_stacks(model.patch)
    patches = visual[-1][0]
    stacks = [  # rows, tokens, keys beyond them, width, heads, depth
        (3 * pairs + 3 * parallel + 2 * parts_of_images, length, 0, *_sizes(texts), texts.depth),
        *((images * windows, tokens, 0, *sizes) for tokens, windows, *sizes in visual),
        (pairs * bool(regions), regions, 0, *_sizes(texts), model.roi.get("depth", 0)),
        (
            5 * (pairs + parts_of_images) + parallel,
            length,
            patches + regions,
            *_sizes(texts),
            model.fusion.depth,
        ),
    ]
    itemsize = 2 if model.dtype == "bfloat16" else 4
    kept = outputs = 0.0
    for count, tokens, keys, width, heads, depth in stacks:
        numbers = count * tokens * width
        layer = count * tokens * (17 * width + 2.5 * heads * (tokens + keys))
        layer += count * 4 * keys * width  # keys and values of the other view
        layers = depth * numbers + layer if remat == "full" else depth * layer
        kept += layers if remat != "dots" else 0.6 * layers
        outputs += numbers if parts > 1 else 0
    return itemsize * (kept / parts + outputs) / batch_devices(mesh)


def _sizes(part: Mapping[str, int]) -> tuple[int, int]:
    return part["width"], part["heads"]


def _visual_stacks(patch: ml_collections.ConfigDict) -> list[tuple[int, int, int, int, int]]:
    """Of each part of the visual tower: tokens that attend to one another, how many such groups an
    image has, width, heads, depth.
    """
    side = patch.image_size // patch.patch
    if patch.type != "swin":
        return [(side**2 + 1, 1, *_sizes(patch), patch.depth)]
    stacks = []
    for stage, (depth, heads) in enumerate(zip(patch.depths, patch.heads, strict=True)):
        window = min(patch.window, side)
        stacks.append((window**2, (side // window) ** 2, patch.width * 2**stage, heads, depth))
        side //= 2
    return stacks


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
