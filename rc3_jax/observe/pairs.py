"""Finds arrays in a compiled program that hold something for all pairs of rows, or for all words.

Such arrays grow with the square of the batch, or with positions times vocabulary; the objectives go
through them in tiles. This tells whether the compiled program kept it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
from jax.sharding import Mesh

from rc3_jax.data.example import text_sizes
from rc3_jax.objectives.cclm import WITH_IMAGE
from rc3_jax.objectives.masked_lm import TILE
from rc3_jax.objectives.rc3 import ALIGNED
from rc3_jax.observe.runs import Buffer
from rc3_jax.parallel.mesh import batch_devices

Dims = tuple[int, ...]


class Pairs(NamedTuple):
    """What must not be stored. Attributes: forms: the dimensions that such an array can have, in
    ascending order, without those of size 1.
    """

    name: str
    forms: frozenset[Dims]


def forbidden(
    config: ml_collections.ConfigDict, rows: Mapping[str, int], vocab_size: int, mesh: Mesh
) -> tuple[list[Pairs], list[str]]:
    """The pairs of a step: of all rows, of a device's rows with all, whole or by tiles.

    Args:
      rows: rows of each kind in a global batch.

    Returns:
      What is looked for, and a note on each that cannot be, because all of it is one tile.
    """
    tile, devices = config.objective.pairs.tile, batch_devices(mesh)
    images = sum(rows.get(kind, 0) for kind in WITH_IMAGE)
    regions = rows.get("region", 0) * config.data.regions.per_image
    contrasts = {
        "images": images,
        "aligned texts": sum(rows.get(kind, 0) for kind in ALIGNED),
        "strict rows": rows.get("strict", 0),
        "weak rows": rows.get("weak", 0),
        "parallel rows": rows.get("parallel", 0) * (config.system == "cclm"),
        "regions": regions,
    }
    found, notes = [], []
    for name, count in contrasts.items():
        if count > tile:
            columns = {(count,), *_tiles(count, tile), (devices, count // devices)}
            found.append(_pairs(f"{name} x {name}", {(count,), (count // devices,)}, columns))
        elif count:
            notes.append(f"{name} x {name}: {count} are one tile of {tile}")
    if vocab_size <= TILE * mesh.shape["tensor"]:
        return found, [*notes, f"positions x words: {vocab_size} words are one tile of {TILE}"]
    groups = {images, regions, rows.get("parallel", 0), images + rows.get("parallel", 0)} - {0}
    groups |= {count // devices for count in groups}
    groups |= {count // config.microbatches for count in groups}
    masked = {text_sizes(config, kind)[1] for kind in rows}
    positions = {(count * most,) for count in groups for most in masked}
    positions |= {(count, most) for count in groups for most in masked}
    width = config.model.text.width
    shares = {(width // share,) for share in (1, mesh.shape["fsdp"])} & positions
    if shares:  # the word embeddings themselves have this size
        notes.append(f"{' or '.join(str(count) for (count,) in shares)} positions x words")
    words = _words(vocab_size, mesh)
    return [*found, _pairs("positions x words", positions - shares, words)], notes


def _pairs(name: str, rows: Iterable[Dims], columns: Iterable[Dims]) -> Pairs:
    return Pairs(name, frozenset(_essential(row + column) for row in rows for column in columns))


def _tiles(count: int, tile: int) -> set[Dims]:
    """All columns, padded to full tiles, and tile by tile."""
    number = -(-count // tile)
    return {(number * tile,), (number, tile)}


def _words(vocab_size: int, mesh: Mesh) -> set[Dims]:
    """The vocabulary as `masked_lm_loss` pads it: all of it, and the share of a device along
    `tensor`.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    share = -(-vocab_size // (tensor * fsdp))
    local = min(share, -(-TILE // fsdp))
    number = -(-share // local)
    counts = {vocab_size, share * fsdp * tensor, number * local * fsdp * tensor}
    counts |= {-(-count // tensor) for count in counts}
    return {(count,) for count in counts} | {(number, local * fsdp)}


def pair_buffers(
    buffers: Iterable[Buffer], looked_for: Sequence[Pairs], allowed: Iterable[Dims]
) -> list[tuple[Buffer, str]]:
    """The arrays that hold pairs, each with the name of what it holds, transposed ones too.

    Args:
      allowed: shapes that are there by right though they are those of pairs, such as parameters'.
    """
    known = {_essential(shape) for shape in allowed}
    found = {}
    for buffer in buffers:
        dims = _essential(buffer.shape.dims)
        names = [pairs.name for pairs in looked_for if dims in pairs.forms]
        if names and dims not in known:
            found.setdefault((buffer.shape, buffer.source), (buffer, names[0]))
    return list(found.values())


def _essential(dims: Iterable[int]) -> Dims:
    return tuple(sorted(size for size in dims if size > 1))
