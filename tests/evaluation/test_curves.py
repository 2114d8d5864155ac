import math

import numpy as np
import pytest
from scipy import stats

from tlkd_jax.evaluation import curves


def test_slope_of_one_run_is_the_regression_with_its_interval():
  severities = np.arange(1, 6)
  gaps = np.array([0.01, 0.018, 0.022, 0.037, 0.034])
  got = curves.severity_slope(severities, gaps)
  reference = stats.linregress(severities, gaps)
  half = stats.t.ppf(0.975, 3) * reference.stderr
  assert got['slope'] == pytest.approx(reference.slope)
  assert got['p'] == pytest.approx(reference.pvalue)
  assert got['low'] == pytest.approx(reference.slope - half)
  assert got['high'] == pytest.approx(reference.slope + half)


def test_slope_over_runs():
  severities = np.array([1.0, 3.0, 5.0])
  gaps = np.random.default_rng(0).normal(size=(6, 3)) + 0.5 * severities[None]
  slopes = [stats.linregress(severities, g).slope for g in gaps]
  got = curves.severity_slope(severities, gaps)
  reference = stats.ttest_1samp(slopes, 0.0)
  interval = reference.confidence_interval()
  assert got['slope'] == pytest.approx(np.mean(slopes))
  assert got['p'] == pytest.approx(reference.pvalue)
  assert got['low'] == pytest.approx(interval.low)
  assert got['high'] == pytest.approx(interval.high)


def test_slope_edge_cases():
  exact = curves.severity_slope([1, 2, 3], [0.1, 0.2, 0.3])
  assert exact['slope'] == pytest.approx(0.1)
  assert exact['low'] == pytest.approx(0.1) and math.isnan(exact['p'])
  two = curves.severity_slope([1, 2], [0.1, 0.2])
  assert two['slope'] == pytest.approx(0.1) and math.isnan(two['low'])
  flat = curves.severity_slope([1, 2, 3], np.zeros((4, 3)))
  assert flat['slope'] == flat['low'] == flat['high'] == 0.0
  with pytest.raises(ValueError, match='two different'):
    curves.severity_slope([2, 2], [0.1, 0.2])
  with pytest.raises(ValueError, match=r'\[runs, S\]'):
    curves.severity_slope([1, 2], [0.1, 0.2, 0.3])
