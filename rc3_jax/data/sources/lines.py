"""Text files read line by line, plain or gzipped, however long or broken the lines are."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from rc3_jax.data.record import BadRecord, DataError

MAX_LINE_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands; `offset` is that of its first byte, None within a gzip file."""

    path: pathlib.Path
    number: int
    offset: int | None

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"

    def read(self) -> str:
        """The line again, from a file that is not gzipped.

        Raises:
          BadRecord: if it can no longer be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                line = _decoded(file.readline(), str(self))
        except OSError as error:
            raise BadRecord(f"{self}: cannot be read any more ({error})") from error
        if isinstance(line, BadRecord):
            raise line
        return line


def numbered_lines(path: pathlib.Path) -> Iterator[tuple[str, str | BadRecord]]:
    """Yields `path:number` and the text of each line; see `placed_lines`."""
    for place, line in placed_lines(path):
        yield str(place), line


def placed_lines(
    path: pathlib.Path, most: int = MAX_LINE_BYTES
) -> Iterator[tuple[Place, str | BadRecord]]:
    """Yields the place and the text of each line, without byte order mark and line end.

    A line that cannot be used (longer than `most` bytes, not UTF-8) is yielded as the BadRecord
    that says so, for a generator cannot raise and go on.

    Raises:
      DataError: the file is missing, unreadable, or a damaged gzip file.
    """
    try:
        file, is_gzip = _opened(path)
        with file:
            number = offset = 0
            while line := file.readline(most):
                number += 1
                place = Place(path, number, None if is_gzip else offset)
                offset += len(line)
                if len(line) == most and not line.endswith(b"\n"):
                    offset += _skip_rest_of_line(file)
                    yield place, BadRecord(f"{place}: longer than {most} bytes; split it")
                else:
                    yield place, _decoded(line, str(place))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path in the config"
        ) from error


def parsed_object(line: str | BadRecord, where: str) -> dict | None:
    """The JSON object on a line, None for a blank one.

    Raises:
      BadRecord: if the line is one already, or something other than an object.
    """
    if isinstance(line, BadRecord):
        raise line
    if not line.strip():
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{where}: not JSON ({error}); write one object a line") from error
    if not isinstance(fields, dict):
        raise BadRecord(f"{where}: {type(fields).__name__} is not a JSON object; write {{...}}")
    return fields


def path_inside(root: str, field: str, name: object, where: str) -> pathlib.Path:
    """The real path of a file inside of `root`, a real path, which symbolic links cannot leave.

    Raises:
      BadRecord: if `name`, which stands in a field of a line, is no such path.
    """
    if not isinstance(name, str) or not name:
        raise BadRecord(f"{where}: field {field} is missing or not a text; give a relative path")
    try:
        path = os.path.realpath(os.path.join(root, name))
        is_inside = not os.path.isabs(name) and path.startswith(os.path.join(root, ""))
    except ValueError:  # a zero byte or half of a surrogate pair
        is_inside = False
    if not is_inside:
        raise BadRecord(
            f"{where}: {field} {name[:200]!r} leads out of {root}; give paths relative to it, "
            "or set image_root to the folder that holds all files"
        )
    if not os.path.isfile(path):
        raise BadRecord(f"{where}: {field} {name[:200]!r} is missing in {root}; add the file")
    return pathlib.Path(path)


def _opened(path: pathlib.Path) -> tuple[BinaryIO, bool]:
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return io.BufferedReader(gzip.GzipFile(path)) if is_gzip else open(path, "rb"), is_gzip


def _skip_rest_of_line(file: BinaryIO) -> int:
    """Returns the number of bytes skipped."""
    skipped = 0
    while chunk := file.readline(MAX_LINE_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _decoded(line: bytes, where: str) -> str | BadRecord:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return BadRecord(f"{where}: not UTF-8 ({error.reason}); convert the file with iconv")
