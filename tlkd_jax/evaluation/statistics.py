"""Statistics of two or more arms whose runs are paired by seed.

`x` is the arm under test (TL+KD), `y` the reference (TL), x[i] and y[i] come
from the same seed, data subset and data order. Pairs in which either value is
NaN are left out. Everything computes in float64.
"""

import numpy as np
import scipy

from tlkd_jax.evaluation import sign_flips
from tlkd_jax.evaluation.sign_flips import ROUNDING

ALPHA = 0.05
# Of differences with ties or zeros, to scipy's limit.
_MAX_TIED = 13
# Random patterns of signs, where not all of them are counted.
_FLIPS = 100_000


def paired_differences(x, y) -> np.ndarray:
  """x - y of the pairs without a NaN, float64 [k]; rounding becomes 0.

  Raises:
    ValueError: if x and y are not vectors of one length.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 1 or x.shape != y.shape:
    raise ValueError(
      f'paired values must be two vectors of one length, got {x.shape} and '
      f'{y.shape}'
    )
  kept = ~(np.isnan(x) | np.isnan(y))
  x, y = x[kept], y[kept]
  difference = x - y
  if not difference.size:
    return difference
  # Below this share of the values compared it is rounding, not effect.
  scale = ROUNDING * max(np.abs(x).max(), np.abs(y).max())
  if np.ptp(difference) <= scale:
    difference[:] = np.median(difference)
  difference[np.abs(difference) <= scale] = 0.0
  return difference


def _spread(values: np.ndarray) -> float:
  """Standard deviation (n - 1): NaN below 2 values, 0 for equal ones."""
  if len(values) < 2:
    return float('nan')
  return 0.0 if np.ptp(values) == 0 else float(np.std(values, ddof=1))


def mean_interval(values, level: float = 0.95) -> dict[str, float]:
  """Mean with its t interval.

  Args:
    values: [k] independent values, such as one per seed.
    level: coverage.

  Returns:
    `mean`, `std` (n - 1), `low`, `high`; the last three NaN below 2 values.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  if not values.size:
    return dict.fromkeys(('mean', 'std', 'low', 'high'), float('nan'))
  mean, std, count = float(values.mean()), _spread(values), len(values)
  half = float('nan')
  if count > 1:
    quantile = scipy.stats.t.ppf(0.5 + level / 2, count - 1)
    half = float(quantile * std / np.sqrt(count))
  return {'mean': mean, 'std': std, 'low': mean - half, 'high': mean + half}


def proportion_interval(
  hits: int, total: int, method: str = 'wilson', level: float = 0.95
) -> tuple[float, float]:
  """Interval of a proportion such as an accuracy over items.

  Args:
    hits: number of successes.
    total: number of trials, at least 1.
    method: 'wilson' (1927) or 'exact' (Clopper and Pearson 1934).
    level: coverage.
  """
  result = scipy.stats.binomtest(int(hits), int(total))
  interval = result.proportion_ci(level, method=method)
  return float(interval.low), float(interval.high)


def paired_t_test(x, y) -> tuple[float, float]:
  """Statistic and two-sided p of the paired t test.

  NaN below 2 pairs and where all differences are equal.
  """
  difference = paired_differences(x, y)
  spread = _spread(difference)
  if not spread > 0:
    return float('nan'), float('nan')
  count = len(difference)
  statistic = float(difference.mean() / (spread / np.sqrt(count)))
  return statistic, float(2 * scipy.stats.t.sf(abs(statistic), count - 1))


def cohen_dz(x, y) -> float:
  """Mean difference over the standard deviation of the differences.

  Cohen 1988, for paired values. NaN where `paired_t_test` is.
  """
  difference = paired_differences(x, y)
  spread = _spread(difference)
  return float(difference.mean() / spread) if spread > 0 else float('nan')


def smallest_p(num_pairs: int) -> float:
  """Smallest two-sided p that an exact test of k pairs can give: 2 / 2^k."""
  return min(1.0, 2.0 ** (1 - num_pairs))


def sign_flip_test(x, y, seed: int = 0, num_flips: int = _FLIPS) -> float:
  """Two-sided p of the paired permutation test on the mean difference.

  Under the null hypothesis each difference could as well have had the other
  sign (Fisher 1935). All 2^k patterns are counted up to
  sign_flips.MAX_EXACT_PAIRS pairs, beyond that `num_flips` random ones and the
  observed one.

  Returns:
    p, at least `smallest_p(k)`; NaN without pairs.
  """
  difference = paired_differences(x, y)
  if not difference.size:
    return float('nan')
  return sign_flips.p_value(difference, seed, num_flips)


def largest_p_of_moved(difference, move: float) -> float:
  """Largest p of `sign_flip_test` with one difference moved.

  Args:
    difference: [k], k >= 1.
    move: is added to each of them in its turn.
  """
  values = np.asarray(difference, np.float64)
  return sign_flips.largest_p(values, move, 0, _FLIPS)


def wilcoxon_test(x, y) -> tuple[float, float]:
  """Wilcoxon's signed-rank statistic and two-sided p (zeros left out).

  Exact up to 50 differences without ties or zeros, and up to 13 with them; else
  the normal approximation. NaN if all differences are 0.
  """
  difference = paired_differences(x, y)
  if not difference.any():
    return float('nan'), float('nan')
  sizes = np.abs(difference)
  tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
  if tied and len(sizes) <= _MAX_TIED:
    return _tied_wilcoxon(difference[sizes > 0])
  result = scipy.stats.wilcoxon(difference)
  return float(result.statistic), float(result.pvalue)


def _tied_wilcoxon(difference) -> tuple[float, float]:
  """What scipy's permutations give, a thousand times as fast: all sums."""
  ranks = scipy.stats.rankdata(np.abs(difference))
  sums = np.zeros(1)
  for rank in ranks:
    sums = np.concatenate([sums, sums + rank])
  positive = ranks[difference > 0].sum()
  # Ranks are multiples of a half: equal sums are equal.
  sides = (sums <= positive).mean(), (sums >= positive).mean()
  statistic = min(positive, ranks.sum() - positive)
  return float(statistic), min(1.0, 2.0 * float(min(sides)))


def bootstrap_mean_interval(
  values,
  method: str = 'BCa',
  seed: int = 0,
  num_replicates: int = 9999,
  level: float = 0.95,
) -> tuple[float, float]:
  """Bootstrap interval of a mean, for instance of paired differences.

  Args:
    values: [n].
    method: 'percentile' or 'BCa' (Efron 1987).
    seed: of the resampling.
    num_replicates: resamples drawn.
    level: coverage.

  Returns:
    (low, high); both the common value where all are equal, NaN below 2.
  """
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float('nan'), float('nan')
  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  result = scipy.stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=num_replicates,
    # Bounds the resampled block to about 16 MB.
    batch=max(1, 2_000_000 // len(values)),
    confidence_level=level,
    method=method,
    rng=np.random.default_rng(seed),
  )
  interval = result.confidence_interval
  return float(interval.low), float(interval.high)


def holm(p_values) -> np.ndarray:
  """Holm's (1979) step-down adjusted p values; NaNs stay and do not count."""
  p_values = np.asarray(p_values, np.float64)
  adjusted = np.full(p_values.shape, np.nan)
  tested = np.flatnonzero(~np.isnan(p_values))
  order = tested[np.argsort(p_values[tested], kind='stable')]
  factors = np.arange(len(order), 0, -1)
  steps = np.minimum(1.0, factors * p_values[order])
  adjusted[order] = np.maximum.accumulate(steps)
  return adjusted


def friedman_test(scores) -> dict:
  """Friedman's test (1937) that several arms perform alike.

  Args:
    scores: [blocks, arms], larger is better; a block is a data set or a seed.

  Returns:
    `statistic` and `p` (chi-squared approximation; NaN where every block ties
    all arms) and `mean_ranks` [arms], 1 for the best, ties share a rank.

  Raises:
    ValueError: below 3 arms or 2 blocks.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 3:
    raise ValueError(
      'friedman_test needs scores [blocks >= 2, arms >= 3], got shape '
      f'{scores.shape}; compare two arms with compare_paired'
    )
  statistic, p = float('nan'), float('nan')
  if np.ptp(scores, axis=1).any():
    statistic, p = map(float, scipy.stats.friedmanchisquare(*scores.T))
  ranks = scipy.stats.rankdata(-scores, axis=1).mean(axis=0)
  return {'statistic': statistic, 'p': p, 'mean_ranks': ranks}


def compare_paired(x, y) -> dict[str, float]:
  """Everything about x - y over paired runs; answer.verdicts judges it.

  Args:
    x: [k] values of the arm under test, one per seed.
    y: [k] values of the reference with the same seeds.

  Returns:
    `pairs`, `mean_difference`, `std_difference`, `ci_low`, `ci_high` (t,
    covering 1 - ALPHA), `t`, `p_t`, `p_sign_flip`, `p_wilcoxon`, `smallest_p`,
    `cohen_dz`.
  """
  difference = paired_differences(x, y)
  interval = mean_interval(difference, 1 - ALPHA)
  t, p_t = paired_t_test(x, y)
  return {
    'pairs': len(difference),
    'mean_difference': interval['mean'],
    'std_difference': interval['std'],
    'ci_low': interval['low'],
    'ci_high': interval['high'],
    't': t,
    'p_t': p_t,
    'p_sign_flip': sign_flip_test(x, y),
    'p_wilcoxon': wilcoxon_test(x, y)[1],
    'smallest_p': smallest_p(len(difference)),
    'cohen_dz': cohen_dz(x, y),
  }
