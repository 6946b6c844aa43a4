"""Shares of a batch become whole rows of each kind."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from rc3_jax.data.kinds import KINDS
from rc3_jax.data.record import DataError
from rc3_jax.data.stream import batch_rows
from tests.tiny import load_config

SHARES = {"strict": 2.0, "weak": 1.0, "parallel": 1.0}
RC3 = tuple(SHARES)


@pytest.mark.parametrize(
    ("size", "shares", "kinds", "rows"),
    [
        (16, SHARES, RC3, {"strict": 8, "weak": 4, "parallel": 4}),
        (12, SHARES, ("strict", "weak"), {"strict": 8, "weak": 4}),
        (9, SHARES, ("weak",), {"weak": 9}),
        (10, SHARES | {"weak": 0.0, "parallel": 0.5}, RC3, {"strict": 8, "parallel": 2}),
        (10, {"strict": 0.7, "weak": 0.2, "parallel": 0.1}, RC3, {"strict": 7, "weak": 2}),
        (18, SHARES, RC3, {"strict": 9, "weak": 5, "parallel": 4}),
        (1024, SHARES, ("strict", "weak"), {"strict": 704, "weak": 320}),
        (8, dict(captioned=2.0, region=1.0, parallel=1.0), KINDS, {"captioned": 4, "region": 2}),
        (6, dict(region=1.0, parallel=1.0), ("region",), {"region": 6}),
    ],
)
def test_shares_become_whole_rows_of_the_kinds_there_are(size, shares, kinds, rows):
    found = batch_rows(size, ConfigDict(shares), kinds)
    assert found | rows == found and sum(found.values()) == size
    assert all(type(count) is int and count > 0 for count in found.values())


@given(size=st.integers(1, 4096), shares=st.lists(st.floats(0.1, 8), min_size=1, max_size=3))
def test_rounded_rows_are_near_their_shares(size, shares):
    shares = {"strict": 1.0} | dict(zip(("weak", "captioned", "region"), shares, strict=False))
    exact = {kind: size * share / sum(shares.values()) for kind, share in shares.items()}
    try:
        rows = batch_rows(size, ConfigDict(shares), list(shares))
    except DataError:
        assert min(exact.values()) < 1
        return
    assert sum(rows.values()) == size
    for kind, count in rows.items():
        assert abs(count - exact[kind]) < max(1, min(exact.values()) / 4)


@pytest.mark.parametrize("kinds", [RC3, ("strict", "weak"), ("strict", "parallel"), ("weak",)])
@pytest.mark.parametrize("batch", [1024, 4096])
def test_the_base_configuration_trains_on_any_kinds_and_up_to_64_devices(tmp_path, kinds, batch):
    config = load_config("rc3_base", f"root={tmp_path},batch={batch}")
    rows = batch_rows(config.batch_size, config.batch_mix, kinds)
    assert set(rows) == set(kinds) and sum(rows.values()) == batch
    assert all(count % 64 == 0 for count in rows.values())


@pytest.mark.parametrize(
    ("size", "shares", "kinds", "named"),
    [
        (2, SHARES, RC3, "batch_size=2 .* parallel;"),
        (16, SHARES, ("parallel",), r"\['parallel'\]"),
        (16, SHARES, (), "data.sources offer nothing"),
        (16, SHARES | {"strict": 0.0}, ("strict", "parallel"), "batch_mix"),
    ],
)
def test_shares_that_leave_no_rows_are_named(size, shares, kinds, named):
    with pytest.raises(DataError, match=named) as refused:
        batch_rows(size, ConfigDict(shares), kinds)
    if lacking := re.search(r"(\w+); make it larger, or set that share to 0", str(refused.value)):
        assert all(batch_rows(2 * size, ConfigDict(shares), kinds).values())
        assert all(batch_rows(size, ConfigDict(shares | {lacking[1]: 0.0}), kinds).values())
