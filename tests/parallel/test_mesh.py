"""Meshes, sharding rules and batches spread over devices."""

import json

import pytest
from jax.sharding import PartitionSpec

from rc3_jax.parallel.mesh import check_batch, make_mesh
from rc3_jax.parallel.rules import fsdp_spec, matches
from tests.processes import run_python


def test_the_largest_divisible_dimension_of_large_arrays_is_sharded():
    assert fsdp_spec((250_002, 768), 4, 8) == PartitionSpec(None, "fsdp")  # 250,002 is odd by 8
    assert fsdp_spec((12, 768, 3072), 4, 8) == PartitionSpec(None, None, "fsdp")
    assert fsdp_spec((1_048_577,), 4, 8) == PartitionSpec()  # nothing divides it
    assert fsdp_spec((768,), 4, 8) == PartitionSpec()  # below the threshold
    assert fsdp_spec((4096, 4096), 4, 1) == PartitionSpec()
    assert fsdp_spec((), 4, 8) == PartitionSpec()


def test_patterns_match_whole_names():
    assert matches(["text/.*"], "text/word_embedding/embedding")
    assert not matches(["text"], "text/word_embedding/embedding")
    assert not matches([], "text")


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    for data, fsdp in ((3, 1), (-1, 7), (-1, 0), (0, 1)):
        with pytest.raises(ValueError, match="set mesh.data=-1"):
            make_mesh(data, fsdp)


def test_eight_devices_share_parameters_and_rows():
    code = """
import json, jax, numpy as np
from rc3_jax.parallel.mesh import check_batch, make_mesh, to_global
from rc3_jax.parallel.rules import shardings
mesh = make_mesh(-1, 4)
refused = ""
try:
    check_batch({"strict": 16, "weak": 12}, mesh)
except ValueError as error:
    refused = str(error)
rows = to_global({"x": np.arange(16)}, mesh)["x"]
spec = shardings(jax.ShapeDtypeStruct((2048, 1024), "float32"), mesh).spec
print(json.dumps({
    "shape": dict(mesh.shape), "refused": refused, "spec": list(spec),
    "rows": [s.data.tolist() for s in sorted(rows.addressable_shards, key=lambda s: s.index[0].start)],
}))
"""
    found = json.loads(run_python(code, 8).splitlines()[-1])
    assert found["shape"] == {"data": 2, "fsdp": 4}
    assert "weak must be a multiple of 8; change batch_size or shares" in found["refused"]
    assert "strict," not in found["refused"]
    assert found["spec"] == ["fsdp"]
    assert found["rows"] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_a_batch_that_divides_evenly_is_accepted():
    check_batch({"strict": 3, "parallel": 1}, make_mesh())
