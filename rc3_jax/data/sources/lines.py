"""Text files read line by line, plain or gzipped, however long or broken the lines are."""

from __future__ import annotations

import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from rc3_jax.data.record import BadRecord, DataError

MAX_LINE_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"


def numbered_lines(path: pathlib.Path) -> Iterator[tuple[str, str | BadRecord]]:
    """Yields `path:number` and the text of each line, without byte order mark and line end.

    A line that cannot be used (longer than `MAX_LINE_BYTES`, not UTF-8) is yielded as the
    BadRecord that says so, for a generator cannot raise and go on.

    Raises:
      DataError: the file is missing, unreadable, or a damaged gzip file.
    """
    try:
        with _opened(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                where = f"{path}:{number}"
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    _skip_rest_of_line(file)
                    yield where, BadRecord(f"{where}: longer than {MAX_LINE_BYTES} bytes; split it")
                else:
                    yield where, _decoded(line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path in the config"
        ) from error


def _opened(path: pathlib.Path) -> BinaryIO:
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return io.BufferedReader(gzip.GzipFile(path)) if is_gzip else open(path, "rb")


def _skip_rest_of_line(file: BinaryIO) -> None:
    while (chunk := file.readline(MAX_LINE_BYTES)) and not chunk.endswith(b"\n"):
        pass


def _decoded(line: bytes, where: str) -> str | BadRecord:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return BadRecord(f"{where}: not UTF-8 ({error.reason}); convert the file with iconv")
