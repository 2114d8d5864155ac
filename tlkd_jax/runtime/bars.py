"""Where progress is shown as a bar, and the bar itself.

On a terminal it is text, in a notebook a widget, or text where ipywidgets is
not installed. Elsewhere, as in a log, lines are written instead.
"""

import sys
import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
  # That a notebook has no widgets: text will do.
  warnings.simplefilter('ignore', TqdmWarning)
  from tqdm.auto import tqdm

__all__ = ['in_notebook', 'tqdm', 'wanted']


def wanted() -> bool:
  """Whether someone looks on who can be shown a bar."""
  return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
  """Whether this process is a notebook's; tqdm.auto asks the same."""
  return 'ipykernel.zmqshell' in sys.modules
