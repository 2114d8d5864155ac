"""Figures of a model under corruptions, from accuracies or predictions alone.

Errors are shares of wrong answers, [S] over the severities of a corruption.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from tlkd_jax.evaluation import curves, predictions, statistics


def mean_corrupted_error(
  errors: Mapping[str, np.ndarray], names: Iterable[str]
) -> float:
  """Mean over corruptions of the mean error over severities, unnormalised.

  NaN where none of `names` was measured.
  """
  means = [np.mean(errors[name]) for name in names if name in errors]
  return float(np.mean(means)) if means else float('nan')


def corruption_errors(
  errors: Mapping[str, np.ndarray],
  clean_error: float,
  reference_errors: Mapping[str, np.ndarray],
  reference_clean_error: float,
  names: Iterable[str],
) -> dict:
  """Corruption errors relative to a reference model's.

  Hendrycks and Dietterich 2019 with the reference in AlexNet's place: CE is
  the error of a corruption over its severities divided by the reference's;
  relative CE is the rise over the clean error divided by the reference's rise.

  Args:
    errors: corruption -> [S].
    clean_error: of the same model.
    reference_errors: corruption -> [S].
    reference_clean_error: of the reference.
    names: corruptions to average over; those that either lacks are left out.

  Returns:
    `ce` and `relative_ce` (corruption -> float, NaN where the reference's
    error, or its rise, is not positive), their means `mce` and `relative_mce`
    over the corruptions where they are defined, and the counts `ce_defined`
    and `relative_ce_defined`.
  """
  names = [n for n in names if n in errors and n in reference_errors]
  ce, relative = {}, {}
  for name in names:
    own, other = np.mean(errors[name]), np.mean(reference_errors[name])
    rise = other - reference_clean_error
    ce[name] = float(own / other) if other > 0 else float('nan')
    relative[name] = (
      float((own - clean_error) / rise) if rise > 0 else float('nan')
    )
  result: dict = {'ce': ce, 'relative_ce': relative}
  for kind, mean in (('ce', 'mce'), ('relative_ce', 'relative_mce')):
    values = np.array(list(result[kind].values()))
    defined = values[~np.isnan(values)]
    result[f'{kind}_defined'] = len(defined)
    result[mean] = float(defined.mean()) if len(defined) else float('nan')
  return result


def gap_slope(
  x_correct: np.ndarray, y_correct: np.ndarray, severities
) -> dict[str, float]:
  """Does the gap in accuracy between two models grow with severity?

  The slope of a straight line through the gaps is linear in them, so it is the
  mean over images of each image's own slope. Its interval is that mean's t
  interval: the images are the sample, and what one image does under all
  corruptions and severities stays together. The models are taken as given.

  Args:
    x_correct: bool [C, S, N], answers to N images under C corruptions.
    y_correct: bool [C, S, N], the same images.
    severities: [S], at least two different ones.

  Returns:
    `slope` (of accuracy x - y, per unit of severity), `low`, `high` and `p`
    (two-sided; of a slope of 0), and `gaps` [S].
  """
  x_correct, y_correct = np.asarray(x_correct), np.asarray(y_correct)
  if x_correct.shape != y_correct.shape:
    raise ValueError(
      'x_correct and y_correct must hold the same cells and images, got '
      f'{x_correct.shape} and {y_correct.shape}'
    )
  gaps = x_correct.astype(np.float64) - y_correct.astype(np.float64)
  per_image = gaps.mean(axis=0).T
  result = curves.severity_slope(severities, per_image)
  if not np.ptp(per_image):
    result['p'] = float('nan')
  return result | {'gaps': per_image.mean(axis=0)}


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
  """Wilson's 95 % interval of an accuracy over items, bool [N]."""
  return statistics.proportion_interval(int(correct.sum()), len(correct))


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether each answer is right, bool [N]."""
  return predictions.predicted_class(logits) == labels
