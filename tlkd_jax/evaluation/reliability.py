"""Binned calibration errors and the data of reliability diagrams.

Conventions (libraries differ): equal-width bins are [a, b), the last one is
closed, so confidence 1.0 lies inside it; 15 bins; an empty bin contributes
nothing. Equal-mass bins have their edges at order statistics of the
confidences and tied confidences share a bin.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tlkd_jax.evaluation import predictions

NUM_BINS = 15


def equal_width_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
  """Index in [0, num_bins) of the bin [a, b) of each value in [0, 1]."""
  edges = np.linspace(0.0, 1.0, num_bins + 1)
  return np.clip(np.searchsorted(edges, values, 'right') - 1, 0, num_bins - 1)


def equal_mass_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
  """Index of the equal-count bin of each value; equal values share a bin.

  The lower edge of bin b is the sorted value at position round(b N / bins)
  (the adaptive binning of Nixon et al. 2019, "Measuring Calibration in Deep
  Learning"). With ties or N < num_bins some bins stay empty.
  """
  starts = equal_mass_positions(len(values), num_bins)
  return np.searchsorted(np.sort(values)[starts], values, 'right')


def equal_mass_positions(num_examples: int, num_bins: int) -> np.ndarray:
  """Sorted position at which bins 1 .. num_bins - 1 start."""
  positions = np.linspace(0, num_examples, num_bins, endpoint=False)
  positions = np.round(positions).astype(np.int64)
  return np.minimum(positions, num_examples - 1)[1:]


def bin_sums(
  bins: np.ndarray, scores: np.ndarray, hits: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Count, sum of hits and sum of scores of each bin, float64 [num_bins]."""
  count = np.bincount(bins, minlength=num_bins).astype(np.float64)
  hit = np.bincount(bins, weights=hits, minlength=num_bins)
  score = np.bincount(bins, weights=scores, minlength=num_bins)
  return count, hit, score


def _top_label(logits, labels) -> tuple[np.ndarray, np.ndarray]:
  logits, labels = predictions.check_split(logits, labels)
  correct = predictions.predicted_class(logits) == labels
  return predictions.confidence(logits), correct.astype(np.float64)


def reliability_diagram(
  logits, labels, num_bins: int = NUM_BINS
) -> dict[str, np.ndarray]:
  """Data of a reliability diagram of the top-label confidence.

  Returns:
    `lower` and `upper` edges, `count`, `accuracy` and `confidence` of each
    equal-width bin, float64 [num_bins]; the last two are NaN in empty bins.
  """
  return reliability_of(*_top_label(logits, labels), num_bins)


def reliability_of(
  scores: np.ndarray, hits: np.ndarray, num_bins: int = NUM_BINS
) -> dict[str, np.ndarray]:
  """`reliability_diagram` of scores in [0, 1] [N] and 0/1 outcomes [N]."""
  bins = equal_width_bins(scores, num_bins)
  return _diagram(*bin_sums(bins, scores, hits, num_bins))


def _diagram(
  count: np.ndarray, right: np.ndarray, confidence: np.ndarray
) -> dict[str, np.ndarray]:
  """From sums over equal-width bins, each [num_bins]."""
  edges = np.linspace(0.0, 1.0, len(count) + 1)
  return {
    'lower': edges[:-1],
    'upper': edges[1:],
    'count': count,
    'accuracy': predictions.safe_divide(right, count, np.nan),
    'confidence': predictions.safe_divide(confidence, count, np.nan),
  }


def top_label_sums(logits, labels) -> dict[str, np.ndarray]:
  """What diagrams of several runs are added up from.

  Returns:
    `count`, `right` and `confidence` (a sum) of each equal-width bin, float64
    [NUM_BINS].
  """
  scores, hits = _top_label(logits, labels)
  bins = equal_width_bins(scores, NUM_BINS)
  count, right, confidence = bin_sums(bins, scores, hits, NUM_BINS)
  return {'count': count, 'right': right, 'confidence': confidence}


def pooled_diagram(
  sums: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, np.ndarray]:
  """`reliability_diagram` of all answers behind several `top_label_sums`."""
  names = 'count', 'right', 'confidence'
  return _diagram(
    *(
      np.array([one[name] for one in sums], np.float64).sum(axis=0)
      for name in names
    )
  )


def ece_of(
  scores: np.ndarray, hits: np.ndarray, bins: np.ndarray, num_bins: int
) -> float:
  """Sum over bins of count / N * |accuracy - mean score|."""
  _, hit, score = bin_sums(bins, scores, hits, num_bins)
  return float(np.abs(hit - score).sum() / len(scores))


def ece(logits, labels, num_bins: int = NUM_BINS) -> float:
  """Expected calibration error (Naeini et al. 2015), equal-width bins."""
  scores, hits = _top_label(logits, labels)
  return ece_of(scores, hits, equal_width_bins(scores, num_bins), num_bins)


def ece_equal_mass(logits, labels, num_bins: int = NUM_BINS) -> float:
  """Expected calibration error over bins of equal count."""
  scores, hits = _top_label(logits, labels)
  return ece_of(scores, hits, equal_mass_bins(scores, num_bins), num_bins)


def ece_classwise(logits, labels, num_bins: int = NUM_BINS) -> float:
  """Class-wise ECE (Kull et al. 2019): mean over the K one-vs-rest ECEs.

  All K classes count, those absent from the labels too: a probability given
  to them is miscalibrated.
  """
  logits, labels = predictions.check_split(logits, labels)
  probs = predictions.softmax(logits)
  num_classes = probs.shape[1]
  hits = np.eye(num_classes)[labels]
  bins = equal_width_bins(probs, num_bins)
  flat = bins + num_bins * np.arange(num_classes)[None, :]
  sums = np.bincount(flat.ravel(), weights=(hits - probs).ravel())
  return float(np.abs(sums).sum() / probs.size)


def mce(logits, labels, num_bins: int = NUM_BINS) -> float:
  """Maximum calibration error: the largest gap of a non-empty bin."""
  data = reliability_diagram(logits, labels, num_bins)
  return float(np.nanmax(np.abs(data['accuracy'] - data['confidence'])))


def rms_calibration_error(logits, labels, num_bins: int = NUM_BINS) -> float:
  """Root of the count-weighted mean squared gap (Hendrycks et al. 2019)."""
  data = reliability_diagram(logits, labels, num_bins)
  gaps = np.nan_to_num(data['accuracy'] - data['confidence'])
  weights = data['count'] / data['count'].sum()
  return float(np.sqrt((weights * gaps**2).sum()))
