"""Memory of a step: the compiled one's figures, and advice where there is too little."""

import re

import jax
import pytest

from rc3_jax.training.aot import abstract_run, activation_bytes, compile_ahead
from rc3_jax.training.memory import OutOfMemory, describe_memory, explain_out_of_memory
from tests.tiny import tiny_cclm, tiny_config

ROWS = {"strict": 8, "weak": 4, "parallel": 4}
FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


def run_of(config, rows):
    return abstract_run(config, jax.devices()[:1], rows, 300)


def test_the_memory_of_a_compiled_function():
    shape = jax.ShapeDtypeStruct((2**15, 2**15), "float32")
    compiled = jax.jit(lambda x: x + 1).lower(shape).compile()
    assert describe_memory(compiled).startswith("memory a device: 8.00 GiB")
    assert "state and batch 4.00 GiB" in describe_memory(compiled)


def test_other_errors_stay_as_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError), explain_out_of_memory(list):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "rows", "left_out"),
    [
        (tiny_config, ROWS, ("xtcl", "xvtcl", "xvtcl_weak", "itm")),
        pytest.param(
            tiny_cclm,
            {"captioned": 8, "parallel": 4, "region": 4},
            ("image.matching", "text.matching", "region.matching", "region.box", "region.giou"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_that_does_not_fit_ends_with_advice_that_helps(config, rows, left_out, monkeypatch):
    config = config()
    config.model.text.depth = 6
    for term in left_out:  # a small step serves as well
        config.update_from_flattened_dict({f"objective.weights.{term}": 0.0})
    run = run_of(config, rows)

    def compile(lowered):
        raise FULL

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    with pytest.raises(OutOfMemory) as raised:
        compile_ahead(run, rows)
    first, *lines = str(raised.value).splitlines()
    assert "allocating 9 bytes" in first and any("--config.batch_size" in line for line in lines)
    now, advised = activation_bytes(run, rows), set()
    for line in lines:
        for name, value in re.findall(r"--config\.(microbatches|model\.remat)=(\w+)", line):
            changes = {name: int(value) if value.isdigit() else value}
            assert activation_bytes(run, rows, changes) < 0.8 * now, line
            advised.add(value)
    assert advised == {"2", "dots", "full"}
