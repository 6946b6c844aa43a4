"""The step in PyTorch that speeds are compared with: its losses are those of our step."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="the peer is PyTorch's")

from rc3_jax.config import validate
from rc3_jax.convert.torch_export import exported_settings
from rc3_jax.convert.torch_model.modeling_rc3 import RC3Model
from rc3_jax.convert.torch_names import exported_names
from rc3_jax.observe.step_bench import random_batch, rows_of
from rc3_jax.observe.torch_peer import TorchPeer, as_tensors, peer_losses
from rc3_jax.settings import ConfigError
from rc3_jax.systems import build_model, system_of
from rc3_jax.training.state import initial_params
from tests.tiny import tiny_cclm, tiny_config

WORDS = 120
DRAWN = ("xvtcl", "xvtcl_weak", "itm")
"""Terms with random negatives, which the two draw each for itself."""


def test_its_losses_are_those_of_our_step_where_nothing_is_drawn(tmp_path):
    config = tiny_config()
    config.objective.update(regularizer=("weighted",), ramp=0.0)
    config.data.modality_dropout = 0.25
    settings, rows = validate(config), rows_of(config)
    model = build_model(settings, WORDS, None)
    params = initial_params(model, settings)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: np.asarray(p + rng.normal(0, 0.05, p.shape), np.float32), params
    )
    tensors = exported_names(config.model).to_theirs(params)
    tensors = {name: np.array(x, order="C") for name, x in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(exported_settings(config.model, WORDS)))
    peer = RC3Model.from_pretrained(tmp_path)
    batch = random_batch(settings, rows, WORDS)
    with torch.no_grad():
        theirs = peer_losses(peer, as_tensors(batch, settings.model))
    theirs = {name: value.item() for name, value in theirs.items()}
    _, ours = jax.jit(system_of(settings).loss(model, settings, None))(params, None, 0, batch)
    for name in theirs.keys() - set(DRAWN):
        assert theirs[name] == pytest.approx(float(ours[name]), rel=2e-4), name
    for name in DRAWN:  # of one size, whatever is drawn
        assert theirs[name] == pytest.approx(float(ours[name]), rel=0.3), name


def test_it_takes_steps_that_lower_the_loss():
    config = tiny_config()
    config.optimizer.lr = 3e-3
    peer = TorchPeer(config, WORDS)
    losses = [peer.step() for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_rows_that_it_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="captioned"):
        TorchPeer(tiny_cclm(), WORDS)
    config = tiny_config()
    config.update_from_flattened_dict({"model.roi.regions": 0, "model.patch.patch_dropout": 0.5})
    with pytest.raises(ConfigError, match="set model.patch.patch_dropout=0"):
        TorchPeer(config, WORDS)
    config.model.patch.patch_dropout = 0.0
    TorchPeer(config, WORDS)
