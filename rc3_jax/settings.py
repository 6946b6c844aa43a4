"""Typed settings: the base of every tower's, system's, source's and run's settings class.

A class lists its settings with types, defaults and descriptions in one place. `config.py` puts the
classes together into the configuration of a run.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

import ml_collections
import pydantic
from ml_collections import config_dict

RENAMED = {
    "shares": "batch_mix",
    "data.mask_share": "data.mask_ratio",
    "data.most_masked": "data.max_masked",
    "data.parallel_most_masked": "data.parallel_max_masked",
    "optimizer.rates": "optimizer.lr_multipliers",
}
"""Former name of a setting -> its name now; stored configurations may have either."""


Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
PositiveFraction = Annotated[float, pydantic.Field(gt=0, le=1)]


class ConfigError(ValueError):
    """An invalid setting; the message names it and says what to do."""


def check_choice(setting: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ConfigError unless a setting is one of the choices."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise ConfigError(f"{setting}={value!r}: use one of {names}")


class Settings(pydantic.BaseModel):
    """A group of settings. Subclasses declare fields; a string after a field describes it.

    Instances are immutable. Types are checked strictly: a float setting takes an int, nothing else
    is converted. A validator of a subclass raises ValueError with a message that names the setting
    and the remedy.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @classmethod
    def parse(cls, values: Any, where: str = "") -> Self:
        """Checks a ConfigDict, or a dict such as one from a JSON file, against the class.

        Args:
          where: the name of the group, such as `model.patch`; messages begin with it.

        Raises:
          ConfigError: lists every unknown name, missing setting and value of a wrong type.
        """
        if isinstance(values, cls):
            return values
        values = plain(values)
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            problems = [_problem(cls, where, values, problem) for problem in error.errors()]
            raise ConfigError("\n  ".join(problems)) from error

    def config_dict(self) -> ml_collections.ConfigDict:
        """The settings as a ConfigDict, which a config file changes and the command line overrides.

        A setting that is None becomes a placeholder of its type.
        """
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None:
                values[name] = config_dict.placeholder(_optional_type(field.annotation))
            else:
                values[name] = _as_config(value)
        return ml_collections.ConfigDict(values)


def change_setting(
    config: ml_collections.ConfigDict, name: str, value: Any, schema: type[Settings], where: str
) -> None:
    """Changes a setting by its dotted name.

    Args:
      schema: the class of the whole configuration.
      where: whose setting it is; the message begins with it.

    Raises:
      ConfigError: there is no such setting, or it has another type.
    """
    try:
        config.lock().update_from_flattened_dict({name: value})
    except KeyError as error:
        raise ConfigError(f"{where}: {no_such_setting(name, schema)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error.args[0]}") from error


def describe(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Yields name, value, range and description of every setting, nested groups included."""
    for name in type(settings).model_fields:
        path, value = f"{prefix}{name}", getattr(settings, name)
        if isinstance(value, Settings):
            yield from describe(value, f"{path}.")
        elif isinstance(value, Mapping) and any(isinstance(v, Settings) for v in value.values()):
            for key, item in value.items():
                yield from describe(item, f"{path}.{key}.")
        else:
            yield path, value, value_range(type(settings), name), description(type(settings), name)


def value_range(cls: type[Settings], name: str) -> str:
    """The interval that a number lies in, such as `[0, 1)`; those of a tuple joined; else empty."""
    field = cls.model_fields[name]
    return ", ".join(
        dict.fromkeys(map(_interval, numbers_within(field.annotation, field.metadata)))
    )


Number = tuple[type, tuple[Any, ...]]
"""`int` or `float`, and what pydantic checks of it: `Ge(ge=0)` and the like."""


def numbers_within(annotation: Any, constraints: Iterable[Any] = ()) -> Iterator[Number]:
    """The numbers of a type such as `int | None` or `tuple[Annotated[float, Gt(0)], ...]`."""
    if annotation in (int, float):
        yield annotation, tuple(constraints)
    elif typing.get_origin(annotation) is typing.Annotated:
        first, *more = typing.get_args(annotation)
        found = [part for item in more for part in getattr(item, "metadata", None) or [item]]
        yield from numbers_within(first, found)
    else:
        for part in typing.get_args(annotation):
            yield from numbers_within(part, constraints)


def bounds(number: Number) -> dict[str, float]:
    """Of `ge`, `gt`, `le` and `lt` those that a number has."""
    kinds = ("ge", "gt", "le", "lt")
    return {kind: getattr(c, kind) for c in number[1] for kind in kinds if hasattr(c, kind)}


def _interval(number: Number) -> str:
    found = bounds(number)
    least, most = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    opening = "(" if "ge" not in found else "["
    lower = "-∞" if least is None else str(least)
    upper, closing = ("∞", ")") if most is None else (str(most), "]" if "le" in found else ")")
    return f"{opening}{lower}, {upper}{closing}"


def description(cls: type[Settings], name: str) -> str:
    """What a setting means; a class that only changes its default inherits the description."""
    fields = (base.model_fields.get(name) for base in cls.__mro__ if issubclass(base, Settings))
    found = (field.description for field in fields if field is not None and field.description)
    return " ".join(next(found, "").split())


def _as_config(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.config_dict()
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({name: _as_config(item) for name, item in value.items()})
    return value


def _optional_type(annotation: Any) -> type:
    """The type of `T | None`; `object` where there are several."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        chosen = [part for part in typing.get_args(annotation) if part is not type(None)]
        origin = typing.get_origin(chosen[0])
        if origin is typing.Literal:
            return type(typing.get_args(chosen[0])[0])
        if len(chosen) == 1:
            is_group = isinstance(chosen[0], type) and issubclass(chosen[0], Settings)
            return ml_collections.ConfigDict if is_group else origin or chosen[0]
    return object


def plain(value: Any) -> Any:
    """Nested dicts, with tuples for lists, which JSON and FrozenConfigDict do not tell apart."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Settings):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value


def _problem(cls: type[Settings], where: str, values: Any, problem: Any) -> str:
    """One line about one invalid setting of `values`."""
    parts, kind = [where] if where else [], None
    for part in problem["loc"]:
        if part == kind:  # pydantic puts the type of a group after its name
            kind = None
            continue
        parts.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
        kind = values.get("type") if isinstance(values, Mapping) else None
    path = ".".join(parts)
    if problem["type"] == "extra_forbidden":
        return no_such_setting(path, cls, where)
    if problem["type"] == "missing":
        return f"{path} is missing; set it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}={problem['input']!r}: {message}"


def no_such_setting(path: str, cls: type[Settings], where: str = "") -> str:
    """Says that there is no such setting, and names the nearest ones.

    Those are the setting that had this name formerly; else those with a similar name; else those
    whose description has the name's words. Those of the same group go first.

    Args:
      path: the name, such as `optimizer.learning_rate`.
      cls: the class that `where` names, such as `model.patch`; the whole configuration by default.
    """
    prefix = f"{where}." if where else ""
    known = {_filled(f"{prefix}{name}", path): text for name, text in all_settings(cls)}
    group, _, name = path.rpartition(".")
    if {f"{group}.type", path} <= known.keys():
        return f"{path}: no such setting with this {group}.type; remove it or choose another type"
    if path in known:
        return f"{path}: no such setting, as there is no {group}; remove it"
    renamed = [
        new + path.removeprefix(old)
        for old, new in RENAMED.items()
        if path == old or path.startswith(f"{old}.")
    ]
    last = {other: other.rpartition(".")[2] for other in known}
    names = {*last.values()}
    close = [other for other in known if last[other] == name]
    for cutoff in (0.8, 0.6):
        for match in difflib.get_close_matches(name, names, cutoff=cutoff) * (not close):
            close += [other for other in known if last[other] == match]
        words = name.replace("_", " ").lower().removesuffix("s")
        close = close or [other for other, text in known.items() if words in text.lower()]
    here = [other for other in close if other.rpartition(".")[0] == group]
    chosen = (renamed or here or close)[:3]
    hint = f"did you mean {' or '.join(chosen)}?" if chosen else "remove it"
    return f"{path}: no such setting; {hint}"


def _filled(pattern: str, path: str) -> str:
    """`data.sources.*.root` with the name of the source that `path` is about, if it is about one."""
    before, _, after = pattern.partition("*")
    name = path.removeprefix(before).partition(".")[0]
    return f"{before}{name}{after}" if after and path.startswith(before) else pattern


def all_settings(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and descriptions of a class's settings, groups and the settings within them included."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}", description(cls, name)
        named = ".*" if typing.get_origin(field.annotation) is dict else ""
        for group in groups_within(field.annotation):
            yield from all_settings(group, f"{prefix}{name}{named}.")


def groups_within(annotation: Any) -> Iterator[type[Settings]]:
    """The classes of settings that a type such as `dict[str, A | B]` names."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in typing.get_args(annotation):
        yield from groups_within(part)
