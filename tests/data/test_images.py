"""Rows of images kept as columns: groups, kinds and languages are those of the rows by hand."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.groups import text_key
from rc3_jax.data.kinds import RETRIEVAL, row_languages, texts_of_kind
from rc3_jax.data.sources.images import ImageRow, ImageRows, ImageTextSource, image_text_kinds

KINDS = ("strict", "weak", "captioned", RETRIEVAL)
WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple)
CODES = st.sampled_from(["en", "de", "zh"])
ROWS = st.lists(
    st.tuples(
        st.integers(-2, 2),
        st.dictionaries(CODES, st.sampled_from("abc").map(lambda text: (text,))),
        st.dictionaries(CODES, WORDS),
    ),
    max_size=8,
)


def _by_hand(rows: list, kind: str) -> tuple[list, dict]:
    """(place, texts) of the records of a kind; language pair → their numbers."""
    records, pairs = [], {}
    for place, (_, translations, captions) in enumerate(rows):
        if texts := texts_of_kind(kind, translations, captions):
            for pair in row_languages(kind, texts):
                pairs.setdefault(pair, []).append(len(records))
            records.append((place, texts))
    return records, pairs


@given(ROWS, st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
def test_records_of_rows_are_those_made_by_hand(given_rows, kinds):
    stored = [ImageRow(f"row:{i}", None, *texts) for i, (_, *texts) in enumerate(given_rows)]
    rows = ImageRows(stored)
    for key, translations, captions in given_rows:
        rows.add(key, translations, captions)
    expected = {kind: _by_hand(given_rows, kind) for kind in kinds}
    offered = {place for records, _ in expected.values() for place, _ in records}
    keys = list(dict.fromkeys(given_rows[place][0] for place in sorted(offered)))
    sources = image_text_kinds(rows, kinds)
    assert list(sources) == [kind for kind in kinds if expected[kind][0]]
    for kind, (source, offset) in sources.items():
        records, pairs = expected[kind]
        assert offset == 0 and source.groups == len(keys)
        assert {pair: of.tolist() for pair, of in source.pairs.items()} == pairs
        for found in (source, pickle.loads(pickle.dumps(source))):
            assert [(r.where, r.group, r.texts) for r in found] == [
                (f"row:{place}", keys.index(given_rows[place][0]), texts)
                for place, texts in records
            ]
        images, sentences = source.keys()
        assert images.tolist() == [[n, key] for n, key in enumerate(keys)]
        translated = [
            [keys.index(given_rows[place][0]), text_key(text)]
            for place in sorted(offered)
            for texts in given_rows[place][1].values()
            for text in texts
        ]
        assert sentences.tolist() == translated
    if given_rows:
        alone = ImageTextSource(rows, kinds[0])  # numbers the images of all rows
        assert alone.groups == len({key for key, *_ in given_rows})
        assert np.all(rows.groups() >= 0)
