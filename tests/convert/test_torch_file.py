"""Files and folders of tensors: what is read, what is refused, and that no code in them runs."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import re
import struct
import sys
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.torch_file import (
    TensorFileError,
    check_suffix,
    read_folder,
    read_tensors,
    stored_bytes,
    write_tensors,
)
from tests.vision_reference import require

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSORS = {
    "temp": np.array(0.07, np.float32),
    "weight": WEIGHT,
    "tied": WEIGHT,
    "index": np.arange(4)[None],
}
ONES = np.ones(2, np.float32)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def torch():
    return require("torch")


class Touch:
    """Unpickled with trust, it writes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)


@pytest.mark.parametrize("suffix", [".th", ".pth", ".pt", ".bin", ".safetensors"])
def test_what_is_written_is_read(tmp_path, suffix):
    if suffix != ".safetensors":
        require("torch")
    path = tmp_path / f"model{suffix}"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)


def test_tied_tensors_are_one_in_torch_files_and_two_in_safetensors(tmp_path, torch):
    path, other = tmp_path / "model.th", tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    write_tensors(other, TENSORS)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "config"} and content["config"] == {}
    state = content["model"]
    assert state["tied"].data_ptr() == state["weight"].data_ptr()
    assert stored_bytes(other, TENSORS) - stored_bytes(path, TENSORS) == WEIGHT.nbytes
    assert_equal(load_file(other), TENSORS)


def test_layouts_of_torch_files(tmp_path, torch):
    state = {name: torch.from_numpy(x.copy()) for name, x in TENSORS.items()}
    parallel = OrderedDict((f"module.{name}", x) for name, x in state.items())
    contents = [
        state,
        {"model": state, "config": {"images": ["a", "b"], "lr": 1e-4}},
        {"model": parallel, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        {"model": {name: torch.nn.Parameter(x, False) for name, x in state.items()}},
    ]
    for number, content in enumerate(contents):
        for zipped in (True, False):
            path = tmp_path / f"{number}{zipped}.th"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            assert_equal(read_tensors(path), TENSORS)


def test_only_a_prefix_of_all_names_is_removed(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"module.a": WEIGHT, "b": WEIGHT})
    assert read_tensors(path).keys() == {"module.a", "b"}


def test_types_of_numbers(tmp_path, torch):
    path = tmp_path / "model.safetensors"
    given = {"a": ONES.astype(ml_dtypes.bfloat16), "b": ONES.astype(np.float16), "c": np.arange(3)}
    save_file(given | {"d": np.array(3.0), "e": np.ones((0, 2), bool)}, path)
    found = read_tensors(path)
    types = {name: str(x.dtype) for name, x in found.items()}
    assert types == dict(a="float32", b="float16", c="int64", d="float64", e="bool")
    assert found["d"].shape == () and found["e"].shape == (0, 2)
    save_file({"a": ONES.astype(ml_dtypes.float8_e4m3fn)}, path)
    with pytest.raises(TensorFileError, match=str(path)):
        read_tensors(path)
    torch.save({"a": torch.ones(3, dtype=torch.bfloat16).mul_(0.1)}, tmp_path / "a.th")
    (array,) = read_tensors(tmp_path / "a.th").values()
    assert array.dtype == np.float32 and np.all(array == np.float32(0.10009765625))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["config", "model"])
def test_code_is_refused_and_does_not_run(tmp_path, torch, place, zipped):
    path, proof = tmp_path / "model.th", tmp_path / "ran"
    content = {"model": {"a": torch.zeros(2)}, "config": {}}
    content[place] = {"a": Touch(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TensorFileError, match=r"model.th.*system; ask for .* tensors alone"):
        read_tensors(path)
    assert not proof.exists()
    content[place] = {"a": torch.zeros(2)}
    torch.save(content, tmp_path / "tensors.th")  # alone, as the message advises
    assert read_tensors(tmp_path / "tensors.th").keys() == {"a"}
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file is as dangerous as it is meant to be


def test_a_plain_pickle_is_refused_and_does_not_run(tmp_path, torch):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.th"
        path.write_bytes(pickle.dumps({"model": Touch(tmp_path / "ran")}, protocol))
        with pytest.raises(TensorFileError, match=path.name):
            read_tensors(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, suffix):
    if suffix == ".th":
        require("torch")
    whole = tmp_path / f"whole{suffix}"
    write_tensors(whole, TENSORS)
    content = whole.read_bytes()
    noise = np.random.default_rng(0)
    damaged = [content[:cut] for cut in range(0, len(content), len(content) // 20)]
    damaged += [noise.bytes(size) for size in (1, 10, 1000, 5000)]
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    twice = f"{{{entry % (0, 4)},{entry % (4, 8)}}}".encode()
    damaged.append(struct.pack("<Q", len(twice)) + twice + bytes(8))
    for number, data in enumerate(damaged):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        with pytest.raises(TensorFileError) as error:
            read_tensors(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_tensor_is_listed(tmp_path, torch):
    entries = {
        "number": 3,
        "sparse": torch.eye(2).to_sparse(),
        "repeated": torch.zeros(1).expand(10**9),
        4: torch.zeros(1),
    }
    torch.save({"model": {"a": torch.zeros(2), **entries}}, tmp_path / "a.th")
    with pytest.raises(TensorFileError) as error:
        read_tensors(tmp_path / "a.th")
    assert all(repr(name) in str(error.value) for name in entries)
    for content in ([torch.zeros(2)], torch.zeros(2), {"model": 3}, {}):
        torch.save(content, tmp_path / "b.th")
        with pytest.raises(TensorFileError, match=r"b\.th holds no"):
            read_tensors(tmp_path / "b.th")


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"")
    for path in (tmp_path / "model.ckpt", tmp_path, tmp_path / "model.th"):
        with pytest.raises(TensorFileError, match=str(path)) as refused:
            read_tensors(path)
    assert str(refused.value).endswith("name the file of the checkpoint")
    write_tensors(tmp_path / "model.safetensors", TENSORS)
    assert_equal(read_tensors(tmp_path / "model.safetensors"), TENSORS)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.th").write_bytes(b"")
    for call in (read_tensors, check_suffix):
        with pytest.raises(TensorFileError, match="the extra `torch`"):
            call(tmp_path / "model.th")
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)


def write_shards(folder: pathlib.Path, weight_map: object = None) -> pathlib.Path:
    save_file({"a": ONES}, folder / "one.safetensors")
    save_file({"b": 2 * ONES}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return folder


def test_shards_are_one(tmp_path):
    assert_equal(read_folder(write_shards(tmp_path)), {"a": ONES, "b": 2 * ONES})
    save_file({"a": ONES}, tmp_path / "two.safetensors")
    with pytest.raises(TensorFileError, match="two.safetensors: a "):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({}, INDEX),
        ([1], INDEX),
        ({"a": "three.safetensors"}, "three.safetensors"),
        ({"a": "../one.safetensors"}, "../one.safetensors"),
        ({"a": "/etc/one.safetensors"}, "/etc/one.safetensors"),
        ({"a": "..\\one.safetensors"}, r"\\one.safetensors"),
        ({"a": "one.bin"}, "one.bin"),
        ({"a": 3}, "3"),
    ],
)
def test_a_broken_index_is_refused(tmp_path, weight_map, named):
    wanted = f"{INDEX}.*{named}" if named != INDEX else INDEX
    with pytest.raises(TensorFileError, match=wanted) as refused:
        read_folder(write_shards(tmp_path, weight_map))
    if missing := re.search(r"names (\S+), which is missing; download it", str(refused.value)):
        save_file({"a": ONES}, tmp_path / missing[1])
        assert_equal(read_folder(tmp_path), {"a": ONES})


def test_broken_and_missing_files_of_a_folder_are_refused(tmp_path):
    with pytest.raises(TensorFileError, match="neither model.safetensors nor"):
        read_folder(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(TensorFileError, match=f"{INDEX}: not usable JSON"):
        read_folder(tmp_path)


def test_pickled_folders_need_permission(tmp_path):
    require("torch")
    write_tensors(tmp_path / "pytorch_model.bin", {"a": ONES})
    with pytest.raises(TensorFileError, match="pytorch_model.bin.*--allow_pickle"):
        read_folder(tmp_path)
    assert_equal(read_folder(tmp_path, allow_pickle=True), {"a": ONES})
    save_file({"a": 3 * ONES}, tmp_path / "model.safetensors")
    assert_equal(read_folder(tmp_path, allow_pickle=True), {"a": 3 * ONES})
