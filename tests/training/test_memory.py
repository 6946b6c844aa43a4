"""What is said about memory: the compiled step's figures, and advice when there is too little."""

import re

import jax
import pytest

from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.training.memory import (
    OutOfMemory,
    activation_bytes,
    advice,
    describe_memory,
    explain_out_of_memory,
)
from tests.tiny import load_config
from tests.training.test_step import prepared


def test_a_compiled_function_tells_its_memory():
    shape = jax.ShapeDtypeStruct((2**15, 2**15), "float32")
    compiled = jax.jit(lambda x: x + 1).lower(shape).compile()
    assert describe_memory(compiled).startswith("memory a device: 8.00 GiB")
    assert "state and batch 4.00 GiB" in describe_memory(compiled)


def test_lack_of_memory_ends_with_what_to_change_and_to_what_effect():
    run, _, _ = prepared()
    with pytest.raises(OutOfMemory) as told, explain_out_of_memory(lambda: advice(run)):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    lines = str(told.value).splitlines()
    assert "allocating 9 bytes" in lines[0]
    for setting in ("microbatches=2", "model.remat=full", "batch_size"):
        assert any(setting in line for line in lines), setting
    assert all(re.search(r"\d\.\d\d GiB", line) for line in lines if "remat" in line)
    with pytest.raises(jax.errors.JaxRuntimeError), explain_out_of_memory(lambda: advice(run)):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_estimate_shrinks_with_parts_and_recomputation():
    config, mesh = load_config("rc3_demo"), one_device_mesh()
    config.model.update(unroll=1)
    for part in (config.model.text, config.model.patch):
        part.depth = 12
    rows = {"strict": 32, "weak": 16, "parallel": 16}
    now = activation_bytes(config, mesh, rows)
    assert activation_bytes(config, mesh, rows, microbatches=8) < now / 4
    assert activation_bytes(config, mesh, rows, remat="full") < now / 4
