"""The published downstream models' outputs, reproduced from their weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.convert.cclm_tasks import TASKS
from tests.parity.downstream import METRICS, computed, load_own, load_stored, task_params
from tests.parity.downstream_names import to_published
from tests.parity.recordings import DOWNSTREAM, folders, output_names, read, require_folder

BUFFERS = ("position_ids", "relative_position_index", "attn_mask")
STATES = ("last_hidden", "question_states")


def tolerance(name: str, expected: np.ndarray) -> float:
    """The absolute difference that rounding may make."""
    if ".gradnorm." in name:
        return 1e-4 * np.abs(expected).max()
    if ".metrics_" in name:
        return 1e-4  # percent
    if ".topk_ids" in name:
        return 0.0
    return 2e-5 if name.endswith(STATES) else 1e-5


@pytest.mark.parametrize("folder, name", output_names(DOWNSTREAM))
def test_a_recorded_output_is_reproduced(folder, name):
    require_folder(folder)
    recording = read(folder)
    expected, ours = recording.outputs[name], computed(folder)[name]
    assert ours.shape == expected.shape
    if name.endswith("per_param"):
        # -1 marks a parameter that the loss does not reach.
        assert np.all(ours[expected < 0] == 0)
        expected = np.maximum(expected, 0)
    if name.endswith("metrics_reranked"):
        # Their order of items that were not scored is one of many; ours counts them as wrong.
        first = [METRICS[key].endswith("@1") for key in recording.config["metric_keys"]]
        assert np.all(ours[np.invert(first)] <= expected[np.invert(first)] + 1e-4)
        ours, expected = ours[first], expected[first]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance(name, expected))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("folder", folders(DOWNSTREAM) or [None], ids=str)
def test_published_names_of_a_task_round_trip(folder, task):
    require_folder(folder)
    recording = read(folder)
    stored = load_stored(folder, task)
    published = to_published(task_params(folder, task, True), recording.settings.model, task)
    ties = {"two_images": "nlvr_tied", "answers": "vqa_tied"}.get(task)
    ties = recording.config.get(ties, {})
    for name, tensor in published.items():
        if not name.endswith(BUFFERS):
            np.testing.assert_array_equal(tensor, stored[ties.get(name, name)], name)
    expected = {name.replace(".bert.", ".") for name in recording.config["buffers_not_stored"]}
    expected |= {*load_own(folder, task), *ties}
    if task == "retrieval":
        expected |= set(recording.config["retrieval_param_order"])
    assert expected <= set(published)
