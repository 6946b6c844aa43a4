"""Towers with the weights of Hugging Face models: equal outputs, equal gradients, exact copies.

The Hugging Face models run in float32 with eager attention, every parameter random. Outputs are
compared to 1e-5 absolute, of size 1. The gradients are those of `sum(weights * output)`, normal
weights, over the tokens that are not padding; each module of each layer is compared to 1e-5 of
its largest gradient entry, which is between 0.05 and 300. Kernel and bias go together because the
gradient of a key bias is zero but for rounding: it has no scale of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.convert.mapping import to_flax, to_torch
from rc3_jax.convert.names import VIT, XLM_ROBERTA
from rc3_jax.data.tokenizer import PAD_ID
from tests.towers import patch_tower, text_tower
from tests.vision_reference import require

torch = require("torch")
transformers = require("transformers")
safetensors = require("safetensors.numpy")

TOLERANCE = 1e-5
TEXT_SIZES = {
    "odd": dict(vocab_size=37, width=60, depth=3, heads=3, mlp_width=70, max_positions=21),
    "even": dict(vocab_size=101, width=32, depth=2, heads=4, mlp_width=128, max_positions=40),
}
PATCH_SIZES = {
    "odd": dict(image_size=48, patch=12, width=60, depth=3, heads=3, mlp_width=70),
    "even": dict(image_size=32, patch=16, width=32, depth=2, heads=4, mlp_width=128),
}


def _randomise(model, width: int):
    """Evaluation mode, every parameter random.

    Large weights make attention sharp; small ones make the norms' epsilons matter.
    """
    scale = {60: 0.15, 32: 0.04}[width]
    generator = torch.Generator().manual_seed(width)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
    assert model.config._attn_implementation == "eager"
    return model.eval()


def _huggingface_text(kind, size: dict, **options):
    config = transformers.XLMRobertaConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        intermediate_size=size["mlp_width"],
        max_position_embeddings=size["max_positions"],
        type_vocab_size=1,
        pad_token_id=PAD_ID,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    return _randomise(kind(config, **options), size["width"])


def _huggingface_vit(kind, size: dict, **options):
    config = transformers.ViTConfig(
        image_size=size["image_size"],
        patch_size=size["patch"],
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        intermediate_size=size["mlp_width"],
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    return _randomise(kind(config, **options), size["width"])


def _numpy(tensors) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors}


def _text_batch(size: dict) -> np.ndarray:
    """Three rows: full, padded, and a single token."""
    rng = np.random.default_rng(0)
    length = size["max_positions"] - PAD_ID - 1
    ids = rng.integers(PAD_ID + 1, size["vocab_size"], (3, length))
    ids[1, length // 2 :] = PAD_ID
    ids[2, 1:] = PAD_ID
    return ids


def _image_batch(size: dict) -> np.ndarray:
    shape = (2, size["image_size"], size["image_size"], 3)
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def _template(tower, batch: np.ndarray):
    return jax.eval_shape(tower.init, jax.random.key(0), batch)["params"]


def _compare(model, inputs: dict, table, tower, batch: np.ndarray, mask: np.ndarray):
    """Asserts equal token states where `mask` is true, and equal gradients of all parameters."""
    template = _template(tower, batch)
    params = to_flax(_numpy(model.named_parameters()), table, template)
    theirs = model(**inputs).last_hidden_state
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    weights *= mask[..., None]
    (theirs * torch.from_numpy(weights)).sum().backward()
    gradients = _numpy((name, p.grad) for name, p in model.named_parameters())

    def functional(params):
        states = tower.apply({"params": params}, batch)
        return jnp.sum(states * weights), states

    our_gradients, ours = jax.jit(jax.grad(functional, has_aux=True))(params)
    np.testing.assert_allclose(
        np.asarray(ours)[mask], theirs.detach().numpy()[mask], rtol=0, atol=TOLERANCE
    )
    _compare_by_module(
        to_torch(our_gradients, table),
        to_torch(to_flax(gradients, table, template), table),
    )


def _compare_by_module(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]):
    modules = {}
    for name in theirs:
        modules.setdefault(name.removesuffix(".weight").removesuffix(".bias"), []).append(name)
    for names in modules.values():
        largest = max(np.abs(theirs[name]).max() for name in names)
        for name in names:
            np.testing.assert_allclose(
                ours[name], theirs[name], rtol=0, atol=TOLERANCE * largest, err_msg=name
            )


@pytest.mark.parametrize("size", TEXT_SIZES.values(), ids=TEXT_SIZES.keys())
def test_text_tower_equals_xlm_roberta(size):
    ids = _text_batch(size)
    mask = ids != PAD_ID
    inputs = dict(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long())
    model = _huggingface_text(transformers.XLMRobertaModel, size, add_pooling_layer=False)
    _compare(model, inputs, XLM_ROBERTA, text_tower(**size), ids, mask)


@pytest.mark.parametrize("size", PATCH_SIZES.values(), ids=PATCH_SIZES.keys())
def test_patch_tower_equals_vit(size):
    images = _image_batch(size)
    mask = np.ones((2, (size["image_size"] // size["patch"]) ** 2 + 1), bool)
    inputs = dict(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    model = _huggingface_vit(transformers.ViTModel, size, add_pooling_layer=False)
    _compare(model, inputs, VIT, patch_tower(**size), images, mask)


def _text_case(model_name: str):
    size = TEXT_SIZES["odd"]
    model = _huggingface_text(getattr(transformers, model_name), size)
    return model, XLM_ROBERTA, _template(text_tower(**size), _text_batch(size))


def _vit_case(model_name: str):
    size = PATCH_SIZES["odd"]
    model = _huggingface_vit(getattr(transformers, model_name), size)
    return model, VIT, _template(patch_tower(**size), _image_batch(size))


@pytest.mark.parametrize(
    "case, model_name, prefix",
    [
        (_text_case, "XLMRobertaModel", ""),
        (_text_case, "XLMRobertaForMaskedLM", "roberta."),
        (_vit_case, "ViTModel", ""),
        (_vit_case, "ViTForImageClassification", "vit."),
    ],
)
def test_names_and_values_survive_the_round_trip(case, model_name, prefix, tmp_path):
    model, table, template = case(model_name)
    model.save_pretrained(tmp_path)
    files = safetensors.load_file(tmp_path / "model.safetensors")
    modules = _numpy(model.state_dict().items())
    renamed = int(transformers.__version__.split(".")[0]) >= 5
    for module_names, originals in ((False, files), (renamed, modules)):
        params = to_flax(originals, table, template)
        tensors = to_torch(params, table, prefix=prefix, module_names=module_names)
        heads = {name for name in originals if name not in tensors}
        assert all(name.removeprefix(prefix).startswith(table.ignored) for name in heads)
        assert tensors.keys() == originals.keys() - heads
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, originals[name], err_msg=name)
            assert tensor.dtype == originals[name].dtype and tensor.flags.c_contiguous
