"""The visual forms that the two texts of a weak row read."""

import jax.numpy as jnp
import numpy as np

from rc3_jax.objectives.encoding import FORMS, _forms
from rc3_jax.objectives.rc3 import RC3Objective, rc3_terms


def test_rows_show_patches_and_regions_in_turn_and_all_they_have_where_one_form_is_absent():
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]], bool)
    one, other = _forms(jnp.array(mask), {"region_mask": jnp.zeros((4, 2))})
    assert (
        one.tolist()
        == np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]], bool).tolist()
    )
    assert (
        other.tolist()
        == np.array([[0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]], bool).tolist()
    )


def test_only_the_vectors_of_weak_rows_read_one_form_each():
    def read(**settings):
        terms = rc3_terms(RC3Objective(**settings))
        return {
            (kind, p.text): p.view for term in terms[2:4] for p in term.passes for kind in p.kinds
        }

    usual, forms = read(), read(weak_views="forms")
    assert set(usual.values()) == {"image"}
    assert (forms["weak", "a"], forms["weak", "b"]) == FORMS
    assert {key for key in forms if forms[key] != usual[key]} == {("weak", "a"), ("weak", "b")}
