"""Shares of the kinds become whole rows, which devices can share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.record import DataError
from rc3_jax.data.stream import batch_rows
from tests.tiny import load_config

SHARES = {"strict": 2.0, "weak": 1.0, "parallel": 1.0}
KINDS = tuple(SHARES)


@pytest.mark.parametrize(
    ("size", "shares", "kinds", "rows"),
    [
        (16, SHARES, KINDS, {"strict": 8, "weak": 4, "parallel": 4}),
        (12, SHARES, ("strict", "weak"), {"strict": 8, "weak": 4}),
        (9, SHARES, ("weak",), {"weak": 9}),
        (10, SHARES | {"weak": 0.0, "parallel": 0.5}, KINDS, {"strict": 8, "parallel": 2}),
        (10, {"strict": 0.7, "weak": 0.2, "parallel": 0.1}, KINDS, {"strict": 7, "weak": 2}),
        (30, {"strict": 0.1, "weak": 0.2, "parallel": 0.0}, KINDS, {"strict": 10, "weak": 20}),
        (18, SHARES, KINDS, {"strict": 9, "weak": 5, "parallel": 4}),
        (1024, SHARES, ("strict", "weak"), {"strict": 704, "weak": 320}),
        (1024, SHARES, ("strict", "parallel"), {"strict": 704, "parallel": 320}),
    ],
)
def test_shares_become_whole_rows_of_the_kinds_there_are(size, shares, kinds, rows):
    found = batch_rows(size, shares, kinds)
    assert found | rows == found and sum(found.values()) == size
    assert all(type(count) is int and count > 0 for count in found.values())


@given(
    size=st.integers(1, 4096),
    shares=st.lists(st.floats(0.1, 8), min_size=1, max_size=3),
)
def test_rounded_rows_are_near_their_shares(size, shares):
    shares = {"strict": 1.0} | dict(zip(("weak", "captioned", "region"), shares, strict=False))
    exact = {kind: size * share / sum(shares.values()) for kind, share in shares.items()}
    try:
        rows = batch_rows(size, shares, list(shares))
    except DataError:
        assert min(exact.values()) < 1
        return
    assert sum(rows.values()) == size
    for kind, count in rows.items():
        assert abs(count - exact[kind]) < max(1, min(exact.values()) / 4)


@pytest.mark.parametrize("kinds", [KINDS, ("strict", "weak"), ("strict", "parallel"), ("weak",)])
@pytest.mark.parametrize("batch", [1024, 4096])
def test_the_base_configuration_trains_on_any_kinds_and_up_to_64_devices(tmp_path, kinds, batch):
    config = load_config("rc3_base", f"root={tmp_path},batch={batch}")
    rows = batch_rows(config.batch_size, config.shares, kinds)
    assert set(rows) == set(kinds) and sum(rows.values()) == batch
    assert all(count % 64 == 0 for count in rows.values())


@pytest.mark.parametrize(
    ("size", "shares", "kinds", "message"),
    [
        (2, SHARES, KINDS, "batch_size=2 shared as .* leaves no row to parallel; make it larger"),
        (16, SHARES, ("parallel",), r"offer \['parallel'\] .*strict or weak rows, that is images"),
        (16, SHARES, (), "offer nothing"),
        (16, SHARES | {"strict": 0.0}, ("strict", "parallel"), "training needs strict or weak"),
    ],
)
def test_shares_that_cannot_be_are_told_with_the_remedy(size, shares, kinds, message):
    with pytest.raises(DataError, match=message):
        batch_rows(size, shares, kinds)
