"""fsspec's `memory://` as an object store of `etils.epath`, which knows real ones by their names."""

from __future__ import annotations

import fsspec
from etils.epath import backend, gpath, register

SCHEME = "memory"


def register_memory(monkeypatch) -> None:
    """Makes `epath.Path("memory://...")` a path in the memory of this process, empty at first."""
    memory = fsspec.filesystem(SCHEME)
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]

    class Backend(backend._FileSystemSpecBackend):
        def fs(self, path):
            return memory

        def glob(self, path):  # the file system's paths begin with /
            return [f"{SCHEME}:/{found}" for found in memory.glob(path)]

    prefix = f"{SCHEME}://"
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, prefix))
    monkeypatch.setattr(gpath, "_URI_SCHEMES", gpath._URI_SCHEMES | {SCHEME})
    monkeypatch.setitem(gpath._URI_MAP_ROOT, prefix, f"/{SCHEME}/")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, SCHEME, Backend())
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, prefix, gpath.PosixGPath)
