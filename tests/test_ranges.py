"""Every number among the settings has a range, and its ends are where they are said to be."""

from __future__ import annotations

import math

import pydantic
import pytest

from rc3_jax.config import CCLMSettings, RC3Settings, validate
from rc3_jax.settings import ConfigError, bounds, groups_within, numbers_within
from rc3_jax.tasks.config import FinetuneSettings
from tests.tiny import tiny_config


def classes(*roots):
    found = []
    queue = list(roots)
    while queue:
        cls = queue.pop()
        if cls not in found:
            found.append(cls)
            for field in cls.model_fields.values():
                queue += groups_within(field.annotation)
    return found


NUMBERS = [
    pytest.param(cls, name, place, number, id=f"{cls.__name__}.{name}.{place}")
    for cls in classes(RC3Settings, CCLMSettings, FinetuneSettings)
    for name, field in cls.model_fields.items()
    for place, number in enumerate(numbers_within(field.annotation, field.metadata))
]


def accepts(cls, name: str, value: object) -> bool:
    """Whether a class takes the value for this setting, whatever it says of others."""
    try:
        cls.model_validate({name: value})
    except pydantic.ValidationError as error:
        return all(problem["loc"][:1] != (name,) for problem in error.errors())
    return True


def placed(cls, name: str, place: int, value: float) -> object:
    """The value by itself, or within a tuple of the length that the setting has."""
    field = cls.model_fields[name]
    count = len(list(numbers_within(field.annotation, field.metadata)))
    if "tuple" not in str(field.annotation):
        return value
    if "..." in str(field.annotation) or "Ellipsis" in str(field.annotation):
        return (value,)
    return tuple(value if i == place else field.default[i] for i in range(count))


@pytest.mark.parametrize(("cls", "name", "place", "number"), NUMBERS)
def test_every_number_has_a_range_with_its_ends(cls, name, place, number):
    kind, found = number[0], bounds(number)
    assert found
    step = 1 if kind is int else 1e-9
    for bound, end in found.items():
        beyond = end - step if bound in ("ge", "gt") else end + step
        assert accepts(cls, name, placed(cls, name, place, kind(end))) == bound.endswith("e")
        assert not accepts(cls, name, placed(cls, name, place, kind(beyond)))
    if kind is float:
        for value in (math.nan, math.inf, -math.inf):
            assert not accepts(cls, name, placed(cls, name, place, value))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optimizer.clip", -1.0),
        ("optimizer.lr", 0.0),
        ("optimizer.lr", math.nan),
        ("optimizer.warmup", 1.1),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", 1.0),
        ("optimizer.eps", 0.0),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.final_lr", 1.5),
        ("optimizer.lr_multipliers.new.factor", -1.0),
        ("data.mask_ratio", 1.1),
        ("data.mask_ratio", -0.1),
        ("data.modality_dropout", 0.51),
        ("data.skip_limit", 1.1),
        ("data.image.jitter", 1.5),
        ("data.image.crop_scale", (0.5, 1.5)),
        ("batch_mix.strict", -1.0),
        ("objective.weights.itc", -1.0),
        ("objective.scales.relevance_temperature", 0.0),
        ("objective.ema_decay", 1.5),
        ("model.dropout", 1.0),
        ("model.image_std", (0.5, 0.0, 0.5)),
        ("model.image_mean", (123.0, 0.5, 0.5)),
        ("mesh.fsdp", 0),
        ("seed", -1),
    ],
)
def test_what_would_freeze_or_reverse_training_is_refused_by_name(setting, value):
    config = tiny_config()
    config.update_from_flattened_dict({setting: value})
    with pytest.raises(ConfigError, match=setting):
        validate(config)
