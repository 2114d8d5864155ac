"""Tests that may be looked at after every pair: alpha spending with t.

A study adds pairs until it is sure. That the t test is looked at after each
would make an error of 5 % into one of 20 %, so that the 5 % are spent little by
little: after n of at most N pairs level x (n / N)^SPENDING of it (Lan and
DeMets 1983; the power family of Kim and DeMets 1987). Pairs are few and their
variance is not known; so the critical values are those of the process of t
statistics itself, which under the null depends on nothing but N where the
differences are normal. They are found by simulating that process once, not by
the normal distribution's values turned into t quantiles, which spend too much
at few degrees of freedom (Jennison and Turnbull 2000, section 4.4).
"""

import functools

import numpy as np
import scipy

# Below so many pairs nothing is decided: differences of accuracies are counts
# of images, and a few of them are equal by chance.
FIRST_LOOK = 5
# 1 spends evenly; more keeps the level for the end.
SPENDING = 1.0
# Paths of the simulation. The level's own error is 0.0003 for 0.025.
_PATHS = 400_000
_BLOCK = 100_000


@functools.cache
def nominal_levels(most: int, level: float, first: int = FIRST_LOOK):
  """One-sided level of the t test after each number of pairs.

  Args:
    most: N, the pairs after which there is no further look.
    level: one-sided, of all looks together.
    first: pairs of the first look.

  Returns:
    {n: p}: of n = first .. N, a t statistic of n - 1 degrees of freedom is
    beyond the boundary where its upper tail is below p.

  Raises:
    ValueError: N is below `first`.
  """
  if most < first:
    raise ValueError(f'at most {most} pairs, and the first look is at {first}')
  rng = np.random.default_rng(20231)
  alive = np.ones(_PATHS, bool)
  sums, squares = np.zeros(_PATHS), np.zeros(_PATHS)
  spent, found = 0, {}
  for n in range(1, most + 1):
    for start in range(0, _PATHS, _BLOCK):
      part = slice(start, start + _BLOCK)
      drawn = rng.standard_normal(_BLOCK)
      sums[part] += drawn
      squares[part] += drawn * drawn
    if n < first:
      continue
    kept = np.flatnonzero(alive)
    mean = sums[kept] / n
    spread = (squares[kept] - n * mean * mean) / (n - 1)
    t = mean / np.sqrt(spread / n)
    until_now = round(level * (n / most) ** SPENDING * _PATHS)
    crossing = max(until_now - spent, 1)
    edge = np.partition(t, -crossing)[-crossing]
    spent += crossing
    alive[kept[t >= edge]] = False
    found[n] = float(scipy.stats.t.sf(edge, n - 1))
  return found
