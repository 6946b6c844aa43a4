"""Image files of a benchmark, found by the names that its annotations give them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

from rc3_jax.data.image import image_size
from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.data.regions import load_region_file
from rc3_jax.data.sources.lines import path_inside
from rc3_jax.data.sources.rows import shown
from rc3_jax.downstream.examples import Picture

ENOUGH = 0.95
"""Share of a split's images that must be there: links die, so some of WIT and NLVR2 always lack."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An image that a row is about.

    Attributes:
      name: its identity within the task.
      paths: relative paths that it may have, the likeliest first.
    """

    name: str
    paths: tuple[str, ...]


class ImageFinder:
    """Finds the images of a task below one or several folders, and nothing outside of them.

    Of each path that a task names (its reader says which), `<root>/<path>` is looked for and then
    `<root>/images/<path>`, in the order of the roots. Images that are not there are remembered.

    Args:
      roots: the folders.
      regions: also read the region features beside an image, from the file of its name that ends
        in `.npz` (see `load_region_file`). All of them stay in memory: 0.3 MB for 36 regions.

    Attributes:
      found: name → its picture.
      missing: name → the first path that was looked for.

    Raises:
      DataError: a root is no folder.
    """

    def __init__(
        self,
        roots: pathlib.Path | str | Sequence[pathlib.Path | str],
        regions: bool = False,
    ):
        roots = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
        if not roots:
            raise DataError("no folder of images is given; name at least one")
        for root in roots:
            if not os.path.isdir(root):
                raise DataError(f"{root}: no such folder of images; check the path")
        self.roots = [os.path.realpath(root) for root in roots]
        self.regions = regions
        self.found: dict[str, Picture] = {}
        self.missing: dict[str, str] = {}
        self._name_of: dict[pathlib.Path, str] = {}

    def find(self, wanted: Wanted, where: str) -> Picture | None:
        """The picture, None where there is no such file.

        Args:
          where: file and line of the row, for messages.

        Raises:
          BadRecord: a path that leads out of the roots, a region file that cannot be used.
          DataError: the file is another picture of the task already.
        """
        if wanted.name in self.found:
            return self.found[wanted.name]
        if wanted.name in self.missing:
            return None
        for path in wanted.paths:
            _check_path(path, where)
        for root in self.roots:
            for path in wanted.paths:
                for candidate in (path, f"images/{path}"):
                    if os.path.isfile(os.path.join(root, candidate)):
                        file = path_inside(root, "image", candidate, where)
                        return self._opened(wanted.name, file, where)
        self.missing[wanted.name] = wanted.paths[0]
        return None

    def check(
        self,
        allow_missing: bool = False,
        names: Iterable[str] | None = None,
        what: str = "images",
    ) -> str | None:
        """Whether enough images are there.

        Args:
          allow_missing: go on however few there are.
          names: those to count; by default all that were looked for.
          what: stands at the start of the message.

        Returns:
          A warning where images are missing, or some have no region file; None otherwise.

        Raises:
          DataError: fewer than `ENOUGH` of them are there, and that is not allowed.
        """
        names = list(dict.fromkeys([*self.found, *self.missing] if names is None else names))
        missing = [name for name in names if name in self.missing]
        there = [self.found[name] for name in names if name in self.found]
        warnings = []
        if missing:
            examples = ", ".join(self.missing[name] for name in missing[:5])
            warnings.append(
                f"{len(there)} of {len(names)} images found ({len(there) / len(names):.2%}) in "
                f"{', '.join(self.roots)}; missing are {examples}" + " ..." * (len(missing) > 5)
            )
            if len(there) < ENOUGH * len(names) and not allow_missing:
                raise DataError(
                    f"{what}: {warnings[0]}. Add them, check the folder, or set allow_missing to "
                    "go on with the rows whose images are there; their scores do not compare with "
                    "published ones"
                )
        bare = [picture for picture in there if self.regions and picture.boxes is None]
        if bare:
            warnings.append(f"{len(bare)} of {len(names)} have no region file, as {bare[0].name}")
        return f"{what}: {'; '.join(warnings)}" if warnings else None

    def _opened(self, name: str, file: pathlib.Path, where: str) -> Picture:
        other = self._name_of.setdefault(file, name)
        if other != name:
            raise DataError(
                f"{where}: {file} is asked for as {name} and as {other}, which are different "
                "images; keep the images of each language in a folder of its own"
            )
        boxes = features = None
        region_file = file.with_suffix(".npz")
        if self.regions and region_file.is_file():
            boxes, features = load_region_file(region_file, where, image_size(file, where))
        return self.found.setdefault(name, Picture(name, file, boxes, features))


def _check_path(path: str, where: str) -> None:
    """Raises BadRecord where a path leads out of a folder, whether there is such a file or not."""
    leads_out = path.startswith("/") or ".." in path.split("/") or "\\" in path
    if leads_out or "\0" in path:
        raise BadRecord(
            f"{where}: image {shown(path)} leads out of the folder of images or is no path; "
            "correct the name"
        )
