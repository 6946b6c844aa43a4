from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc3_jax.tasks import scoring

# Few values, so that many tie.
SCORE = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.nan, -math.inf])


def test_accuracy_keeps_rows_of_no_class_in_the_denominator():
    assert scoring.accuracy([0, 1, 2, 0], [0, 1, None, 1]) == 0.5
    assert scoring.accuracy(np.array([-1, -1]), [None, -1]) == 0
    assert scoring.accuracy([2], [2]) == 1
    for predictions, labels in (([], []), ([1], [1, 1])):
        with pytest.raises(ValueError, match="labels"):
            scoring.accuracy(predictions, labels)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=SCORE))
def test_what_is_not_a_number_is_never_predicted(scores):
    for row, best in zip(scores, scoring.best_classes(scores), strict=True):
        numbers = [score for score in row if not math.isnan(score)]
        if numbers:
            assert row[best] == max(numbers) and best == list(row).index(max(numbers))
        else:
            assert best == scoring.NO_CLASS


def test_calibration_error_of_hand_made_rows():
    sure, half = [0.99, 0.01], [0.5, 0.5]
    # Two bins: confidence 0.99 is right once in two, 0.5 is right (first of equals) once in two.
    rows = [sure, sure, half, half]
    error = scoring.expected_calibration_error(rows, [0, None, 0, 1])
    assert error == pytest.approx((2 * 0.49 + 2 * 0.0) / 4)
    assert scoring.expected_calibration_error([[1.0, 0.0]], [0]) == 0
    assert scoring.expected_calibration_error([[1.0, 0.0]], [None]) == 1
    for bad in ([[math.nan, 1]], [[1.2, 0]], [[-0.1, 1]]):
        with pytest.raises(ValueError, match="probabilities"):
            scoring.expected_calibration_error(bad, [0])


@given(st.data(), st.integers(1, 30), st.integers(1, 4), st.sampled_from([1, 5, 15]))
def test_calibration_error_is_that_of_the_bins(data, rows, classes, bins):
    probabilities = data.draw(hnp.arrays(np.float64, (rows, classes), elements=st.floats(0, 1)))
    label = st.one_of(st.none(), st.integers(0, classes - 1))
    labels = data.draw(st.lists(label, min_size=rows, max_size=rows))
    expected = 0.0
    for number in range(bins):
        inside = []
        for row, one in zip(probabilities, labels, strict=True):
            confidence = row.max()
            above = confidence * bins > number or (number == 0 and confidence == 0)
            if above and confidence * bins <= number + 1:
                inside.append((confidence, float(one == int(np.argmax(row)))))
        if inside:
            confidence, right = np.mean(inside, axis=0)
            expected += len(inside) / rows * abs(confidence - right)
    found = scoring.expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(expected)


def test_rank_variance_is_over_languages_of_the_same_image():
    ranks = {"en": {"a": 1, "b": 4, "c": 9}, "de": {"a": 3, "b": 4}, "ja": {"b": 4, "a": 5}}
    assert scoring.rank_variance(ranks) == pytest.approx((8 / 3 + 0) / 2)
    assert scoring.rank_variance({"en": {"a": 1}}) is None
    assert scoring.rank_variance({"en": {"a": 1}, "de": {"b": 1}}) is None


def test_mean_and_standard_error():
    assert scoring.mean_and_error([1, 2, 3]) == pytest.approx((2, 1 / math.sqrt(3)))
    mean, error = scoring.mean_and_error([0.7])
    assert mean == 0.7 and math.isnan(error)
