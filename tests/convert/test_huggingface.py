"""Folders of Hugging Face models read as our towers, and written for `from_pretrained`.

Every parameter is random, and the Hugging Face models run in float32 with eager attention. Outputs,
of size 1, are compared to 1e-5, and gradients to 1e-5 of a module's largest entry: of kernel and bias
together, because the gradient of a key bias is zero but for rounding. Copies are exact.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.huggingface import read_tower, template_of, tower_files
from rc3_jax.models.beit import PUBLISHED_NAMES
from rc3_jax.models.heads import MaskedLMHead, word_logits
from rc3_jax.models.positions import resize_positions, resize_relative_positions
from rc3_jax.models.text import TextSettings
from rc3_jax.settings import ConfigError
from tests.convert.huggingface_models import (
    CASES,
    KINDS,
    assert_loads,
    config_of,
    inputs_of,
    model_of,
    our_states,
    part_of,
    saved,
    states_of,
    torch,
    transformers,
    write_folder,
)
from tests.vision_reference import compare_by_module, random_like, randomise


def assert_equal(left: dict, right: dict):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), left, right)


@pytest.mark.parametrize("family, size", CASES)
def test_outputs_and_gradients_are_those_of_hugging_face(family, size, tmp_path):
    model, inputs = model_of(family, size), inputs_of(family, size)
    found = read_tower(saved(model, tmp_path / "model"), part=part_of(family))
    theirs = states_of(model, family, inputs)
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.from_numpy(weights)).sum().backward()
    theirs = theirs.detach().numpy()
    weights *= theirs != 0  # ours has states of padding too

    def functional(params):
        ours = our_states(found, family, inputs, params)
        return jnp.sum(ours * weights), ours

    gradients, ours = jax.jit(jax.grad(functional, has_aux=True))(found.params)
    np.testing.assert_allclose(np.asarray(ours) * (theirs != 0), theirs, rtol=0, atol=1e-5)

    with torch.no_grad():  # as if they were weights, to read them under our names
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    theirs = read_tower(saved(model, tmp_path / "gradients"), part=part_of(family)).params
    compare_by_module(gradients, theirs, 1e-5)


@pytest.mark.parametrize("family, size", CASES)
def test_what_is_written_is_read_by_from_pretrained_and_by_us(family, size, tmp_path):
    model, inputs = model_of(family, size), inputs_of(family, size)
    first = read_tower(saved(model, tmp_path / "theirs"), part=part_of(family))
    tensors, config = tower_files(first.settings, first.params)
    folder = write_folder(tmp_path / "ours", tensors, config)

    originals = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, tensor in tensors.items():  # their files have the prefix or not
        original = originals.get(name, originals.get(name.removeprefix("vision_model.")))
        rows = slice(1) if "token_type" in name else slice(None)
        np.testing.assert_array_equal(tensor, original[rows], err_msg=name, strict=True)

    second = read_tower(folder, part=part_of(family))
    assert second._replace(params={}, notes=[]) == first._replace(params={}, notes=[])
    assert second.notes == []
    assert_equal(second.params, first.params)

    _, kind, options = KINDS[family]
    again = assert_loads(folder, kind.hugging_face.architecture, **options)
    with torch.no_grad():
        theirs = states_of(model, family, inputs)
        if family != "xlm-roberta":
            side = first.settings.image_size
            inputs = np.ascontiguousarray(inputs[:, :side, :side])
        ours = states_of(again, family, inputs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "family, kind, left_out",
    [
        ("xlm-roberta", "XLMRobertaForSequenceClassification", "classifier (4)"),
        ("vit", "ViTForImageClassification", "classifier (2)"),
        ("beit", "BeitForImageClassification", "classifier (2)"),
        ("swin", "SwinForImageClassification", "classifier (2)"),
        ("clip", "CLIPModel", "text_model"),
        ("siglip", "SiglipModel", "text_model"),
    ],
)
def test_a_tower_within_another_model_is_the_same(family, kind, left_out, tmp_path):
    config = config_of(family, "even")
    if kind in ("CLIPModel", "SiglipModel"):
        whole = getattr(transformers, kind.replace("Model", "Config"))
        text = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        config = whole(text_config=text | dict(vocab_size=9), vision_config=config.to_dict())
        config._attn_implementation = "eager"
    model = randomise(getattr(transformers, kind)(config), torch, 0.1)
    found = read_tower(saved(model, tmp_path), part=part_of(family))
    assert any(left_out in note for note in found.notes)
    inner = getattr(model, {"xlm-roberta": "roberta"}.get(family, family), None)
    inner = inner or model.vision_model
    inputs = inputs_of(family, "even")
    with torch.no_grad():
        theirs = states_of(inner, family, inputs).numpy()
    ours = np.asarray(our_states(found, family, inputs)) * (theirs != 0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@functools.cache
def _masked_lm():
    config = config_of("xlm-roberta", "even")
    return randomise(transformers.XLMRobertaForMaskedLM(config), torch, 0.1)


def test_the_head_of_masked_words_comes_along(tmp_path):
    model, ids = _masked_lm(), inputs_of("xlm-roberta", "even")[:1]
    found = read_tower(saved(model, tmp_path / "theirs"), part="text")
    assert found.heads.keys() == {"masked_lm_head", "word_bias"}
    states = our_states(found, "xlm-roberta", ids)
    hidden = MaskedLMHead().apply({"params": found.heads["masked_lm_head"]}, states)
    words = found.params["word_embedding"]["embedding"]
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    ours = word_logits(hidden, words, found.heads["word_bias"])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)

    written = tower_files(found.settings, found.params, found.heads)
    folder = write_folder(tmp_path / "ours", *written)
    again = assert_loads(folder, "XLMRobertaForMaskedLM")
    with torch.no_grad():
        logits = again(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_array_equal(logits, theirs)
    assert_equal(read_tower(folder, part="text").heads, found.heads)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stored_decoder_must_be_the_word_embeddings(tied, tmp_path):
    folder = saved(_masked_lm(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    words = tensors["roberta.embeddings.word_embeddings.weight"]
    tensors["lm_head.decoder.weight"] = words.copy() if tied else words + 1
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].copy()
    save_file(tensors, folder / "model.safetensors")
    found = read_tower(folder, part="text")
    assert bool(found.heads) == tied
    assert any("lm_head.decoder.weight" in note for note in found.notes) != tied


@pytest.mark.parametrize("stored", ["equal", "another", "alone"])
def test_the_bias_of_a_stored_decoder_is_the_bias_of_the_head(stored, tmp_path):
    """transformers ties lm_head.decoder.bias to lm_head.bias, and may save either."""
    folder = saved(_masked_lm(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    bias = tensors["lm_head.bias"]
    tensors["lm_head.decoder.bias"] = bias + 1 if stored == "another" else bias.copy()
    if stored == "alone":
        del tensors["lm_head.bias"]
    save_file(tensors, folder / "model.safetensors")
    found = read_tower(folder, part="text")
    if stored == "another":
        assert not found.heads
        assert any("lm_head.decoder.bias" in note for note in found.notes)
    else:
        np.testing.assert_array_equal(found.heads["word_bias"], bias)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shorter_numbers_become_float32(dtype, tmp_path):
    model = model_of("vit", "even").to(getattr(torch, dtype))
    found = read_tower(saved(model, tmp_path), part="patch")
    expected = model.embeddings.cls_token.float().detach().numpy()
    np.testing.assert_array_equal(found.params["class_token"], expected, strict=True)
    assert found.params["encoder"]["layers"]["mlp_in"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("safe", [True, False])
def test_shards(safe, tmp_path):
    model = model_of("beit", "odd")
    expected = read_tower(saved(model, tmp_path / "one"), part="patch").params
    if safe:
        model.save_pretrained(tmp_path / "shards", max_shard_size="100kB")
    else:
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "config.json").write_text((tmp_path / "one/config.json").read_text())
        tensors = load_file(tmp_path / "one" / "model.safetensors")
        names = {name: f"pytorch_model-{i % 3}.bin" for i, name in enumerate(tensors)}
        for file in set(names.values()):
            part = {n: torch.from_numpy(x) for n, x in tensors.items() if names[n] == file}
            torch.save(part, tmp_path / "shards" / file)
        index = tmp_path / "shards" / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert len(list((tmp_path / "shards").iterdir())) > 3
    found = read_tower(tmp_path / "shards", part="patch", allow_pickle=not safe)
    assert_equal(found.params, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_beit_shares_positions_and_lacks_scales(shared, tmp_path):
    """Two kinds of positions add up."""
    model = model_of(
        "beit",
        "odd",
        use_shared_relative_position_bias=True,
        use_relative_position_bias=not shared,
        layer_scale_init_value=0.0,
    )
    found = read_tower(saved(model, tmp_path), part="patch")
    assert any("share a table" in note for note in found.notes)
    assert any("no scales" in note for note in found.notes)
    inputs = inputs_of("beit", "odd")
    with torch.no_grad():
        theirs = states_of(model, "beit", inputs).numpy()
    np.testing.assert_allclose(our_states(found, "beit", inputs), theirs, rtol=0, atol=1e-5)


def test_beit_without_pooling_has_the_norm_of_all_tokens(tmp_path):
    model = model_of("beit", "even", use_mean_pooling=False)
    found = read_tower(saved(model, tmp_path), part="patch")
    inputs = inputs_of("beit", "even")
    with torch.no_grad():
        pixels = torch.from_numpy(inputs).permute(0, 3, 1, 2)
        theirs = model(pixel_values=pixels).last_hidden_state[:, 1:].numpy()
    ours = our_states(found, "beit", inputs)
    np.testing.assert_allclose(ours[:, 1:], theirs, rtol=0, atol=1e-5)


SIZES = dict(width=12, depth=4, heads=3, mlp_width=14)
BEIT = KINDS["beit"][1](image_size=18, patch=6, **SIZES)


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_beit_v2(tmp_path, shared):
    params = random_like(template_of(BEIT))
    tables = params["encoder"]["layers"]["relative_positions"]
    if shared:
        tables[:] = tables[0]
    tensors = PUBLISHED_NAMES.to_theirs(params)
    tensors["mask_token"] = np.zeros((1, 1, 12), np.float32)
    if shared:  # as pre-training leaves it
        for number in range(4):
            del tensors[f"blocks.{number}.attn.relative_position_bias_table"]
        tensors["rel_pos_bias.relative_position_bias_table"] = tables[0].copy()
        tensors["rel_pos_bias.relative_position_index"] = np.zeros((10, 10), np.int64)
        for leaf in ("weight", "bias"):
            tensors[f"norm.{leaf}"] = tensors.pop(f"fc_norm.{leaf}")
    path = tmp_path / "beitv2.safetensors"
    save_file(tensors, path)
    found = read_tower(path, part="patch")
    assert found.settings == BEIT and len(found.notes) == (4 if shared else 2)
    assert_equal(found.params, params)
    assert read_tower(path, part="patch", image_size=24).settings.image_size == 24
    save_file(tensors | {"pos_embed": np.zeros((1, 10, 12), np.float32)}, path)
    with pytest.raises(ConfigError, match="pos_embed"):
        read_tower(path, part="patch")


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "beit"])
def test_another_image_size(tmp_path, family):
    settings = KINDS[family][1](image_size=18, patch=6, **SIZES)
    params = random_like(template_of(settings))
    write_folder(tmp_path, *tower_files(settings, params))
    found = read_tower(tmp_path, part="patch", image_size=30)
    assert found.settings == settings.model_copy(update=dict(image_size=30))
    if family == "beit":
        layers = params["encoder"]["layers"]
        tables = [resize_relative_positions(table, 5, 3) for table in layers["relative_positions"]]
        layers["relative_positions"] = np.stack(tables)
    else:
        extra = 0 if family == "siglip" else 1
        params["position_embedding"] = resize_positions(params["position_embedding"], 5, extra)
    assert_equal(found.params, params)
    for wrong in (31, 12) if family == "beit" else (31,):
        with pytest.raises(ConfigError, match=f"image_size={wrong}"):
            read_tower(tmp_path, part="patch", image_size=wrong)


def test_chosen_text_layers(tmp_path):
    settings = TextSettings(**SIZES, max_positions=9)
    params = random_like(template_of(settings, 11))
    write_folder(tmp_path, *tower_files(settings, params))
    found = read_tower(tmp_path, part="text", layers=(3, 1))
    assert found.settings == settings.model_copy(update=dict(depth=2))
    layers, chosen = params["encoder"]["layers"], found.params["encoder"]["layers"]
    for name, value in flatten_dict(chosen).items():
        np.testing.assert_array_equal(value, flatten_dict(layers)[name][[3, 1]])
    for wrong in ((), (1, 1), (4,), (-1,)):
        with pytest.raises(ConfigError, match="layers="):
            read_tower(tmp_path, part="text", layers=wrong)
