"""What an arm is worth in labels: the label curve read the other way round.

Curves are mean scores over seeds at several numbers of labels, interpolated in
log n. Nothing is extrapolated: what lies outside of the sizes that were tried
is said to lie there.
"""

import dataclasses
import functools

import numpy as np
import scipy

from tlkd_jax.evaluation import crossed

# Score levels at which two curves are compared.
_NUM_LEVELS = 201
# Groups of test images, of which one at a time is left out.
_NUM_GROUPS = 20
# Candidates between two sizes.
_NUM_STEPS = 16
_NAN = float('nan')
# Scores that differ by less are one.
_ROUNDING = 1e-12
# Bounds of what a curve cannot tell.
FEWER, MORE = 0.0, float('inf')


@dataclasses.dataclass(frozen=True)
class Efficiency:
  """Per cent more labels that plain fine-tuning needs for the same score.

  Attributes:
    percent: mean over the scores that both arms reach, NaN where there is none.
    low: of the interval; -100 where it ends beyond what the sizes span, NaN
      where it is not known.
    high: likewise, infinite beyond what they span.
  """

  percent: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Needed:
  """Labels that plain fine-tuning needs for the arm's score at one size.

  Attributes:
    size: labels of the arm.
    labels: FEWER than the smallest size tried, MORE than the largest, or how
      many.
    low: of the interval, likewise; NaN where it is not known.
    high: likewise.
  """

  size: float
  labels: float
  low: float
  high: float


def efficiency(sizes, taught, plain, level: float = 0.95) -> Efficiency:
  """How many per cent more labels the arm is worth, over its curve.

  The mean curves are made non-decreasing and read the other way round: at each
  score that both arms reach, how many labels does either need? The log ratio is
  averaged over those scores. Its interval is of the t distribution, with the
  jackknife's variance (Tukey 1958): each seed left out in turn, and, of answers
  to single test images, each of 20 groups of images; what is left after both
  counts twice, which makes it wider. benchmarks.label_worth shows how often
  it holds the truth.

  Args:
    sizes: [F] numbers of labels, positive and increasing, F >= 2.
    taught: scores of the arm, larger is better, [S, F] of S seeds, or answers
      to the same N test images, [S, F, N].
    plain: of plain fine-tuning, same seeds in the same order.
    level: coverage.

  Raises:
    ValueError: if shapes or sizes do not fit.
  """
  sizes, taught, plain = _checked(sizes, taught, plain)
  ratio = functools.partial(_log_ratio, np.log(sizes))
  found = ratio(taught, plain)
  variance, freedom = _jackknife(
    len(taught), lambda i: ratio(*(np.delete(a, i, 0) for a in (taught, plain)))
  )
  if freedom and taught.ndim == 3:
    groups = _groups(taught, plain)
    extra, own = _jackknife(
      groups[0].shape[2],
      lambda i: ratio(*(np.delete(a, i, 2) for a in groups)),
    )
    freedom = float(crossed.freedom(variance, freedom, extra, own))
    variance += extra
  half = _NAN
  if freedom > 0:
    half = float(
      scipy.stats.t.isf((1 - level) / 2, freedom) * np.sqrt(variance)
    )
  span = np.log(sizes[-1] / sizes[0])
  low = found - half if not found - half < -span else -np.inf
  high = found + half if not found + half > span else np.inf
  return Efficiency(*(100 * float(np.expm1(end)) for end in (found, low, high)))


def needed(sizes, taught, plain, level: float = 0.95) -> list[Needed]:
  """How many labels plain fine-tuning needs, size by size.

  The interval holds every number of labels at which plain fine-tuning does not
  differ from the arm by the t test of seeds, and test images where answers are
  at hand (crossed): test inversion as of Fieller (1954), which holds its level
  however flat the curve. Arguments as of `efficiency`.
  """
  sizes, taught, plain = _checked(sizes, taught, plain)
  log_sizes = np.log(sizes)
  over = (0, *range(2, plain.ndim))
  curve = _increasing(plain.mean(axis=over))
  scores = taught.mean(axis=over)
  steps = np.arange(_NUM_STEPS) / _NUM_STEPS
  at = np.append((np.arange(len(sizes) - 1)[:, None] + steps).ravel(), 0.0)
  at[-1] = len(sizes) - 1
  candidates = np.exp(np.interp(at, np.arange(len(sizes)), log_sizes))
  candidates[::_NUM_STEPS] = sizes
  found = []
  for i, size in enumerate(sizes):
    labels = _read(scores[i], float(size), curve, sizes)
    low, high = _bounds(taught[:, i], plain, at, candidates, level)
    # The means may fall where the curve does not.
    low, high = (low, high) if np.isnan(low) else _holding(low, high, labels)
    found.append(Needed(float(size), labels, low, high))
  return found


def _read(score: float, size: float, curve, sizes) -> float:
  """Labels at which a curve has a score; where it is flat, those nearest."""
  same = np.flatnonzero(np.abs(curve - score) <= _ROUNDING)
  if same.size:
    return float(np.clip(size, sizes[same[0]], sizes[same[-1]]))
  if score > curve[-1]:
    return MORE
  if score < curve[0]:
    return FEWER
  return float(np.exp(np.interp(score, curve, np.log(sizes))))


def _holding(low: float, high: float, labels: float) -> tuple[float, float]:
  return min(low, labels), max(high, labels)


def _bounds(own, plain, at, candidates, level: float) -> tuple[float, float]:
  """Ends of the set of candidates that are not told apart from `own`."""
  if len(own) < 2:
    return _NAN, _NAN
  means, halves = _means_and_halves(own, plain, at, level)
  beyond = np.abs(means) - halves
  inside = beyond <= 0
  # Between two candidates one of which is too few and the next too many.
  turns = np.flatnonzero(np.sign(means[:-1]) * np.sign(means[1:]) < 0)
  inside[turns] = inside[turns + 1] = True
  if not inside.any():
    end = candidates[-1 if means[0] > 0 else 0]
    return (float(end), MORE) if means[0] > 0 else (FEWER, float(end))
  first, last = np.flatnonzero(inside)[[0, -1]]
  low = FEWER if first == 0 else _edge(candidates, beyond, first, first - 1)
  high = MORE
  if last < len(at) - 1:
    high = _edge(candidates, beyond, last, last + 1)
  return low, high


def _edge(candidates, beyond, inside: int, outside: int) -> float:
  """Where `beyond` is 0, between a candidate inside and one outside."""
  if beyond[inside] > 0:
    return float(candidates[inside])
  share = beyond[inside] / (beyond[inside] - beyond[outside])
  ends = np.log(candidates[[inside, outside]])
  return float(np.exp(ends[0] + share * (ends[1] - ends[0])))


def _means_and_halves(own, plain, at, level: float):
  """Of `own` minus the curve at each place, and half of its interval, [K]."""
  seeds, count = plain.shape[:2]
  quantile = (1 - level) / 2
  # [K, F]: straight between two sizes.
  shares = np.maximum(1 - np.abs(at[:, None] - np.arange(count)), 0)
  of_seeds = own.reshape(seeds, -1).mean(axis=1)
  curves = plain.reshape(seeds, count, -1).mean(axis=2)
  values = of_seeds[:, None] - curves @ shares.T
  means, variances = values.mean(axis=0), values.var(axis=0, ddof=1) / seeds
  if plain.ndim == 2:
    return means, scipy.stats.t.isf(quantile, seeds - 1) * np.sqrt(variances)
  parts = [
    crossed.parts(own - np.tensordot(share, plain, (0, 1))) for share in shares
  ]
  images = np.array([one.images for one in parts])
  variances = np.maximum(variances, [one.rest for one in parts])
  freedom = crossed.freedom(variances, seeds - 1, images, parts[0].freedom)
  halves = scipy.stats.t.isf(quantile, freedom) * np.sqrt(variances + images)
  return means, halves


def _checked(sizes, taught, plain):
  sizes = np.asarray(sizes, np.float64)
  taught = np.asarray(taught, np.float64)
  plain = np.asarray(plain, np.float64)
  if len(sizes) < 2 or (np.diff(sizes) <= 0).any() or sizes[0] <= 0:
    raise ValueError(
      f'sizes must be at least 2 positive increasing numbers, got {sizes}'
    )
  fits = taught.shape[1:2] == sizes.shape and taught.ndim in (2, 3)
  if taught.shape != plain.shape or not fits:
    raise ValueError(
      'taught and plain must both be [seeds, '
      f'{len(sizes)}] or [seeds, {len(sizes)}, images], got {taught.shape} and '
      f'{plain.shape}'
    )
  return sizes, taught, plain


def _increasing(scores: np.ndarray) -> np.ndarray:
  """Least-squares non-decreasing fit: more labels do not truly hurt."""
  return scipy.optimize.isotonic_regression(scores).x


def _log_ratio(log_sizes: np.ndarray, taught, plain) -> float:
  """Mean log(labels without / labels with the arm) at equal score."""
  over = (0, *range(2, plain.ndim))
  with_arm, without = (
    _increasing(values.mean(axis=over)) for values in (taught, plain)
  )
  low = max(with_arm[0], without[0])
  high = min(with_arm[-1], without[-1])
  if high <= low:
    return _NAN
  # Midpoints, so that no level sits on the end of a flat stretch.
  steps = (np.arange(_NUM_LEVELS) + 0.5) / _NUM_LEVELS
  levels = low + steps * (high - low)
  ratio = np.interp(levels, without, log_sizes) - np.interp(
    levels, with_arm, log_sizes
  )
  return float(ratio.mean())


def _jackknife(count: int, without) -> tuple[float, int]:
  """Variance of a value by leaving one out, and its degrees of freedom."""
  if count < 2:
    return 0.0, 0
  left = np.array([without(i) for i in range(count)])
  squares = ((left - left.mean()) ** 2).sum()
  return float((count - 1) / count * squares), count - 1


def _groups(taught, plain) -> list[np.ndarray]:
  """Both arms' means over groups of equally many images, [S, F, groups]."""
  count = min(_NUM_GROUPS, taught.shape[2])
  each = taught.shape[2] // count
  return [
    np.stack(
      [a[..., g::count][..., :each].mean(axis=-1) for g in range(count)], axis=2
    )
    for a in (taught, plain)
  ]
