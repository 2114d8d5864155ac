"""How long a call takes, and what others did on the same cores meanwhile."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np

# A measurement takes so long, and has so many passes unless they are slow.
SECONDS = 0.7
_LEAST = 5
_QUANTILES = (0.1, 0.5, 0.9)
_STAT = pathlib.Path('/proc/stat')
# Of a line of /proc/stat: user, nice, system, irq, softirq, steal.
_BUSY = (1, 2, 3, 6, 7, 8)
# Ticks are of 10 ms: of less nothing is said.
_SHORTEST = 0.3


@dataclasses.dataclass(frozen=True)
class Taken:
  """What passes of a call took.

  Attributes:
    median: in milliseconds.
    low: of ten passes one is faster, likewise.
    high: of ten passes one is slower.
    passes: that were timed.
    beside: cores' worth of work that other processes did meanwhile on the cores
      that this one may use; None where the system does not tell.
  """

  median: float
  low: float
  high: float
  passes: int
  beside: float | None


def take(call: Callable[[], object], seconds: float = SECONDS) -> Taken:
  """Times passes of a call, after one that warms it up.

  Args:
    call: returns when its work is done.
    seconds: to spend, in all; five passes are made also where they take longer,
      unless that is three times as long.
  """
  call()
  passes: list[float] = []
  begun, spent, busy = time.perf_counter(), time.process_time(), _busy()
  wall = 0.0
  while wall < seconds or (len(passes) < _LEAST and wall < 3 * seconds):
    before = time.perf_counter()
    call()
    now = time.perf_counter()
    passes.append(now - before)
    wall = now - begun
  own = time.process_time() - spent
  low, median, high = 1e3 * np.quantile(passes, _QUANTILES)
  return Taken(
    float(median), float(low), float(high), len(passes), _rest(busy, own, wall)
  )


def _rest(before: float | None, own: float, wall: float) -> float | None:
  """Cores' worth of the work since `before` that was not this process's."""
  now = _busy()
  if before is None or now is None or wall < _SHORTEST:
    return None
  return max(now - before - own, 0.0) / wall


def _busy() -> float | None:
  """Seconds that this process's cores have worked, for whomever."""
  if not hasattr(os, 'sched_getaffinity'):
    return None
  names = {f'cpu{number}' for number in os.sched_getaffinity(0)}
  try:
    lines = _STAT.read_text().splitlines()
  except OSError:
    return None
  rows = [line.split() for line in lines]
  ticks = [
    int(row[place])
    for row in rows
    if row and row[0] in names
    for place in _BUSY
    if place < len(row)
  ]
  return sum(ticks) / os.sysconf('SC_CLK_TCK') if ticks else None
