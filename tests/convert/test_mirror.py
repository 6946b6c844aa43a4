"""The PyTorch mirror of an exported folder: equal to our model, usable without this project."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from rc3_jax.convert.mirror_names import from_mirror, mirror_shapes
from rc3_jax.data.image import resize
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.pair import normalise_pixels
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.text import text_epsilon
from rc3_jax.models.towers import style_of
from tests.convert.mirror_folder import (
    BATCH,
    FEATURE_SIZE,
    MAX_LENGTH,
    REGIONS,
    random_inputs,
    random_params,
    tiny_settings,
    tiny_tokenizer,
    write_folder,
)
from tests.vision_reference import compare_by_module, require

torch = require("torch")
transformers = require("transformers")

SWIN = dict(type="swin", patch=4, width=8, depths=(1, 2), heads=(1, 2), window=2, drop_path=0.1)
CASES = {
    "vit": dict(patch=dict(type="vit")),
    "vit without regions": dict(patch=dict(type="vit", activation="gelu_tanh"), regions=0),
    "clip": dict(patch=dict(type="clip"), geometry="5d", readout="mean"),
    "siglip": dict(patch=dict(type="siglip", epsilon=1e-3), text_epsilon=1e-2),
    "beit": dict(patch=dict(type="beit", drop_path=0.1)),
    "swin": dict(patch=SWIN, readout="mean"),
    "swin without regions": dict(patch=SWIN, regions=0),
}


def load(folder, **options):
    return transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def written(folder, params, settings, tokenizer):
    vocab_size = tokenizer.vocab_size
    write_folder(folder, params, settings, vocab_size, tokenizer.to_json(), MAX_LENGTH)
    return folder


def flax_outputs(model, rows, ids) -> dict:
    visual = model.encode_visual(rows)
    states, text_vector = model.encode_text(ids)
    fused = model.fusion(states, ids != PAD_ID, visual.tokens, visual.mask)
    temperatures = model.temperatures()
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return {
        "image_tokens": visual.tokens,
        "image_mask": visual.mask.astype(jnp.float32),
        "image_vector": visual.vector,
        "text_tokens": states,
        "text_vector": text_vector,
        "fused_tokens": fused,
        "fused_vector": model.fused_vector(fused, ids != PAD_ID),
        "matching_logits": model.match(fused),
        "words": model.predict_tokens(fused, everywhere),
        "logits_per_image": visual.vector @ text_vector.T / temperatures["image_text"],
        "temperatures": jnp.stack([temperatures["text_text"], temperatures["fused"]]),
    }


def torch_inputs(settings, rows, ids) -> tuple[torch.Tensor, dict]:
    visual = {name: torch.from_numpy(value) for name, value in rows.items() if name != "image"}
    pixels = normalise_pixels(rows["image"], settings.image_mean, settings.image_std)
    visual["pixel_values"] = torch.from_numpy(np.array(pixels).transpose(0, 3, 1, 2))
    return torch.from_numpy(ids.astype(np.int64)), visual


def torch_outputs(model, ids, visual) -> dict:
    image, text = model.encode_image(**visual), model.encode_text(ids)
    fused, outputs = model.encode_pair(ids, **visual), model(ids, **visual)
    assert torch.equal(fused.fused_vector, outputs.fused_vector)
    assert torch.equal(model.match(ids, **visual), outputs.matching_logits)
    return dict(outputs) | {
        "image_tokens": image.tokens,
        "image_mask": image.mask.float(),
        "text_tokens": text.tokens,
        "fused_tokens": fused.tokens,
        "words": model.fill_mask(ids, **visual),
        "temperatures": torch.stack([model.temperature_text_text, model.temperature_fused]),
    }


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def beit(tokenizer, tmp_path_factory):
    """A model with regions: its settings, parameters and inputs, and its folder."""
    settings = tiny_settings(**CASES["beit"])
    settings.dropout = 0.1
    rows, ids = random_inputs(settings, tokenizer.vocab_size)
    params = random_params(build_rc3(settings, tokenizer.vocab_size), (rows, ids))
    folder = written(tmp_path_factory.mktemp("beit") / "m", params, settings, tokenizer)
    return settings, params, (rows, ids), folder


@pytest.fixture
def mirror(beit):
    return load(beit[3])


@pytest.fixture
def inputs(beit):
    return torch_inputs(beit[0], *beit[2])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_outputs_and_gradients_equal_flax(case, tokenizer, tmp_path):
    settings = tiny_settings(**case)
    model = build_rc3(settings, tokenizer.vocab_size)
    rows, ids = random_inputs(settings, tokenizer.vocab_size)
    params = random_params(model, (rows, ids))
    mirror = load(written(tmp_path / "m", params, settings, tokenizer))
    flat = flatten_dict(params, sep="/")
    expected = {}
    for path, leaf in flat.items():
        expected |= mirror_shapes(path, leaf.shape)
    assert {name: tuple(t.shape) for name, t in mirror.state_dict().items()} == expected
    assert epsilons(mirror.patch) == {style_of(settings.patch).epsilon}
    assert epsilons(mirror.text) == {text_epsilon(settings.text)}
    assert epsilons(mirror.fusion) == epsilons(mirror.roi or mirror.fusion) == {1e-5}

    inputs = torch_inputs(settings, rows, ids)
    theirs = torch_outputs(mirror, *inputs)
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in theirs.items()}
    # Tokens that nothing reads have gradients of their own in either library.
    weights["image_tokens"] *= theirs["image_mask"].numpy()[..., None]
    sum((torch.from_numpy(weights[name]) * x).sum() for name, x in theirs.items()).backward()
    gradients = {name: p.grad.numpy() for name, p in mirror.named_parameters()}

    def functional(params):
        outputs = model.apply({"params": params}, rows, ids, method=flax_outputs)
        return sum(jnp.sum(weights[name] * x) for name, x in outputs.items()), outputs

    our_gradients, ours = jax.jit(jax.grad(functional, has_aux=True))(params)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name].detach(), value, rtol=0, atol=1e-5, err_msg=name)
    their_gradients = {
        path: from_mirror(path, leaf.shape, gradients.__getitem__) for path, leaf in flat.items()
    }
    compare_by_module(unflatten_dict(their_gradients, sep="/"), our_gradients, 1e-4)


def epsilons(module) -> set[float]:
    return {part.eps for part in module.modules() if isinstance(part, torch.nn.LayerNorm)}


@torch.no_grad()
def test_either_part_of_an_image_may_be_absent(mirror, inputs):
    ids, visual = inputs
    regions = {name: x for name, x in visual.items() if name.startswith("region_")}
    pixels, yes, no = visual["pixel_values"], torch.ones(BATCH).bool(), torch.zeros(BATCH).bool()
    cases = (
        (dict(pixel_values=pixels), dict(has_features=no, use_patches=yes, use_regions=no)),
        (regions, dict(has_features=yes, use_patches=no, use_regions=yes)),
    )
    for given, switches in cases:
        alone, masked = mirror(ids, **given), mirror(ids, **visual | switches)
        there = yes if "pixel_values" in given else regions["region_mask"].any(1)
        for name in ("image_vector", "fused_vector", "matching_logits"):
            torch.testing.assert_close(alone[name][there], masked[name][there])
            assert alone[name].isfinite().all()  # of images without a region too
    positions = torch.tensor([[0, 3]] * BATCH)
    everywhere = mirror.fill_mask(ids, pixels)
    torch.testing.assert_close(mirror.fill_mask(ids, pixels, positions), everywhere[:, [0, 3]])
    longer = torch.nn.functional.pad(ids, (0, 3), value=PAD_ID)
    torch.testing.assert_close(
        mirror.encode_text(longer).text_vector, mirror.encode_text(ids).text_vector
    )


def test_training_and_saving(mirror, inputs, tmp_path):
    ids, visual = inputs
    mirror.train()
    first, second = mirror(ids, **visual), mirror(ids, **visual)
    for name in first:
        assert not torch.equal(first[name], second[name])  # dropout
    mirror.fill_mask(ids, **visual).square().mean().backward()
    gradients = [p.grad for p in mirror.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.optim.SGD(mirror.parameters(), lr=0.01).step()
    mirror.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config.model == mirror.config.model and again.config.max_length == MAX_LENGTH
    for name, tensor in mirror.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fresh = type(mirror)(mirror.config)
    assert all(p.isfinite().all() for p in fresh.parameters())
    assert fresh.temperature_fused.item() == pytest.approx(0.07)


@torch.no_grad()
def test_half_precision(beit, mirror, inputs):
    ids, visual = inputs
    half = load(beit[3], dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    exact, rounded = mirror(ids, **visual), [half(ids, **visual)]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            rounded.append(mirror(ids, **visual))
    for outputs in rounded:
        for name, value in outputs.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.1)
        norms = torch.linalg.vector_norm(outputs.text_vector, dim=-1)
        torch.testing.assert_close(norms, torch.ones(BATCH))


def test_mistakes_are_told(mirror, inputs):
    ids, visual = inputs
    boxes, features = visual["region_boxes"], visual["region_features"]
    pixels = visual["pixel_values"]
    cases = (
        (lambda: mirror.encode_text(ids[0]), r"input_ids are \[9\]"),
        (lambda: mirror.encode_text(ids.repeat(1, 5)), "at most 40 tokens"),
        (lambda: mirror.encode_image(pixels[..., :16]), r"images are \[batch, 3, 32, 32\]"),
        (lambda: mirror.encode_image(), "pixel_values, region_boxes, or both"),
        (lambda: mirror.encode_image(region_boxes=boxes), "give pixel_values"),
        (lambda: mirror.encode_image(pixels, features), "need region_boxes"),
        (lambda: mirror.encode_image(pixels, features[..., :4], boxes), "region_features are"),
        (lambda: mirror.encode_image(pixels, features, boxes[..., :3]), "region_boxes are"),
        (lambda: mirror.match(ids[:2], pixels), "2 texts and 4 images"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    for part, name, value in (
        ("patch", "type", "resnet"),
        ("roi", "geometry", "4d"),
        (None, "readout", "max"),
    ):
        config = type(mirror.config).from_dict(mirror.config.to_dict())
        config.model = copy.deepcopy(mirror.config.model)
        (config.model[part] if part else config.model)[name] = value
        with pytest.raises(ValueError, match=f"{name}='{value}'"):
            type(mirror)(config)


ALONE = """
import sys
for name in ("jax", "jaxlib", "flax", "rc3_jax", "orbax", "torchvision"):
    sys.modules[name] = None  # an import of it raises, and libraries see that it is absent

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder, image, target = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text=["a red circle"], images=[Image.open(image)])
with torch.no_grad():
    np.savez(target, **model(**inputs))
"""


def test_the_folder_is_enough(beit, tokenizer, tmp_path):
    settings, params, _, folder = beit
    image = np.random.default_rng(8).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    } | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, folder, tmp_path / "image.png", tmp_path / "out.npz"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    size = settings.patch.image_size
    rows = {
        "image": resize(image, size)[None],
        "use_patches": np.array([True]),
        "region_features": np.zeros((1, REGIONS, FEATURE_SIZE), np.float32),
        "region_boxes": np.zeros((1, REGIONS, 4), np.float32),
        "region_mask": np.zeros((1, REGIONS), bool),
        "has_features": np.array([False]),
        "use_regions": np.array([True]),
    }
    model = build_rc3(settings, tokenizer.vocab_size)
    ids = tokenizer.encode(["a red circle"])
    run = jax.jit(functools.partial(model.apply, method=flax_outputs))
    ours = run({"params": params}, rows, ids)
    with np.load(tmp_path / "out.npz") as theirs:
        for name in theirs.files:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=0, atol=1e-5, err_msg=name)
