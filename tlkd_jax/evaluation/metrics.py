"""Metrics of one model on a whole split: METRICS[name](logits, labels).

`logits` is [N, K] of any float dtype, `labels` int [N]; the result is a Python
float computed in float64. Conventions, since libraries differ:

  * precision, recall and F1 of a class are 0 where they are 0 / 0; macro
    averages run over the classes present in the labels or the predictions,
    balanced accuracy and the ranking metrics over those in the labels;
  * Brier is the sum over classes (0 to 2), NLL and entropy are in nats;
  * calibration errors: see `reliability`; AURC and coverage: see `selective`.

A new metric is one function and one line in METRICS. Paired bootstraps then
work too, by recomputing it for each replicate, until `bootstrap` gets a
vectorised version.
"""

import numpy as np
import scipy

from tlkd_jax.evaluation import predictions, reliability, selective
from tlkd_jax.runtime.errors import unknown_name

# Fewer say nothing by their top five.
TOP5_CLASSES = 6


def confusion_matrix(logits, labels) -> np.ndarray:
  """Counts, int64 [K, K]; rows are true classes, columns predicted ones."""
  logits, labels = predictions.check_split(logits, labels)
  num_classes = logits.shape[1]
  cells = labels * num_classes + predictions.predicted_class(logits)
  counts = np.bincount(cells, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def per_class_table(logits, labels) -> dict[str, np.ndarray]:
  """`precision`, `recall`, `f1` (0 where 0 / 0) and `support`, each [K]."""
  confusion = confusion_matrix(logits, labels)
  hits = np.diag(confusion)
  support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  return {
    'precision': predictions.safe_divide(hits, predicted, 0.0),
    'recall': predictions.safe_divide(hits, support, 0.0),
    'f1': predictions.safe_divide(2 * hits, predicted + support, 0.0),
    'support': support,
  }


def _macro(column: str, logits, labels) -> float:
  confusion = confusion_matrix(logits, labels)
  present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
  return float(per_class_table(logits, labels)[column][present].mean())


def _weighted(column: str, logits, labels) -> float:
  table = per_class_table(logits, labels)
  return float(np.average(table[column], weights=table['support']))


def label_rank(logits, labels) -> np.ndarray:
  """Place of the true class in the ordered logits, 0 for the largest, [N].

  Among equal logits the lower class index comes first, as in argmax.
  """
  logits, labels = predictions.check_split(logits, labels)
  own = np.take_along_axis(logits, labels[:, None], axis=1)
  earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
  return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


def top1(logits, labels) -> float:
  """Accuracy."""
  return float((label_rank(logits, labels) < 1).mean())


def top5(logits, labels) -> float:
  """Share with the true class among the 5 largest logits; NaN if K <= 5.

  Of five classes all are among them.
  """
  if np.shape(logits)[-1] < TOP5_CLASSES:
    return float('nan')
  return float((label_rank(logits, labels) < 5).mean())


def balanced_accuracy(logits, labels) -> float:
  """Mean recall over the classes in the labels."""
  table = per_class_table(logits, labels)
  return float(table['recall'][table['support'] > 0].mean())


def macro_precision(logits, labels) -> float:
  """Mean precision over the classes in labels or predictions."""
  return _macro('precision', logits, labels)


def macro_recall(logits, labels) -> float:
  """Mean recall over the classes in labels or predictions."""
  return _macro('recall', logits, labels)


def macro_f1(logits, labels) -> float:
  """Mean F1 over the classes in labels or predictions."""
  return _macro('f1', logits, labels)


def weighted_precision(logits, labels) -> float:
  """Mean precision, each class weighted by its support."""
  return _weighted('precision', logits, labels)


def weighted_recall(logits, labels) -> float:
  """Mean recall, each class weighted by its support (equals accuracy)."""
  return _weighted('recall', logits, labels)


def weighted_f1(logits, labels) -> float:
  """Mean F1, each class weighted by its support."""
  return _weighted('f1', logits, labels)


def cohen_kappa(logits, labels) -> float:
  """Cohen's kappa (1960), unweighted.

  NaN where labels and predictions are all one and the same class.
  """
  confusion = confusion_matrix(logits, labels)
  total = confusion.sum()
  observed = np.trace(confusion) / total
  chance = float(confusion.sum(axis=0) @ confusion.sum(axis=1)) / total**2
  return float(predictions.safe_divide(observed - chance, 1 - chance, np.nan))


def mcc(logits, labels) -> float:
  """Matthews correlation for K classes (Gorodkin 2004, R_K).

  0 where the labels or the predictions hold a single class, as is usual.
  """
  confusion = confusion_matrix(logits, labels).astype(np.float64)
  total, hits = confusion.sum(), np.trace(confusion)
  true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  covariance = hits * total - true @ predicted
  variances = (total**2 - true @ true) * (total**2 - predicted @ predicted)
  return float(predictions.safe_divide(covariance, np.sqrt(variances), 0.0))


def one_vs_rest_auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Area under the ROC curve of each column of scores, [K].

  Computed as the Mann-Whitney statistic, ties count half. NaN for a class
  that is absent from the labels or that all labels have.

  Args:
    scores: float [N, K].
    labels: int [N] in [0, K).
  """
  num_examples, num_classes = scores.shape
  ranks = scipy.stats.rankdata(scores, axis=0)
  own = ranks[np.arange(num_examples), labels]
  positives = np.bincount(labels, minlength=num_classes)
  rank_sums = np.bincount(labels, weights=own, minlength=num_classes)
  wins = rank_sums - positives * (positives + 1) / 2
  pairs = positives * (num_examples - positives)
  return predictions.safe_divide(wins, pairs, np.nan)


def auroc_per_class(logits, labels) -> np.ndarray:
  """`one_vs_rest_auroc` of the probabilities, [K]."""
  logits, labels = predictions.check_split(logits, labels)
  return one_vs_rest_auroc(predictions.softmax(logits), labels)


def macro_auroc(logits, labels) -> float:
  """Mean one-vs-rest AUROC; NaN if the labels are all of one class."""
  return _mean_defined(auroc_per_class(logits, labels))


def average_precision_per_class(logits, labels) -> np.ndarray:
  """One-vs-rest average precision (no interpolation), [K].

  NaN for a class that is absent from the labels.
  """
  # Here and not above: it takes half a second, and most commands need none.
  from sklearn.metrics import average_precision_score

  logits, labels = predictions.check_split(logits, labels)
  probs = predictions.softmax(logits)
  result = np.full(probs.shape[1], np.nan)
  for k in np.unique(labels):
    result[k] = average_precision_score(labels == k, probs[:, k])
  return result


def macro_average_precision(logits, labels) -> float:
  """Mean average precision over the classes in the labels."""
  return _mean_defined(average_precision_per_class(logits, labels))


def _mean_defined(values: np.ndarray) -> float:
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if defined.size else float('nan')


def nll_per_example(logits, labels) -> np.ndarray:
  """-log p(label) in nats from the log-softmax, float64 [N]."""
  logits, labels = predictions.check_split(logits, labels)
  log_probs = predictions.log_softmax(logits)
  return -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


def nll(logits, labels) -> float:
  """Mean negative log-likelihood in nats, not clipped."""
  return float(nll_per_example(logits, labels).mean())


def brier_per_example(logits, labels) -> np.ndarray:
  """Squared error of the probability vector, summed over classes, [N]."""
  logits, labels = predictions.check_split(logits, labels)
  errors = predictions.softmax(logits)
  errors[np.arange(len(labels)), labels] -= 1.0
  return (errors**2).sum(axis=1)


def brier(logits, labels) -> float:
  """Brier score (1950): summed over classes, 0 (best) to 2."""
  return float(brier_per_example(logits, labels).mean())


def entropy_per_example(logits) -> np.ndarray:
  """Entropy of the predicted distribution in nats, float64 [N]."""
  log_probs = predictions.log_softmax(predictions.check_logits(logits))
  return -(np.exp(log_probs) * log_probs).sum(axis=1)


def mean_entropy(logits, labels) -> float:
  """Mean predictive entropy in nats; the labels play no part."""
  del labels
  return float(entropy_per_example(logits).mean())


def mean_confidence(logits, labels) -> float:
  """Mean of the largest probability; the labels play no part."""
  del labels
  return float(predictions.confidence(predictions.check_logits(logits)).mean())


def overconfidence(logits, labels) -> float:
  """Mean confidence minus accuracy; negative if underconfident."""
  return mean_confidence(logits, labels) - top1(logits, labels)


def misclassification_auroc(logits, labels) -> float:
  """AUROC of the confidence as a sign of being right, ties count half.

  NaN if all predictions are right or all are wrong.
  """
  logits, labels = predictions.check_split(logits, labels)
  right = predictions.predicted_class(logits) == labels
  scores = predictions.confidence(logits)
  columns = np.stack([-scores, scores], axis=1)
  return float(one_vs_rest_auroc(columns, right.astype(np.int64))[1])


METRICS = {
  'top1': top1,
  'top5': top5,
  'balanced_accuracy': balanced_accuracy,
  'macro_precision': macro_precision,
  'macro_recall': macro_recall,
  'macro_f1': macro_f1,
  'weighted_precision': weighted_precision,
  'weighted_recall': weighted_recall,
  'weighted_f1': weighted_f1,
  'cohen_kappa': cohen_kappa,
  'mcc': mcc,
  'macro_auroc': macro_auroc,
  'macro_average_precision': macro_average_precision,
  'nll': nll,
  'brier': brier,
  'ece': reliability.ece,
  'ece_equal_mass': reliability.ece_equal_mass,
  'ece_classwise': reliability.ece_classwise,
  'mce': reliability.mce,
  'rms_calibration_error': reliability.rms_calibration_error,
  'aurc': selective.aurc,
  'e_aurc': selective.e_aurc,
  'accuracy_at_coverage_80': selective.accuracy_at_coverage_80,
  'accuracy_at_coverage_90': selective.accuracy_at_coverage_90,
  'misclassification_auroc': misclassification_auroc,
  'mean_entropy': mean_entropy,
  'mean_confidence': mean_confidence,
  'overconfidence': overconfidence,
}


# At the end of a metric's name: after temperature scaling, see calibration.
SCALED = '_scaled'
# Of the metrics with a better side; the others describe without judging.
_LOWER = (
  'nll',
  'brier',
  'ece',
  'ece_equal_mass',
  'ece_classwise',
  'mce',
  'rms_calibration_error',
  'aurc',
  'e_aurc',
)
_NEITHER = ('mean_entropy', 'mean_confidence', 'overconfidence')
LOWER_IS_BETTER = frozenset(_LOWER) | {name + SCALED for name in _LOWER}
NO_BETTER_SIDE = frozenset(_NEITHER) | {name + SCALED for name in _NEITHER}


def goodness(name: str, value: float | None) -> float:
  """A value of a metric as a number of which the largest is best.

  Args:
    name: of the metric.
    value: NaN or None where it is undefined, which is worse than all.
  """
  if value is None or np.isnan(value):
    return float('-inf')
  return -value if name in LOWER_IS_BETTER else value


def check_name(name: str) -> str:
  """Returns name if it is a key of METRICS, else raises ValueError."""
  if name not in METRICS:
    raise unknown_name('metric', name, METRICS)
  return name


def compute_metrics(logits, labels) -> dict[str, float]:
  """All of METRICS for one model on one split."""
  return {name: metric(logits, labels) for name, metric in METRICS.items()}
