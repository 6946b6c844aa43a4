"""RC³ as a whole: what its vectors listen to, row by row, and what `build_rc3` refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.heads import MaskedLMHead
from rc3_jax.models.rc3 import TEMPERATURES, build_rc3
from rc3_jax.settings import ConfigError

VOCAB, SIZE, REGIONS, FEATURES, WIDTH = 13, 8, 4, 5, 12
PATCHES = (SIZE // 4) ** 2 + 1
PATCH_ONLY, ROI_ONLY, BOTH, BOXES_ONLY = range(4)


def _config(**changes) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(
        dict(
            text=dict(width=WIDTH, depth=1, heads=3, mlp_width=16, max_positions=12),
            patch=dict(
                type="vit", image_size=SIZE, patch=4, width=WIDTH, depth=1, heads=3, mlp_width=16
            ),
            roi=dict(regions=REGIONS, depth=1, geometry="7d"),
            fusion=dict(depth=1),
            projection_size=6,
            readout="attention",
            image_mean=(0.5, 0.4, 0.3),
            image_std=(0.2, 0.25, 0.3),
            dropout=0.0,
            remat="none",
            unroll=1,
            dtype="float32",
        )
    )
    config.update_from_flattened_dict(changes)
    return config


def _batch(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One row for each way to see, in the order PATCH_ONLY ... BOXES_ONLY, and their texts."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(size=(4, REGIONS, 2, 2)), axis=2)
    rows = dict(
        image=rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8),
        use_patches=np.array([True, False, True, False]),
        use_regions=np.array([False, True, True, True]),
        has_features=np.array([True, True, True, False]),
        region_features=rng.normal(size=(4, REGIONS, FEATURES)).astype(np.float32),
        region_boxes=corners.reshape(4, REGIONS, 4).astype(np.float32),
        region_mask=np.broadcast_to(np.arange(REGIONS) < REGIONS - 1, (4, REGIONS)),
    )
    ids = rng.integers(PAD_ID + 1, VOCAB, (4, 6)).astype(np.int32)
    ids[1, 3:] = PAD_ID
    return rows, ids


def _random_variables(model):
    """Random everywhere, and large enough for each part to be heard in the outputs."""
    rng = np.random.default_rng(11)

    def draw(path, leaf):
        x = rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype)
        return x + (path[-1].key == "scale")

    template = jax.eval_shape(model.init, jax.random.key(0), *_batch())
    return jax.tree_util.tree_map_with_path(draw, template)


def _fuse(model, *inputs):
    return model.fusion(*inputs)


def _outputs(model, rows, ids) -> dict[str, jax.Array]:
    """Everything that an objective or a downstream head may read, and the visual tokens."""
    visual = model.encode_visual(rows)
    states, text_vector = model.encode_text(ids)
    mask = ids != PAD_ID
    fused = model.fusion(states, mask, visual.tokens, visual.mask)
    return dict(
        image=visual.embedding,
        text=text_vector,
        fused=model.fused_vector(fused, mask),
        match=model.match(fused),
        tokens=model.predict_tokens(fused, jnp.array([[0, 2]] * 4)),
        visual_tokens=visual.tokens,
        visual_mask=visual.mask,
    )


MODEL = build_rc3(_config(), VOCAB)


@jax.jit
def _apply(variables, rows, ids):
    return MODEL.apply(variables, rows, ids, method=_outputs)


@pytest.fixture(scope="module")
def variables():
    return _random_variables(MODEL)


def _assert_influence(outputs, others, rows: set[int]):
    """The visual outputs differ in `rows`, and only in them, by not one bit elsewhere."""
    for name in ("image", "fused", "match", "tokens"):
        difference = np.abs(outputs[name] - others[name]).reshape(4, -1).max(axis=1)
        assert {row for row in range(4) if difference[row] > 1e-3} == rows, name
        assert {row for row in range(4) if difference[row] > 0} == rows, name


def test_pixels_matter_where_patches_are_read_or_features_lack(variables):
    rows, ids = _batch()
    others = rows | {"image": _batch(1)[0]["image"]}
    _assert_influence(
        _apply(variables, rows, ids),
        _apply(variables, others, ids),
        {PATCH_ONLY, BOTH, BOXES_ONLY},
    )


def test_features_matter_where_regions_are_read_and_have_them(variables):
    rows, ids = _batch()
    others = rows | {"region_features": _batch(1)[0]["region_features"]}
    _assert_influence(
        _apply(variables, rows, ids), _apply(variables, others, ids), {ROI_ONLY, BOTH}
    )


def test_boxes_matter_where_regions_are_read(variables):
    rows, ids = _batch()
    others = rows | {"region_boxes": _batch(1)[0]["region_boxes"]}
    _assert_influence(
        _apply(variables, rows, ids), _apply(variables, others, ids), {ROI_ONLY, BOTH, BOXES_ONLY}
    )


def test_padding_regions_have_no_influence(variables):
    rows, ids = _batch()
    padding = ~rows["region_mask"][..., None]
    others = rows | {
        name: np.where(padding, 30 * _batch(1)[0][name], rows[name])
        for name in ("region_features", "region_boxes")
    }
    _assert_influence(_apply(variables, rows, ids), _apply(variables, others, ids), set())


def test_patch_only_rows_need_no_regions(variables):
    rows, ids = _batch()
    others = rows | {"region_mask": rows["region_mask"] & [[False], [True], [True], [True]]}
    _assert_influence(_apply(variables, rows, ids), _apply(variables, others, ids), set())


def test_padding_text_has_no_influence(variables):
    """Its embeddings could be anything; only the logit of predicting padding is about them."""
    other = jax.tree.map(np.copy, variables)
    for name in ("word_embedding", "position_embedding"):
        other["params"]["text"][name]["embedding"][PAD_ID] = 30.0
    outputs, others = _apply(variables, *_batch()), _apply(other, *_batch())
    assert (outputs["tokens"] != others["tokens"])[..., PAD_ID].all()
    for name in outputs:
        kept = outputs[name].shape[-1] if name != "tokens" else PAD_ID
        np.testing.assert_array_equal(others[name][..., :kept], outputs[name][..., :kept])


def test_padding_states_have_no_influence_on_fusion(variables):
    """A parallel text as the second view is padded too."""
    _, ids = _batch()
    view_ids = np.roll(ids, 1, axis=0)
    mask, view_mask = ids != PAD_ID, view_ids != PAD_ID

    @jax.jit
    def fuse(states, view):
        fused = MODEL.apply(variables, states, mask, view, view_mask, method=_fuse)
        return MODEL.apply(variables, fused, mask, method="fused_vector")

    noise = np.random.default_rng(3).normal(size=(2, *ids.shape, WIDTH)).astype(np.float32)
    states, view = noise
    vectors = fuse(states, view)
    changed = fuse(
        np.where(mask[..., None], states, 30 * view), np.where(view_mask[..., None], view, 30)
    )
    np.testing.assert_array_equal(changed, vectors)
    assert np.abs(fuse(states, -view) - vectors).max(axis=1).min() > 1e-3


def test_text_matters(variables):
    rows, ids = _batch()
    outputs, others = _apply(variables, rows, ids), _apply(variables, rows, _batch(1)[1])
    for name in ("text", "fused", "match", "tokens"):
        assert np.abs(outputs[name] - others[name]).reshape(4, -1).max(axis=1).min() > 1e-3, name
    np.testing.assert_array_equal(outputs["image"], others["image"])


def test_rows_do_not_influence_each_other(variables):
    rows, ids = _batch()
    order = np.array([2, 0, 3, 1])
    outputs = _apply(variables, rows, ids)
    moved = _apply(variables, {name: x[order] for name, x in rows.items()}, ids[order])
    for name in outputs:
        np.testing.assert_allclose(moved[name], outputs[name][order], atol=1e-5, err_msg=name)


def _assert_unit_vectors_and_float32(outputs):
    for name in ("image", "text", "fused"):
        np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=-1), 1.0, atol=1e-6)
    for name in ("image", "text", "fused", "match", "tokens"):
        assert outputs[name].dtype == jnp.float32, name


def test_vectors_are_unit_and_results_float32(variables):
    _assert_unit_vectors_and_float32(_apply(variables, *_batch()))
    model = build_rc3(_config(readout="mean", dtype="bfloat16"), VOCAB)
    apply = jax.jit(lambda variables: model.apply(variables, *_batch(), method=_outputs))
    outputs = apply(_random_variables(model))
    assert outputs["visual_tokens"].dtype == jnp.bfloat16
    _assert_unit_vectors_and_float32(outputs)


def test_mean_readout_is_the_mean_of_the_text_positions():
    model = build_rc3(_config(readout="mean"), VOCAB)
    variables = _random_variables(model)
    mask = np.arange(5) < [[5], [2]]
    fused = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    linear = variables["params"]["fused_projection"]["linear"]
    means = np.stack([fused[0].mean(axis=0), fused[1, :2].mean(axis=0)])
    expected = means @ linear["kernel"] + linear["bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    actual = model.apply(variables, fused, mask, method="fused_vector")
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert "fused_pool" in _random_variables(MODEL)["params"]
    assert "fused_pool" not in variables["params"]


def test_image_vector_weighs_the_two_forms_alike(variables):
    """Not by their numbers of tokens: the mean of each present form, then of the forms."""
    outputs = _apply(variables, *_batch())
    tokens, mask = np.asarray(outputs["visual_tokens"]), np.asarray(outputs["visual_mask"])
    assert mask.sum(axis=1).tolist() == [PATCHES, 3, PATCHES + 3, 3]
    parts = [tokens[:, :PATCHES].mean(axis=1), tokens[:, PATCHES:-1].mean(axis=1)]
    means = np.stack([parts[0][0], parts[1][1], (parts[0][2] + parts[1][2]) / 2, parts[1][3]])
    linear = variables["params"]["image_projection"]["linear"]
    expected = means @ linear["kernel"] + linear["bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(outputs["image"], expected, atol=1e-5)


def test_pixels_are_scaled_and_normalised(variables):
    rows, ids = _batch()
    pixels = (rows["image"] / 255.0 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]
    params = {"params": variables["params"]["patch"]}
    expected = jax.jit(MODEL.patch.apply)(params, pixels.astype(np.float32))
    expected = expected + variables["params"]["visual_type"][0]
    actual = _apply(variables, rows, ids)["visual_tokens"][:, : expected.shape[1]]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_visual_parts_are_told_apart_by_their_type(variables):
    other = jax.tree.map(np.copy, variables)
    other["params"]["visual_type"][:] = 0
    difference = _apply(variables, *_batch())["visual_tokens"]
    difference -= _apply(other, *_batch())["visual_tokens"]
    types = variables["params"]["visual_type"][[0] * PATCHES + [1] * REGIONS]
    np.testing.assert_allclose(difference, np.stack([types] * 4), atol=1e-5)


def test_boxes_without_features_are_aligned_with_the_patches_in_their_places(variables):
    rows, ids = _batch()
    tokens = np.asarray(_apply(variables, rows, ids)["visual_tokens"])
    types = variables["params"]["visual_type"]
    side = SIZE // 4
    grid = (tokens[:, 1:PATCHES] - types[0]).reshape(4, side, side, WIDTH)
    arguments = ("region_features", "region_boxes", "region_mask", "has_features")
    params = {"params": variables["params"]["roi"]}
    apply = jax.jit(MODEL.roi.apply)
    expected = apply(params, *(rows[name] for name in arguments), grid) + types[1]
    np.testing.assert_allclose(tokens[BOXES_ONLY, PATCHES:], expected[BOXES_ONLY], atol=1e-4)


def test_tokens_are_predicted_at_their_positions_with_the_word_embeddings(variables):
    fused = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    positions = np.array([[4, 0, 0], [1, 2, 3]])
    picked = np.stack([fused[row][positions[row]] for row in range(2)])
    params = {"params": variables["params"]["masked_lm_head"]}
    words = variables["params"]["text"]["word_embedding"]["embedding"]
    expected = MaskedLMHead().apply(params, picked) @ words.T + variables["params"]["word_bias"]
    actual = MODEL.apply(variables, fused, positions, method="predict_tokens")
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_each_contrast_has_its_temperature(variables):
    model = build_rc3(_config(), VOCAB, temperatures=["temperature_other"], has_bias=True)
    template = jax.eval_shape(model.init, jax.random.key(0), *_batch())["params"]
    names = {*TEMPERATURES, "temperature_other"}
    biases = {f"{name}_bias" for name in names}
    assert {name for name in template if name.startswith("temperature")} == names | biases
    params = dict(variables["params"], temperature_other=0.5, temperature_other_bias=-9.0)
    params |= {name: jnp.float32(0) for name in template if name not in params}
    read = model.apply({"params": params}, "temperature_other", method="temperature_and_bias")
    assert read == (0.5, -9.0)


def test_without_roi_tower_there_are_only_patches():
    model = build_rc3(_config(**{"roi.regions": 0}), VOCAB)
    rows = {name: _batch()[0][name] for name in ("image", "use_patches")}
    variables = jax.eval_shape(model.init, jax.random.key(0), rows, _batch()[1])
    assert not {"roi", "visual_type"} & variables["params"].keys()
    visual = jax.eval_shape(lambda v: model.apply(v, rows, method="encode_visual"), variables)
    assert visual.tokens.shape == (4, PATCHES, WIDTH)


def test_every_parameter_gets_a_gradient(variables):
    """But for the temperatures, which no output reads, and key biases, which cancel."""

    def functional(variables):
        outputs = MODEL.apply(variables, *_batch(), method=_outputs)
        weights = np.random.default_rng(2)
        names = ("image", "text", "fused", "match", "tokens")
        return sum(
            jnp.sum(outputs[name] * weights.normal(size=outputs[name].shape)) for name in names
        )

    fast_compile = {"xla_backend_optimization_level": 0}
    gradient = jax.jit(jax.grad(functional), compiler_options=fast_compile)
    gradients = gradient(variables)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        learns = "temperature" not in name and "['key']['bias']" not in name
        assert (np.abs(leaf).max() > 1e-4) == learns, name


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"patch.width": 24}, "tokens of width 24"),
        ({"text.heads": 5}, "heads=5"),
        ({"patch.heads": 8}, "heads=8"),
        ({"patch.image_size": 10}, "image_size=10"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(changes, named):
    with pytest.raises(ConfigError, match=named):
        build_rc3(_config(**changes), VOCAB)
