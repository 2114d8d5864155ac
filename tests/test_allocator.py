"""The C library keeps what XLA frees."""

import subprocess
import sys

import pytest

# Page faults of ten allocations of 256 MiB, each touched and freed.
_PROGRAM = """
import ctypes, resource, sys
from tlkd_jax import allocator
if sys.argv[1] == 'keep':
  assert allocator.keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  block = c.malloc(2**28)
  ctypes.memset(block, 1, 2**28)
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


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_freed_blocks_are_reused():
  # One block is touched for the first time, or ten are.
  assert _faults('keep') < _faults('leave') / 5
