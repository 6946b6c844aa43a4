"""Names, shapes and buffers of the published models; sizes read from tensors."""

from __future__ import annotations

import ast
import copy
import re

import jax
import numpy as np
import pytest

from rc3_jax import param_map
from rc3_jax.config_cclm import MODELS, cclm_model
from rc3_jax.convert.cclm import layout_of, own_tensors, to_published
from rc3_jax.convert.cclm_files import XLM_R_VOCABULARY
from rc3_jax.convert.cclm_sizes import (
    differences_from_published,
    model_of,
    with_image_size,
)
from rc3_jax.models.positions import resize_relative_positions
from rc3_jax.settings import ConfigError
from rc3_jax.systems import abstract_params
from tests.parity.recordings import PRETRAINING, SHARED, folders, read, require_folder

RECORDINGS = folders(PRETRAINING) or [None]
FULL_SIZE = {  # model: list of its keys, parameters
    "cclm_3m": ("cclm_keys_swin_base.tsv", 525_677_393),
    "cclm_4m": ("cclm_keys_swin_base.tsv", 525_677_393),
    "cclm_x2vlm_base": ("cclm_keys_x2vlm_base.tsv", 615_540_825),
    "cclm_x2vlm_large": ("cclm_keys_x2vlm_large.tsv", 1_225_073_817),
}


@pytest.fixture(params=RECORDINGS, ids=str)
def recording(request):
    require_folder(request.param)
    return read(request.param)


def small_swin(image_size=24, window=3):
    """Windows of 3 and of 2 tokens: the second stage is smaller than a window."""
    model = cclm_model("cclm_3m")
    model.patch.update(width=32, depths=(2, 1), heads=(2, 4), image_size=image_size, window=window)
    model.text.update(width=64, depth=2, heads=1, mlp_width=48, max_positions=20)
    model.update(projection_size=8)
    return model


def random_tensors(model, vocab_size=30):
    rng = np.random.default_rng(0)
    template = abstract_params("cclm", model, vocab_size)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template)
    return to_published(params, layout_of(model))


class WithoutCopies:
    """NumPy, but for copies: full sizes then need no memory."""

    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, x, **_):
        return x


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_have_the_published_keys_and_sizes(name, monkeypatch):
    file, count = FULL_SIZE[name]
    path = SHARED / "keys" / file
    require_folder(path.parent if path.is_file() else None)
    monkeypatch.setattr(param_map, "np", WithoutCopies())
    model = cclm_model(name)
    template = abstract_params("cclm", model, XLM_R_VOCABULARY)
    assert sum(x.size for x in jax.tree.leaves(template)) == count
    params = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), template)
    tensors = to_published(params, layout_of(model))
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(tensors)
    for key, shape, *dtype in lines:
        assert tensors[key].shape == ast.literal_eval(shape), key
        kind = "int64" if key.endswith(("position_index", "position_ids")) else "float32"
        assert dtype in ([], [f"torch.{kind}"])
        assert tensors[key].dtype == kind, key
    found = model_of(tensors)
    assert found.to_dict() == model.to_dict()


def test_a_recording_survives_the_round_trip(recording):
    layout = layout_of(recording.settings.model)
    tensors = to_published(recording.params, layout)
    for name, weight in recording.weights.items():
        np.testing.assert_array_equal(tensors[name], weight, err_msg=name, strict=True)
    assert tensors.keys() == recording.weights.keys() | layout.copies.keys() | layout.buffers.keys()
    assert set(recording.config["buffers_not_stored"]) == layout.buffers.keys()
    assert recording.config["tied"] == layout.copies
    again = layout.names.to_ours(own_tensors(tensors, layout), recording.params)
    jax.tree.map(np.testing.assert_array_equal, again, recording.params)


def test_sizes_are_read_from_shapes(recording):
    expected = recording.settings.model
    for tensors in (recording.weights, to_published(recording.params, layout_of(expected))):
        found = model_of(tensors, text_heads=expected.text.heads)
        for part in ("patch", "text", "fusion"):
            assert found[part].to_dict() == expected[part].to_dict()
        assert found.projection_size == expected.projection_size


@pytest.mark.parametrize(("image_size", "window"), [(24, 3), (48, 3), (32, 8), (16, 2)])
def test_the_image_size_is_read_from_masks_or_windows(image_size, window):
    found = model_of(random_tensors(small_swin(image_size, window)))
    assert found.patch.image_size == image_size
    # A window larger than every stage shows as the largest stage.
    assert found.patch.window == min(window, image_size // 4)


def test_sizes_that_cannot_be_read_name_the_tensor():
    tensors, patch = random_tensors(small_swin()), "vision_encoder.patch_embed.proj.weight"
    table = "vision_encoder.layers.1.blocks.0.attn.relative_position_bias_table"
    words = "text_encoder.bert.embeddings.word_embeddings.weight"
    for changed, named in (
        ({"fc.weight": np.zeros((2, 2))}, words),
        ({k: v for k, v in tensors.items() if k != "text_proj.weight"}, "text_proj.weight"),
        (tensors | {patch: np.zeros((32, 48))}, "--model"),
        (tensors | {table: np.zeros((10, 4))}, table),
        (tensors | {words: np.zeros((30, 60))}, "--text_heads"),
    ):
        with pytest.raises(ConfigError, match=named):
            model_of(changed)


def test_copies_must_equal_their_originals():
    tensors = random_tensors(small_swin())
    copy = "text_encoder.cls.predictions.decoder.bias"
    with pytest.raises(ValueError, match=copy):
        own_tensors(tensors | {copy: np.ones(30, np.float32)}, layout_of(small_swin()))


def test_models_and_settings_unlike_the_published_ones():
    model = cclm_model("cclm_x2vlm_base")
    for change in (lambda: model.update(tied_decoder=True), lambda: model.patch.update(type="vit")):
        change()
        with pytest.raises(ValueError, match=f"{model.patch.type}.*tied_decoder=True"):
            layout_of(model)
    assert not any(differences_from_published(cclm_model(name)) for name in MODELS)
    model = cclm_model("cclm_3m")
    model.text.position_offset = 2
    (line,) = differences_from_published(model)
    assert line.startswith("model.text.position_offset=2")


def test_swin_buffers_equal_loops():
    buffers = layout_of(small_swin()).buffers
    shifted = "vision_encoder.layers.0.blocks.1."
    assert [name for name in buffers if name.endswith("attn_mask")] == [f"{shifted}attn_mask"]
    index = buffers[f"{shifted}attn.relative_position_index"]
    cells = [(y, x) for y in range(3) for x in range(3)]
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            assert index[i, j] == (y - v + 2) * 5 + (x - u + 2)
    # 6 x 6 tokens, rolled by 1: rows 0-2 are as they were, 3-4 too, and row 5 was the first.
    part = [0, 0, 0, 1, 1, 2]
    mask = buffers[f"{shifted}attn_mask"]
    assert mask.shape == (4, 9, 9)
    for number, (top, left) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        places = [(part[top + y], part[left + x]) for y, x in cells]
        for i, first in enumerate(places):
            for j, second in enumerate(places):
                assert mask[number, i, j] == (0 if first == second else -100)
    ids = buffers["text_encoder.bert.embeddings.position_ids"]
    np.testing.assert_array_equal(ids, [list(range(20))], strict=False)


def test_beit_buffers_equal_loops():
    model = cclm_model("cclm_x2vlm_base")
    model.patch.update(image_size=48, depth=2)
    buffers = layout_of(model).buffers
    index = buffers["vision_encoder.blocks.1.attn.relative_position_index"]
    assert index.shape == (10, 10)
    for i in range(10):
        for j in range(10):
            (y, x), (v, u) = divmod(i - 1, 3), divmod(j - 1, 3)
            offset = (y - v + 2) * 5 + (x - u + 2)
            expected = {(True, True): 27, (True, False): 25, (False, True): 26}
            assert index[i, j] == expected.get((i == 0, j == 0), offset)
    assert "text_encoder.embeddings.position_ids" in buffers


def test_another_image_size_changes_tables_alone(recording):
    model, tensors = recording.settings.model, recording.weights
    extra, factor = 3, 16
    if model.patch.type == "swin":
        model, extra, factor = small_swin(), 0, 8
        tensors = own_tensors(random_tensors(model), layout_of(model))
    before = copy.deepcopy(model)
    resized, new = with_image_size(tensors, model, 6 * factor)
    assert model == before and new.patch.image_size == 6 * factor
    assert new.patch.get("window", 6) == 6
    for name, tensor in tensors.items():
        if name.endswith("relative_position_bias_table"):
            tensor = resize_relative_positions(tensor, 6, extra)
            assert len(resized[name]) == 121 + extra
        np.testing.assert_array_equal(resized[name], tensor)
    words = next(x for name, x in tensors.items() if name.endswith("word_embeddings.weight"))
    own = own_tensors(resized, layout_of(new))
    layout_of(new).names.to_ours(own, abstract_params("cclm", new, len(words)))
    for size in (6 * factor + 4, factor):
        with pytest.raises(ConfigError, match=f"image_size={size}") as refused:
            with_image_size(tensors, model, size)
        if fitting := re.search(r"must be a multiple of (\d+)", str(refused.value)):
            with_image_size(tensors, model, 7 * int(fitting[1]))


@pytest.mark.parametrize(("size", "window"), [(224, 7), (384, 12), (480, 15)])
def test_windows_of_published_image_sizes(size, window):
    _, model = with_image_size({}, cclm_model("cclm_3m"), size)
    assert model.patch.window == window
