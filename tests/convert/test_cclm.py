"""Names, shapes and buffers of the published models; sizes read from tensors."""

from __future__ import annotations

import ast
import copy

import jax
import numpy as np
import pytest

from rc3_jax.config import ConfigError
from rc3_jax.config_cclm import MODELS, cclm_model
from rc3_jax.convert import mapping
from rc3_jax.convert.cclm import from_published, layout_of, own_tensors, to_published
from rc3_jax.convert.cclm_sizes import (
    XLM_R_VOCABULARY,
    differences_from_published,
    model_of,
    names_of,
    vocabulary_of,
    with_image_size,
)
from rc3_jax.convert.vision_names import resize_relative_positions
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


def small_swin():
    """Windows of 3 and of 2 tokens: the second stage is smaller than a window."""
    model = cclm_model("cclm_3m")
    model.patch.update(image_size=24, width=32, depths=(2, 1), heads=(2, 4), window=3)
    model.text.update(width=64, depth=2, heads=1, mlp_width=48, max_positions=20)
    model.update(projection_size=8)
    return model


def random_params(model, vocab_size=30):
    rng = np.random.default_rng(0)
    template = abstract_params("cclm", model, vocab_size)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template)


class _WithoutCopies:
    """NumPy, but for copies: full sizes then need no memory."""

    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, x, **_):
        return x


@pytest.fixture(params=FULL_SIZE)
def published(request, monkeypatch):
    """Name and tensors of a full-size model, every number 0 and all the same one."""
    monkeypatch.setattr(mapping, "np", _WithoutCopies())
    model = cclm_model(request.param)
    template = abstract_params("cclm", model, XLM_R_VOCABULARY)
    assert sum(x.size for x in jax.tree.leaves(template)) == FULL_SIZE[request.param][1]
    params = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), template)
    return request.param, to_published(params, model)


def test_full_size_models_have_the_published_keys_and_sizes(published):
    name, tensors = published
    path = SHARED / "keys" / FULL_SIZE[name][0]
    require_folder(path.parent if path.is_file() else None)
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(tensors)
    for key, shape, *dtype in lines:
        assert tensors[key].shape == ast.literal_eval(shape), key
        kind = "int64" if key.endswith(("position_index", "position_ids")) else "float32"
        assert dtype in ([], [f"torch.{kind}"])
        assert tensors[key].dtype == kind, key
    model = model_of(tensors)
    assert model.to_dict() == cclm_model(name).to_dict()
    assert name in names_of(model)
    assert vocabulary_of(tensors, model) == XLM_R_VOCABULARY


def test_a_recording_survives_the_round_trip(recording):
    model = recording.settings.model
    tensors = to_published(recording.params, model)
    for name, weight in recording.weights.items():
        np.testing.assert_array_equal(tensors[name], weight, err_msg=name, strict=True)
    layout = layout_of(model)
    assert tensors.keys() == recording.weights.keys() | layout.copies.keys() | layout.buffers.keys()
    listed = set(recording.config["buffers_not_stored"])
    assert listed == layout.buffers.keys()
    assert recording.config["tied"] == layout.copies
    template = abstract_params("cclm", model, vocabulary_of(tensors, model))
    again = from_published(tensors, model, template)
    jax.tree.map(np.testing.assert_array_equal, again, recording.params)


def test_sizes_are_read_from_shapes(recording):
    expected = recording.settings.model
    heads = expected.text.heads
    for tensors in (recording.weights, to_published(recording.params, expected)):
        found = model_of(tensors, text_heads=heads)
        for part in ("patch", "text", "fusion"):
            assert found[part].to_dict() == expected[part].to_dict()
        assert found.projection_size == expected.projection_size
        assert names_of(found) == []


@pytest.mark.parametrize(("image_size", "window"), [(24, 3), (48, 3), (32, 8), (16, 2)])
def test_the_image_size_is_read_from_masks_or_windows(image_size, window):
    model = small_swin()
    model.patch.update(image_size=image_size, window=window)
    found = model_of(to_published(random_params(model), model))
    assert found.patch.image_size == image_size
    # A window larger than every stage shows as the largest stage.
    assert found.patch.window == min(window, image_size // 4)


def test_what_cannot_be_read_is_listed():
    model = small_swin()
    tensors = to_published(random_params(model), model)
    with pytest.raises(ConfigError, match="of no published pre-training model"):
        model_of({"fc.weight": np.zeros((2, 2))})
    del tensors["text_proj.weight"]
    tensors["vision_encoder.patch_embed.proj.weight"] = np.zeros((32, 48))
    name = "vision_encoder.layers.1.blocks.0.attn.relative_position_bias_table"
    tensors[name] = np.zeros((10, 4))
    with pytest.raises(ConfigError) as error:
        model_of(tensors)
    for problem in (
        "text_proj.weight is missing",
        "patch_embed.proj.weight has the shape (32, 48)",
        f"{name} has 10 rows",
    ):
        assert problem in str(error.value)
    words = "text_encoder.bert.embeddings.word_embeddings.weight"
    with pytest.raises(ConfigError, match="name --text_heads"):
        model_of(tensors | {words: np.zeros((30, 60))})


def test_everything_wrong_with_a_checkpoint_is_listed():
    model = small_swin()
    template = abstract_params("cclm", model, 30)
    tensors = to_published(random_params(model), model)
    del tensors["vision_proj.bias"]
    tensors["itm_head.0.weight"] = tensors["itm_head.0.weight"].T
    tensors["queue"] = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError) as error:
        from_published(tensors, model, template)
    for problem in (
        "missing: vision_proj.bias (8,)",
        "mis-shaped: itm_head.0.weight is (64, 128), must be (128, 64)",
        "extra: queue (3, 4)",
    ):
        assert problem in str(error.value)
    tensors["text_encoder.cls.predictions.decoder.bias"] = np.ones(30, np.float32)
    tensors["temp"] = np.ones((), np.int64)
    with pytest.raises(ValueError, match=r"(?s)decoder.bias is not equal.*temp holds int64"):
        own_tensors(tensors, layout_of(model))


def test_models_without_a_published_layout_are_refused():
    model = cclm_model("cclm_x2vlm_base")
    model.tied_decoder = True
    with pytest.raises(ValueError, match="tie the decoder"):
        layout_of(model)
    model.patch.type = "vit"
    with pytest.raises(ValueError, match="Swin or a BEiT"):
        layout_of(model)


def test_settings_that_the_published_code_lacks_are_told():
    assert not any(differences_from_published(cclm_model(name)) for name in MODELS)
    model = cclm_model("cclm_3m")
    model.text.position_offset = 2
    (line,) = differences_from_published(model)
    assert line == "model.text.position_offset=2, the published code has 0"


def test_swin_buffers_equal_loops():
    model = small_swin()
    model.patch.update(image_size=24)
    buffers = layout_of(model).buffers
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
        tensors = to_published(random_params(model), model)
        tensors = own_tensors(tensors, layout_of(model))
        name = "vision_encoder.layers.1.blocks.0.attn.relative_position_bias_table"
        assert tensors[name].shape == (25, 4)
    before = copy.deepcopy(model)
    size = 6 * factor
    resized, new = with_image_size(tensors, model, size)
    assert model == before and new.patch.image_size == size
    assert new.patch.get("window", 6) == 6
    for name, tensor in tensors.items():
        if name.endswith("relative_position_bias_table"):
            tensor = resize_relative_positions(tensor, 6, extra)
            assert len(resized[name]) == 121 + extra
        np.testing.assert_array_equal(resized[name], tensor)
    from_published(resized, new, abstract_params("cclm", new, vocabulary_of(resized, new)))
    with pytest.raises(ConfigError, match=f"must be a multiple of {factor}"):
        with_image_size(tensors, model, size + 4)
    with pytest.raises(ConfigError, match="cannot be resized to window 1"):
        with_image_size(tensors, model, factor)


@pytest.mark.parametrize(("size", "window"), [(224, 7), (384, 12), (480, 15)])
def test_windows_of_published_image_sizes(size, window):
    _, model = with_image_size({}, cclm_model("cclm_3m"), size)
    assert model.patch.window == window
