"""Bytes of a compiled program, counted by hand in one that is written here."""

import pytest

from benchmarks import machine, passes
from tests import tiny

PROGRAM = """HloModule jit_step, is_scheduled=true

%scale (p: f32[4,8], q: f32[8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %wide = f32[4,8]{1,0} broadcast(%q), dimensions={1}
  ROOT %m = f32[4,8]{1,0} multiply(%p, %wide)
}

%cut (r: f32[100,8]) -> f32[2,8] {
  %r = f32[100,8]{1,0} parameter(0)
  %one = f32[2,8]{1,0} slice(%r), slice={[0:2], [0:8]}
  %two = f32[2,8]{1,0} slice(%r), slice={[2:4], [0:8]}
  ROOT %sum = f32[2,8]{1,0} add(%one, %two)
}

%total (s: bf16[4,8]) -> bf16[8] {
  %s = bf16[4,8]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  ROOT %reduced = bf16[8]{0} reduce(%s, %zero), dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %next = f32[4,8]{1,0} negate(%x), metadata={op_name="jit(step)/transpose(jvp())/while/body/neg"}
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %next)
}

ENTRY %main (a: f32[4,8], b: f32[8], /*index=2*/c: f32[100,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0), metadata={op_name="state"}
  %b = f32[8]{0} parameter(1)
  %c = f32[100,8]{1,0} parameter(2)
  %fused = f32[4,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%scale, metadata={op_name="jit(step)/jvp()/mul"}
  %few = f32[2,8]{1,0} fusion(%c), kind=kLoop, calls=%cut, metadata={op_name="jit(step)/vmap()/add"}
  %square = f32[4,4]{1,0} dot(%fused, %fused), lhs_contracting_dims={1}, metadata={op_name="jit(step)/transpose(jvp())/dot_general"}
  %moved = f32[4,8]{0,1} copy(%fused)
  %half = bf16[4,8]{1,0} convert(%fused), metadata={op_name="jit(step)/convert"}
  %sums = bf16[8]{0} fusion(%half), kind=kCustom, calls=%total, metadata={op_name="jit(step)/reduce_sum"}
  %zero = s32[] constant(0)
  %start = (s32[], /*index=1*/f32[4,8]{1,0}) tuple(%zero, %moved)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%less, body=%body, metadata={op_name="jit(step)/transpose(jvp())/while"}, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %end = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""
MAP = 4 * 8 * 4


def test_bytes_of_each_kind_of_kernel(monkeypatch):
  monkeypatch.setattr(passes, '_MIB', 1)
  assert passes.count(PROGRAM) == {
    'forward, elementwise': {'kernels': 1, 'mib': 2 * MAP + 32},
    # Two slices of a long array, not all of it.
    'views, elementwise': {'kernels': 1, 'mib': 3 * 64},
    # An operand that is given twice is read once.
    'backward, product': {'kernels': 1, 'mib': MAP + 64},
    'unnamed, copy': {'kernels': 1, 'mib': 2 * MAP},
    'update, elementwise': {'kernels': 1, 'mib': MAP + MAP // 2},
    'update, sum': {'kernels': 1, 'mib': MAP // 2 + 16},
    'backward, loop': {'kernels': 1, 'mib': 5 * 2 * MAP},
  }


@pytest.mark.parametrize(
  ('shapes', 'expected'),
  [
    ('f32[2,3]{1,0}', 24),
    ('bf16[5]{0}', 10),
    ('pred[7]', 7),
    ('s32[]', 4),
    ('f8e4m3fn[3]', 3),
    ('s4[4]', 2),
    ('(f32[4]{0}, /*index=1*/u8[3]{0}, token[])', 19),
  ],
)
def test_bytes_of_a_type(shapes, expected):
  assert passes.size_of(shapes) == expected


@pytest.mark.parametrize('learns', [True, False])
def test_what_the_maps_need_once(learns):
  """Stem, two blocks, neck and head of the tiny model at 16 px."""
  maps = [(16 * 16 * 3, 8 * 8 * 8)]
  maps += [(8 * 8 * 8, 8 * 8 * 8), (8 * 8 * 8, 4 * 4 * 8)]
  maps += [(4 * 4 * 8, 4 * 4 * 16), (16, 10)]
  floats = sum(x + y + learns * (2 * x + y) for x, y in maps)
  with tiny.registered():
    found = passes.needed('tiny', 16, 2, learns=learns)
  assert found * 2**20 == 2 * 4 * floats


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('sse avx avx2 avx512f', ', AVX-512'),
    ('sse avx avx2', ', AVX2'),
    ('sse avx', ', AVX'),
    ('sse', ''),
  ],
)
def test_a_processor_is_named_with_its_vectors(flags, expected):
  first = 'processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\n'
  text = f'{first}model name\t: EPYC\nflags\t\t: {flags}\n\nprocessor\t: 1\n'
  assert machine.processor(text) == f'EPYC, family 25, model 17{expected}'


@pytest.mark.parametrize('text', ['', 'processor : 0\nCPU part : 0xd0c\n'])
def test_a_processor_without_a_name(text):
  assert machine.processor(text) == ''
