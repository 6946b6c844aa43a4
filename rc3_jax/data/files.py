"""Files that rows name, by paths within a folder."""

from __future__ import annotations

import os
import pathlib
import re

from rc3_jax.data.record import BadRecord


def path_inside(root: str, field: str, name: str, where: object) -> pathlib.Path:
    """The real path of a file inside of `root`; symbolic links that lie there are followed.

    Args:
      field: the row's field that holds `name`, for messages.

    Raises:
      BadRecord: `name` is absolute or has `..` in it, or there is no such file.
    """
    try:
        is_inside = not os.path.isabs(name) and ".." not in re.split(r"[/\\]", name)
        path = os.path.realpath(os.path.join(root, name))
    except ValueError:  # a zero byte or half of a surrogate pair
        is_inside = False
    if not is_inside:
        problem = f"{field} {name[:200]!r} leads out of {root}; give paths relative to that folder"
        raise BadRecord(where, problem)
    if not os.path.isfile(path):
        raise BadRecord(where, f"{field} {name[:200]!r} is missing in {root}; add the file")
    return pathlib.Path(path)


class Listing:
    """Finds the files of a folder as `path_inside` does, but lists each folder within it once.

    Attributes:
      root: the real path of the folder.
    """

    def __init__(self, root: str):
        self.root = root
        self._folders: dict[str, tuple[str, frozenset[str]]] = {}

    def path(self, field: str, name: str, where: object) -> str:
        """See `path_inside`."""
        folder, _, file = name.rpartition("/")
        if ".." not in name and "\\" not in name and not os.path.isabs(name):
            real, files = self._folders.get(folder) or self._list(folder)
            if file in files:
                return f"{real}/{file}"
        return str(path_inside(self.root, field, name, where))

    def _list(self, folder: str) -> tuple[str, frozenset[str]]:
        """The real path of a folder and its files, without symbolic links; kept from then on."""
        try:
            real = os.path.realpath(os.path.join(self.root, folder))
            with os.scandir(real) as entries:
                files = frozenset(e.name for e in entries if e.is_file(follow_symlinks=False))
        except (OSError, ValueError):
            real, files = "", frozenset()
        self._folders[folder] = real, files
        return real, files
