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


SIZES = np.array([10, 20, 50, 100])


def _scores(sizes, factor, noise=0.0, seeds=6, rng_seed=0):
  """Score 0.4 + 0.1 log(factor n): a teacher worth `factor` times the n."""
  rng = np.random.default_rng(rng_seed)
  curve = 0.4 + 0.1 * np.log(factor * sizes)
  return curve[None, :] + noise * rng.normal(size=(seeds, len(sizes)))


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.5, 3.0])
def test_label_efficiency_recovers_a_known_factor(factor):
  result = curves.label_efficiency(
    SIZES, _scores(SIZES, factor), _scores(SIZES, 1.0), num_replicates=20
  )
  expected = pytest.approx(100 * (factor - 1), abs=1e-6)
  assert result['percent_more_labels'] == expected
  assert result['low'] == expected and result['high'] == expected
  inside = (SIZES * factor >= 10 * 0.999) & (SIZES * factor <= 100 * 1.001)
  if factor != 1.0:
    np.testing.assert_allclose(
      result['equivalent_labels'], np.where(inside, factor * SIZES, np.nan)
    )


def test_label_efficiency_interval_covers_and_is_reproducible():
  covered = 0
  for trial in range(40):
    result = curves.label_efficiency(
      SIZES,
      _scores(SIZES, 1.5, 0.01, 10, 2 * trial),
      _scores(SIZES, 1.0, 0.01, 10, 2 * trial + 1),
      num_replicates=200,
    )
    assert result['low'] < result['percent_more_labels'] < result['high']
    covered += result['low'] <= 50.0 <= result['high']
  assert 32 <= covered <= 40
  again = curves.label_efficiency(
    SIZES,
    _scores(SIZES, 1.5, 0.01, 10, 78),
    _scores(SIZES, 1.0, 0.01, 10, 79),
    num_replicates=200,
  )
  assert again['low'] == result['low']


def test_label_efficiency_without_common_scores_is_nan():
  result = curves.label_efficiency(
    SIZES, 5 + _scores(SIZES, 1.0), _scores(SIZES, 1.0), num_replicates=5
  )
  assert math.isnan(result['percent_more_labels'])
  assert result['undefined_share'] == 1.0
  assert np.isnan(result['equivalent_labels']).all()


def test_label_efficiency_with_a_dip_and_a_plateau():
  plain = np.array([[0.5, 0.6, 0.58, 0.7]])
  taught = np.array([[0.55, 0.65, 0.65, 0.72]])
  result = curves.label_efficiency(SIZES, taught, plain)
  assert result['percent_more_labels'] > 20
  assert math.isnan(result['low'])


def test_label_efficiency_mistakes_are_named():
  scores = _scores(SIZES, 1.0)
  with pytest.raises(ValueError, match='increasing'):
    curves.label_efficiency([20, 10], scores[:, :2], scores[:, :2])
  with pytest.raises(ValueError, match=r'\[seeds, 4\]'):
    curves.label_efficiency(SIZES, scores[:, :2], scores)
