"""Progress of a long step: a bar for who looks on, else lines of a log."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from absl import logging

from tlkd_jax.runtime import bars

T = TypeVar('T')

_SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
  """Yields `items` and shows how many of `total` have passed."""
  if bars.wanted():
    yield from bars.tqdm(items, total=total, desc=description, leave=False)
    return
  last = time.monotonic()
  for count, item in enumerate(items, start=1):
    yield item
    now = time.monotonic()
    if now - last > _SECONDS_BETWEEN_LINES:
      last = now
      logging.info('%s: %d of %d', description, count, total)
