"""Masking as published for CCLM, against statistics of the published generator's draws."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest

from rc3_jax.data.text import IGNORED, mask_tokens

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "parity"
GROUPS = ("caption", "parallel_text", "caption_no_spans")
SIGMAS = 5  # of about 400 comparisons none is further off by chance
TEXTS = 200


@pytest.fixture(scope="module")
def recorded() -> dict:
    """stats.json from a folder of RC3_PARITY_DIRS or beside one: skipped where absent."""
    given = os.environ.get("RC3_PARITY_DIRS")
    folders = [pathlib.Path(folder) for folder in given.split(":")] if given else [SHARED / "any"]
    for folder in folders:
        for place in (folder, folder.parent / "masking_ref"):
            if (place / "stats.json").is_file():
                return json.loads((place / "stats.json").read_text(encoding="utf-8"))
    reason = "no masking_ref/stats.json in ../shared/parity or RC3_PARITY_DIRS"
    if os.environ.get("CI") and not given:
        pytest.fail(reason)
    pytest.skip(reason)


def _text(length: int, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([0, *rng.integers(4, vocab_size - 1, length - 2), 2, 1, 1], np.int32)


def _draw(setting: dict, vocab_size: int):
    """Bool `[draws, length]`, chosen; number of `<mask>`, other words and kept ones `[draws, 3]`."""
    rng = np.random.Generator(np.random.Philox(setting["length"]))
    options = dict(
        share=setting["mask_prob"],
        most=setting["max_masks"],
        span_chance=setting["skipgram_prb"],
        mask_eos=True,
    )
    texts = [_text(setting["length"], vocab_size, rng) for _ in range(TEXTS)]
    chosen = np.zeros((setting["draws"], setting["length"]), bool)
    fates = np.zeros((setting["draws"], 3), int)
    for number in range(setting["draws"]):
        ids = texts[number % TEXTS]
        masked, positions, labels = mask_tokens(ids, vocab_size, rng, **options)
        positions = positions[labels != IGNORED]
        chosen[number, positions] = True
        is_mask, is_kept = masked[positions] == vocab_size - 1, masked[positions] == ids[positions]
        fates[number] = is_mask.sum(), (~is_mask & ~is_kept).sum(), is_kept.sum()
    return chosen, fates


def _assert_near(found, expected, deviation, draws: int) -> None:
    """Two means of so many draws each, of the same standard deviation."""
    error = np.abs(np.asarray(found) - expected) / (np.sqrt(2 / draws) * deviation + 1e-9)
    assert np.all(error < SIGMAS), (found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_masks_fall_as_those_of_the_published_code(recorded, group):
    for setting in recorded[group]:
        chosen, fates = _draw(setting, recorded["vocab_size"])
        draws, count = setting["draws"], setting["n_pred_rule"]
        assert np.all(chosen.sum(axis=1) == count)
        assert not chosen[:, 0].any()

        chances = np.array(setting["p_position_masked"])
        _assert_near(chosen.mean(axis=0), chances, np.sqrt(chances * (1 - chances)), draws)

        proportions = fates.mean(axis=0) / count
        for name, share in zip(("mask", "random", "kept"), proportions, strict=True):
            deviation = setting["proportion_std_over_draws"][name]
            _assert_near(share, setting["proportion"][name], deviation, draws)

        begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
        runs = setting["runs"]
        _assert_near(begins.sum(axis=1).mean(), runs["mean_number"], runs["std_number"], draws)
        lengths = _run_lengths(chosen)
        for length, times in runs["length_histogram"].items():
            # Runs of one draw depend on each other, so their number varies less than Poisson's.
            found, deviation = lengths.get(int(length), 0) / draws, np.sqrt(times / draws)
            _assert_near(found, times / draws, deviation, draws)


def _run_lengths(chosen: np.ndarray) -> dict[int, int]:
    edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    return dict(
        zip(*(part.tolist() for part in np.unique(lengths, return_counts=True)), strict=True)
    )


def test_the_number_of_masks_is_that_of_the_published_code(recorded):
    rng = np.random.Generator(np.random.Philox(0))
    for row in recorded["rounding"]:
        ids = _text(row["length"], recorded["vocab_size"], rng)
        for most, field in ((12, "n_masked"), (20, "n_masked_max20")):
            _, _, labels = mask_tokens(ids, recorded["vocab_size"], rng, most=most, mask_eos=True)
            assert np.sum(labels != IGNORED) == row[field]
