"""Questions to curves: does a gap grow with severity, what are labels worth?"""

import numpy as np
from scipy import optimize, stats

from tlkd_jax.evaluation import statistics

# Score levels at which two label curves are compared.
_NUM_LEVELS = 201


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
  half = float(stats.t.ppf(0.5 + level / 2, freedom) * error)
  p = float('nan')
  if error > 1e-12 * np.abs(gaps).max():
    p = float(2 * stats.t.sf(abs(slope) / error, freedom))
  return {'slope': slope, 'low': slope - half, 'high': slope + half, 'p': p}


def _increasing(scores: np.ndarray) -> np.ndarray:
  """Least-squares non-decreasing fit: more labels do not truly hurt."""
  return optimize.isotonic_regression(scores).x


def _log_label_ratio(
  log_sizes: np.ndarray, teacher_curve: np.ndarray, plain_curve: np.ndarray
) -> float:
  """Mean log(labels without / labels with teacher) at equal score."""
  with_teacher, plain = _increasing(teacher_curve), _increasing(plain_curve)
  low = max(with_teacher[0], plain[0])
  high = min(with_teacher[-1], plain[-1])
  if high <= low:
    return float('nan')
  # Midpoints, so that no level sits on the end of a flat stretch.
  steps = (np.arange(_NUM_LEVELS) + 0.5) / _NUM_LEVELS
  levels = low + steps * (high - low)
  ratio = np.interp(levels, plain, log_sizes) - np.interp(
    levels, with_teacher, log_sizes
  )
  return float(ratio.mean())


def equivalent_labels(sizes, teacher_curve, plain_curve) -> np.ndarray:
  """Labels that the plain arm needs for the score of the taught arm at n.

  Args:
    sizes: [F] numbers of labels, increasing.
    teacher_curve: [F] mean scores with the teacher.
    plain_curve: [F] mean scores without.

  Returns:
    [F], interpolated in log n; NaN where the score lies outside of the plain
    arm's curve (above it: more labels than were tried).
  """
  plain = _increasing(np.asarray(plain_curve, np.float64))
  target = np.asarray(teacher_curve, np.float64)
  labels = np.exp(np.interp(target, plain, np.log(sizes)))
  labels[(target < plain[0]) | (target > plain[-1])] = np.nan
  return labels


def label_efficiency(
  sizes,
  teacher_scores,
  plain_scores,
  seed: int = 0,
  num_replicates: int = 2000,
  level: float = 0.95,
) -> dict:
  """How many per cent more labels the teacher is worth.

  The mean curves over seeds are made non-decreasing, interpolated linearly in
  log n, and read the other way round: at each score that both arms reach, how
  many labels does either need? The log ratio is averaged over those scores.
  Its interval comes from resampling the seeds, both arms together (percentile
  bootstrap); with few seeds it is too narrow rather than too wide.

  Args:
    sizes: [F] numbers of labels, positive and increasing, F >= 2.
    teacher_scores: [seeds, F], larger is better.
    plain_scores: [seeds, F], same seeds in the same order.
    seed: of the resampling.
    num_replicates: resamples drawn.
    level: coverage.

  Returns:
    `percent_more_labels` (50.0: 1.5 times as many are needed without the
    teacher; negative: the teacher hurts), its `low` and `high`,
    `undefined_share` (resamples in which the curves share no score; they are
    left out of the interval), `equivalent_labels` [F] (see there). NaN where
    the curves share no score; the interval is NaN for one seed too.

  Raises:
    ValueError: if shapes or sizes do not fit.
  """
  sizes = np.asarray(sizes, np.float64)
  teacher = np.asarray(teacher_scores, np.float64)
  plain = np.asarray(plain_scores, np.float64)
  if len(sizes) < 2 or (np.diff(sizes) <= 0).any() or sizes[0] <= 0:
    raise ValueError(
      f'sizes must be at least 2 positive increasing numbers, got {sizes}'
    )
  if teacher.shape != plain.shape or teacher.shape[1:] != sizes.shape:
    raise ValueError(
      'teacher_scores and plain_scores must both be [seeds, '
      f'{len(sizes)}], got {teacher.shape} and {plain.shape}'
    )
  log_sizes, count = np.log(sizes), len(teacher)

  def percent(rows) -> float:
    ratio = _log_label_ratio(
      log_sizes, teacher[rows].mean(axis=0), plain[rows].mean(axis=0)
    )
    return 100 * float(np.expm1(ratio))

  low, high, undefined = float('nan'), float('nan'), float('nan')
  if count > 1:
    rng = np.random.default_rng(seed)
    draws = np.array(
      [percent(rng.integers(0, count, count)) for _ in range(num_replicates)]
    )
    defined = draws[~np.isnan(draws)]
    undefined = 1 - len(defined) / num_replicates
    if defined.size:
      tails = [(1 - level) / 2, (1 + level) / 2]
      low, high = map(float, np.quantile(defined, tails))
  return {
    'percent_more_labels': percent(np.arange(count)),
    'low': low,
    'high': high,
    'undefined_share': undefined,
    'equivalent_labels': equivalent_labels(
      sizes, teacher.mean(axis=0), plain.mean(axis=0)
    ),
  }
