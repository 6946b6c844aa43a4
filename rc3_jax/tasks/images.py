"""Image files of a task, found by the names that its annotations give them."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence

from rc3_jax.data.image import decode, image_frame
from rc3_jax.data.jsonl import preview
from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.data.regions import load_region_file
from rc3_jax.tasks.base import ImageRef, Picture

MIN_SIDE = 32
"""JPEG files are decoded at a small size to find damaged ones; all of their bytes are read."""


class ImageFinder:
    """Finds the images of a task below one or several folders; it may serve several readings.

    Paths out of annotations cannot lead out of the folders; links within the folders, which are the
    user's own, are followed. For each path of an `ImageRef` it looks for `<root>/<path>` and then
    `<root>/images/<path>`, in the order of the roots.

    Args:
      regions: also read the region features beside an image, or beside a link to it, from the file
        of its name that ends in `.npz` (see `load_region_file`). All of them stay in memory: 0.3 MB
        for 36 regions.

    Raises:
      DataError: a root is no folder.
    """

    def __init__(self, roots: Sequence[pathlib.Path | str], regions: bool = False):
        for root in roots:
            if not os.path.isdir(root):
                raise DataError(f"{root}: no such folder of images; check the path")
        self.roots = [os.path.realpath(root) for root in roots]
        self.regions = regions
        self.found: dict[str, Picture] = {}  # by name
        self.missing: dict[str, str] = {}  # name → the first path that was looked for
        self._names: dict[pathlib.Path, str] = {}
        self._problems: dict[str, str | None] = {}  # name → why it cannot be decoded

    def find(self, ref: ImageRef, where: object) -> Picture | None:
        """Returns the picture, None where there is no such file; `where` is for messages.

        Raises:
          BadRecord: a path that is absolute or has `..`, a region file that cannot be used.
          DataError: the file is another picture of the task already.
        """
        if ref.name in self.found or ref.name in self.missing:
            return self.found.get(ref.name)
        for path in ref.paths:
            if path.startswith("/") or ".." in path.split("/") or "\\" in path or "\0" in path:
                problem = f"image {preview(path)} leads out of its folder or is no path; correct it"
                raise BadRecord(where, problem)
        for root in self.roots:
            for path in (place + path for path in ref.paths for place in ("", "images/")):
                if os.path.isfile(file := os.path.join(root, path)):
                    return self._open(ref.name, pathlib.Path(file), where)
        self.missing[ref.name] = ref.paths[0]
        return None

    def _open(self, name: str, link: pathlib.Path, where: object) -> Picture:
        file = link.resolve()
        other = self._names.setdefault(file, name)
        if other != name:
            raise DataError(
                f"{where}: {file} is asked for as {name} and as {other}, which are different "
                "images; keep the images of each language in a folder of its own"
            )
        boxes = features = None
        beside = (path.with_suffix(".npz") for path in (link, file))
        region_file = next((path for path in beside if path.is_file()), None)
        if self.regions and region_file:
            try:
                frame = image_frame(file, str(where))
            except BadRecord:
                pass  # it counts as a damaged image, see `unreadable`
            else:
                boxes, features = load_region_file(region_file, str(where), frame)
        return self.found.setdefault(name, Picture(name, file, boxes, features))

    def unreadable(self, threads: int) -> dict[str, str]:
        """Name → problem of the images found that cannot be decoded; each is decoded once."""

        def problem(picture: Picture) -> str | None:
            try:
                decode(picture.image, picture.name, MIN_SIDE)
            except BadRecord as error:
                return str(error)
            return None

        names = self.undecoded()
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            problems = pool.map(problem, (self.found[name] for name in names))
            self._problems |= zip(names, problems, strict=True)
        return {name: why for name, why in self._problems.items() if why is not None}

    def undecoded(self) -> list[str]:
        """Names of the images found since `unreadable` was called last."""
        return [name for name in self.found if name not in self._problems]


def flickr_image(file_name: str) -> ImageRef:
    """A photograph of Flickr30k by its file name, such as `1007129816.jpg`."""
    return ImageRef(file_name, (file_name, f"flickr30k-images/{file_name}"))
