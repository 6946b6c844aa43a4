"""Files that rows name, by paths within a folder."""

from __future__ import annotations

import os
import pathlib
import re
import stat

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


class FolderFiles:
    """Finds the files of a folder as `path_inside` does, but resolves each folder within it once.

    Attributes:
      root: the real path of the folder.
    """

    def __init__(self, root: str):
        self.root = root
        self._real: dict[str, str] = {}

    def path(self, field: str, name: str, where: object) -> str:
        """See `path_inside`."""
        folder, _, file = name.rpartition("/")
        if ".." not in name and "\\" not in name and not os.path.isabs(name):
            try:
                if folder not in self._real:
                    self._real[folder] = os.path.realpath(os.path.join(self.root, folder))
                if self._has(real := self._real[folder], file):
                    return f"{real}/{file}"
            except (OSError, ValueError):  # path_inside says what is wrong
                pass
        return str(path_inside(self.root, field, name, where))

    def _has(self, real: str, file: str) -> bool:
        """Whether a folder has a file of this name that is no symbolic link."""
        return stat.S_ISREG(os.lstat(f"{real}/{file}").st_mode)


class Listing(FolderFiles):
    """Lists each folder within it once, which is faster for many files. For the start alone."""

    def __init__(self, root: str):
        super().__init__(root)
        self._names: dict[str, frozenset[str]] = {}

    def _has(self, real: str, file: str) -> bool:
        if (names := self._names.get(real)) is None:
            self._names[real] = names = frozenset()
            with os.scandir(real) as entries:
                names = frozenset(e.name for e in entries if e.is_file(follow_symlinks=False))
            self._names[real] = names
        return file in names
