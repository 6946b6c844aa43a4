"""Rows of annotation files and their labels: `parse_row`, `class_finder`."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rc3_jax.data.jsonl import Row
from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.tasks.base import TaskFiles
from rc3_jax.tasks.benchmarks import TASKS


def class_finder(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a label to the number of its class, None where it is none.

    Capital letters and spaces do not count, except between classes that differ in nothing else.
    """
    exact = {name: number for number, name in enumerate(classes)}
    alike = collections.Counter(map(_bare, classes))
    bare = {_bare(name): number for name, number in exact.items() if alike[_bare(name)] == 1}
    return lambda label: exact.get(label, bare.get(_bare(label)))


def _bare(label: str) -> str:
    return " ".join(label.lower().split())


def parse_row(files: TaskFiles, fields: Mapping[str, Any], where: object) -> Row:
    """Checks the fields of a row.

    Raises:
      BadRecord: fields are missing or not of their type.
      DataError: it is a row of another task.
    """
    for form in files.rows:
        if _required(form) <= fields.keys():
            return form.parse(fields, where)
    lacking = min((sorted(_required(form) - fields.keys()) for form in files.rows), key=len)
    for task in TASKS.values():
        for other in filter(None, (task.files, task.english)):
            keys = fields.keys() | {other.key_field}  # which stands outside of a row
            if any(_required(form) <= keys for form in other.rows):
                raise DataError(
                    f"{where}: a row of {other.folder}, while {files.folder} is expected, which has "
                    f"{', '.join(lacking)} too; check folder and task"
                )
    raise BadRecord(
        where,
        f"no {', '.join(lacking)}, which every row of {files.folder} has; add what is missing, or "
        "check folder and task",
    )


@functools.cache
def _required(form: type[Row]) -> frozenset[str]:
    return frozenset(name for name, field in form.model_fields.items() if field.is_required())
