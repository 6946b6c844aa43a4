"""Paths that users give: folders of this machine, or URLs of object stores such as `gs://bucket/run`.

Folders of runs and models may lie in an object store; `etils.epath` reads and writes there like
pathlib. All other paths, those of data above all, are of this machine.
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import cast

import fsspec
from etils import epath

from rc3_jax.settings import ConfigError, Settings, describe

EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs"), "az": ("azure", "adlfs")}
"""Scheme of an object store -> the extra that installs its file system, and the package."""
ANYWHERE = ("init", "objective.relevance_encoder", "data.sources.*.data_dir")
"""Settings that may name an object store; TFDS reads such a `data_dir`."""
_URL = re.compile(r"([a-zA-Z][\w+.-]*)://")


def scheme_of(path: str | os.PathLike[str]) -> str | None:
    """`gs` of `gs://bucket/run`; None for a path of this machine."""
    found = _URL.match(os.fspath(path))
    return None if found is None else found[1]


def as_path(path: str | os.PathLike[str], what: str = "the path") -> pathlib.Path:
    """The path of a run's or a model's folder, which may be in an object store.

    Args:
      what: the flag or setting that names it, for messages.

    Raises:
      ConfigError: if nothing can read such a URL here; the message says what to install.
    """
    scheme = scheme_of(path)
    if scheme is None:
        return pathlib.Path(path)
    try:
        found = epath.Path(os.fspath(path))
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra, package = EXTRAS.get(scheme, (None, str(error)))
        how = f"pip install '.[{extra}]', or {package}" if extra else package
        raise ConfigError(
            f"{what}={path}: install the file system of {scheme}://: {how}"
        ) from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{what}={path}: no file system is known for {scheme}://; use a folder of this machine, "
            f"or one of {', '.join(f'{name}://' for name in EXTRAS)}"
        ) from error
    return cast(pathlib.Path, found)  # has the same methods


def local_path(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """A path of this machine.

    Raises:
      ConfigError: for a URL.
    """
    if scheme_of(path) is not None:
        raise ConfigError(
            f"{what}={path}: it must be a path of this machine; copy the files here, or mount the "
            "store as a folder"
        )
    return pathlib.Path(path)


def cache_folder(name: str) -> pathlib.Path:
    """Where things are kept that a later run may use again, below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "rc3_jax" / name


def absolute(path: pathlib.Path) -> pathlib.Path:
    """The path from the root on; a URL stays as it is."""
    return path if scheme_of(path) else path.absolute()


def check_local_paths(settings: Settings) -> None:
    """Raises ConfigError for a setting that is a URL and cannot be; see `ANYWHERE`."""
    for name, value, *_ in describe(settings):
        anywhere = any(re.fullmatch(p.replace("*", r"[^.]+"), name) for p in ANYWHERE)
        for text in value.values() if isinstance(value, dict) else (value,):
            if isinstance(text, str) and scheme_of(text):
                (as_path if anywhere else local_path)(text, name)
