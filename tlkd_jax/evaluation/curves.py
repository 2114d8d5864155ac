"""Does a gap grow with severity?"""

import numpy as np
import scipy

from tlkd_jax.evaluation import statistics


def severity_slope(severities, gaps, level: float = 0.95) -> dict[str, float]:
  """Slope of a gap (such as TL+KD minus TL accuracy) against severity.

  With several runs a line is fitted to each and the interval is that of the
  mean slope over runs; with one run it is the regression's own, which takes
  the severities for independent measurements.

  Args:
    severities: [S], at least two different values.
    gaps: [S], or [runs, S].
    level: coverage.

  Returns:
    `slope` per unit of severity, `low`, `high` (t interval) and the two-sided
    `p` of no slope; the last three are NaN where one run has S < 3 and the p
    where the fit leaves no residual.

  Raises:
    ValueError: if the shapes do not fit or all severities are equal.
  """
  severities = np.asarray(severities, np.float64)
  gaps = np.atleast_2d(np.asarray(gaps, np.float64))
  if gaps.ndim != 2 or gaps.shape[1:] != severities.shape:
    raise ValueError(
      f'gaps must be [S] or [runs, S] with S = {severities.shape}, got '
      f'{gaps.shape}'
    )
  if np.ptp(severities) == 0:
    raise ValueError('severities must hold at least two different values')
  centred = severities - severities.mean()
  slopes = gaps @ centred / (centred @ centred)
  if len(gaps) > 1:
    interval = statistics.mean_interval(slopes, level)
    _, p = statistics.paired_t_test(slopes, np.zeros_like(slopes))
    return {
      'slope': interval['mean'],
      'low': interval['low'],
      'high': interval['high'],
      'p': p,
    }
  slope, freedom = float(slopes[0]), len(severities) - 2
  if freedom < 1:
    nan = float('nan')
    return {'slope': slope, 'low': nan, 'high': nan, 'p': nan}
  residuals = gaps[0] - gaps[0].mean() - slope * centred
  error = np.sqrt((residuals**2).sum() / freedom / (centred @ centred))
  half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom) * error)
  p = float('nan')
  if error > 1e-12 * np.abs(gaps).max():
    p = float(2 * scipy.stats.t.sf(abs(slope) / error, freedom))
  return {'slope': slope, 'low': slope - half, 'high': slope + half, 'p': p}
