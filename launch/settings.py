"""Prints every setting with its default, its range and its meaning, as docs/settings.md holds them.

python launch/settings.py > docs/settings.md
"""

import functools
import typing

from absl import app

from rc3_jax.command_line import parse_flags
from rc3_jax.settings import Settings, describe, description, value_range


def tables() -> str:
    """The settings of all systems, towers, sources and of fine-tuning, as Markdown."""
    from rc3_jax.config import CCLMSettings, RC3Settings
    from rc3_jax.data.sources import AnySource
    from rc3_jax.models.towers import TOWERS
    from rc3_jax.tasks.config import FinetuneSettings, finetune_config

    rc3, cclm = RC3Settings(), CCLMSettings()
    known = {name: value for name, value, *_ in describe(rc3)}
    lines = [
        "# Settings",
        "",
        "Written by `python launch/settings.py > docs/settings.md`. `None` means not set. A range `[a, b)` includes a and not b.",
        "",
        "## A run of RC³",
        "",
        *_table(row for row in describe(rc3) if not row[0].startswith("model.patch.")),
        "## A run of CCLM, where it differs",
        "",
        *_table(
            row
            for row in describe(cclm)
            if known.get(row[0]) != row[1] and not row[0].startswith("model.patch.")
        ),
    ]
    for name, tower in TOWERS.items():
        lines += [f"## `model.patch` of type `{name}`", "", *_table(describe(tower()))]
    for source in typing.get_args(AnySource):
        kind = source.model_fields["type"].default
        lines += [f"## A source of type `{kind}`", "", *_fields(source)]
    tuning = FinetuneSettings.parse(finetune_config("xvnli"))
    lines += ["## Fine-tuning, with the defaults of XVNLI", "", *_table(describe(tuning))]
    return "\n".join(lines)


def _table(rows) -> list[str]:
    lines = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {_code(value)} | {interval} | {text} |"
        for name, value, interval, text in rows
    ]
    return [*lines, ""]


def _fields(cls: type[Settings]) -> list[str]:
    """A table of a class whose settings need not all have defaults.

    A group without a description has a row for each of its settings.
    """
    rows: list[tuple[str, object, str, str]] = []
    for name, field in cls.model_fields.items():
        if isinstance(field.default, Settings) and not field.description:
            rows += describe(field.default, f"{name}.")
        else:
            default = "needed" if field.is_required() else field.default
            rows.append((name, default, value_range(cls, name), description(cls, name)))
    return _table(rows)


def _code(value: object) -> str:
    if value == "needed":
        return value
    text = value.model_dump() if isinstance(value, Settings) else value
    return f"`{text!r}`".replace("|", "\\|")


def main(argv: list[str]) -> None:
    del argv
    print(tables())


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, None))
