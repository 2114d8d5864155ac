"""Telling in-distribution from out-of-distribution examples by the logits.

Every score is larger the more an example looks in-distribution. AUROC and
FPR95 take in-distribution as the positive class: FPR95 is the share of
out-of-distribution examples let through at the threshold that keeps 95 % of
the in-distribution ones. AUPR is given for either positive class, since its
value depends on which is positive and on the mix of the two.
"""

import numpy as np
import scipy

from tlkd_jax.evaluation import metrics, predictions


def msp(logits) -> np.ndarray:
  """Maximum softmax probability (Hendrycks and Gimpel 2017), [N]."""
  return predictions.confidence(predictions.check_logits(logits))


def max_logit(logits) -> np.ndarray:
  """Largest logit (Hendrycks et al. 2022), [N]."""
  return predictions.check_logits(logits).max(axis=1)


def energy(logits) -> np.ndarray:
  """Negative free energy, log sum exp at T = 1 (Liu et al. 2020), [N]."""
  return scipy.special.logsumexp(predictions.check_logits(logits), axis=1)


def negative_entropy(logits) -> np.ndarray:
  """Minus the entropy of the softmax in nats, [N]."""
  return -metrics.entropy_per_example(logits)


OOD_SCORES = {
  'msp': msp,
  'max_logit': max_logit,
  'energy': energy,
  'negative_entropy': negative_entropy,
}


def detection_metrics(
  in_scores: np.ndarray, out_scores: np.ndarray
) -> dict[str, float]:
  """AUROC, AUPR and FPR95 of one score.

  Args:
    in_scores: float [N], larger means more in-distribution.
    out_scores: float [M].

  Returns:
    `auroc` and `fpr95` (positive: in-distribution; ties count half in the
    former), `aupr_in` and `aupr_out` (average precision with the
    in-distribution examples, or the others, as the positive class).
  """
  # Here and not above: it takes half a second, and most commands need none.
  from sklearn import metrics as sklearn_metrics

  scores = np.concatenate([in_scores, out_scores])
  inside = np.arange(len(scores)) < len(in_scores)
  false_positive, true_positive, _ = sklearn_metrics.roc_curve(
    inside, scores, drop_intermediate=False
  )
  at_95 = np.argmax(true_positive >= 0.95)
  average_precision = sklearn_metrics.average_precision_score
  return {
    'auroc': float(sklearn_metrics.roc_auc_score(inside, scores)),
    'fpr95': float(false_positive[at_95]),
    'aupr_in': float(average_precision(inside, scores)),
    'aupr_out': float(average_precision(~inside, -scores)),
  }


def ood_metrics(in_logits, out_logits) -> dict[str, dict[str, float]]:
  """`detection_metrics` of every score in OOD_SCORES.

  Args:
    in_logits: [N, K] logits on the data set the model was trained for.
    out_logits: [M, K] logits of the same model on another data set.

  Returns:
    score name -> `auroc`, `fpr95`, `aupr_in`, `aupr_out`.

  Raises:
    ValueError: if either is not a finite [_, K] array of the same K.
  """
  inside = predictions.check_logits(in_logits, 'in_logits')
  outside = predictions.check_logits(out_logits, 'out_logits')
  if inside.shape[1] != outside.shape[1]:
    raise ValueError(
      'in_logits and out_logits must come from one model, got '
      f'{inside.shape[1]} and {outside.shape[1]} classes'
    )
  return {
    name: detection_metrics(score(inside), score(outside))
    for name, score in OOD_SCORES.items()
  }
