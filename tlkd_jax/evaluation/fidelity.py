"""How closely a student follows its teacher on the same examples.

FIDELITY[name](student_logits, teacher_logits, labels) -> float. Logits are
[N, K] of any float dtype, labels int [N]; computed in float64, in nats.
"""

import numpy as np

from tlkd_jax.evaluation import predictions


def _check_pair(student_logits, teacher_logits):
  names = 'student_logits', 'teacher_logits'
  return predictions.check_pair(student_logits, teacher_logits, names)


def _predictions(student_logits, teacher_logits):
  student, teacher = _check_pair(student_logits, teacher_logits)
  return (
    predictions.predicted_class(student),
    predictions.predicted_class(teacher),
  )


def agreement(student_logits, teacher_logits, labels=None) -> float:
  """Share of examples on which both predict the same class."""
  del labels
  student, teacher = _predictions(student_logits, teacher_logits)
  return float((student == teacher).mean())


def agreement_kappa(student_logits, teacher_logits, labels=None) -> float:
  """Cohen's kappa of the two predictions: agreement beyond chance.

  NaN where both predict one and the same class throughout.
  """
  del labels
  num_classes = np.shape(student_logits)[-1]
  student, teacher = _predictions(student_logits, teacher_logits)
  shares = [
    np.bincount(p, minlength=num_classes) / len(p) for p in (student, teacher)
  ]
  chance = shares[0] @ shares[1]
  observed = (student == teacher).mean()
  return float(predictions.safe_divide(observed - chance, 1 - chance, np.nan))


def _kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
  return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def _log_probs(student_logits, teacher_logits):
  student, teacher = _check_pair(student_logits, teacher_logits)
  return predictions.log_softmax(student), predictions.log_softmax(teacher)


def kl_teacher_student(student_logits, teacher_logits, labels=None) -> float:
  """Mean KL(teacher || student): what distillation at T = 1 minimises."""
  del labels
  student, teacher = _log_probs(student_logits, teacher_logits)
  return float(_kl(teacher, student).mean())


def kl_student_teacher(student_logits, teacher_logits, labels=None) -> float:
  """Mean KL(student || teacher)."""
  del labels
  student, teacher = _log_probs(student_logits, teacher_logits)
  return float(_kl(student, teacher).mean())


def js_divergence(student_logits, teacher_logits, labels=None) -> float:
  """Mean Jensen-Shannon divergence (Lin 1991), 0 to log 2."""
  del labels
  student, teacher = _log_probs(student_logits, teacher_logits)
  middle = np.logaddexp(student, teacher) - np.log(2.0)
  both = _kl(student, middle) + _kl(teacher, middle)
  return float(0.5 * both.mean())


def total_variation(student_logits, teacher_logits, labels=None) -> float:
  """Mean total variation distance, half of the L1 distance, 0 to 1."""
  del labels
  student, teacher = _log_probs(student_logits, teacher_logits)
  gap = np.abs(np.exp(student) - np.exp(teacher))
  return float(0.5 * gap.sum(axis=1).mean())


def _where_teacher_wrong(student_logits, teacher_logits, labels):
  student, teacher = _predictions(student_logits, teacher_logits)
  labels = predictions.check_labels(labels, *np.shape(student_logits))
  wrong = teacher != labels
  return student[wrong], teacher[wrong], labels[wrong]


def _mean_or_nan(hits: np.ndarray) -> float:
  return float(hits.mean()) if hits.size else float('nan')


def agreement_where_teacher_wrong(
  student_logits, teacher_logits, labels
) -> float:
  """Share of the teacher's errors that the student repeats exactly.

  NaN if the teacher makes none.
  """
  student, teacher, _ = _where_teacher_wrong(
    student_logits, teacher_logits, labels
  )
  return _mean_or_nan(student == teacher)


def accuracy_where_teacher_wrong(
  student_logits, teacher_logits, labels
) -> float:
  """Share of the teacher's errors that the student gets right, or NaN."""
  student, _, truth = _where_teacher_wrong(
    student_logits, teacher_logits, labels
  )
  return _mean_or_nan(student == truth)


FIDELITY = {
  'agreement': agreement,
  'agreement_kappa': agreement_kappa,
  'kl_teacher_student': kl_teacher_student,
  'kl_student_teacher': kl_student_teacher,
  'js_divergence': js_divergence,
  'total_variation': total_variation,
  'agreement_where_teacher_wrong': agreement_where_teacher_wrong,
  'accuracy_where_teacher_wrong': accuracy_where_teacher_wrong,
}


def compute_fidelity(student_logits, teacher_logits, labels):
  """All of FIDELITY: a dict of name to float."""
  return {
    name: metric(student_logits, teacher_logits, labels)
    for name, metric in FIDELITY.items()
  }


def _centred(features, name: str) -> np.ndarray:
  features = np.asarray(features).astype(np.float64)
  if features.ndim < 2 or not np.isfinite(features).all():
    raise ValueError(
      f'{name} must be finite with shape [N, ...], got {features.shape}'
    )
  features = features.reshape(len(features), -1)
  centred = features - features.mean(axis=0, keepdims=True)
  # What is left of constant features is rounding: exactly 0 makes it NaN.
  noise = 1e-12 * np.abs(features).max()
  return centred if np.abs(centred).max() > noise else np.zeros_like(centred)


def _check_features(x, y):
  x, y = _centred(x, 'x'), _centred(y, 'y')
  if len(x) != len(y):
    raise ValueError(
      f'x and y must describe the same examples, got {len(x)} and {len(y)}'
    )
  return x, y


def _squared_cross_norm(x: np.ndarray, y: np.ndarray) -> float:
  """||x^T y||_F^2, through the smaller of the two possible products."""
  if len(x) < max(x.shape[1], y.shape[1]):
    return float(np.vdot(x @ x.T, y @ y.T))
  return float((np.square(x.T @ y)).sum())


def linear_cka(x, y) -> float:
  """Linear centred kernel alignment, 0 to 1.

  Kornblith et al. 2019, "Similarity of Neural Network Representations
  Revisited". Biased upwards when N is not much larger than the dimensions.

  Args:
    x: [N, ...] features of N examples; trailing axes are flattened.
    y: [N, ...] features of the same examples, of another width if need be.

  Returns:
    A float; NaN if either is constant over the examples.

  Raises:
    ValueError: if N differs or an entry is not finite.
  """
  x, y = _check_features(x, y)
  return _normalise(
    _squared_cross_norm(x, y),
    _squared_cross_norm(x, x),
    _squared_cross_norm(y, y),
  )


def debiased_linear_cka(x, y) -> float:
  """Linear CKA from the unbiased HSIC, about 0 for unrelated features.

  Song et al. 2012 (HSIC_1), used for CKA by Nguyen et al. 2021, here in
  feature space so that memory does not grow with N^2. Arguments as for
  `linear_cka`. NaN if N < 4 or if either estimate of its own HSIC is not
  positive.
  """
  x, y = _check_features(x, y)
  if len(x) < 4:
    return float('nan')
  return _normalise(
    _unbiased_hsic(x, y), _unbiased_hsic(x, x), _unbiased_hsic(y, y)
  )


def _unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
  """HSIC_1 of centred features, without its constant factor 1 / (n(n-3))."""
  n = len(x)
  rows_x, rows_y = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
  return (
    _squared_cross_norm(x, y)
    - n / (n - 2) * float(rows_x @ rows_y)
    + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
  )


def _normalise(cross: float, own_x: float, own_y: float) -> float:
  if own_x <= 0 or own_y <= 0:
    return float('nan')
  return float(cross / np.sqrt(own_x) / np.sqrt(own_y))
