from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.evaluation.evaluate import Evaluator
from rc3_jax.training.loop import train
from rc3_jax.training.run import load_run
from tests.tiny import tiny_config


def test_a_run_from_its_folder_scores_as_when_it_ended(tmp_path):
    config = tiny_config()
    config.objective.weights = {name: float(name == "itc") for name in config.objective.weights}
    scores = train(config, tmp_path, console=Console(quiet=True))

    run, params = load_run(tmp_path)
    assert run.config.to_dict() == FrozenConfigDict(config).to_dict()
    assert Evaluator(run).scores(params) == scores

    config.evaluation.images = 3
    other, same_params = load_run(tmp_path, config)
    assert len(other.corpus.heldout) == 3
    jax.tree.map(np.testing.assert_array_equal, params, same_params)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        load_run(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="holds no checkpoint yet"):
        load_run(tmp_path, tiny_config())
