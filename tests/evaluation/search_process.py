"""A search with a tiny model; run as a program, one process of several that search together."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.rerank import retrieve
from rc3_jax.evaluation.retrieval import visual_rows
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.scenes.source import SceneRecords
from tests.evaluation.random_params import random_params
from tests.tiny import tiny_cclm, tiny_config

VOCAB = 30


class Search:
    """A tiny model, its parameters, and texts and images to search; `asked` lists images read."""

    def __init__(self, kind: str, mesh=None):
        config = tiny_cclm() if kind == "cclm" else tiny_config()
        self.model = (build_cclm if kind == "cclm" else build_rc3)(config.model, VOCAB, mesh)
        self.params = random_params(self.model, config)
        rng = np.random.default_rng(0)
        ids = rng.integers(3, VOCAB - 1, (14, config.data.max_length)).astype(np.int32)
        ids[:, 0] = 0
        ids[np.arange(ids.shape[1]) >= rng.integers(5, ids.shape[1], 14)[:, None]] = PAD_ID
        self.rows = visual_rows(list(SceneRecords("retrieval", "heldout", 6, seed=0)), config)
        self.asked = []
        # Image 4 is listed twice and 5 has no text; the last text's image is not there.
        names = np.array([7, 3, 10**12, -5, 0, 6, 0])
        owners = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2, 2, 3, -1])
        self.data = RetrievalData(
            ids, np.where(owners < 0, 99, names[owners]), names, self.chosen_rows
        )
        self.owners = np.searchsorted(sorted(names[:6]), self.data.image_of_text)
        self.owners[-1] = -1

    def chosen_rows(self, chosen):
        self.asked.extend(chosen.tolist())
        return {name: field[chosen % 6] for name, field in self.rows.items()}


def main(port: str, count: str, number: str) -> None:
    """Prints the ranks and how many images this process read, as JSON."""
    if count != "1":
        jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
    from tests.objectives.tile_cases import mesh_of

    devices = jax.device_count()
    mesh = mesh_of(2, 2, 2) if devices == 8 else mesh_of(devices)
    search = Search("rc3", mesh)
    encoder = PairEncoder(search.model, mesh, batch_size=6, pairs=48)
    found = retrieve(encoder, search.params, search.data, 4)
    ranks = [places.tolist() for places in (*found.by_vectors, *found.by_matching)]
    print(json.dumps({"ranks": ranks, "asked": len(search.asked)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
