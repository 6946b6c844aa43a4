"""The configuration of a pre-training run: its schema, its defaults and its one check.

A file in `configs/` starts from `default_config()` (RC³-base) or `cclm_config()` and changes what
differs. `validate` turns it into typed settings before anything is opened.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Self

import ml_collections
import pydantic

from rc3_jax.data.settings import DataSettings
from rc3_jax.evaluation.settings import EvaluationSettings
from rc3_jax.models.cclm import CCLMModelSettings
from rc3_jax.models.rc3 import RC3ModelSettings
from rc3_jax.objectives.cclm import CCLMObjective
from rc3_jax.objectives.rc3 import KINDS, RC3Objective
from rc3_jax.parallel.mesh import MeshSettings
from rc3_jax.paths import as_path, check_local_paths
from rc3_jax.settings import ConfigError, Settings, check_choice, plain
from rc3_jax.stored_config import CONFIG_FILE, read_config
from rc3_jax.training.optimizer import LrMultiplier, OptimizerSettings


class BatchMix(Settings):
    """Shares of a batch by kind of row; a kind of share 0 is left out."""

    strict: float = pydantic.Field(2.0, ge=0)
    """Images with texts that translate one another."""
    weak: float = pydantic.Field(1.0, ge=0)
    """Images with independent texts in several languages."""
    parallel: float = pydantic.Field(1.0, ge=0)
    """Sentences with their translations."""
    captioned: float = pydantic.Field(0.0, ge=0)
    """Images with one text; in RC³ they enter ITC, ITM and MCLM."""
    region: float = pydantic.Field(0.0, ge=0)
    """Images with texts about their parts (CCLM)."""


class CheckpointSettings(Settings):
    """When a run saves its state."""

    every: int = pydantic.Field(5000, ge=0)
    """Steps between two checkpoints; 0 saves at the end only."""
    keep: int = pydantic.Field(2, ge=1)
    """How many of the latest checkpoints remain."""


class PretrainSettings(Settings):
    """Everything that a pre-training run depends on; `system` decides about `model` and `objective`."""

    name: str = pydantic.Field("rc3", min_length=1)
    """Names the run's default folder."""
    system: Literal["rc3", "cclm"] = "rc3"
    """The method: RC³ or CCLM."""
    init: str | None = None
    """Folder of parameters to start from; sizes that are left at their defaults come from there."""
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    """Seed of parameters, rows, masks, negatives and dropout."""
    steps: int = pydantic.Field(100_000, ge=1)
    """Length of the run; schedule and ramp are shares of it."""
    batch_size: int = pydantic.Field(1024, ge=1)
    """Rows of a global batch, all kinds and devices together."""
    batch_mix: BatchMix = BatchMix()
    microbatches: int = pydantic.Field(1, ge=1)
    """Parts of a device's rows that go through the network in turn; the gradient stays the same."""
    mesh: MeshSettings = MeshSettings()
    data: DataSettings = DataSettings()
    model: RC3ModelSettings | CCLMModelSettings = RC3ModelSettings()
    objective: RC3Objective | CCLMObjective = RC3Objective()
    optimizer: OptimizerSettings = OptimizerSettings(
        lr_multipliers={
            "new": LrMultiplier(  # what pre-trained towers do not bring
                factor=2.0,
                parameters=(
                    r"(fusion|roi|fused_\w+|(image|text)_projection|matching_head)/.*|visual_type",
                ),
            ),
            "temperature": LrMultiplier(factor=2.0, parameters=(r"temperature.*",)),
        }
    )
    evaluation: EvaluationSettings = EvaluationSettings()
    log_every: int = pydantic.Field(50, ge=1)
    """Steps between two console lines."""
    watchdog_minutes: float = pydantic.Field(30.0, ge=0)
    """Minutes without progress after which the process ends; 0 waits for ever."""
    checkpoint: CheckpointSettings = CheckpointSettings()

    @pydantic.model_validator(mode="after")
    def _data_fits(self) -> Self:
        room = self.model.text.room
        for name in ("max_length", "parallel_max_length"):
            if (length := getattr(self.data, name) or 0) > room:
                raise ValueError(
                    f"data.{name}={length} exceeds the {room} tokens that "
                    f"model.text.max_positions={self.model.text.max_positions} leaves; change either"
                )
        if (forms := self.data.visual_forms) != "both" and not self.model.roi.regions:
            raise ValueError(
                f"data.visual_forms={forms!r}: the model has patches alone; take 'both'"
            )
        return self


class RC3Settings(PretrainSettings):
    """A run of RC³ (METHOD.md sections 1 and 2)."""

    system: Literal["rc3"] = "rc3"
    model: RC3ModelSettings = RC3ModelSettings()
    objective: RC3Objective = RC3Objective()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        for kind, share in self.batch_mix:
            if share and kind not in KINDS:
                raise ValueError(
                    f"batch_mix.{kind}={share}: rc3 has no use for {kind} rows; set it to 0"
                )
        forms = self.data.visual_forms
        if self.objective.weak_views == "forms" and (not self.model.roi.regions or forms != "both"):
            raise ValueError(
                f"objective.weak_views='forms' with model.roi.regions={self.model.roi.regions} and "
                f"data.visual_forms={forms!r}: it needs patches and regions; take 'image'"
            )
        if self.objective.relevance == "true":
            others = [name for name, of in self.data.sources.items() if of.type != "scenes"]
            if others:
                raise ValueError(
                    f"objective.relevance='true' with data.sources {', '.join(others)}: only generated "
                    "scenes know what their texts share; take 'own', 'ema' or 'encoder'"
                )
        if self.data.parallel_max_masked not in (None, self.data.max_masked):
            raise ValueError(
                f"data.parallel_max_masked={self.data.parallel_max_masked}: RC³ masks as many tokens "
                "of all texts; leave it out"
            )
        return self


class CCLMSettings(PretrainSettings):
    """A run of CCLM (METHOD.md section 3, CCLM.md section 4)."""

    name: str = pydantic.Field("cclm_3m", min_length=1)
    system: Literal["cclm"] = "cclm"
    batch_mix: BatchMix = BatchMix(strict=0.0, weak=0.0, parallel=1.0, captioned=1.0)
    model: CCLMModelSettings = CCLMModelSettings()
    objective: CCLMObjective = CCLMObjective()
    optimizer: OptimizerSettings = OptimizerSettings(
        warmup=0.03,
        decay="linear",
        lr_multipliers={
            "new": LrMultiplier(
                factor=2.0,
                parameters=(
                    r"temperature",
                    r"fusion/.*cross_attention.*",
                    r"(image|text)_projection/.*",
                    r"(matching|box)_head/.*",
                ),
            )
        },
    )
    evaluation: EvaluationSettings = EvaluationSettings(modes=("patches",), dependence_rows=0)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.evaluation.dependence_rows:
            raise ValueError(
                f"evaluation.dependence_rows={self.evaluation.dependence_rows}: CCLM has no fused "
                "vector whose dependence could be measured; set it to 0"
            )
        if self.batch_mix.region and (rate := getattr(self.model.patch, "patch_dropout", 0.0)):
            raise ValueError(
                f"model.patch.patch_dropout={rate}: regions consist of patches, which may be left "
                f"out; set it or batch_mix.region={self.batch_mix.region} to 0"
            )
        return self


SETTINGS: dict[str, type[PretrainSettings]] = {"rc3": RC3Settings, "cclm": CCLMSettings}

FREE = (
    "dtype",
    "remat",
    "unroll",
    "attention",
    "dropout",
    "patch.drop_path",
    "patch.patch_dropout",
)
"""Settings of a model that do not change what its parameters mean."""


def default_config() -> ml_collections.ConfigDict:
    """RC³-base without data sources."""
    return RC3Settings().config_dict()


def validate(config: ml_collections.ConfigDict | PretrainSettings) -> PretrainSettings:
    """Checks a configuration before anything is opened, and returns its typed settings.

    With `init`, the model's settings that are left at their defaults become those of the folder.

    Raises:
      ConfigError: lists what is wrong with it.
    """
    if isinstance(config, PretrainSettings):
        return config
    values = plain(config)
    schema = settings_class(values)
    if values.get("init") is not None:
        values["model"] = _with_init(values, plain(schema()))
    settings = schema.parse(values)
    check_local_paths(settings)
    return settings


def settings_class(values: Mapping[str, Any]) -> type[PretrainSettings]:
    """The class of a run's settings, by its `system`.

    Raises:
      ConfigError: for an unknown system.
    """
    system = values.get("system", "rc3")
    check_choice("system", system, SETTINGS)
    return SETTINGS[system]


def stored_settings(folder: pathlib.Path) -> PretrainSettings:
    """The settings of the run in a folder.

    Raises:
      ConfigError: if the folder holds no run, or settings that are invalid now.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{folder} holds no run to resume; name its folder with --workdir")
    stored = read_config(folder)
    return settings_class(stored).parse(stored, str(file))


def model_settings(
    system: str, stored: Mapping[str, Any], folder: pathlib.Path
) -> RC3ModelSettings | CCLMModelSettings:
    """The typed `model` that the `config.json` of a folder stores.

    Its `attention` is `auto`, since that of the run was chosen for the run's devices, and fine-tuning
    leaves out no patches.

    Raises:
      ConfigError: for an unknown system, or settings that its models do not have.
    """
    check_choice(f"{folder / CONFIG_FILE}: system", system, SETTINGS)
    where = f"{folder / CONFIG_FILE}: model"
    kind = CCLMModelSettings if system == "cclm" else RC3ModelSettings
    settings = kind.parse({**stored, "attention": "auto"}, where)
    if not getattr(settings.patch, "patch_dropout", 0.0):
        return settings
    patch = settings.patch.model_copy(update=dict(patch_dropout=0.0))
    return settings.model_copy(update=dict(patch=patch))


def _with_init(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`model` for a run that starts from the folder `init`.

    Raises:
      ConfigError: if a setting was changed from its default and differs from the folder's.
    """
    folder = as_path(values["init"], "init")
    if not (folder / CONFIG_FILE).is_file():
        return values["model"]
    stored = read_config(folder)
    if stored.get("system", values["system"]) != values["system"]:
        raise ConfigError(
            f"init={folder} holds a model of {stored['system']} and this configuration is of "
            f"{values['system']}; take a configuration of {stored['system']}"
        )
    differing: list[str] = []

    def adopt(ours: Any, theirs: Any, default: Any, path: str) -> Any:
        if path in FREE or ours == theirs:
            return ours
        same_type = isinstance(theirs, Mapping) and ours.get("type") == theirs.get("type")
        if same_type:
            found = dict(ours)
            for name, value in theirs.items():
                given = default.get(name) if isinstance(default, Mapping) else None
                inner = f"{path}.{name}" if path else name
                found[name] = adopt(ours.get(name, value), value, given, inner)
            return found
        if ours != default:
            differing.append(f"model.{path} is {ours!r}, there {theirs!r}")
        return theirs

    model = adopt(values["model"], stored.get("model", {}), defaults["model"], "")
    if differing:
        raise ConfigError(
            f"init={folder} holds another model: {'; '.join(differing)}. Take its settings, or "
            "convert the weights for yours"
        )
    return model


def parse_argument(argument: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """Reads what follows the colon in `--config=file.py:batch=4096,root=/data`.

    Args:
      argument: comma-separated `name=value`, values of the defaults' types.

    Raises:
      ConfigError: for an unknown name or a value of another type.
    """
    chosen = ml_collections.ConfigDict(defaults)
    for item in filter(None, (argument or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults or not equals:
            raise ConfigError(
                f"config argument {item!r} is unknown; use name=value with one of: "
                f"{', '.join(f'{k}={v}' for k, v in defaults.items())}"
            )
        kind = type(defaults[name])
        try:
            value = text if kind is str else ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"config argument {name}={text!r} is no {kind.__name__}") from error
        if type(value) is not kind:
            raise ConfigError(f"config argument {name}={text!r} is no {kind.__name__}")
        chosen[name] = value
    return chosen
