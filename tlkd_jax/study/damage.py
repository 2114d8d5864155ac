"""A damaged file of one cell costs what it says, not the page of a study."""

import contextlib
import pathlib
from collections.abc import Generator

from absl import logging

# What a reader says of a file that is not what was written, or of another kind.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError)


@contextlib.contextmanager
def left_out(path: pathlib.Path) -> Generator[None]:
  """Turns what a damaged file raises into a warning that names it.

  What is read inside is without effect then: give it its value there, last.

  Args:
    path: that is read inside.
  """
  try:
    yield
  except _DAMAGED as error:
    said = str(error)
    if str(path) not in said:
      said = f'{path} is damaged: {said or repr(error)}'
    logging.warning('%s; it is left out', said)
