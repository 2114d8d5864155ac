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


def _c_library() -> ctypes.CDLL | None:
  if not sys.platform.startswith('linux'):
    return None
  try:
    library = ctypes.CDLL(None)
  except OSError:
    return None
  return library if hasattr(library, 'malloc_trim') else None


def keep_freed_memory() -> bool:
  """Lets this process reuse freed blocks of any size instead of unmapping.

  The process keeps what it used, until `give_back`. To be called before JAX
  allocates; later calls change nothing for blocks that are already mapped.

  Returns:
    Whether the C library took the settings: False off Linux with glibc.
  """
  library = _c_library()
  if library is None:
    return False
  settings = (
    (_M_MMAP_THRESHOLD, _NEVER),
    (_M_TRIM_THRESHOLD, _NEVER),
    # One heap: a block that one thread freed serves the others.
    (_M_ARENA_MAX, 1),
  )
  return all([library.mallopt(name, value) == 1 for name, value in settings])


def give_back() -> bool:
  """Gives the pages that are free now to the system; nothing off glibc.

  For what is not needed again, such as the compiler's memory: kept, it would
  lie beside the temporaries of the steps, which fit into none of its blocks.

  Returns:
    Whether there was anything to give.
  """
  library = _c_library()
  return library is not None and library.malloc_trim(0) == 1
