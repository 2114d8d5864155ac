"""Marks of values in lists of parametrized tests."""

from typing import Any

import pytest


def slow(*values: Any) -> list:
  """Values for `-m slow`: further kinds of what a quicker one shows.

  Args:
    *values: of a parametrized test; a tuple is one of a test of several names.
  """
  several = [
    value if isinstance(value, tuple) else (value,) for value in values
  ]
  return [pytest.param(*value, marks=pytest.mark.slow) for value in several]
