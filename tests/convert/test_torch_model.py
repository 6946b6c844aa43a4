"""The PyTorch model of an exported folder: equal to ours, usable without this project."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from rc3_jax.convert.check import check, largest_of
from rc3_jax.convert.torch_export import from_torch
from rc3_jax.convert.torch_names import exported_names
from rc3_jax.data.image import resize
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.base import normalise_pixels
from rc3_jax.models.rc3 import build_rc3
from tests.convert import load_alone
from tests.convert.exported import (
    BATCH,
    FEATURE_SIZE,
    MAX_LENGTH,
    REGIONS,
    export_tiny,
    random_inputs,
    tiny_settings,
    tiny_tokenizer,
)
from tests.vision_reference import compare_by_module, require

torch = require("torch")
transformers = require("transformers")

SWIN = dict(type="swin", patch=4, width=8, depths=(1, 2), heads=(1, 2), window=2, drop_path=0.1)
CASES = {
    "vit": dict(patch=dict(type="vit", epsilon=1e-3)),
    "vit without regions": dict(
        patch=dict(type="vit", activation="gelu_tanh"), roi=dict(regions=0)
    ),
    "clip": dict(patch=dict(type="clip"), roi=dict(geometry="5d"), readout="mean"),
    "siglip": dict(patch=dict(type="siglip")),
    "beit": dict(patch=dict(type="beit", drop_path=0.1)),
    "swin": dict(patch=SWIN, readout="mean"),
    "swin with one window": dict(patch=SWIN | dict(window=8), roi=dict(regions=0)),
    "sigmoid": dict(contrast="sigmoid"),
}


def load(folder, **options):
    return transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def our_outputs(model, rows, ids) -> dict:
    visual = model.encode_visual(rows)
    states, text_vector = model.encode_text(ids)
    fused = model.fusion(states, ids != PAD_ID, visual.tokens, visual.mask)
    names = ("image_text", "text_text", "fused")
    found = [model.temperature_and_bias(f"temperature_{name}") for name in names]
    (temperature, bias), *others = found
    logits = visual.embedding @ text_vector.T / temperature + (0 if bias is None else bias)
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return {
        "image_tokens": visual.tokens,
        "image_mask": visual.mask.astype(jnp.float32),
        "image_vector": visual.embedding,
        "text_tokens": states,
        "text_vector": text_vector,
        "fused_tokens": fused,
        "fused_vector": model.fused_vector(fused, ids != PAD_ID),
        "matching_logits": model.match(fused),
        "words": model.predict_tokens(fused, everywhere),
        "logits_per_image": logits,
        "logits_per_text": logits.T,
        "temperatures": jnp.stack([x for scalars in others for x in scalars if x is not None]),
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
    scalars = [name for name in model.config.scalars if "image_text" not in name]
    order = sorted(scalars, key=lambda name: ("fused" in name, name))
    return dict(outputs) | {
        "image_tokens": image.tokens,
        "image_mask": image.mask.float(),
        "text_tokens": text.tokens,
        "fused_tokens": fused.tokens,
        "words": model.fill_mask(ids, **visual),
        "temperatures": torch.stack([getattr(model, name) for name in order]),
    }


@pytest.fixture
def theirs(exported):
    return load(exported.folder)


@pytest.fixture
def inputs(exported):
    return torch_inputs(exported.config.model, *random_inputs(exported.config.model))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_outputs_and_gradients_equal_flax(case, tmp_path):
    config = tiny_settings(**{name: x for name, x in case.items() if name != "contrast"})
    config.objective.contrast = case.get("contrast", "softmax")
    tiny = export_tiny(tmp_path, config)
    settings, names = tiny.config.model, exported_names(tiny.config.model)
    has_bias = "contrast" in case
    ours = build_rc3(settings, tiny_tokenizer().vocab_size, has_bias=has_bias)
    theirs = load(tiny.folder)
    theirs.save_pretrained(tmp_path / "saved")
    saved = {name: x.shape for name, x in load_alone.saved_tensors(tmp_path / "saved").items()}
    assert saved == {name: x.shape for name, x in names.to_theirs(tiny.params).items()}

    rows, ids = random_inputs(settings)
    outputs = torch_outputs(theirs, *torch_inputs(settings, rows, ids))
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in outputs.items()}
    # Tokens that nothing reads have gradients of their own in either library.
    weights["image_tokens"] *= outputs["image_mask"].numpy()[..., None]
    for name in ("text_tokens", "fused_tokens", "words"):
        weights[name] *= (ids != PAD_ID)[..., None]
    sum((torch.from_numpy(weights[name]) * x).sum() for name, x in outputs.items()).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    gradients = names.to_ours(load_alone.saved_tensors(tmp_path / "gradients"), tiny.params)

    def functional(params):
        found = ours.apply({"params": params}, rows, ids, method=our_outputs)
        return sum(jnp.sum(weights[name] * x) for name, x in found.items()), found

    our_gradients, found = jax.jit(jax.grad(functional, has_aux=True))(tiny.params)
    assert outputs.keys() == found.keys()
    for name, value in found.items():
        np.testing.assert_allclose(outputs[name].detach(), value, rtol=0, atol=1e-5, err_msg=name)
    compare_by_module(gradients, our_gradients, 1e-4)
    from_torch(tiny.folder, tmp_path / "back")
    assert largest_of(check(tmp_path / "back", tiny.folder)).relative < 1e-4


@torch.no_grad()
def test_any_number_of_texts_and_images_can_be_compared(theirs, inputs):
    ids, visual = inputs
    pixels = visual["pixel_values"]
    both, apart = theirs(ids, pixels), theirs(ids[:3], pixels)
    torch.testing.assert_close(apart.logits_per_image, both.logits_per_image[:, :3])
    torch.testing.assert_close(apart.logits_per_text, both.logits_per_image[:, :3].T)
    assert apart.matching_logits is None and apart.fused_vector is None
    texts, images = theirs.get_text_features(ids), theirs.get_image_features(pixels)
    torch.testing.assert_close(texts, both.text_vector)
    torch.testing.assert_close(images, both.image_vector)
    logits = images @ texts.T / theirs.temperature_image_text
    torch.testing.assert_close(both.logits_per_image, logits)
    alone = theirs(input_ids=ids), theirs(pixel_values=pixels)
    torch.testing.assert_close(alone[0][0], texts)
    torch.testing.assert_close(alone[1][0], images)
    assert [list(x.keys()) for x in alone] == [["text_vector"], ["image_vector"]]
    given = theirs(ids, pixels, return_dict=False)
    assert isinstance(given, tuple) and torch.equal(given[0], both[0])
    mask = (ids != PAD_ID).long()
    mask[:, 3:] = 0
    shorter = torch.where(mask.bool(), ids, PAD_ID)
    torch.testing.assert_close(
        theirs.get_text_features(ids, attention_mask=mask), theirs.get_text_features(shorter)
    )
    with pytest.raises(ValueError, match="input_ids"):
        theirs()


def test_pipelines_of_transformers(exported, tmp_path):
    """The tasks that the card names, against the vectors of the model itself."""
    path = tmp_path / "image.png"
    colours = np.random.default_rng(8).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(colours).save(path)
    labels = ["a red circle", "ein Hund läuft über die Wiese", "猫"]
    options = dict(model=str(exported.folder), trust_remote_code=True)
    model = load(exported.folder)
    processor = transformers.AutoProcessor.from_pretrained(exported.folder, trust_remote_code=True)
    with torch.no_grad():
        outputs = model(**processor(text=labels, images=path))

    classify = transformers.pipeline("zero-shot-image-classification", **options)
    found = classify(str(path), candidate_labels=labels, hypothesis_template="{}")
    scores = {item["label"]: item["score"] for item in found}
    expected = outputs.logits_per_image[0].softmax(-1).tolist()
    assert [scores[label] for label in labels] == pytest.approx(expected, abs=1e-5)
    several = classify([str(path)] * 2, candidate_labels=labels, hypothesis_template="{}")
    assert len(several) == 2

    extract = transformers.pipeline("feature-extraction", **options)
    vectors = np.concatenate([np.array(extract(label)) for label in labels])
    np.testing.assert_allclose(vectors, outputs.text_vector, atol=1e-5)
    card = ModelCard.load(exported.folder / "README.md").data
    assert {card.pipeline_tag, *card.tags} >= {classify.task, extract.task}

    images = transformers.AutoImageProcessor.from_pretrained(
        exported.folder, trust_remote_code=True
    )
    assert torch.equal(images(path)["pixel_values"], processor(images=path)["pixel_values"])
    images.save_pretrained(tmp_path / "saved")
    again = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "saved", trust_remote_code=True
    )
    assert torch.equal(again([path])["pixel_values"], images(path)["pixel_values"])


@torch.no_grad()
def test_either_part_of_an_image_may_be_absent(theirs, inputs):
    ids, visual = inputs
    regions = {name: x for name, x in visual.items() if name.startswith("region_")}
    pixels, yes, no = visual["pixel_values"], torch.ones(BATCH).bool(), torch.zeros(BATCH).bool()
    cases = (
        (dict(pixel_values=pixels), dict(has_features=no, use_patches=yes, use_regions=no)),
        (regions, dict(has_features=yes, use_patches=no, use_regions=yes)),
    )
    for given, switches in cases:
        alone, masked = theirs(ids, **given), theirs(ids, **visual | switches)
        there = yes if "pixel_values" in given else regions["region_mask"].any(1)
        for name in ("image_vector", "fused_vector", "matching_logits"):
            torch.testing.assert_close(alone[name][there], masked[name][there])
            assert alone[name].isfinite().all()  # of images without a region too
    positions = torch.tensor([[0, 3]] * BATCH)
    everywhere = theirs.fill_mask(ids, pixels)
    torch.testing.assert_close(theirs.fill_mask(ids, pixels, positions), everywhere[:, [0, 3]])
    longer = torch.nn.functional.pad(ids, (0, 3), value=PAD_ID)
    vectors = [theirs.encode_text(x).text_vector for x in (longer, ids)]
    torch.testing.assert_close(*vectors)


def test_training_and_saving(theirs, inputs, tmp_path):
    ids, visual = inputs
    theirs.train()
    first, second = theirs(ids, **visual), theirs(ids, **visual)
    for name in first:
        assert not torch.equal(first[name], second[name])  # dropout
    theirs.fill_mask(ids, **visual).square().mean().backward()
    gradients = [p.grad for p in theirs.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.optim.SGD(theirs.parameters(), lr=0.01).step()
    theirs.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config.model == theirs.config.model and again.config.max_length == MAX_LENGTH
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fresh = type(theirs)(theirs.config)
    assert all(p.isfinite().all() for p in fresh.parameters())
    assert fresh.temperature_fused.item() == pytest.approx(0.07)


@torch.no_grad()
def test_half_precision(exported, theirs, inputs):
    ids, visual = inputs
    half = load(exported.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    exact, rounded = theirs(ids, **visual), [half(ids, **visual)]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            rounded.append(theirs(ids, **visual))
    for outputs in rounded:
        for name, value in outputs.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.1)
        norms = torch.linalg.vector_norm(outputs.text_vector, dim=-1)
        torch.testing.assert_close(norms, torch.ones(BATCH))


def test_inputs_of_other_sizes_are_refused(theirs, inputs):
    ids, visual = inputs
    boxes, features = visual["region_boxes"], visual["region_features"]
    pixels = visual["pixel_values"]
    text, image, match = theirs.encode_text, theirs.encode_image, theirs.match
    long, whole = ids.repeat(1, 5), (pixels, features, boxes)
    for call, wrong, advice, right in (
        (text, (ids[0],), r"must be \[batch, length\]", (ids[:1],)),
        (text, (long,), "at most 40 tokens a text", (long[:, :40],)),
        (image, (pixels[..., :16],), r"images are \[batch, 3, 32, 32\]", (pixels,)),
        (image, (), "needs pixel_values, region_boxes, or both", (None, features, boxes)),
        (image, (None, None, boxes), "give pixel_values", (pixels, None, boxes)),
        (image, (pixels, features), "regions need region_boxes", whole),
        (image, (pixels, features[..., :4], boxes), r"\[batch, regions, 5\]", whole),
        (image, (pixels, features, boxes[..., :3]), r"must be \[batch, regions, 4\]", whole),
        (match, (ids[:2], pixels), "give as many of one as of the other", (ids, pixels)),
    ):
        with pytest.raises(ValueError, match=advice):
            call(*wrong)
        call(*right)


def test_the_folder_is_enough(exported, tmp_path):
    image = np.random.default_rng(8).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    } | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, shutil.copy(load_alone.__file__, tmp_path), exported.folder]
    done = subprocess.run(
        [*command, tmp_path / "image.png", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings = exported.config.model
    rows = {
        "image": resize(image, settings.patch.image_size)[None],
        "use_patches": np.array([True]),
        "region_features": np.zeros((1, REGIONS, FEATURE_SIZE), np.float32),
        "region_boxes": np.zeros((1, REGIONS, 4), np.float32),
        "region_mask": np.zeros((1, REGIONS), bool),
        "has_features": np.array([False]),
        "use_regions": np.array([True]),
    }
    model = build_rc3(settings, tiny_tokenizer().vocab_size)
    ids = tiny_tokenizer().encode(["a red circle"])
    run = jax.jit(functools.partial(model.apply, method=our_outputs))
    ours = run({"params": exported.params}, rows, ids)
    with np.load(tmp_path / "out.npz") as found:
        for name in found.files:
            np.testing.assert_allclose(found[name], ours[name], rtol=0, atol=1e-5, err_msg=name)
