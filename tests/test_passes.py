"""Bytes of a compiled program, counted by hand in one written by hand."""

import pathlib

import pytest

from benchmarks import passes
from tests import tiny

PROGRAM = pathlib.Path(__file__).parent / 'fixtures' / 'passes.hlo'
MAP = 4 * 8 * 4


def test_bytes_of_each_kind_of_kernel(monkeypatch):
  monkeypatch.setattr(passes, '_MIB', 1)
  assert passes.count(PROGRAM.read_text()) == {
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
