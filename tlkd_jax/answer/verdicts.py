"""What a comparison of one place or metric says, in one word.

The verdict on the primary question, of four values, is that of `decision`.
"""

from collections.abc import Mapping
from typing import Literal

from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER, NO_BETTER_SIDE
from tlkd_jax.evaluation.statistics import ALPHA

Verdict = Literal['better', 'worse', 'inconclusive', 'not judged']

# In their order in sentences.
JUDGED: tuple[Verdict, ...] = ('better', 'worse', 'inconclusive')


def decide(test: Mapping[str, float], p: float, metric: str) -> Verdict:
  """The verdict of a comparison over seeds.

  Args:
    test: statistics.compare_paired of the arm and its reference.
    p: two-sided, corrected where several comparisons are judged together.
    metric: that was compared.

  Returns:
    'inconclusive' where p is not below ALPHA, or NaN; 'not judged' for a
    metric of which neither more nor less is better.
  """
  return _verdict(test['mean_difference'], p < ALPHA, metric)


def decide_over_images(
  difference: float,
  low: float,
  high: float,
  metric: str,
  mcnemar_p: float | None = None,
) -> Verdict:
  """The verdict on two models, see `is_apart_over_images`."""
  apart = is_apart_over_images(low, high, mcnemar_p)
  return _verdict(difference, apart, metric)


def is_apart_over_images(
  low: float, high: float, mcnemar_p: float | None = None
) -> bool:
  """Whether two models differ by more than the choice of test images.

  Args:
    low: of the interval over test images.
    high: likewise.
    mcnemar_p: of accuracy, which must agree: the interval leaves 0 earlier.
  """
  return (low > 0 or high < 0) and (mcnemar_p is None or mcnemar_p < ALPHA)


def _verdict(difference: float, is_apart: bool, metric: str) -> Verdict:
  if metric in NO_BETTER_SIDE:
    return 'not judged'
  if not is_apart or difference == 0:
    return 'inconclusive'
  higher_is_better = metric not in LOWER_IS_BETTER
  return 'better' if (difference > 0) == higher_is_better else 'worse'
