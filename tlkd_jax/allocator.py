"""How the C library gives memory back, set once before JAX starts.

XLA on CPU takes the temporaries of every call anew from malloc. Beyond glibc's
thresholds such a block is mapped for the call and unmapped after it, so that
each step pays a page fault for every page it touches. Blocks that stay in the
heap are touched once. `benchmarks/train_step.py` measures both settings.
"""

import ctypes
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# As a size_t the largest size there is.
_NEVER = -1


def keep_freed_memory() -> bool:
  """Lets this process reuse freed blocks of any size instead of unmapping.

  The process keeps the most it ever used at once. To be called before JAX
  allocates; later calls change nothing for blocks that are already mapped.

  Returns:
    Whether the C library took the settings: False off Linux with glibc.
  """
  if not sys.platform.startswith('linux'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):
    return False
  settings = (
    (_M_MMAP_THRESHOLD, _NEVER),
    (_M_TRIM_THRESHOLD, _NEVER),
    # One heap: a block that one thread freed serves the others.
    (_M_ARENA_MAX, 1),
  )
  return all([mallopt(name, value) == 1 for name, value in settings])
