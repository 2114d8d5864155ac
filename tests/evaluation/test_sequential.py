"""Critical values of a t test that is looked at after every pair."""

import numpy as np
import pytest
from scipy import stats

from tlkd_jax.evaluation import sequential


def test_one_look_is_the_t_test():
  (level,) = sequential.nominal_levels(5, 0.025).values()
  assert level == pytest.approx(0.025, rel=0.05)


@pytest.mark.parametrize('most', [6, 20])
def test_all_looks_together_err_as_often_as_stated(most):
  """Normal differences, other ones than those of the simulation inside."""
  found = sequential.nominal_levels(most, 0.025)
  assert list(found) == list(range(sequential.FIRST_LOOK, most + 1))
  drawn = np.random.default_rng(3).standard_normal((40_000, most))
  counts = np.arange(1, most + 1)
  mean = drawn.cumsum(axis=1) / counts
  square = (drawn**2).cumsum(axis=1) - counts * mean**2
  crossed = np.zeros(40_000, bool)
  for n, level in found.items():
    t = mean[:, n - 1] / np.sqrt(square[:, n - 1] / (n - 1) / n)
    crossed |= np.abs(t) > stats.t.isf(level, n - 1)
  # Two sides of 0.025; the standard error is 0.0011.
  assert crossed.mean() == pytest.approx(0.05, abs=0.004)


def test_fewer_pairs_than_a_first_look_are_refused():
  with pytest.raises(ValueError, match='at most 4 pairs'):
    sequential.nominal_levels(4, 0.025)
