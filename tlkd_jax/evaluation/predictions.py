"""Checks and float64 softmax, shared by everything that reads predictions.

Contract of the package: `logits` is a [N, K] array of any float dtype with
finite entries, `labels` an integer array [N] with entries in [0, K); every
metric computes in float64. Where a value is undefined (the docstring says when)
it is NaN, never an exception or a warning.
"""

import numpy as np
import scipy


def check_logits(logits, name: str = 'logits') -> np.ndarray:
  """Returns logits as float64.

  Args:
    logits: [N, K] array, N >= 1, K >= 2.
    name: how error messages call the array.

  Returns:
    float64 [N, K].

  Raises:
    ValueError: if the shape is another or an entry is NaN or infinite.
  """
  logits = np.asarray(logits).astype(np.float64)
  if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
    raise ValueError(
      f'{name} must have shape [N, K] with N >= 1 examples and K >= 2 '
      f'classes, got {logits.shape}'
    )
  bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
  if bad.size:
    raise ValueError(
      f'{name} must be finite; {bad.size} of {len(logits)} rows are not, '
      f'the first is row {bad[0]}'
    )
  return logits


def check_labels(labels, num_examples: int, num_classes: int) -> np.ndarray:
  """Returns labels as int64 [N].

  Args:
    labels: [N] integer array.
    num_examples: N.
    num_classes: K.

  Raises:
    ValueError: for another shape, a dtype that is not integer, or a label
      outside [0, K).
  """
  labels = np.asarray(labels)
  if labels.shape != (num_examples,):
    raise ValueError(
      f'labels must have shape [{num_examples}], one per row of logits, got '
      f'{labels.shape}'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'labels must be integers, got dtype {labels.dtype}')
  low, high = labels.min(), labels.max()
  if low < 0 or high >= num_classes:
    raise ValueError(
      f'labels must lie in [0, {num_classes}), got values from {low} to {high}'
    )
  return labels.astype(np.int64)


def check_split(logits, labels) -> tuple[np.ndarray, np.ndarray]:
  """Returns (float64 [N, K], int64 [N]) or raises ValueError."""
  logits = check_logits(logits)
  return logits, check_labels(labels, *logits.shape)


def check_pair(
  x_logits, y_logits, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the logits of two models on the same examples as float64 [N, K].

  Args:
    x_logits: [N, K].
    y_logits: [N, K].
    names: how error messages call the two.

  Raises:
    ValueError: as check_logits, or if the shapes differ.
  """
  x, y = map(check_logits, (x_logits, y_logits), names)
  if x.shape != y.shape:
    raise ValueError(
      f'{names[0]} and {names[1]} must have one shape (same examples, same '
      f'classes), got {x.shape} and {y.shape}'
    )
  return x, y


def softmax(logits: np.ndarray) -> np.ndarray:
  """Softmax over the last axis in float64."""
  return scipy.special.softmax(np.asarray(logits).astype(np.float64), axis=-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Log-softmax over the last axis in float64; finite for finite logits."""
  return scipy.special.log_softmax(
    np.asarray(logits).astype(np.float64), axis=-1
  )


def predicted_class(logits: np.ndarray) -> np.ndarray:
  """Class of the largest logit, [N]; the lowest index wins a tie."""
  return np.argmax(logits, axis=-1)


def confidence(logits: np.ndarray) -> np.ndarray:
  """Largest softmax probability of each row, float64 [N]."""
  return softmax(logits).max(axis=-1)


def safe_divide(numerator, denominator, otherwise: float) -> np.ndarray:
  """numerator / denominator in float64, `otherwise` where that is x / 0."""
  numerator = np.asarray(numerator, np.float64)
  denominator = np.asarray(denominator, np.float64)
  shape = np.broadcast_shapes(numerator.shape, denominator.shape)
  out = np.full(shape, otherwise)
  return np.divide(numerator, denominator, out=out, where=denominator != 0)
