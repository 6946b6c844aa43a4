"""Lines of text files, and where they stand, so that they can be read again when they are needed."""

from __future__ import annotations

import array
import bisect
import codecs
import contextlib
import gzip
import io
import os
import pathlib
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rc3_jax.data.record import BadRecord, DataError

MAX_LINE_BYTES = 2**20
MAX_IMAGE_LINE_BYTES = 2**26
"""For lines that hold an image; one of 10 MB takes 13 MB in base64."""
_GZIP_MAGIC = b"\x1f\x8b"


class LineFile:
    """A file whose lines are read again.

    Attributes:
      path: the file, or the temporary one that it was unpacked to.
      is_unpacked: which of these. A temporary file is removed together with the object that made it,
        unless the process is killed; copies in other processes only read it.
    """

    def __init__(self, path: pathlib.Path, is_unpacked: bool = False):
        self.path, self.is_unpacked = path, is_unpacked

    @classmethod
    def temporary(cls) -> LineFile:
        """An empty file in the folder for temporary ones."""
        number, name = tempfile.mkstemp(prefix="rc3_jax_", suffix=".txt")
        os.close(number)
        made = cls(pathlib.Path(name), is_unpacked=True)
        weakref.finalize(made, _remove, made.path, os.getpid())
        return made

    def read(self, place: Place) -> str:
        """The line at a place; raises BadRecord if that fails or it is another one now."""
        try:
            with open(self.path, "rb") as file:
                file.seek(place.offset)
                line = file.readline(MAX_IMAGE_LINE_BYTES)
        except OSError as error:
            raise BadRecord(
                place, f"cannot be read any more ({error}); restore the file"
            ) from error
        text = _decoded(line, place)
        if _checksum(line) != place.checksum or isinstance(text, BadRecord):
            raise BadRecord(place, "the file has changed since the start; start again")
        return text


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
      row: number of the line; for a row of a document what messages add to the path, `[3]` or
        `['key']`.
      offset, checksum: first byte of the line in `file`, and the CRC-32 of all up to its end.
      file: what the line can be read from again; None if it cannot.
    """

    path: pathlib.Path
    row: int | str
    offset: int = 0
    checksum: int = 0
    file: LineFile | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.row}" if isinstance(self.row, int) else f"{self.path}{self.row}"

    def read_line(self) -> str:
        """The line, read again; raises BadRecord if that fails."""
        if self.file is None:
            raise BadRecord(self, "cannot be read again; unpack the file")
        return self.file.read(self)


class Lines(Sequence[Place]):
    """Places of lines that can be read again, in 16 bytes each."""

    def __init__(self) -> None:
        self._files: list[tuple[pathlib.Path, LineFile | None]] = []
        self._starts: list[int] = []  # number of the first place in each file
        self._rows, self._offsets = array.array("i"), array.array("q")
        self._checksums = array.array("I")

    def append(self, place: Place) -> None:
        """Adds the place of a line; those of one file follow one another."""
        if not self._files or self._files[-1][1] is not place.file:
            self._files.append((place.path, place.file))
            self._starts.append(len(self._rows))
        self._rows.append(int(place.row))
        self._offsets.append(place.offset)
        self._checksums.append(place.checksum)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        path, file = self._files[bisect.bisect(self._starts, index) - 1]
        return Place(path, self._rows[index], self._offsets[index], self._checksums[index], file)


def read_lines(
    path: pathlib.Path | str, max_bytes: int = MAX_LINE_BYTES, again: bool = False
) -> Iterator[tuple[Place, str | BadRecord]]:
    """Yields the lines of a plain or gzipped text file, without byte order mark and line end.

    A line that is not UTF-8 or longer than `max_bytes` is a BadRecord.

    Args:
      again: lines of gzip files and pipes can be read again too, from a temporary file.

    Raises:
      DataError: the file is missing, unreadable, or a damaged gzip file.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as raw, contextlib.ExitStack() as stack:
            is_gzip = raw.peek(2)[:2] == _GZIP_MAGIC
            source = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            file: LineFile | None = LineFile(path)
            copy: io.BufferedWriter | None = None
            if is_gzip or not raw.seekable():
                file = None
                if again:
                    file, copy = _temporary(path)
                    stack.enter_context(copy)
            number = offset = 0
            while line := source.readline(max_bytes):
                number += 1
                place = Place(path, number, offset, _checksum(line), file)
                start, part = offset, line
                offset += len(line)
                _write(copy, line, path)
                while not part.endswith(b"\n"):  # what is left of a long line
                    if not (part := source.readline(max_bytes)):
                        break
                    offset += len(part)
                    _write(copy, part, path)
                if offset - start > len(line):
                    yield place, BadRecord(place, f"longer than {max_bytes} bytes; split it")
                else:
                    yield place, _decoded(line, place)
            _write(copy, b"", path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path in the config"
        ) from error


def _temporary(path: pathlib.Path) -> tuple[LineFile, io.BufferedWriter]:
    """An empty temporary file for the lines of `path`."""
    try:
        file = LineFile.temporary()
        return file, open(file.path, "wb")
    except OSError as error:
        raise _no_room(path, tempfile.gettempdir(), error) from error


def _write(copy: io.BufferedWriter | None, line: bytes, path: pathlib.Path) -> None:
    """Adds a line to the copy of a gzip file, if there is one; an empty one ends it."""
    if copy is not None:
        try:
            copy.write(line) if line else copy.flush()
        except OSError as error:
            copy.raw.close()  # or closing it would write once more
            raise _no_room(path, copy.name, error) from error


def _no_room(path: pathlib.Path, target: str, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be unpacked to {target} ({error.strerror}); unpack it, or name a folder with "
        "more room in TMPDIR"
    )


def _remove(path: pathlib.Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        path.unlink(missing_ok=True)


def _checksum(line: bytes) -> int:
    """The same whether lines follow, which end it, or not."""
    return zlib.crc32(line.rstrip(b"\r\n"))


def _decoded(line: bytes, where: object) -> str | BadRecord:
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return BadRecord(where, f"not UTF-8 ({error.reason}); convert the file with iconv")
