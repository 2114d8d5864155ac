"""Transfer learning with and without knowledge distillation, in JAX.

From Python, see docs/python.md:

    make_settings, make_study     what to run, by arm, names and keys
    fine_tune, compare, run_study runs it
    advise                        is a teacher worth it here?
    load                          a finished run, called with images
    export_run                    a finished run's student as a file
    verify_export                 such a file against its run
    data.Dataset.from_arrays      images that a program holds
"""

import signal
import sys

# First of all: what is loaded from here on takes seconds. Until it is known
# what a signal to stop does, it waits.
if sys.argv:
  _MASK = signal.pthread_sigmask(
    signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  )
else:
  _MASK = None

from tlkd_jax.runtime import interrupts

if _MASK is not None:
  if interrupts.is_command(sys.orig_argv[-len(sys.argv)]):
    interrupts.end_at_once()
  signal.pthread_sigmask(signal.SIG_SETMASK, _MASK)

from tlkd_jax.api import (
  Result,
  StudyResult,
  advise,
  compare,
  fine_tune,
  load,
  make_settings,
  make_study,
  run_study,
)
from tlkd_jax.export import export_run, verify_export

__version__ = '0.1.0'

__all__ = [
  'Result',
  'StudyResult',
  'advise',
  'compare',
  'export_run',
  'fine_tune',
  'load',
  'make_settings',
  'make_study',
  'run_study',
  'verify_export',
]
