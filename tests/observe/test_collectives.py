"""Collectives read from compiled programs, against what was written by hand."""

import json

import pytest

from rc3_jax.observe.collectives import Collective, collectives
from tests.processes import run_python


@pytest.fixture(scope="module")
def programs():
    """Name to text of the programs of `collective_programs`, compiled for eight devices."""
    code = "from tests.observe import collective_programs; collective_programs.main()"
    return json.loads(run_python(code, devices=8).splitlines()[-1])


def test_collectives_count_as_often_as_their_loops_run(programs):
    row = 16 * 8 * 4  # bytes of a device's array
    assert {one.kind: one for one in collectives(programs["loops"], 8)} == {
        "all-reduce": Collective("all-reduce", 2, 15, True, 15 * row, 15 * row),
        "all-gather": Collective("all-gather", 4, 5, True, 5 * 4 * row, 5 * 4 * row * 3 / 4),
        "reduce-scatter": Collective(
            "reduce-scatter", 4, 5, True, 5 * 4 * row, 5 * 4 * row * 3 / 4
        ),
        "collective-permute": Collective("collective-permute", 2, 5, True, 5 * row, 5 * row),
        "all-to-all": Collective("all-to-all", 8, 1, True, row, row * 7 / 8),
    }


def test_a_loop_of_unknown_length_counts_once(programs):
    (one,) = collectives(programs["search"], 8)
    assert (one.kind, one.group, one.times, one.known) == ("all-reduce", 8, 1, False)


TPU_TEXT = """HloModule step, is_scheduled=true

%async (q: f32[256]) -> f32[1024] {
  %q = f32[256]{0:T(256)} parameter(0)
  ROOT %gathered = f32[1024]{0:T(1024)} all-gather(%q), replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter (r: f32[64]) -> f32[16] {
  %r = f32[64]{0:T(256)} parameter(0)
  %summed = f32[64]{0:T(256)} all-reduce(%r), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
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
  %end = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%body (m: (s32[], f32[64])) -> (s32[], f32[64]) {
  %m = (s32[], f32[64]{0:T(256)}) parameter(0)
  %next = s32[] get-tuple-element(%m), index=0
  %u = f32[64]{0:T(256)} get-tuple-element(%m), index=1
  %part = f32[16]{0:T(256)} fusion(%u), kind=kCustom, calls=%all-reduce-scatter
  %spread = f32[64]{0:T(256)} broadcast(%part), dimensions={}
  ROOT %out = (s32[], f32[64]{0:T(256)}) tuple(%next, %spread)
}

ENTRY %main (c: f32[256]) -> f32[1024] {
  %c = f32[256]{0:T(256)} parameter(0)
  %start = ((f32[256]{0:T(256)}), f32[1024]{0:T(1024)}, u32[]) async-start(%c), calls=%async
  %from = s32[] constant(0)
  %d = f32[64]{0:T(256)} slice(%c), slice={[0:64]}
  %first = (s32[], f32[64]{0:T(256)}) tuple(%from, %d)
  %loop = (s32[], f32[64]{0:T(256)}) while(%first), condition=%below, body=%body
  %e = f32[64]{0:T(256)} get-tuple-element(%loop), index=1
  %along = (f32[64], f32[1024]) fusion(%c, %e), kind=kLoop, calls=%async_collective_fusion
  ROOT %done = f32[1024]{0:T(1024)} async-done(%start), calls=%async
}
"""


def test_what_tpu_programs_write_otherwise():
    # A collective that runs along other fusions is repeated in each, and counts once; a loop's
    # length follows from its condition; a reduce-scatter is a fusion of a sum.
    assert {one.kind: one for one in collectives(TPU_TEXT, 8)} == {
        "all-gather": Collective("all-gather", 4, 1, True, 4096, 4096 * 3 / 4),
        "reduce-scatter": Collective("reduce-scatter", 4, 6, True, 6 * 256, 6 * 256 * 3 / 4),
    }
