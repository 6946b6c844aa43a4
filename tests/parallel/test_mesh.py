"""Meshes, sharding rules and batches spread over devices."""

import json
import re

import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rc3_jax.config import default_config
from rc3_jax.parallel.mesh import check_batch, make_mesh, one_device_mesh
from rc3_jax.parallel.rules import matches, partition
from rc3_jax.settings import ConfigError
from tests.processes import run_python


def mesh_config(**axes):
    config = default_config().mesh
    config.update(axes)
    return config


def partition_of(name, shape, rules=(), **axes):
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    return partition(name, shape, mesh_config(rules=rules), mesh)


def test_the_largest_divisible_dimension_of_large_arrays_is_sharded():
    def spec(shape, fsdp=8):
        return partition_of("x", shape, fsdp=fsdp)

    assert spec((250_002, 768)) == PartitionSpec(None, "fsdp")  # 250,002 is odd by 8
    assert spec((12, 768, 3072)) == PartitionSpec(None, None, "fsdp")
    assert spec((1_048_577,)) == PartitionSpec()  # nothing divides it
    assert spec((768,)) == PartitionSpec()  # below the threshold
    assert spec((4096, 4096), fsdp=1) == PartitionSpec()
    assert spec(()) == PartitionSpec()


def test_the_first_rule_that_matches_places_the_last_dimensions():
    rules = ((r"out/kernel", ("tensor", None)), (r".*kernel", ("tensor",)))

    def spec(name, shape):
        return partition_of(name, shape, rules, data=2, fsdp=4, tensor=2)

    assert spec("mu/text/out/kernel", (12, 768, 3072)) == PartitionSpec(None, "tensor", "fsdp")
    assert spec("in/kernel", (12, 768, 3072)) == PartitionSpec(None, "fsdp", "tensor")
    assert spec("in/kernel", (4, 6)) == PartitionSpec(None, "tensor")  # small: whole along fsdp
    assert spec("in/kernel", (4, 7)) == PartitionSpec()  # 2 does not divide 7
    assert spec("bias", (4, 6)) == PartitionSpec()
    with pytest.raises(ConfigError, match="mesh.rules: 'a' gives a") as refused:
        partition_of("a", (4, 4), (("a", ("model",)),), fsdp=1)
    for axis in re.search("use axes of (.*), at most", str(refused.value))[1].split(", "):
        partition_of("a", (4, 4), (("a", (axis,)),), fsdp=1)


def test_patterns_match_whole_names():
    assert matches(["text/.*"], "text/word_embedding/embedding")
    assert not matches(["text"], "text/word_embedding/embedding")
    assert not matches([], "text")


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    for axes in (dict(data=3), dict(fsdp=7), dict(tensor=0), dict(data=0), dict(replica=2)):
        with pytest.raises(ConfigError, match="set mesh.data=-1"):
            make_mesh(mesh_config(**axes))


def test_eight_devices_share_parameters_and_rows():
    code = """
import json, jax, numpy as np
from rc3_jax.settings import ConfigError
from rc3_jax.parallel.mesh import check_batch, make_mesh, to_global
from rc3_jax.parallel.rules import shardings
from tests.parallel.test_mesh import mesh_config
refused = []
try:
    make_mesh(mesh_config(data=4, fsdp=3))
except ConfigError as error:
    refused.append(str(error))
mesh = make_mesh(mesh_config(data=-1, fsdp=4))
try:
    check_batch({"strict": 16, "weak": 12}, mesh)
except ConfigError as error:
    refused.append(str(error))
check_batch({"strict": 16, "weak": 8}, mesh)
rows = to_global({"x": np.arange(16)}, mesh)["x"]
spec = shardings(jax.ShapeDtypeStruct((2048, 1024), "float32"), mesh, mesh_config()).spec
print(json.dumps({
    "shape": dict(mesh.shape), "refused": refused, "spec": list(spec),
    "rows": [s.data.tolist() for s in sorted(rows.addressable_shards, key=lambda s: s.index[0].start)],
}))
"""
    found = json.loads(run_python(code, 8).splitlines()[-1])
    assert found["shape"] == {"replica": 1, "data": 2, "fsdp": 4, "tensor": 1}
    of_mesh, of_rows = found["refused"]
    assert "set mesh.data=-1 and the others so that their product divides" in of_mesh
    assert "weak must be a multiple of 8; change batch_size, batch_mix" in of_rows
    assert "strict," not in of_rows
    assert found["spec"] == ["fsdp"]
    assert found["rows"] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_a_batch_that_divides_evenly_is_accepted():
    mesh = one_device_mesh()
    check_batch({"strict": 3, "parallel": 1}, mesh)
    with pytest.raises(ConfigError, match="microbatches=2 cannot share evenly: strict must be"):
        check_batch({"strict": 3, "parallel": 2}, mesh, microbatches=2)
    check_batch({"strict": 4, "parallel": 2}, mesh, microbatches=2)
    check_batch({"strict": 3, "parallel": 2}, mesh, microbatches=1)
