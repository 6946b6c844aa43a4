"""The published line formats of CCLM become batches."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import iterate, make_batches
from tests.data.files import (
    captioned,
    regions,
    write,
)
from tests.tiny import tiny_config, with_tower

SHARES = {"strict": 0.0, "weak": 0.0, "parallel": 1.0, "captioned": 2.0, "region": 1.0}


@pytest.fixture
def cclm(tmp_path):
    """The sources of CCLM-4M in small: images with captions, regions, and parallel text."""
    texts = {"en": "A red dog.", "de": "Ein roter Hund.", "zh": "一只红色的狗。"}

    def numbered(i: int) -> dict[str, str]:
        return {code: f"{text} {i}" for code, text in texts.items()}

    element = {"bb": [4, 4, 20, 16], "caption": {"en": "dog"}, "attributes": {"en": "red"}}
    sources = {
        "captions": [captioned(i, caption=numbered(i)) for i in range(30)],
        "regions": [regions(element, red=30 + i, caption=texts) for i in range(30)],
        "parallel": [dict(source_text=f"dog {i}", target_text=f"Hund {i}") for i in range(30)],
    }
    write(tmp_path / "heldout", captioned(99, caption=texts))
    config = tiny_config()
    config.batch_size = 8
    config.batch_mix.update(SHARES)
    config.data.regions.update(per_image=3)
    config.data.sources = {}
    for name, lines in sources.items():
        (tmp_path / name).mkdir()
        for part in (0, 1):
            write(tmp_path / name / f"part-{part}", *lines[part::2])
        config.data.sources[name] = dict(type="cclm", path=str(tmp_path / name), format=name)
    config.data.sources.captions.heldout_path = str(tmp_path / "heldout")
    return config


def test_the_published_formats_become_batches(cclm):
    cclm = with_tower(cclm)
    skips = Skips()
    corpus = open_corpus(cclm, skips)
    sizes = {kind: len(pool) for kind, pool in corpus.pools.items()}
    assert sizes == {"parallel": 30, "captioned": 30, "region": 30}
    assert [set(record.texts) for record in corpus.heldout] == [{"en", "de", "zh"}]
    tokenizer = run_tokenizer(cclm, corpus, None)
    batches = make_batches(corpus.pools, tokenizer, cclm, skips)
    decoded = set()
    for batch in iterate(batches, 0, cclm):
        counts = {kind: len(rows["groups"]) for kind, rows in batch.items()}
        assert counts == {"parallel": 2, "captioned": 4, "region": 2}
        region = batch["region"]
        assert np.all(region["is_image"] == [True, False, False])
        assert np.all(region["groups"][:, 1] == region["groups"][:, 2])
        assert np.all(region["groups"][:, 0] != region["groups"][:, 1])
        decoded |= {tokenizer.decode(ids) for ids in region["ids_a"][:, 1:].reshape(-1, 24)}
        a, b = ([tokenizer.decode(ids) for ids in batch["parallel"][f]] for f in ("ids_a", "ids_b"))
        for pair in zip(a, b, strict=True):
            first, second = sorted(pair)
            assert first.removeprefix("Hund ") == second.removeprefix("dog ")
    assert decoded == {"red dog"} and not skips.reasons


def test_sources_without_a_share_are_passed_over(cclm, tmp_path):
    cclm.batch_mix.update(region=0.0, parallel=0.0)
    (tmp_path / "regions" / "part-0").write_text("not a line")
    assert list(open_corpus(cclm, Skips()).pools) == ["captioned"]
    cclm.batch_mix.update(strict=1.0, captioned=0.0)  # for RC³ the same lines are translations
    assert list(open_corpus(cclm, Skips()).pools) == ["strict"]
