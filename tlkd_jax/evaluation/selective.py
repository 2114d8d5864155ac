"""Selective prediction: what is gained by answering only when confident.

Examples are ranked by the largest softmax probability, the most confident
first; ties keep the order of the split.
"""

import math

import numpy as np

from tlkd_jax.evaluation import predictions


def _sorted_errors(logits, labels) -> np.ndarray:
  logits, labels = predictions.check_split(logits, labels)
  order = np.argsort(-predictions.confidence(logits), kind='stable')
  wrong = predictions.predicted_class(logits) != labels
  return wrong[order].astype(np.float64)


def _risks(errors: np.ndarray) -> np.ndarray:
  return np.cumsum(errors) / np.arange(1, len(errors) + 1)


def risk_coverage_curve(logits, labels) -> dict[str, np.ndarray]:
  """Error rate among the k most confident examples, for k = 1 .. N.

  Returns:
    `coverage` (k / N) and `risk`, float64 [N].
  """
  risk = _risks(_sorted_errors(logits, labels))
  return {'coverage': np.arange(1, len(risk) + 1) / len(risk), 'risk': risk}


def aurc(logits, labels) -> float:
  """Area under the risk-coverage curve: the mean of its N risks.

  Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty Estimation".
  """
  return float(_risks(_sorted_errors(logits, labels)).mean())


def e_aurc(logits, labels) -> float:
  """AURC minus that of the perfect ranking at the same accuracy (>= 0)."""
  errors = _sorted_errors(logits, labels)
  return float(_risks(errors).mean() - _risks(np.sort(errors)).mean())


def num_covered(num_examples: int, coverage: float) -> int:
  """Smallest count of examples that covers at least `coverage` of them."""
  return max(1, math.ceil(round(coverage * num_examples, 9)))


def accuracy_at_coverage(logits, labels, coverage: float) -> float:
  """Accuracy among the ceil(coverage * N) most confident examples."""
  errors = _sorted_errors(logits, labels)
  kept = errors[: num_covered(len(errors), coverage)]
  return float(1.0 - kept.mean())


def accuracy_at_coverage_80(logits, labels) -> float:
  """Accuracy among the 80 % most confident examples."""
  return accuracy_at_coverage(logits, labels, 0.8)


def accuracy_at_coverage_90(logits, labels) -> float:
  """Accuracy among the 90 % most confident examples."""
  return accuracy_at_coverage(logits, labels, 0.9)
