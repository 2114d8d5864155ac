"""One word for a comparison."""

import numpy as np
import pytest

from tlkd_jax.answer.verdicts import decide, decide_over_images
from tlkd_jax.evaluation import statistics

ZEROS = np.zeros(6)
GAINS = np.array([0.01, 0.02, 0.015, 0.03, 0.01, 0.02])


def verdict(x, y, metric='top1'):
  test = statistics.compare_paired(x, y)
  return decide(test, test['p_sign_flip'], metric)


def test_over_seeds():
  assert verdict(GAINS, ZEROS) == 'better'
  assert verdict(-GAINS, ZEROS) == 'worse'
  assert verdict(-GAINS, ZEROS, 'nll') == 'better'
  assert verdict(GAINS, ZEROS, 'mean_entropy') == 'not judged'
  assert verdict(ZEROS, ZEROS) == 'inconclusive'
  # Five pairs cannot decide, however clear they look.
  five = statistics.compare_paired(GAINS[:5], ZEROS[:5])
  assert five['p_t'] < 0.02 and five['p_sign_flip'] == 0.0625
  assert verdict(GAINS[:5], ZEROS[:5]) == 'inconclusive'


def test_the_corrected_p_decides():
  test = statistics.compare_paired(GAINS, ZEROS)
  assert decide(test, 0.049, 'top1') == 'better'
  assert decide(test, 0.05, 'top1') == 'inconclusive'
  assert decide(test, float('nan'), 'top1') == 'inconclusive'


@pytest.mark.parametrize(
  ('bounds', 'metric', 'expected'),
  [
    ((0.2, 0.1, 0.3), 'top1', 'better'),
    ((-0.2, -0.3, -0.1), 'top1', 'worse'),
    ((-0.2, -0.3, -0.1), 'ece', 'better'),
    ((0.2, -0.1, 0.5), 'top1', 'inconclusive'),
    ((0.2, float('nan'), float('nan')), 'top1', 'inconclusive'),
    ((0.2, 0.1, 0.3), 'overconfidence', 'not judged'),
  ],
)
def test_over_images(bounds, metric, expected):
  assert decide_over_images(*bounds, metric) == expected
