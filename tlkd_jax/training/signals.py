"""SIGTERM and Ctrl-C as a request to stop at the next step."""

import signal
import threading

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

# Processes must stop at the same step, and asking the others costs time.
_STEPS_BETWEEN_QUESTIONS = 10


class StopRequest:
  """While open, SIGTERM and SIGINT set a flag instead of ending the process."""

  def __init__(self):
    self._asked = False
    self._previous = {}

  def __enter__(self) -> 'StopRequest':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _ask(self, number, frame) -> None:
    del frame
    if self._asked:
      raise KeyboardInterrupt
    self._asked = True
    name = signal.Signals(number).name
    logging.warning('%s: saving after this step, then stopping', name)

  def requested(self, step: int) -> bool:
    """Whether to stop now; the same answer in every process."""
    if jax.process_count() == 1:
      return self._asked
    if step % _STEPS_BETWEEN_QUESTIONS:
      return False
    asked = multihost_utils.process_allgather(np.asarray(self._asked))
    return bool(np.any(asked))
