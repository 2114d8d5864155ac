"""SIGTERM, SIGHUP and Ctrl-C as a request to stop at the next step."""

import signal
import threading

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from tlkd_jax.runtime import interrupts, peers

# Processes must stop at the same step, and asking the others costs time.
_STEPS_BETWEEN_QUESTIONS = 10


class StopRequest:
  """While open, a signal to stop sets a flag instead of ending the process.

  Ctrl-C after it ends the process at once; the others may come twice, as from
  a shell and its terminal.
  """

  def __init__(self):
    self._asked = False
    self._previous = {}
    self._terminals = interrupts.terminals()

  def __enter__(self) -> 'StopRequest':
    if threading.current_thread() is threading.main_thread():
      for number in interrupts.heard():
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, kind, error, trace) -> None:
    # First of all: JAX ends a process whose coordinator is lost by itself.
    peers.leave_if_lost(error)
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _ask(self, number, frame) -> None:
    if self._asked:
      if number == signal.SIGINT:
        self._end(frame)
      return
    self._asked = True
    if number == signal.SIGHUP:
      interrupts.forget(self._terminals)
    name = signal.Signals(number).name
    logging.warning('%s: saving after this step, then stopping', name)

  def _end(self, frame) -> None:
    previous = self._previous[signal.SIGINT]
    if not callable(previous):
      raise KeyboardInterrupt
    previous(signal.SIGINT, frame)

  def requested(self, step: int) -> bool:
    """Whether to stop now; the same answer in every process."""
    if jax.process_count() == 1:
      return self._asked
    if step % _STEPS_BETWEEN_QUESTIONS:
      return False
    asked = multihost_utils.process_allgather(np.asarray(self._asked))
    return bool(np.any(asked))
