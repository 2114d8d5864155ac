"""How sure a mean over folds is, where training sets overlap.

Of K folds each is tested once, by networks that learned from the others. Two
training sets share most of their images, so that K differences spread less than
those of K fresh sets of images would: their variance over S runs is no estimate
of that of their mean, and no unbiased one exists (Bengio and Grandvalet 2004).
Nadeau and Bengio (2003) take

  var(mean) = (1 / S + tested / trained) s^2,   tested / trained = 1 / (K - 1),

with S - 1 degrees of freedom, and Bouckaert and Frank (2004) the same for
several partitions into folds: more runs make the first part smaller and never
the second. Here all runs have one partition, so that more runs than folds are
no further sets of images: the degrees of freedom are min(S, K) - 1.
"""

import numpy as np
import scipy

from tlkd_jax.evaluation.crossed import Parts
from tlkd_jax.evaluation.statistics import ALPHA


def compare_paired(difference: np.ndarray, folds: int) -> dict[str, float]:
  """The t test of S >= 2 differences, one a run and not all equal.

  Args:
    difference: float64 [S].
    folds: K, at least 2.

  Returns:
    `ci_low`, `ci_high` (covering 1 - ALPHA), `t` and `p_t`, in place of those
    of statistics.compare_paired.
  """
  runs, mean = len(difference), float(np.mean(difference))
  variance = _variance(difference) * (1 / runs + 1 / (folds - 1))
  freedom, error = min(runs, folds) - 1, variance**0.5
  half = float(scipy.stats.t.isf(ALPHA / 2, freedom)) * error
  p = 2 * float(scipy.stats.t.sf(abs(mean) / error, freedom))
  ends = {'ci_low': mean - half, 'ci_high': mean + half}
  return ends | {'t': mean / error, 'p_t': p}


def parts(
  values: np.ndarray, folds: int, step: float
) -> tuple[Parts, Parts, Parts]:
  """The parts that folds add to the variance over runs.

  Args:
    values: [S, N] of S runs, each on the N test images of its fold.
    folds: K, at least 2.
    step: by how much one entry changes where one image is answered otherwise.

  Returns:
    The parts; and their least and largest where two images of one run are
    answered otherwise. `images` is s^2 / (K - 1), with such degrees of freedom
    that its sum with s^2 / S, of S - 1, has min(S, K) - 1.
  """
  values = np.asarray(values, np.float64)
  runs, count = values.shape
  means = values.mean(axis=1)
  rest = float(values.var(axis=1).mean()) / (runs * count)
  freedom = _freedom(runs, folds)
  moved = [
    _variance(means + flips * step / count * (np.arange(runs) == run))
    for run in range(runs)
    for flips in (-2, -1, 0, 1, 2)
  ]

  def of(variance: float) -> Parts:
    return Parts(variance / (folds - 1), rest, freedom)

  return of(_variance(means)), of(min(moved)), of(max(moved))


def _freedom(runs: int, folds: int) -> float:
  """x of (a + b)^2 / (min(S, K) - 1) = a^2 / (S - 1) + b^2 / x.

  With a = 1 / S and b = 1 / (K - 1), see crossed.freedom.
  """
  if runs < 2:
    return 1.0
  first, second = 1 / runs, 1 / (folds - 1)
  whole = (first + second) ** 2 / (min(runs, folds) - 1)
  return second**2 / (whole - first**2 / (runs - 1))


def _variance(means: np.ndarray) -> float:
  return float(means.var(ddof=1)) if len(means) > 1 else 0.0
