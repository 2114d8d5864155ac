"""Comparison of two models on the same examples, from their stored logits.

`x` is the model under test (TL+KD), `y` the reference (TL): differences are
x - y, a correction is an error of y that x gets right, damage the reverse.
"""

from collections.abc import Iterable

import numpy as np
import scipy

from tlkd_jax.evaluation import bootstrap, metrics, predictions

# Below this many discordant pairs McNemar's exact p is used, else the mid-p.
MIN_DISCORDANT = 25


def _check_runs(x_logits, y_logits, labels):
  x, y = predictions.check_pair(x_logits, y_logits, ('x_logits', 'y_logits'))
  return x, y, predictions.check_labels(labels, *x.shape)


def mcnemar(x_correct, y_correct) -> dict:
  """McNemar's test (1947) that x and y are right equally often.

  The exact p is binomial; the mid-p takes half of the probability of the
  observed table (Fagerland et al. 2013), less conservative and still valid
  for larger counts.

  Args:
    x_correct: bool [N].
    y_correct: bool [N], same examples.

  Returns:
    `only_x` and `only_y` (right by one alone), `p_exact`, `p_mid`, both
    two-sided, and `p` with the `test` chosen: 'exact' if only_x + only_y is
    below MIN_DISCORDANT, else 'mid-p'. p is 1 without discordant pairs.
  """
  x_correct, y_correct = np.asarray(x_correct), np.asarray(y_correct)
  only_x = int((x_correct & ~y_correct).sum())
  only_y = int((~x_correct & y_correct).sum())
  fewer, discordant = min(only_x, only_y), only_x + only_y
  tail = 2 * scipy.stats.binom.cdf(fewer, discordant, 0.5)
  observed = scipy.stats.binom.pmf(fewer, discordant, 0.5)
  p_exact, p_mid = min(1.0, float(tail)), min(1.0, float(tail - observed))
  exact = discordant < MIN_DISCORDANT
  return {
    'only_x': only_x,
    'only_y': only_y,
    'p_exact': p_exact,
    'p_mid': p_mid,
    'p': p_exact if exact else p_mid,
    'test': 'exact' if exact else 'mid-p',
  }


def _share(part, whole) -> float:
  return float(predictions.safe_divide(part, whole, np.nan))


def error_overlap(x_logits, y_logits, labels) -> dict:
  """Who is right where.

  Returns:
    Counts `both_right`, `only_x_right`, `only_y_right`, `both_wrong` and
    `same_wrong_class` (of both_wrong); `correction_rate` (share of y's errors
    that x gets right), `damage_rate` (share of y's right answers that x gets
    wrong) and `error_jaccard` (both wrong / either wrong), NaN where the
    share is of nothing.
  """
  x, y, labels = _check_runs(x_logits, y_logits, labels)
  x_class = predictions.predicted_class(x)
  y_class = predictions.predicted_class(y)
  x_right, y_right = x_class == labels, y_class == labels
  both_wrong = ~x_right & ~y_right
  corrected = int((x_right & ~y_right).sum())
  damaged = int((~x_right & y_right).sum())
  right, wrong = int((x_right & y_right).sum()), int(both_wrong.sum())
  return {
    'both_right': right,
    'only_x_right': corrected,
    'only_y_right': damaged,
    'both_wrong': wrong,
    'same_wrong_class': int((both_wrong & (x_class == y_class)).sum()),
    'correction_rate': _share(corrected, corrected + wrong),
    'damage_rate': _share(damaged, damaged + right),
    'error_jaccard': _share(wrong, wrong + corrected + damaged),
  }


def paired_bootstrap(
  x_logits,
  y_logits,
  labels,
  names: Iterable[str] = metrics.METRICS,
  seed: int = 0,
  num_replicates: int = 1000,
  level: float = 0.95,
) -> dict[str, dict[str, float]]:
  """Percentile intervals of metrics and of their difference.

  Both models are measured on the same resamples of the examples (Efron and
  Tibshirani 1993). This is the uncertainty of the test split for two given
  models; that of training is seen only over seeds (see `statistics`).
  Calibration errors and AURC are biased upwards on resamples: read their
  difference, not their own intervals.

  Args:
    x_logits: [N, K].
    y_logits: [N, K], same examples.
    labels: int [N].
    names: keys of METRICS.
    seed: of the resampling.
    num_replicates: resamples drawn.
    level: coverage.

  Returns:
    name -> `x`, `y`, `difference` on the split itself, `x_low`, `x_high`,
    `y_low`, `y_high`, `low`, `high` (of the difference) and
    `undefined_share`: resamples in which the difference is NaN, left out.
  """
  x, y, labels = _check_runs(x_logits, y_logits, labels)
  names = [metrics.check_name(name) for name in names]
  counts = bootstrap.resample_counts(len(labels), num_replicates, seed)
  x_draws = bootstrap.bootstrap_metrics(x, labels, counts, names)
  y_draws = bootstrap.bootstrap_metrics(y, labels, counts, names)
  result = {}
  for name in names:
    x_value = metrics.METRICS[name](x, labels)
    y_value = metrics.METRICS[name](y, labels)
    draws = x_draws[name] - y_draws[name]
    x_low, x_high = _percentiles(x_draws[name], level)
    y_low, y_high = _percentiles(y_draws[name], level)
    low, high = _percentiles(draws, level)
    result[name] = {
      'x': x_value,
      'y': y_value,
      'difference': x_value - y_value,
      'x_low': x_low,
      'x_high': x_high,
      'y_low': y_low,
      'y_high': y_high,
      'low': low,
      'high': high,
      'undefined_share': float(np.isnan(draws).mean()),
    }
  return result


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
  draws = draws[~np.isnan(draws)]
  if not draws.size:
    return float('nan'), float('nan')
  low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
  return float(low), float(high)


def per_class_deltas(x_logits, y_logits, labels) -> dict[str, np.ndarray]:
  """x - y of `precision`, `recall` and `f1` of each class, [K].

  With `support`, and the counts `corrected` and `damaged` of each true class.
  """
  x, y, labels = _check_runs(x_logits, y_logits, labels)
  x_table = metrics.per_class_table(x, labels)
  y_table = metrics.per_class_table(y, labels)
  x_right = predictions.predicted_class(x) == labels
  y_right = predictions.predicted_class(y) == labels
  deltas = {c: x_table[c] - y_table[c] for c in ('precision', 'recall', 'f1')}
  num_classes = x.shape[1]
  return deltas | {
    'support': x_table['support'],
    'corrected': np.bincount(labels[x_right & ~y_right], minlength=num_classes),
    'damaged': np.bincount(labels[~x_right & y_right], minlength=num_classes),
  }


def most_changed(x_logits, y_logits, labels, count: int = 16) -> dict:
  """Examples whose true class gained or lost most probability from y to x.

  Args:
    x_logits: [N, K].
    y_logits: [N, K], same examples.
    labels: int [N].
    count: at most so many of either kind.

  Returns:
    `improved` and `worsened`, each a list, largest change first, of dicts:
    `position` in the split, `label`, `change` and `x_probability`,
    `y_probability` of the true class, `x_class` and `y_class` predicted.
  """
  x, y, labels = _check_runs(x_logits, y_logits, labels)
  x_own = np.exp(-metrics.nll_per_example(x, labels))
  y_own = np.exp(-metrics.nll_per_example(y, labels))
  change = x_own - y_own
  x_class = predictions.predicted_class(x)
  y_class = predictions.predicted_class(y)

  def describe(i: int) -> dict:
    return {
      'position': int(i),
      'label': int(labels[i]),
      'change': float(change[i]),
      'x_probability': float(x_own[i]),
      'y_probability': float(y_own[i]),
      'x_class': int(x_class[i]),
      'y_class': int(y_class[i]),
    }

  gains = np.argsort(-change, kind='stable')[:count]
  losses = np.argsort(change, kind='stable')[:count]
  return {
    'improved': [describe(i) for i in gains if change[i] > 0],
    'worsened': [describe(i) for i in losses if change[i] < 0],
  }
