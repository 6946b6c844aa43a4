"""`cclm_losses` of whole batches against recorded losses: what it pairs, joins and leaves out."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from rc3_jax.data.text import IGNORED
from rc3_jax.objectives.cclm import cclm_losses
from tests.parity.recordings import PRETRAINING, folders, read, require_folder

RECORDED = {
    "itc": "forward.image_two_captions.loss_itc",
    "caption_ttc": "forward.image_two_captions.loss_ttc",
    "mlm": "forward.image.loss_mlm",
    "ttc": "forward.text.loss_ttc",
    "text_mlm": "forward.text.loss_mlm",
    "region_itc": "forward.region.loss_itc",
    "region_mlm": "forward.region.loss_mlm",
    "box": "forward.region.loss_bbox",
    "giou": "forward.region.loss_giou",
}
"""Our term → what was recorded; matching is left out, since its negatives are drawn."""


def _pixels(recording, images) -> np.ndarray:
    """Colours that the model's own normalisation turns into the recorded inputs."""
    model = recording.settings.model
    return (images * np.array(model.image_std) + np.array(model.image_mean)) * 255


def _padded(ids: np.ndarray, length: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=1)


def _batch(recording) -> dict:
    x = recording.inputs

    def masked(prefix: str) -> dict:
        labels = x[f"{prefix}masked_ids"]
        return {
            "masked_ids": x[f"{prefix}text_ids_masked"],
            "masked_positions": x[f"{prefix}masked_pos"],
            "masked_labels": np.where(labels == -100, IGNORED, labels),
        }

    length = max(x["text_ids"].shape[1], x["text_ids_2"].shape[1])
    texts = {"ids_a": _padded(x["text_ids"], length), "ids_b": _padded(x["text_ids_2"], length)}
    texts["groups"] = np.arange(len(x["text_ids"]))

    def pad(rows):
        return rows | {"masked_ids": _padded(rows["masked_ids"], length)}

    images = _pixels(recording, x["image"])
    regions = masked("region_") | {
        "ids_a": x["region_text_ids"],
        "groups": np.arange(len(x["region_text_ids"])),
        "region_tokens": x["region_image_atts"].astype(bool),
        "boxes": x["region_target_bbox"],
        "is_image": x["region_is_image"].astype(bool),
    }
    regions = {name: value[:, None] for name, value in regions.items()}  # one of each image
    whole = _pixels(recording, x["region_image"])[x["region_idx_to_group_img"]]
    captions = texts | masked("")
    if RECORDED["itc"] not in recording.outputs:  # the later code takes one caption
        del captions["ids_b"]
    kind = "strict" if "ids_b" in captions else "captioned"
    return {
        kind: pad(captions) | {"image": images},
        "parallel": pad(texts | masked("para_")),
        "region": regions | {"image": whole},
    }


@pytest.mark.parametrize("folder", folders(PRETRAINING) or [None], ids=str)
def test_all_kinds_of_rows_in_one_batch(folder):
    require_folder(folder)
    recording = read(folder)
    objective = recording.settings.objective.copy_and_resolve_references()
    for weights in objective.weights.values():
        weights.matching = 0.0
    batch = _batch(recording)

    def losses(model):
        return cclm_losses(model, batch, jax.random.key(0), objective, deterministic=True)

    apply = jax.jit(nn.apply(losses, recording.model))
    total, terms = apply({"params": recording.params})
    recorded_names = dict(RECORDED)
    if "captioned" in batch:
        assert "caption_ttc" not in terms
        recorded_names["itc"] = "forward.image.loss_itc"
        del recorded_names["caption_ttc"]
    for ours, recorded in recorded_names.items():
        np.testing.assert_allclose(
            terms[ours], recording.outputs[recorded], atol=2e-5, err_msg=ours
        )
    np.testing.assert_allclose(total, sum(terms[name] for name in recorded_names), rtol=1e-6)
