"""Batches that are kept on disk are those that would be made."""

import grain
import numpy as np
import pytest

from rc3_jax.config import RC3Settings
from rc3_jax.data import batch_cache
from rc3_jax.data.batch_cache import keep_batches, rows_checksum
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.tokenizer import train_tokenizer
from rc3_jax.scenes.source import ScenesSource
from rc3_jax.settings import change_setting

TOKENIZER = train_tokenizer(["a red circle", "a blue star"] * 20, 40, 12)


def checksum(process=0, processes=1, tokenizer=TOKENIZER, **changes):
    config = RC3Settings().config_dict()
    for name, value in changes.items():
        change_setting(config, name.replace("__", "."), value, RC3Settings, "here")
    return rows_checksum(RC3Settings.parse(config), tokenizer, process, processes)


def counted(made, skips, broken=()):
    def make(step):
        made.append(step)
        if step in broken:
            skips.add(BadRecord(f"row {step}", "broken"))
        rows = np.arange(6, dtype=np.int32).reshape(2, 3) * step
        return {"weak": {"ids_a": rows, "use_patches": np.array([True, False])}}

    return grain.MapDataset.range(4).map(make)


def test_each_batch_is_made_once_and_read_as_it_was_made(tmp_path):
    made, skips = [], Skips()
    batches = counted(made, skips)
    plain = [batches[step] for step in range(4)]
    made.clear()
    for _ in range(2):
        kept = keep_batches(batches, tmp_path / "of", skips)
        for step in (2, 0, 1, 3):
            for name, field in plain[step]["weak"].items():
                np.testing.assert_array_equal(kept[step]["weak"][name], field)
                assert kept[step]["weak"][name].dtype == field.dtype
    assert sorted(made) == [0, 1, 2, 3]
    assert sorted(file.name for file in (tmp_path / "of").iterdir()) == [
        f"{n}.npz" for n in range(4)
    ]


def test_a_batch_that_lacks_a_record_is_made_by_every_run_so_that_each_counts_it(tmp_path):
    for _ in range(2):
        made, skips = [], Skips()
        kept = keep_batches(counted(made, skips, broken=(1,)), tmp_path, skips)
        for step in range(4):
            kept[step]
        assert list(skips.reasons) == ["row 1"]
    assert made == [1]


def test_a_record_that_was_bad_before_counts_again(tmp_path):
    skips = Skips()
    skips.add(BadRecord("row 1", "broken"))  # met in another batch
    keep_batches(counted([], skips, broken=(1,)), tmp_path, skips)[1]
    assert not list(tmp_path.glob("1.npz"))


def test_a_torn_file_is_made_anew_and_a_full_disk_is_told(tmp_path, monkeypatch):
    made, skips = [], Skips()
    kept = keep_batches(counted(made, skips), tmp_path, skips)
    expected = kept[2]["weak"]["ids_a"]
    file = tmp_path / "2.npz"
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(kept[2]["weak"]["ids_a"], expected)
    np.testing.assert_array_equal(kept[2]["weak"]["ids_a"], expected)
    assert made == [2, 2]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="data.batch_cache: .*3.npz.*No space left"):
        kept[3]


@pytest.mark.parametrize(
    "name", ["seed", "batch_size", "batch_mix__weak", "data__max_length", "model__roi__regions"]
)
def test_other_rows_have_another_checksum(name):
    assert checksum(**{name: 32}) not in (
        checksum(),
        checksum(**{name: 64 if "mix" in name else 33}),
    )


def test_the_source_and_the_code_count_too(monkeypatch):
    scenes = dict(data__sources=dict(scenes=ScenesSource(weak=9).config_dict()))
    others = dict(data__sources=dict(scenes=ScenesSource(weak=9, seed=1).config_dict()))
    own, true = (checksum(objective__relevance=name, **scenes) for name in ("own", "true"))
    assert len({checksum(), own, true, checksum(**others)}) == 4
    assert checksum(objective__relevance="ema", **scenes) == own
    monkeypatch.setattr(batch_cache, "_code_checksum", lambda: "of another version")
    assert checksum(**scenes) != own


def test_what_no_row_depends_on_changes_no_checksum():
    others = dict(
        data__threads=3, data__batch_cache="x", optimizer__lr=1.0, objective__ramp=0.5, steps=7
    )
    assert checksum(**others) == checksum()
    assert checksum(1, 2) != checksum(0, 2) != checksum()
    other = train_tokenizer(["a green cross"] * 20, 40, 12)
    assert checksum(tokenizer=other) != checksum()
