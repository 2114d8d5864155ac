"""Where progress is shown as a bar, and the bar itself.

On a terminal it is text, in a notebook a widget, or text where ipywidgets is
not installed. Elsewhere, as in a log, lines are written instead.
"""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from absl import logging
from tqdm import TqdmWarning

with warnings.catch_warnings():
  # That a notebook has no widgets: text will do.
  warnings.simplefilter('ignore', TqdmWarning)
  from tqdm.auto import tqdm

__all__ = ['in_notebook', 'tqdm', 'track', 'wanted']

T = TypeVar('T')

_SECONDS_BETWEEN_LINES = 10.0


def wanted() -> bool:
  """Whether someone looks on who can be shown a bar."""
  return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
  """Whether this process is a notebook's; tqdm.auto asks the same."""
  return 'ipykernel.zmqshell' in sys.modules


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
  """Yields `items` and shows how many of `total` have passed."""
  if wanted():
    yield from tqdm(items, total=total, desc=description, leave=False)
    return
  last = time.monotonic()
  for count, item in enumerate(items, start=1):
    yield item
    now = time.monotonic()
    if now - last > _SECONDS_BETWEEN_LINES:
      last = now
      logging.info('%s: %d of %d', description, count, total)
