"""Metrics on bootstrap resamples of a split, without copying the logits.

A resample is a row of counts: how often each example was drawn. Each group
below prepares what does not depend on the resample once, then computes its
metrics for a block of resamples at a time: averages, confusion counts and bins
by matrix products, ranking metrics by running sums along a fixed order. The
results equal METRICS on the repeated examples (ties keep the split's order).

A group is a function Split -> (counts float64 [N, R] -> {name: [R]}).
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy

from tlkd_jax.evaluation import metrics, predictions, reliability, selective

# Resamples handled at once; keeps a block of counts near the cache.
_BLOCK = 128

Evaluate = Callable[[np.ndarray], dict[str, np.ndarray]]


class Split(NamedTuple):
  """Predictions of one model on one split, with what all groups need."""

  logits: np.ndarray
  labels: np.ndarray
  probs: np.ndarray
  confidence: np.ndarray
  correct: np.ndarray


# A page asks for those of the same test images at every place.
@functools.lru_cache(maxsize=1)
def resample_counts(
  num_examples: int, num_replicates: int, seed: int
) -> np.ndarray:
  """How often each example is drawn in each resample of N out of N.

  Args:
    num_examples: N.
    num_replicates: R.
    seed: of the draws default_rng(seed).integers(0, N, (R, N)).

  Returns:
    int32 [R, N], read-only; each row sums to N.
  """
  rng = np.random.default_rng(seed)
  counts = np.empty((num_replicates, num_examples), np.int32)
  for row in counts:
    draws = rng.integers(0, num_examples, num_examples)
    row[:] = np.bincount(draws, minlength=num_examples)
  counts.flags.writeable = False
  return counts


def _adder(groups: np.ndarray, values: np.ndarray, num_groups: int):
  """Matrix [num_groups, N] that sums values of the examples of each group.

  Args:
    groups: int [N] or [N, C]: group, or C groups, of each example.
    values: float, of the same shape.
    num_groups: rows of the result.
  """
  num_examples = len(groups)
  repeats = groups.size // num_examples
  examples = np.repeat(np.arange(num_examples, dtype=np.int32), repeats)
  return scipy.sparse.csr_array(
    (values.ravel(), (groups.ravel().astype(np.int32), examples)),
    shape=(num_groups, num_examples),
  )


def _averages(split: Split) -> Evaluate:
  logits, labels = split.logits, split.labels
  columns = {
    'top1': split.correct,
    'top5': metrics.label_rank(logits, labels) < 5,
    'nll': metrics.nll_per_example(logits, labels),
    'brier': metrics.brier_per_example(logits, labels),
    'mean_entropy': metrics.entropy_per_example(logits),
    'mean_confidence': split.confidence,
  }
  matrix = np.stack([np.asarray(c, np.float64) for c in columns.values()])
  if logits.shape[1] < metrics.TOP5_CLASSES:
    matrix[list(columns).index('top5')] = np.nan

  def evaluate(counts):
    values = matrix @ counts / len(labels)
    result = dict(zip(columns, values, strict=True))
    gap = result['mean_confidence'] - result['top1']
    return result | {'overconfidence': gap}

  return evaluate


def _confusions(split: Split) -> Evaluate:
  labels, num_classes = split.labels, split.logits.shape[1]
  predicted = predictions.predicted_class(split.logits)
  ones = np.ones(len(labels))
  to_support = _adder(labels, ones, num_classes)
  to_predicted = _adder(predicted, ones, num_classes)
  to_hits = _adder(labels, split.correct * 1.0, num_classes)

  def evaluate(counts):
    return _from_marginals(
      to_support @ counts, to_predicted @ counts, to_hits @ counts
    )

  return evaluate


def _from_marginals(support, predicted, hits) -> dict[str, np.ndarray]:
  """Metrics of the confusion matrix from its margins and diagonal, [K, R]."""
  divide = predictions.safe_divide
  total = support.sum(axis=0)
  table = {
    'precision': divide(hits, predicted, 0.0),
    'recall': divide(hits, support, 0.0),
    'f1': divide(2 * hits, predicted + support, 0.0),
  }
  present = (support + predicted) > 0
  result = {}
  for column, values in table.items():
    result[f'macro_{column}'] = values.sum(axis=0) / present.sum(axis=0)
    result[f'weighted_{column}'] = (values * support).sum(axis=0) / total
  in_labels = (support > 0).sum(axis=0)
  result['balanced_accuracy'] = table['recall'].sum(axis=0) / in_labels
  chance = (support * predicted).sum(axis=0)
  right = hits.sum(axis=0)
  result['cohen_kappa'] = divide(
    right * total - chance, total**2 - chance, np.nan
  )
  variances = (total**2 - (support**2).sum(axis=0)) * (
    total**2 - (predicted**2).sum(axis=0)
  )
  result['mcc'] = divide(right * total - chance, np.sqrt(variances), 0.0)
  return result


def _width_bins(split: Split) -> Evaluate:
  num_bins = reliability.NUM_BINS
  bins = reliability.equal_width_bins(split.confidence, num_bins)
  to_count = _adder(bins, np.ones(len(bins)), num_bins)
  to_gap = _adder(bins, split.correct - split.confidence, num_bins)

  def evaluate(counts):
    count, gap = to_count @ counts, np.abs(to_gap @ counts)
    relative = predictions.safe_divide(gap, count, 0.0)
    shares = count / len(bins)
    return {
      'ece': gap.sum(axis=0) / len(bins),
      'mce': relative.max(axis=0),
      'rms_calibration_error': np.sqrt((shares * relative**2).sum(axis=0)),
    }

  return evaluate


def _mass_bins(split: Split) -> Evaluate:
  order = np.argsort(split.confidence, kind='stable')
  scores = split.confidence[order]
  gaps = split.correct[order] - scores
  first_equal = np.searchsorted(scores, scores, 'left')
  starts = reliability.equal_mass_positions(len(scores), reliability.NUM_BINS)

  def evaluate(counts):
    drawn = counts[order]
    upto = np.cumsum(drawn, axis=0)
    sums = np.cumsum(drawn * gaps[:, None], axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    # The example at each start of a bin of the sorted resample, moved to the
    # first of those tied with it.
    edges = [first_equal[(upto > s).argmax(axis=0)] for s in starts]
    edges = np.stack([np.zeros_like(edges[0]), *edges])
    edges = np.concatenate([edges, np.full_like(edges[:1], len(scores))])
    bins = np.diff(np.take_along_axis(sums, edges, axis=0), axis=0)
    return {'ece_equal_mass': np.abs(bins).sum(axis=0) / len(scores)}

  return evaluate


def _classwise_bins(split: Split) -> Evaluate:
  num_bins, num_classes = reliability.NUM_BINS, split.probs.shape[1]
  bins = reliability.equal_width_bins(split.probs, num_bins)
  groups = bins + num_bins * np.arange(num_classes)[None, :]
  gaps = np.eye(num_classes)[split.labels] - split.probs
  to_gap = _adder(groups, gaps, num_bins * num_classes)

  def evaluate(counts):
    gap = np.abs(to_gap @ counts).sum(axis=0)
    return {'ece_classwise': gap / split.probs.size}

  return evaluate


def _segments(scores: np.ndarray, positive: np.ndarray):
  """Places every score among the distinct scores of the positives.

  Returns:
    Index [N]: 2 i + 1 for the i-th distinct positive score (from below) and
    what ties with it, even numbers between; and the number of segments.
  """
  levels = np.unique(scores[positive])
  below = np.searchsorted(levels, scores, 'left')
  return below + np.searchsorted(levels, scores, 'right'), 2 * len(levels) + 1


def _auroc_and_ap(everyone: np.ndarray, positives: np.ndarray):
  """AUROC and average precision, [R] each, from counts [segments, R]."""
  everyone, positives = everyone.astype(np.float64), positives.astype(float)
  total, hits = everyone.sum(axis=0), positives.sum(axis=0)
  negatives = everyone - positives
  below = np.cumsum(negatives, axis=0) - 0.5 * negatives
  wins = (positives * below).sum(axis=0)
  auroc = predictions.safe_divide(wins, hits * (total - hits), np.nan)
  retrieved = np.cumsum(everyone[::-1], axis=0)[::-1]
  found = np.cumsum(positives[::-1], axis=0)[::-1]
  precision = predictions.safe_divide(found, retrieved, 0.0)
  area = (positives * precision).sum(axis=0)
  return auroc, predictions.safe_divide(area, hits, np.nan)


def _class_rankings(split: Split) -> Evaluate:
  labels, num_examples = split.labels, len(split.labels)
  classes = np.unique(labels)
  groups = np.empty((num_examples, len(classes)), np.int32)
  starts = np.zeros(len(classes) + 1, np.int32)
  for i, k in enumerate(classes):
    groups[:, i], count = _segments(split.probs[:, k], labels == k)
    groups[:, i] += starts[i]
    starts[i + 1] = starts[i] + count
  # Counts stay exact in float32, which halves the memory traffic.
  to_all = _adder(groups, np.ones(groups.shape, np.float32), starts[-1])
  own = groups[np.arange(num_examples), np.searchsorted(classes, labels)]
  to_own = _adder(own, np.ones(num_examples, np.float32), starts[-1])

  def evaluate(counts):
    drawn = counts.astype(np.float32)
    everyone, positives = to_all @ drawn, to_own @ drawn
    pairs = np.stack(
      [
        _auroc_and_ap(everyone[low:high], positives[low:high])
        for low, high in zip(starts[:-1], starts[1:], strict=True)
      ]
    )
    defined = (~np.isnan(pairs)).sum(axis=0)
    means = predictions.safe_divide(np.nansum(pairs, axis=0), defined, np.nan)
    return {'macro_auroc': means[0], 'macro_average_precision': means[1]}

  return evaluate


def _misclassification(split: Split) -> Evaluate:
  groups, count = _segments(split.confidence, split.correct)
  to_all = _adder(groups, np.ones(len(groups)), count)
  to_right = _adder(groups, split.correct * 1.0, count)

  def evaluate(counts):
    auroc, _ = _auroc_and_ap(to_all @ counts, to_right @ counts)
    return {'misclassification_auroc': auroc}

  return evaluate


def _selective(split: Split) -> Evaluate:
  order = np.argsort(-split.confidence, kind='stable')
  wrong = (~split.correct[order]).astype(np.float64)[:, None]
  n = len(order)
  harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])

  def evaluate(counts):
    drawn = counts[order]
    kept, errors = np.cumsum(drawn, axis=0), np.cumsum(drawn * wrong, axis=0)
    before, errors_before = kept - drawn, errors - drawn * wrong
    # The copies m = 1 .. c of an example add the risks
    # (errors_before + m wrong) / (before + m): differences of harmonic sums.
    steps = harmonic[kept.astype(np.int64)] - harmonic[before.astype(np.int64)]
    right_before = before - errors_before
    risks = np.where(wrong > 0, drawn - right_before * steps, 0.0)
    risks = np.where(wrong > 0, risks, errors_before * steps)
    aurc = risks.sum(axis=0) / n
    hits = (n - errors[-1]).astype(np.int64)
    best = (n - hits - hits * (harmonic[n] - harmonic[hits])) / n
    result = {'aurc': aurc, 'e_aurc': aurc - best}
    for percent in (80, 90):
      size = selective.num_covered(n, percent / 100)
      last = (kept >= size).argmax(axis=0)[None, :]
      missed = np.take_along_axis(errors_before, last, axis=0)[0]
      inside = size - np.take_along_axis(before, last, axis=0)[0]
      missed += wrong[last[0], 0] * inside
      result[f'accuracy_at_coverage_{percent}'] = 1 - missed / size
    return result

  return evaluate


_CONFUSION_NAMES = (
  'balanced_accuracy',
  'macro_precision',
  'macro_recall',
  'macro_f1',
  'weighted_precision',
  'weighted_recall',
  'weighted_f1',
  'cohen_kappa',
  'mcc',
)

# Which group computes a metric; any other metric is recomputed per resample.
GROUPS = {
  'top1': _averages,
  'top5': _averages,
  'nll': _averages,
  'brier': _averages,
  'mean_entropy': _averages,
  'mean_confidence': _averages,
  'overconfidence': _averages,
  **dict.fromkeys(_CONFUSION_NAMES, _confusions),
  'macro_auroc': _class_rankings,
  'macro_average_precision': _class_rankings,
  'misclassification_auroc': _misclassification,
  'ece': _width_bins,
  'mce': _width_bins,
  'rms_calibration_error': _width_bins,
  'ece_equal_mass': _mass_bins,
  'ece_classwise': _classwise_bins,
  'aurc': _selective,
  'e_aurc': _selective,
  'accuracy_at_coverage_80': _selective,
  'accuracy_at_coverage_90': _selective,
}


def bootstrap_metrics(
  logits, labels, counts: np.ndarray, names: Iterable[str] = metrics.METRICS
) -> dict[str, np.ndarray]:
  """Metrics on every resample.

  Args:
    logits: [N, K].
    labels: int [N].
    counts: int [R, N] from `resample_counts`. Pass the same counts for two
      models to compare them on the same resamples.
    names: keys of METRICS.

  Returns:
    name -> float64 [R], equal to METRICS[name] on the repeated examples.

  Raises:
    ValueError: for a name that is not in METRICS, or counts of another shape.
  """
  names = [metrics.check_name(name) for name in names]
  logits, labels = predictions.check_split(logits, labels)
  if counts.ndim != 2 or counts.shape[1] != len(labels):
    raise ValueError(
      f'counts must be [resamples, {len(labels)}], got {counts.shape}'
    )
  split = Split(
    logits,
    labels,
    predictions.softmax(logits),
    predictions.confidence(logits),
    predictions.predicted_class(logits) == labels,
  )
  fast = [name for name in names if name in GROUPS]
  groups = [make(split) for make in dict.fromkeys(GROUPS[n] for n in fast)]
  result = {name: np.empty(len(counts)) for name in names}
  for start in range(0, len(counts), _BLOCK):
    rows = slice(start, start + _BLOCK)
    block = np.ascontiguousarray(counts[rows].T, dtype=np.float64)
    values: dict[str, np.ndarray] = {}
    for evaluate in groups:
      values.update(evaluate(block))
    for name in fast:
      result[name][rows] = values[name]
  for name in set(names) - set(fast):
    for r, row in enumerate(counts):
      drawn = np.repeat(np.arange(len(labels)), row)
      result[name][r] = metrics.METRICS[name](logits[drawn], labels[drawn])
  return result
