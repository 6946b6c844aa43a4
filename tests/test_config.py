"""The schema of the configuration: what it refuses, derives, stores and accepts from older runs."""

from __future__ import annotations

import ast
import functools
import json
import re

import pytest

from rc3_jax.config import RC3Settings, default_config, validate
from rc3_jax.config_cclm import MODELS, cclm_config
from rc3_jax.data.record import DataError
from rc3_jax.data.sources.folder import FolderSource
from rc3_jax.models.towers import TOWERS
from rc3_jax.settings import RENAMED, ConfigError, no_such_setting
from rc3_jax.stored_config import MAY_CHANGE, changed_settings, read_config, save_config
from rc3_jax.training.run import prepare_run
from tests.processes import launch
from tests.tiny import ROOT, SIZES, load_config, tiny_cclm, tiny_config

NOWHERE = FolderSource(captions="/no", root="/no", train_split="a", heldout_split="b")
ENCODER = {"objective.relevance_encoder": "/here"}
PATCH_DROPOUT = {"model.patch.patch_dropout": 0.5}


@pytest.mark.parametrize("make", [default_config, *(lambda n=n: cclm_config(n) for n in MODELS)])
def test_defaults_are_valid_and_stored_without_loss(make, tmp_path):
    settings = validate(make())
    assert validate(settings.config_dict()) == settings
    save_config(settings, tmp_path / "config.json")
    assert validate(settings.config_dict()) == type(settings).parse(read_config(tmp_path))
    assert not changed_settings(type(settings).parse(read_config(tmp_path)), settings)


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (tiny_config, {"model.patch.type": "swin"}, "model.patch.mlp_width"),
        (tiny_config, {"model.patch.depths": (2, 2)}, "model.patch.depths"),
        (tiny_config, {"model.dtype": "float16"}, "model.dtype"),
        (tiny_config, {"objective.regularizer": ("hing",)}, "objective.regularizer"),
        (tiny_config, {"objective.regularizer": ("none", "mse")}, "objective"),
        (tiny_config, {"objective.relevance": "mine"}, "objective.relevance"),
        (tiny_config, {"objective.relevance": "true"}, "objective.relevance.*nowhere"),
        (tiny_config, {"objective.regularizer": ("top", "ranked")}, "objective"),
        (tiny_config, {"objective.weak_start": 0.95}, "weak_start=0.95"),
        (tiny_config, {"objective.weak_views": "forms", "model.roi.regions": 0}, "roi.regions=0"),
        (tiny_config, {"data.visual_forms": "regions", "model.roi.regions": 0}, "visual_forms"),
        (tiny_cclm, {"data.visual_forms": "patches"}, "visual_forms"),
        (tiny_config, {"optimizer.decay": "linaer"}, "optimizer.decay"),
        (tiny_config, {"optimizer.lr": "much"}, "optimizer.lr"),
        (tiny_config, {"optimizer.learning_rate": 1e-3}, "optimizer.learning_rate"),
        (tiny_config, {"evaluation.modes": ("all",)}, "evaluation.modes"),
        (tiny_config, {"name": ""}, "name"),
        (tiny_config, {"system": "cclm"}, "objective.regularizer"),
        (tiny_cclm, {"system": "rc3"}, "objective.negatives"),
        (tiny_cclm, {"objective.negatives": "near"}, "objective.negatives"),
    ],
)
def test_invalid_settings_are_named_before_anything_is_opened(make, change, named):
    config = make()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(change)
    config.data.sources = dict(nowhere=NOWHERE.config_dict())
    with pytest.raises(ConfigError, match=named) as refused:
        validate(config)
    if wanted := re.search(r"^(\S+?)(\.0)?='.* should be '(\w+)'", str(refused.value)):
        setting, among, choice = wanted.groups()
        config.update_from_flattened_dict({setting: (choice,) if among else choice})
        validate(config)


def _clip_cclm():
    config, kind = tiny_cclm(), TOWERS["clip"]
    with config.ignore_type():
        config.model.patch = kind(**SIZES, depth=1, image_size=32, patch=8).config_dict()
    return config


@pytest.mark.parametrize(
    ("make", "wrong", "advice", "advised"),
    [
        (tiny_config, {"batch_mix.region": 1.0}, "batch_mix.region.*set it to 0", 0.0),
        (tiny_config, {"data.parallel_max_masked": 8}, "parallel_max_masked.*leave it out", None),
        (tiny_config, {"data.max_length": 31}, "data.max_length=31 .* 30 .*change either", 30),
        (tiny_config, {"data.max_length": 31}, "change either", {"model.text.max_positions": 33}),
        (tiny_config, {"model.patch.width": 32}, "must be equal", {"model.text.width": 32}),
        (tiny_config, {"model.text.width": 32}, "must be equal", {"model.patch.width": 32}),
        (tiny_config, PATCH_DROPOUT, r"patch\.patch_dropout=0\.5.*set it or .* to 0", 0.0),
        (tiny_config, PATCH_DROPOUT, r"or roi\.regions=10 to 0", {"model.roi.regions": 0}),
        (_clip_cclm, PATCH_DROPOUT, r"patch\.patch_dropout=0\.5.*set it or .* to 0", 0.0),
        (_clip_cclm, PATCH_DROPOUT, r"or batch_mix.region=1\.0 to 0", {"batch_mix.region": 0.0}),
        (tiny_cclm, {"evaluation.dependence_rows": 8}, "dependence_rows=8.*set it to 0", 0),
        (tiny_cclm, {"model.roi.regions": 4}, "roi.regions=4.*set it to 0", 0),
        (tiny_config, {"model.text.heads": 3}, "heads=3.* divide", 4),
        (tiny_config, {"model.patch.image_size": 30}, "image_size=30 .*multiple", 32),
        (tiny_config, {"data.image.crop_scale": (0.8, 0.4)}, "0 < least <= largest", (0.4, 0.8)),
        (tiny_config, {"objective.regularizer": ("soft", "kl")}, "name 'soft' without", ("soft",)),
        (tiny_config, {"objective.regularizer": ()}, "name one or more of weighted", ("weighted",)),
        (tiny_config, {"objective.relevance": "encoder"}, "needs the folder of one", ENCODER),
        (tiny_cclm, {"system": "cclm2"}, "use one of rc3, cclm", "cclm"),
    ],
)
def test_settings_that_do_not_go_together_are_mended_as_advised(make, wrong, advice, advised):
    """`advised`: what to set, or the value that mends the wrong setting itself."""
    config = make()
    config.update_from_flattened_dict(wrong)
    with pytest.raises(ConfigError, match=advice):
        validate(config)
    change = advised if isinstance(advised, dict) else dict.fromkeys(wrong, advised)
    config.update_from_flattened_dict(change)
    validate(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 2}, "batch_size"),
        ({"batch_mix.strict": 0.0, "batch_mix.weak": 0.0}, "batch_mix"),
        ({"mesh.fsdp": 5}, "mesh.fsdp"),
        ({"optimizer.no_decay": ("nothing",)}, "optimizer.no_decay"),
    ],
)
def test_settings_that_do_not_fit_the_data_or_the_devices_are_named(change, named):
    config = tiny_config()
    config.update_from_flattened_dict(change)
    with pytest.raises((ConfigError, DataError), match=named):
        prepare_run(config)


def test_every_mistake_is_listed_and_close_names_are_offered():
    config = tiny_config()
    config.optimizer.learning_rates, config.model.text.widht = 1.0, 8
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert "optimizer.learning_rates" in str(caught.value)
    assert "optimizer.lr?" in str(caught.value)
    assert "model.text.width" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimizer.learning_rate", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("shares", "batch_mix"),
        ("shares.strict", "batch_mix.strict"),
        ("optimizer.rates.new.factor", "optimizer.lr_multipliers.new.factor"),
        ("data.most_masked", "data.max_masked"),
        ("model.text.widht", "model.text.width"),
        ("data.sources.pairs.captoins", "data.sources.pairs.captions"),
    ],
)
def test_an_unknown_name_brings_the_nearest_setting(name, nearest):
    message = no_such_setting(name, RC3Settings)
    assert name in message
    assert nearest in re.findall(r"[a-z_.*]+", message.partition("did you mean")[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.learning_rate", 1e-3),
        ("lr", 1e-3),
        ("shares", {"strict": 1.0, "weak": 2.0}),
        ("data.most_masked", 5),
        ("model.patch.widht", 16),
        ("data.sources.nowhere.captoins", "/here"),
        ("optimizer.lr_multipliers.new.factr", 2.0),
        ("model.xyzzy", 1),
        ("model.patch.depths", (2, 2)),
        ("data.sources.nowhere.heldout_path", "/here"),
        ("data.sources.more", {"type": "folder"}),
    ],
)
def test_an_unknown_or_missing_setting_is_mended_as_advised(name, value):
    config = tiny_config()
    config.data.sources = dict(nowhere=NOWHERE.config_dict())
    config.optimizer.lr_multipliers.new = dict(factor=3.0, parameters=("text/.*",))
    *groups, last = name.split(".")
    group = functools.reduce(lambda outer, inner: outer[inner], groups, config)
    with config.unlocked(), config.ignore_type():
        group[last] = value
        with pytest.raises(ConfigError) as caught:
            validate(config)
        message = str(caught.value)
        if missing := re.findall(r"(\S+) is missing; set it", message):
            config.update_from_flattened_dict(dict.fromkeys(missing, "/here"))
        else:
            assert message.startswith(f"{name}: no such setting")
            del group[last]
            if meant := re.search(r"did you mean (\S+)\?$", message):
                config.update_from_flattened_dict({meant[1]: value})
            else:
                assert "; remove it" in message
    validate(config)


def test_a_setting_of_a_group_that_is_not_there_is_refused():
    message = no_such_setting("optimizer.lr_multipliers.gone.factor", RC3Settings)
    assert message.endswith("as there is no optimizer.lr_multipliers.gone; remove it")


def stored(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize(
    "name",
    ["rc3_demo", "rc3_base", "rc3_flickr", "cclm_demo", "cclm_demo photographs"]
    + ["cclm_3m", "cclm_4m", "cclm_x2vlm_base", "cclm_x2vlm_large"],
)
def test_shipped_configurations_are_valid_as_they_are(name, tmp_path):
    (tmp_path / "parallel").mkdir()
    for file in ("train.en", "train.de.gz", "train.images.txt"):
        (tmp_path / "parallel" / file).touch()
    name, _, variant = name.partition(" ")
    arguments = {
        "rc3_base": f"root={tmp_path}",
        "cclm_demo": f"root={tmp_path},parallel={tmp_path}" if variant else "",
    }
    published = f"root={tmp_path},vocabulary=" if name in MODELS else ""
    config = validate(load_config(name, arguments.get(name, published)))
    if name == "rc3_base":  # plain files count as gzipped ones do
        assert config.data.sources["parallel"].files.keys() == {"en", "de"}
        (tmp_path / "parallel" / "train.en").unlink()
        with pytest.raises(ConfigError, match="parallel.* de"):
            load_config(name, f"root={tmp_path}")


def test_settings_of_older_runs_are_understood(tmp_path):
    old = stored(tiny_config())
    del old["system"], old["init"], old["model"]["patch"]["type"], old["data"]["clean_captions"]
    old["model"]["patch"] |= {"epsilon": None, "activation": None}
    old["model"]["text"]["epsilon"] = None
    old["data"]["regions"]["grid"] = 14
    old["shares"] = old.pop("batch_mix")
    old["optimizer"]["rates"] = old["optimizer"].pop("lr_multipliers")
    for name in ("mask_share", "most_masked", "parallel_most_masked"):
        old["data"][name] = old["data"].pop(RENAMED[f"data.{name}"].removeprefix("data."))
    (tmp_path / "config.json").write_text(json.dumps(old))
    settings = validate(tiny_config())
    assert type(settings).parse(read_config(tmp_path)) == settings


def test_what_older_runs_did_without_a_setting_is_what_they_go_on_with(tmp_path):
    config = tiny_config()
    config.objective.debias_relevance = True
    save_config(validate(config), tmp_path / "config.json")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path)["objective"]["debias_relevance"]
    assert read_config(tmp_path)["data"]["sources"]["scenes"]["detector"]["missed"] > 0
    del stored["objective"]["debias_relevance"], stored["data"]["sources"]["scenes"]["detector"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_config(tmp_path)["objective"]["debias_relevance"] is False
    assert not any(read_config(tmp_path)["data"]["sources"]["scenes"]["detector"].values())


def test_settings_that_may_change_are_settings():
    names = {
        name for make in (tiny_config, tiny_cclm) for name in _flat(validate(make()).model_dump())
    }
    sources = ("captions", "root", "path", "heldout_path", "files.*", "data_dir")
    for pattern in MAY_CHANGE:
        if pattern not in {f"data.sources.*.{name}" for name in sources}:
            assert any(name.startswith(pattern.rstrip("*")) for name in names), pattern


def _flat(values: dict, prefix: str = ""):
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("part", "name", "value"), [("text", "heads", 4), ("patch", "type", "beit")]
)
def test_weights_of_another_model_are_refused_by_setting(tmp_path, part, name, value):
    def store(system, model):
        (tmp_path / "config.json").write_text(json.dumps({"system": system, "model": model}))

    config = tiny_config()
    model = stored(config)["model"]
    store("rc3", model)
    config.init = str(tmp_path)
    config.model.update(dropout=0.3, dtype="bfloat16")  # free to change
    validate(config)
    model[part] = stored(tiny_config("beit"))["model"][part] | {name: value}
    store("rc3", model)
    with pytest.raises(ConfigError, match=f"model.{part}") as caught:
        validate(config)
    setting, theirs = re.search(
        r"(model\S+) is .*, there (.*)\. Take its", str(caught.value)
    ).groups()
    with config.ignore_type():
        config.update_from_flattened_dict({setting: ast.literal_eval(theirs)})
    assert getattr(getattr(validate(config).model, part), name) == value
    other = tiny_cclm()
    store("cclm", stored(other)["model"])
    with pytest.raises(ConfigError, match="take a configuration of cclm"):
        validate(config)
    other.init = str(tmp_path)
    validate(other)


def test_sizes_left_at_their_defaults_come_from_the_folder_to_start_from(tmp_path):
    tower = {"type": "clip", "width": 64, "heads": 4, "depth": 2, "mlp_width": 96, "patch": 8}
    tower |= {"image_size": 32}
    model = {"patch": tower, "text": {"width": 64, "heads": 4, "depth": 3}}
    (tmp_path / "config.json").write_text(json.dumps({"system": "rc3", "model": model}))
    config = default_config()
    config.init = str(tmp_path)
    settings = validate(config)
    assert (settings.model.patch.type, settings.model.patch.grid) == ("clip", 4)
    assert (settings.model.text.depth, settings.model.text.mlp_width) == (3, 3072)
    assert settings.model.fusion.depth == default_config().model.fusion.depth


def test_the_documentation_lists_every_setting():
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    done = launch("settings.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == written, "run: python launch/settings.py > docs/settings.md"
