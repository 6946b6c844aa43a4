"""What a model that fine-tuning starts from brings, and what cannot be one."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from rc3_jax.data.tokenizer import load_tokenizer
from rc3_jax.settings import ConfigError
from rc3_jax.training.checkpoint import load_params, save_params
from rc3_jax.training.load import load_model, params_checksum
from tests.tiny import tiny_config, write_pretrained


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return write_pretrained(tiny_config(), tmp_path_factory.mktemp("pretrained"))


@pytest.fixture
def changed(pretrained, tmp_path):
    """A copy of the folder, with other settings."""

    def change(settings):
        folder = tmp_path / "changed"
        shutil.copytree(pretrained, folder)
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return change


@pytest.mark.parametrize(
    ("settings", "asked", "words"),
    [
        ({"data": {"clean_captions": True, "max_words": 2, "max_length": 16}}, None, 2),
        ({"data": {"clean_captions": False, "max_length": 16}}, None, None),
        ({"max_words": 2}, None, 2),  # converted, or fine-tuned before
        ({"max_words": None}, None, None),
        ({}, None, None),
        ({}, 2, 2),
        ({"max_words": 40}, 2, 2),
        ({"max_words": 2}, 0, None),
    ],
)
def test_texts_are_cleaned_as_they_were_in_training(changed, settings, asked, words):
    model = json.loads(tiny_config().model.to_json())
    folder = changed({})
    with pytest.raises(ConfigError, match="no settings of a model; name the folder of a run"):
        load_model(folder, 16)
    (folder / "config.json").write_text(json.dumps(settings | {"system": "rc3", "model": model}))
    found = load_model(folder, 16, asked)
    assert found.max_words == words
    expected = "a red star" if words is None else "a red"
    raw = "a red star" if words is None else "A red, star!"
    plain = load_tokenizer(str(folder / "tokenizer.json"), 16)
    np.testing.assert_array_equal(found.tokenizer.encode([raw]), plain.encode([expected]))


@pytest.mark.parametrize("system, wrong", [("cclm", "model"), ("clip", "system='clip'")])
def test_another_system_is_named(changed, system, wrong):
    model = json.loads(tiny_config().model.to_json())
    with pytest.raises(ConfigError, match=wrong):
        load_model(changed({"system": system, "model": model}), 16)


def test_parameters_of_another_size_are_listed(changed):
    model = tiny_config().model
    model.projection_size = 12
    folder = changed({"system": "rc3", "model": json.loads(model.to_json())})
    with pytest.raises(ConfigError, match=r"mis-shaped: .*projection.* must be \(16, 12\)"):
        load_model(folder, 16)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_named(pretrained, tmp_path, bad):
    folder = shutil.copytree(pretrained, tmp_path / "bad", ignore=lambda *_: ["params"])
    params = load_model(pretrained).params
    kernel = params["text_projection"]["linear"]["kernel"] = np.array(
        params["text_projection"]["linear"]["kernel"]
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params
    )
    assert load_params(pretrained, abstract).keys() == params.keys()
    kernel.flat[3] = bad
    save_params(folder, params)
    for load in (load_model, lambda folder: load_params(folder, abstract)):
        with pytest.raises(ConfigError, match=f"{folder}: .* in text_projection/linear/kernel;"):
            load(folder)


def test_the_checksum_tells_parameters_apart():
    one = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.float32(1)}
    assert params_checksum(one) == params_checksum(dict(reversed(one.items())))
    others = [
        {"a": {"b": one["a"]["b"].T}, "c": one["c"]},
        {"a": {"b": one["a"]["b"].reshape(3, 2)}, "c": one["c"]},
        {"a": {"b": one["a"]["b"] + 1}, "c": one["c"]},
        {"a": {"d": one["a"]["b"]}, "c": one["c"]},
        {"a": {"b": one["a"]["b"].astype(np.float64)}, "c": one["c"]},
    ]
    assert len({params_checksum(params) for params in [one, *others]}) == 6
