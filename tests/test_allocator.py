"""The C library keeps what XLA frees."""

import subprocess
import sys

import pytest

# Page faults of four rounds of six blocks of 256 MiB, touched and freed: more
# than a GiB at the top of the heap is given back but for the settings.
_PROGRAM = """
import ctypes, resource, sys
from tlkd_jax.runtime import allocator
if sys.argv[1] == 'keep':
  assert allocator.keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  blocks = [c.malloc(2**28) for _ in range(6)]
  for block in blocks:
    ctypes.memset(block, 1, 2**28)
  for block in blocks:
    c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, mode],
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


linux = pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')


@linux
def test_freed_blocks_are_reused():
  # The blocks of one round are touched for the first time, or those of four.
  assert _faults('keep') < _faults('leave') / 3


# MiB in memory with a freed block of 256 MiB, before and after.
_GIVE_BACK = """
import ctypes
from tlkd_jax.runtime import allocator
def resident():
  return int(open('/proc/self/statm').read().split()[1]) // 256
assert allocator.keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
block = c.malloc(2**28)
ctypes.memset(block, 1, 2**28)
above = c.malloc(2**20)
c.free(block)
before = resident()
assert allocator.give_back()
print(before, resident())
"""


@linux
def test_freed_blocks_are_given_back_when_asked():
  done = subprocess.run(
    [sys.executable, '-c', _GIVE_BACK],
    capture_output=True,
    text=True,
    check=True,
  )
  before, after = map(int, done.stdout.split())
  assert before - after > 200
