"""What is read from compiled programs, against what was written by hand."""

import json

import numpy as np
import pytest

from rc3_jax.observe.collectives import Collective, collectives, combined, device_groups
from rc3_jax.observe.costs import matrix_flops, traffic
from rc3_jax.observe.hlo import parse, shapes
from rc3_jax.observe.pairs import Pairs, pair_buffers
from rc3_jax.observe.runs import buffers
from tests.processes import run_python

COMPILED = """
import functools, json
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
row = P(("data", "fsdp"))

def text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()

def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, row))

def on_mesh(function):
    return jax.shard_map(function, mesh=mesh, in_specs=row, out_specs=row, check_vma=False)

def loops(x):  # x: [16, 8] on a device
    def inner(c, _):
        return jnp.tanh(lax.psum(c, "data")), None
    def outer(c, _):
        c, _ = lax.scan(inner, c, None, length=3)
        everything = lax.all_gather(jnp.sin(c), "fsdp", tiled=True)
        c += lax.psum_scatter(jnp.cos(everything), "fsdp", tiled=True)
        return lax.ppermute(c, "data", [(0, 1), (1, 0)]), None
    c, _ = lax.scan(outer, x, None, length=5)
    return c + lax.all_to_all(c, ("data", "fsdp"), 0, 0, tiled=True)

def search(x):
    def step(c):
        return jnp.tanh(lax.psum(c, ("data", "fsdp")))
    return lax.while_loop(lambda c: c[0, 0] < 0.5, step, x)

def layers(x, weights):  # [8, 64, 32] a device, 7 x [32, 32]
    def layer(x, w):
        return jnp.tanh(x @ w), None
    return lax.scan(layer, x, weights)[0]

def attention(q, k):
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)

def all_pairs(x, y):
    return jnp.tanh(x @ y.T).sum(1)

def tiles(x, y):
    def tile(x, y):
        y = lax.all_gather(y, ("data", "fsdp"), tiled=True).reshape(8, 32, -1)
        return lax.scan(lambda s, part: (s + jnp.tanh(x @ part.T).sum(1), None),
                        jnp.zeros(len(x)), y)[0]
    return jax.shard_map(
        tile, mesh=mesh, in_specs=(row, row), out_specs=row, check_vma=False)(x, y)

weights = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
print(json.dumps({
    "loops": text(on_mesh(loops), array(128, 8)),
    "search": text(on_mesh(search), array(128, 8)),
    "layers": text(layers, array(64, 64, 32), weights),
    "attention": text(attention, array(16, 10, 4, 32), array(16, 20, 4, 32)),
    "elementwise": text(jnp.tanh, array(800, 100)),
    "all pairs": text(all_pairs, array(256, 24), array(256, 24)),
    "tiles": text(tiles, array(256, 24), array(256, 24)),
}))
"""
MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def programs():
    texts = json.loads(run_python(COMPILED, devices=8).splitlines()[-1])
    return {name: parse(text) for name, text in texts.items()}


def test_collectives_count_as_often_as_their_loops_run(programs):
    found = {one.kind: one for one in combined(collectives(programs["loops"], MESH))}
    row = 16 * 8 * 4  # bytes of a device's array
    assert found == {
        "all-reduce": Collective("all-reduce", 2, ("data",), 15, True, 15 * row, 15 * row),
        "all-gather": Collective(
            "all-gather", 4, ("fsdp",), 5, True, 5 * 4 * row, 5 * 4 * row * 3 / 4
        ),
        "reduce-scatter": Collective(
            "reduce-scatter", 4, ("fsdp",), 5, True, 5 * 4 * row, 5 * 4 * row * 3 / 4
        ),
        "collective-permute": Collective(
            "collective-permute", 2, ("data",), 5, True, 5 * row, 5.0 * row
        ),
        "all-to-all": Collective("all-to-all", 8, ("data", "fsdp"), 1, True, row, row * 7 / 8),
    }


def test_a_loop_of_unknown_length_is_said_to_be_one(programs):
    (one,) = collectives(programs["search"], MESH)
    assert (one.kind, one.axes, one.times, one.known) == ("all-reduce", tuple(MESH), 1, False)


def test_matrix_products_count_in_every_iteration(programs):
    assert matrix_flops(programs["layers"]) == 7 * 2 * (8 * 64) * 32 * 32
    assert matrix_flops(programs["attention"]) == 2 * 2 * 4 * 10 * 20 * 32


def test_traffic_of_an_elementwise_function_is_its_argument_and_result(programs):
    assert traffic(programs["elementwise"]) == 2 * 100 * 100 * 4


def test_a_scan_reads_only_the_layer_in_hand(programs):
    state, layer = 8 * 64 * 32 * 4, 32 * 32 * 4
    # At least: reads state and layer, writes the state. Copies and separate tanh may come on top.
    assert 7 * (2 * state + layer) <= traffic(programs["layers"]) < 7 * (7 * state + 4 * layer)


def test_arrays_of_all_pairs_are_found(programs):
    looked_for = [Pairs("rows x rows", frozenset({(32, 256), (256, 256), (8, 32, 32)}))]
    found = pair_buffers(buffers(programs["all pairs"]), looked_for, [])
    assert {buffer.shape.dims for buffer, _ in found} == {(32, 256)}
    assert {what for _, what in found} == {"rows x rows"}
    assert pair_buffers(buffers(programs["all pairs"]), looked_for, [(256, 1, 32)]) == []
    assert pair_buffers(buffers(programs["tiles"]), looked_for, []) == []


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x=1", None),
        ("source_target_pairs={{0,1},{1,0}}, x=1", [[0, 1], [1, 0]]),
        ("replica_groups={}, x=1", [[0, 1, 2, 3]]),
        ("replica_groups={{0,1},{2}}, x=1", None),
    ],
)
def test_groups_of_devices(attributes, groups):
    found = device_groups(attributes, 4)
    assert found is None if groups is None else np.array_equal(found, groups)


def test_a_layouts_tiles_pad_an_array():
    (padded, other) = shapes("(bf16[24,40,12]{2,1,0:T(8,128)(2,1)S(1)}, f32[3,50]{0,1:T(8,128)})")
    assert (padded.bytes, padded.stored, padded.on_chip) == (24 * 40 * 12 * 2, 24 * 40 * 128 * 2, 1)
    assert (other.bytes, other.stored, other.on_chip) == (600, 8 * 128 * 4 * 7, 0)


TPU_TEXT = """HloModule step, is_scheduled=true

%fused (p0: bf16[12,40,64], p1: bf16[12,50,64]) -> bf16[12,40,50] {
  %p0 = bf16[12,40,64]{2,1,0:T(8,128)} parameter(0)
  %p1 = bf16[12,50,64]{2,1,0:T(8,128)} parameter(1)
  ROOT %product = bf16[12,40,50]{2,1,0:T(8,128)} convolution(%p0, %p1), window={size=12 stride=11 pad=0_0 lhs_dilate=12}, dim_labels=0bf_0oi->0bf
}

%async (q: f32[256]) -> f32[1024] {
  %q = f32[256]{0:T(256)} parameter(0)
  ROOT %gathered = f32[1024]{0:T(1024)} all-gather(%q), replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter (r: f32[64]) -> f32[16] {
  %r = f32[64]{0:T(256)} parameter(0)
  %summed = f32[64]{0:T(256)} all-reduce(%r), replica_groups=[2,4]<=[8], to_apply=%add
  %zero = u32[] constant(0)
  ROOT %share = f32[16]{0:T(256)} dynamic-slice(%summed, %zero), dynamic_slice_sizes={16}
}

%async_collective_fusion (s: f32[256], t: f32[64]) -> (f32[64], f32[1024]) {
  %s = f32[256]{0:T(256)} parameter(0)
  %t = f32[64]{0:T(256)} parameter(1)
  %doubled = f32[64]{0:T(256)} add(%t, %t)
  %again = f32[1024]{0:T(1024)} all-gather(%s), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %both = (f32[64]{0:T(256)}, f32[1024]{0:T(1024)}) tuple(%doubled, %again)
}

%below (n: (s32[], f32[64])) -> pred[] {
  %n = (s32[], f32[64]{0:T(256)}) parameter(0)
  %i = s32[] get-tuple-element(%n), index=0
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%body (m: (s32[], f32[64])) -> (s32[], f32[64]) {
  %m = (s32[], f32[64]{0:T(256)}) parameter(0)
  %j = s32[] get-tuple-element(%m), index=0
  %kept = s32[]{:T(128)} copy(%j)
  %one = s32[] constant(1)
  %next = s32[] add(%kept, %one)
  %u = f32[64]{0:T(256)} get-tuple-element(%m), index=1
  %part = f32[16]{0:T(256)} fusion(%u), kind=kCustom, calls=%all-reduce-scatter
  %spread = f32[64]{0:T(256)} broadcast(%part), dimensions={}
  ROOT %out = (s32[], f32[64]{0:T(256)}) tuple(%next, %spread)
}

ENTRY %main (a: bf16[12,40,64], b: bf16[12,50,64], c: f32[256]) -> f32[1024] {
  %a = bf16[12,40,64]{2,1,0:T(8,128)} parameter(0)
  %b = bf16[12,50,64]{2,1,0:T(8,128)} parameter(1)
  %c = f32[256]{0:T(256)} parameter(2)
  %start = ((f32[256]{0:T(256)}), f32[1024]{0:T(1024)}, u32[]) async-start(%c), calls=%async
  %scores = bf16[12,40,50]{2,1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  %from = s32[] constant(1)
  %d = f32[64]{0:T(256)} slice(%c), slice={[0:64]}
  %first = (s32[], f32[64]{0:T(256)}) tuple(%from, %d)
  %loop = (s32[], f32[64]{0:T(256)}) while(%first), condition=%below, body=%body
  %e = f32[64]{0:T(256)} get-tuple-element(%loop), index=1
  %along = (f32[64]{0:T(256)}, f32[1024]{0:T(1024)}) fusion(%c, %e), kind=kLoop, calls=%async_collective_fusion
  ROOT %done = f32[1024]{0:T(1024)} async-done(%start), calls=%async
}
"""


def test_what_tpu_programs_write_otherwise():
    program = parse(TPU_TEXT)
    # A batched product is a convolution whose batch is a dilated axis.
    assert matrix_flops(program) == 2 * 12 * 40 * 50 * 64
    # A collective that runs along other fusions is repeated in each, and counts once; loops tell
    # their length by their condition (from 1 below 7); a reduce-scatter is a fusion.
    found = {one.kind: one for one in collectives(program, MESH)}
    assert found == {
        "all-gather": Collective("all-gather", 4, ("fsdp",), 1, True, 4096, 4096 * 3 / 4),
        "reduce-scatter": Collective(
            "reduce-scatter", 4, ("fsdp",), 6, True, 6 * 256, 6 * 256 * 3 / 4
        ),
    }


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing")
