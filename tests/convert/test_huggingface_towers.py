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
from safetensors.numpy import load_file

from rc3_jax.convert.huggingface import read_tower, tower_tensors
from rc3_jax.convert.huggingface_names import FAMILIES
from rc3_jax.convert.mapping import to_flax, to_torch
from rc3_jax.models.heads import MaskedLMHead, word_logits
from tests.convert.huggingface_models import (
    KINDS,
    config_of,
    inputs_of,
    model_of,
    our_inputs,
    our_tower,
    states_of,
    torch,
    transformers,
    write_folder,
)
from tests.vision_reference import compare_by_module, randomise

CASES = [(family, size) for family in KINDS for size in ("odd", "even")]
PARTS = {family: FAMILIES[family].part for family in KINDS}


def _assert_equal(left: dict, right: dict):
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            _assert_equal(value, right[name])
        else:
            np.testing.assert_array_equal(value, right[name], err_msg=name, strict=True)


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family, size", CASES)
def test_outputs_and_gradients_are_those_of_hugging_face(family, size, tmp_path):
    model, inputs = model_of(family, size), inputs_of(family, size)
    found = read_tower(_saved(model, tmp_path / "model"), part=PARTS[family])
    tower = our_tower(found.part, found.settings, found.params)
    theirs = states_of(model, family, inputs)
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.from_numpy(weights)).sum().backward()
    theirs = theirs.detach().numpy()
    weights *= theirs != 0  # ours has states of padding too

    def functional(params):
        ours = tower.apply({"params": params}, our_inputs(family, found.settings, inputs))
        return jnp.sum(ours * weights), ours

    gradients, ours = jax.jit(jax.grad(functional, has_aux=True))(found.params)
    np.testing.assert_allclose(np.asarray(ours) * (theirs != 0), theirs, rtol=0, atol=1e-5)

    with torch.no_grad():  # as if they were weights, to read them under our names
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    theirs = read_tower(_saved(model, tmp_path / "gradients"), part=PARTS[family]).params
    compare_by_module(gradients, theirs, 1e-5)


@pytest.mark.parametrize("family, size", CASES)
def test_what_is_written_is_read_by_from_pretrained_and_by_us(family, size, tmp_path):
    model, inputs = model_of(family, size), inputs_of(family, size)
    first = read_tower(_saved(model, tmp_path / "theirs"), part=PARTS[family])
    tensors, config = tower_tensors(first.params, first.settings, part=first.part)
    folder = write_folder(tmp_path / "ours", tensors, config)

    saved = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, tensor in tensors.items():  # their files have the prefix or not
        original = saved[name] if name in saved else saved[name.removeprefix("vision_model.")]
        rows = slice(1) if "token_type" in name else slice(None)
        np.testing.assert_array_equal(tensor, original[rows], err_msg=name, strict=True)

    second = read_tower(folder, part=PARTS[family])
    assert second._replace(params={}, notes=[]) == first._replace(params={}, notes=[])
    _assert_equal(second.params, first.params)

    kind, options = KINDS[family][1:]
    again, report = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = again.eval()
    images = np.ascontiguousarray(our_inputs(family, first.settings, inputs))
    with torch.no_grad():
        ours, theirs = states_of(again, family, images), states_of(model, family, inputs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "family, kind, left_out",
    [
        ("xlm-roberta", "XLMRobertaForSequenceClassification", "classifier (4)"),
        ("vit", "ViTForImageClassification", "classifier (2)"),
        ("beit", "BeitForImageClassification", "classifier (2)"),
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
    found = read_tower(_saved(model, tmp_path), part=PARTS[family])
    assert left_out in found.notes[-1]
    tower = our_tower(found.part, found.settings, found.params)
    inner = getattr(model, {"xlm-roberta": "roberta"}.get(family, family), None)
    inner = inner or model.vision_model
    inputs = inputs_of(family, "even")
    with torch.no_grad():
        theirs = states_of(inner, family, inputs).numpy()
    ours = np.asarray(jax.jit(tower.apply)({"params": found.params}, inputs)) * (theirs != 0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@functools.cache
def _masked_lm():
    config = config_of("xlm-roberta", "even")
    return randomise(transformers.XLMRobertaForMaskedLM(config), torch, 0.1)


def test_the_head_of_masked_words_comes_along(tmp_path):
    model, ids = _masked_lm(), inputs_of("xlm-roberta", "even")[:1]
    found = read_tower(_saved(model, tmp_path / "theirs"), part="text")
    assert found.heads.keys() == {"masked_lm_head", "word_bias"}
    assert found.notes == ["embeddings of token types: the first of 2 rows is taken"]
    states = our_tower("text", found.settings, found.params).apply({"params": found.params}, ids)
    hidden = MaskedLMHead().apply({"params": found.heads["masked_lm_head"]}, states)
    words = found.params["word_embedding"]["embedding"]
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    ours = word_logits(hidden, words, found.heads["word_bias"])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)

    written = tower_tensors(found.params, found.settings, part="text", heads=found.heads)
    folder = write_folder(tmp_path / "ours", *written)
    again, report = transformers.XLMRobertaForMaskedLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = again.eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_array_equal(logits, theirs)
    _assert_equal(read_tower(folder, part="text").heads, found.heads)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stored_decoder_must_be_the_word_embeddings(tied, tmp_path):
    folder = _saved(_masked_lm(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    words = tensors["roberta.embeddings.word_embeddings.weight"]
    tensors["lm_head.decoder.weight"] = words.copy() if tied else words + 1
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].copy()
    write_folder(folder, tensors, json.loads((folder / "config.json").read_text()))
    found = read_tower(folder, part="text")
    assert bool(found.heads) == tied
    assert any("word embeddings of its own" in note for note in found.notes) != tied


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shorter_numbers_become_float32(dtype, tmp_path):
    model = model_of("vit", "even").to(getattr(torch, dtype))
    found = read_tower(_saved(model, tmp_path), part="patch")
    expected = model.embeddings.cls_token.float().detach().numpy()
    np.testing.assert_array_equal(found.params["class_token"], expected, strict=True)
    kernel = found.params["encoder"]["layers"]["mlp_in"]["kernel"]
    assert kernel.dtype == np.float32 and kernel.flags.c_contiguous


@pytest.mark.parametrize("safe", [True, False])
def test_shards(safe, tmp_path):
    model = model_of("beit", "odd")
    expected = read_tower(_saved(model, tmp_path / "one"), part="patch").params
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
    _assert_equal(found.params, expected)


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
    found = read_tower(_saved(model, tmp_path), part="patch")
    assert len(found.notes) == 3 and "scales: they are 1" in found.notes[2]
    tower, inputs = our_tower("patch", found.settings), inputs_of("beit", "odd")
    with torch.no_grad():
        theirs = states_of(model, "beit", inputs).numpy()
    ours = jax.jit(tower.apply)(
        {"params": found.params}, our_inputs("beit", found.settings, inputs)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_beit_without_pooling_has_the_norm_of_all_tokens(tmp_path):
    model = model_of("beit", "even", use_mean_pooling=False)
    found = read_tower(_saved(model, tmp_path), part="patch")
    tower, inputs = our_tower("patch", found.settings), inputs_of("beit", "even")
    with torch.no_grad():
        pixels = torch.from_numpy(inputs).permute(0, 3, 1, 2)
        theirs = model(pixel_values=pixels).last_hidden_state[:, 1:].numpy()
    ours = jax.jit(tower.apply)({"params": found.params}, inputs)
    np.testing.assert_allclose(ours[:, 1:], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "family, kind, prefix",
    [
        ("xlm-roberta", "XLMRobertaModel", ""),
        ("xlm-roberta", "XLMRobertaForMaskedLM", "roberta."),
        ("vit", "ViTModel", ""),
        ("vit", "ViTForImageClassification", "vit."),
    ],
)
def test_both_spellings_of_names_are_those_of_transformers(family, kind, prefix, tmp_path):
    model = randomise(getattr(transformers, kind)(config_of(family, "odd")), torch, 0.1)
    table = FAMILIES[family].table
    template = read_tower(_saved(model, tmp_path), part=PARTS[family]).params
    if family == "xlm-roberta":  # with both types, where `read_tower` takes the first
        template["type_embedding"]["embedding"] = np.zeros((2, 60), np.float32)
    files = load_file(tmp_path / "model.safetensors")
    modules = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    renamed = int(transformers.__version__.split(".")[0]) >= 5
    for module_names, originals in ((False, files), (renamed, modules)):
        params = to_flax(originals, table, template)
        tensors = to_torch(params, table, prefix=prefix, module_names=module_names)
        heads = {name for name in originals if name not in tensors}
        assert all(name.removeprefix(prefix).startswith(table.ignored) for name in heads)
        assert tensors.keys() == originals.keys() - heads
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, originals[name], err_msg=name, strict=True)
            assert tensor.flags.c_contiguous


def test_defaults_are_those_of_transformers():
    for name, family in FAMILIES.items():
        if name == family.saved_type:
            defaults = getattr(transformers, KINDS[family.type][0])().to_dict()
            assert {key: defaults[key] for key in family.defaults} == family.defaults
