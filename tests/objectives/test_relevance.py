"""The regularizer's forms against plain NumPy, and what each must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.objectives.contrastive import info_nce, soft_cross_entropy
from rc3_jax.objectives.rc3 import RC3Objective
from rc3_jax.objectives.relevance import (
    ScaleSettings,
    debiased,
    ramp,
    relevance_weights,
    weak_contrast,
)
from rc3_jax.settings import ConfigError

SCALES = ScaleSettings()
TAU = jnp.float32(0.1)
GROUPS = jnp.arange(6)


@pytest.fixture
def vectors():
    x = jax.random.normal(jax.random.key(0), (4, 6, 5))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def terms(forms, vectors):
    return weak_contrast_of(forms, *vectors)


def weak_contrast_of(forms, z_a, z_b, text_a, text_b, groups=GROUPS):
    own = jnp.sum(text_a * text_b, axis=1)
    return weak_contrast(forms, z_a, z_b, (text_a, text_b), own, TAU, None, groups, None, SCALES)


def test_forms_are_what_the_method_says(vectors):
    z_a, z_b, t_a, t_b = (np.array(v, np.float64) for v in vectors)
    own, proximity = np.sum(t_a * t_b, 1), np.sum(z_a * z_b, 1)
    plain = info_nce(vectors[0], vectors[1], TAU, GROUPS)
    weights = np.clip(own, 0, 1) / np.clip(own, 0, 1).mean()
    weighted = info_nce(vectors[0], vectors[1], TAU, GROUPS, jnp.array(weights, jnp.float32))
    ranks = np.array([sorted(own).index(value) + 0.5 for value in own]) / 3
    ranked = info_nce(vectors[0], vectors[1], TAU, GROUPS, jnp.array(ranks, jnp.float32))
    upper = jnp.array(own >= np.median(own), jnp.float32) * 2
    top = info_nce(vectors[0], vectors[1], TAU, GROUPS, upper)
    cross, entropy = soft_cross_entropy(vectors[0], vectors[1], TAU, vectors[2], vectors[3], 0.1)
    expected = {
        ("none",): {"xvtcl_weak": plain},
        ("weighted",): {"xvtcl_weak": weighted},
        ("ranked",): {"xvtcl_weak": ranked},
        ("top", "mse"): {"xvtcl_weak": top, "mse": np.mean((proximity - own) ** 2)},
        ("soft",): {"soft": 0.3 * cross},
        ("kl",): {"xvtcl_weak": plain, "kl": cross - entropy},
        ("mse",): {"xvtcl_weak": plain, "mse": np.mean((proximity - own) ** 2)},
        ("weighted", "hinge"): {
            "xvtcl_weak": weighted,
            "hinge": np.mean(np.maximum(0, proximity - own - 0.1)),
        },
    }
    for forms, values in expected.items():
        measured = terms(forms, vectors)
        assert measured.keys() == values.keys(), forms
        for name, value in values.items():
            np.testing.assert_allclose(measured[name], value, rtol=2e-5, err_msg=f"{forms} {name}")


@pytest.mark.parametrize("forms", [("weighted", "hinge"), ("soft",), ("mse",), ("kl",)])
def test_no_gradient_reaches_the_relevance(vectors, forms):
    def total(text_a, text_b):
        values = weak_contrast_of(forms, vectors[0], vectors[1], text_a, text_b)
        return sum(values.values())

    for gradient in jax.grad(total, argnums=(0, 1))(vectors[2], vectors[3]):
        assert not np.any(gradient)


def test_irrelevant_pairs_weigh_nothing_and_the_others_one_on_average():
    weights = relevance_weights(jnp.array([-1.0, 0.5, 1.0]), "weighted")
    assert float(weights[0]) == 0.0
    assert float(weights.mean()) == pytest.approx(1.0)
    assert not np.any(relevance_weights(jnp.array([-1.0, -0.5]), "weighted"))


def test_debiased_products_are_similarities_less_those_to_any_text(vectors):
    """The similarity of two texts, less the mean of each to all texts, in units of a text's own."""
    common = np.array([2.0, 1, 0, 0, 0])
    texts = np.array(vectors[2:], np.float64) + common  # all resemble one another
    every = texts.reshape(12, 5)
    products = every @ every.T
    means = products.mean(axis=0)
    centred = products - means - means[:, None] + products.mean()
    expected = centred[:6, 6:] / np.diag(centred).mean()
    text_a, text_b = debiased(*jnp.array(texts, jnp.float32))
    np.testing.assert_allclose(text_a @ text_b.T, expected, atol=1e-5)
    same = debiased(jnp.ones((3, 2)), jnp.ones((3, 2)))
    assert not np.any(same)  # texts that do not differ share nothing in particular


def test_hinge_acts_only_above_relevance_and_margin():
    z = jnp.eye(3)[:2]
    text_a, text_b = jnp.eye(3)[:2], jnp.stack([jnp.eye(3)[0], jnp.eye(3)[2]])
    value = weak_contrast_of(("hinge",), z, z, text_a, text_b, jnp.arange(2))["hinge"]
    assert float(value) == pytest.approx((0 + (1 - 0 - 0.1)) / 2)


@pytest.mark.parametrize(
    "forms",
    [
        *[(), ("kll",), ("none", "hinge"), ("off", "mse"), ("soft", "weighted"), ("soft", "kl")],
        *[("ranked", "soft"), ("ranked", "top"), ("weighted", "ranked", "mse")],
    ],
)
def test_meaningless_forms_are_refused(forms):
    with pytest.raises(ConfigError, match=r"objective.*regularizer"):
        RC3Objective.parse({"regularizer": forms}, "objective")


@pytest.mark.parametrize("forms", [("soft",), ("off",), ("none",), ("kl", "mse"), ("soft", "mse")])
def test_sensible_forms_are_accepted(forms):
    assert RC3Objective.parse({"regularizer": forms}).regularizer == forms


def test_ramp_rises_from_zero_to_one():
    assert [float(ramp(jnp.int32(s), 10)) for s in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert float(ramp(jnp.int32(0), 0)) == 1.0
    assert [float(ramp(jnp.int32(s), 10, 4)) for s in (3, 4, 9, 14)] == [0.0, 0.0, 0.5, 1.0]
    assert [float(ramp(jnp.int32(s), 0, 4)) for s in (3, 4)] == [0.0, 1.0]
