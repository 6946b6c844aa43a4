"""What the matching head knows: whether it tells a text's image from another, and re-ranks well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.ranking import rank_recalls
from rc3_jax.evaluation.rerank import retrieve
from rc3_jax.evaluation.retrieval import Retrieval, seen, served_modes, spoken_texts


def evaluate_matching(
    encoder: PairEncoder,
    params,
    records: Sequence[Record],
    rows: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    config,
) -> Retrieval:
    """Scores of the matching head on held-out images, in the first of the modes that they serve.

    `pairwise_accuracy` is the share of texts whose own image has a higher logit than the image after
    it (the first, for the last one): 0.5 is chance, and ties and NaN count as wrong. `IR@1` ...
    `TR@10` are recalls after the head has re-ranked `config.evaluation.rerank` candidates of each
    query, see `retrieve`. For each language the images are encoded anew.

    Args:
      rows: `visual_rows` of the records, of which there are two at least.

    Returns:
      mode → language → score; empty if the images serve none of the modes.
    """
    if not (modes := served_modes(rows, config)):
        return {}
    mode = modes[0]
    params, fields = encoder.place(params), seen(rows, mode)
    most = config.evaluation.rerank
    scores = {}
    for code, (spoken, owners) in spoken_texts(records, config).items():
        data = RetrievalData(tokenizer.encode(spoken), owners, np.arange(len(records)), fields)
        texts, others = np.arange(len(owners)), (owners + 1) % len(records)
        pairs = np.tile(texts, 2), np.concatenate([owners, others])
        own, other = np.split(encoder.scores(params, data, *pairs), 2)
        found = retrieve(encoder, params, data, None if most < 0 else most)
        accuracy = float(np.mean(own > other))
        scores[code] = {"pairwise_accuracy": accuracy, **rank_recalls(found.by_matching)}
    return {mode: scores}
