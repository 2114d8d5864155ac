"""The exact and the drawn sign-flip test, against patterns one by one."""

import itertools

import numpy as np
import pytest

from tlkd_jax.evaluation import sign_flips, statistics


def _differences(kind, count):
  rng = np.random.default_rng(count)
  return {
    'any': rng.normal(0.4, 1.0, count),
    'ties': np.round(rng.normal(0.4, 1.0, count), 1),
    'images': rng.integers(-3, 6, count) / 630,
    'equal': np.full(count, 0.01),
    'zero': np.zeros(count),
    'against': -rng.random(count),
  }[kind]


KINDS = ('any', 'ties', 'images', 'equal', 'zero', 'against')


def _one_by_one(difference, patterns):
  """Sums as they are, so that ties need the slack that rounding takes."""
  sums = [abs(float(np.dot(signs, difference))) for signs in patterns]
  slack = 1e-12 * np.abs(difference).sum()
  return sum(value >= abs(difference.sum()) - 2 * slack for value in sums)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [1, 2, 5, 10])
def test_all_patterns_count(kind, count):
  difference = _differences(kind, count)
  patterns = [*itertools.product((1, -1), repeat=count)]
  found = statistics.sign_flip_test(difference, np.zeros(count))
  assert found == _one_by_one(difference, patterns) / 2**count


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [21, 24, 31])
def test_drawn_patterns_are_those_of_the_generator(kind, count):
  difference = _differences(kind, count)
  signs = np.random.default_rng(3).integers(0, 2, (400, count)) * 2 - 1
  expected = (1 + _one_by_one(difference, signs)) / 401
  found = statistics.sign_flip_test(difference, np.zeros(count), 3, 400)
  assert found == expected


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [2, 6, 21, 26])
@pytest.mark.parametrize('move', [-0.3, 0.004])
def test_largest_p_is_that_of_each_moved_in_turn(kind, count, move):
  difference = _differences(kind, count)
  expected = max(
    statistics.sign_flip_test(
      difference + move * (np.arange(count) == i), np.zeros(count), 7, 300
    )
    for i in range(count)
  )
  assert sign_flips.largest_p(difference, move, 7, 300) == expected
