"""Rows that are timed: what is measured, and of which pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.image import decode
from rc3_jax.data.record import DataError
from rc3_jax.observe import data_bench
from rc3_jax.observe.data_bench import DataBench, write_pictures
from rc3_jax.settings import ConfigError
from tests import processes
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    found = DataBench(tiny_config(), 3)
    folder = tmp_path_factory.mktemp("pictures")
    found.use_pictures(write_pictures(folder, (80, 60), 90, 2))
    return found


def test_generated_pictures_are_jpegs_of_many_frequencies(tmp_path):
    first, second = write_pictures(tmp_path, (80, 60), 90, 2)
    with Image.open(first) as opened:
        assert opened.format == "JPEG" and opened.size == (80, 60)
    pixels = [decode(path, "here").astype(float) for path in (first, second)]
    assert np.abs(pixels[0] - pixels[1]).mean() > 20
    near, far = (np.abs(pixels[0][:, by:] - pixels[0][:, :-by]).mean() for by in (1, 20))
    assert 1 < near < far / 2


def test_stages_take_times_that_are_positive(bench):
    stages = bench.measure(2)
    assert list(stages) == ["decode", "augment", "picture", "text", "row"]
    for times in stages.values():
        assert 0 < times["least"] <= times["milliseconds"] <= times["most"]
        assert times["a_second"] == pytest.approx(1e3 / times["milliseconds"])
    assert min(bench.threads().values()) > 0


def test_rows_have_the_pictures_that_were_given(bench):
    rows = [bench.row(place) for place in range(4)]
    size = bench.config.model.patch.image_size
    assert all(row["image"].shape == (size, size, 3) for row in rows)
    assert all({"ids_a", "masked_ids", "region_features"} <= row.keys() for row in rows)
    assert not np.array_equal(rows[0]["image"], rows[1]["image"])


def test_data_without_a_row_to_time_are_refused():
    config = tiny_config()
    config.data.sources.scenes.update(strict=0, weak=0)
    with pytest.raises(DataError, match="hold no strict, weak or captioned records; add some"):
        DataBench(config, 3)
    config.data.sources.scenes.weak = 8
    assert len(DataBench(config, 3).records) == 3


def test_cores_are_what_the_rows_of_a_step_keep_busy(bench, monkeypatch):
    # A step of two seconds at half of what a v5e can do; 4 of its 16 rows have no picture.
    monkeypatch.setattr(data_bench, "device_flops", lambda run, rows: 197e12)
    stages = {"row": {"milliseconds": 300.0}, "text": {"milliseconds": 100.0}}
    assert bench.cores("v5e", stages) == pytest.approx((12 * 0.3 + 4 * 0.1) / 2)
    with pytest.raises(ConfigError, match="chip"):
        bench.cores("v1", stages)


def test_the_peer_takes_turns_with_the_same_pictures(bench):
    pytest.importorskip("torch")
    assert bench.measure(1, peer=True)["torch"]["milliseconds"] > 0
    loaded = [len(batch) for batch in bench.stages(peer=True)["torch"]()]
    assert sum(loaded) == len(bench.records)


def test_command_measures_small_and_large_pictures():
    small = ["--config.model.patch.image_size=32", "--pictures=1", "--rounds=1", "--json"]
    done = processes.launch("bench.py", "data", *small)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["pictures"][:9] for one in found] == ["500 x 375", "1600 x 12"]
    assert all(one["stages"]["row"]["milliseconds"] > 0 for one in found)
