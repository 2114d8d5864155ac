"""No two test images of one cell change what the pages call sure.

Every pair of images of every cell is tried, by formulas that are written here
once more, for many answers at once. That a flipped study is itself so close to
a bound that it would not be called sure does not count: some study always is.
"""

import itertools

import numpy as np
import scipy

from tests.study.rows import row
from tlkd_jax.answer import conclusions, effects
from tlkd_jax.answer.decision import EQUAL, HELPS, HURTS, SURE, levels
from tlkd_jax.answer.plan import Plan
from tlkd_jax.answer.rows import Answers


def study(right):
  """Rows of one place; right: bool [seeds, 2, images], TL then TL+KD."""
  rows = []
  for seed, side in np.ndindex(*right.shape[:2]):
    own = right[seed, side]
    rows.append(row(('tl', 'kd')[side], seed, float(own.mean())))
    rows[-1]['answers'] = Answers('same', own)
  return rows


def ends(right, *quantiles):
  """Of intervals over seeds and images; right [B, S, 2, N] -> (low, high)s."""
  values = right[:, :, 1].astype(float) - right[:, :, 0]
  seeds, count = values.shape[1:]
  means, columns = values.mean(axis=2), values.mean(axis=1)
  rest = values - columns[:, None]
  rest -= rest.mean(axis=2, keepdims=True)
  noise = (rest**2).sum(axis=(1, 2)) / (seeds - 1) / (count - 1)
  images = columns.var(axis=1, ddof=1) - noise / seeds
  images = np.maximum(images, 0) / count
  own = np.maximum(means.var(axis=1, ddof=1) / seeds, noise / seeds / count)
  below = own**2 / (seeds - 1) + images**2 / (count - 1)
  some = below > 0
  freedom = np.where(
    some, (own + images) ** 2 / np.where(some, below, 1), seeds - 1
  )
  mean = means.mean(axis=1)
  # Three images in so many may be answered otherwise by all seeds.
  unseen = np.maximum((3 / 1.645 / count) ** 2 - images - noise / count, 0)
  halves = [
    scipy.stats.t.isf(q, freedom) * np.sqrt(own + images + unseen)
    for q in quantiles
  ]
  return [(mean - half, mean + half) for half in halves]


def exact_p(right):
  """Of the sign-flip test over seeds, right [B, S, 2, N] -> [B]."""
  counts = right.sum(axis=3)
  difference = counts[:, :, 1] - counts[:, :, 0]
  signs = np.array([*itertools.product((1, -1), repeat=right.shape[1])])
  seen = np.abs(difference.sum(axis=1))
  return (np.abs(difference @ signs.T) >= seen[:, None]).mean(axis=1)


def neighbours(right):
  """Of each cell, the study with one or two of its images flipped, [B, ...]."""
  seeds, _, count = right.shape
  pairs = np.array([*itertools.combinations_with_replacement(range(count), 2)])
  for seed, side in np.ndindex(seeds, 2):
    changed = np.tile(right, (len(pairs), 1, 1, 1))
    for image in pairs.T:
      changed[np.arange(len(pairs)), seed, side, image] = ~right[
        seed, side, image
      ]
    yield changed


def of_question(verdict, plan):
  """Whether intervals give a verdict on the question: right -> bool [B]."""

  def check(right):
    outer, inner = ends(right, *levels(right.shape[1], plan))
    return {
      HELPS: outer[0] > 0,
      HURTS: outer[1] < 0,
      EQUAL: (inner[0] > -plan.margin) & (inner[1] < plan.margin),
    }[verdict]

  return check


def of_place(verdict):
  """Whether exact p and interval give a verdict at the place, likewise."""

  def check(right):
    ((low, high),) = ends(right, 0.025)
    apart = low > 0 if verdict == 'better' else high < 0
    return apart & (exact_p(right) < 0.05)

  return check


def made(number):
  """Answers of a study, its plan: effects about as large as their errors."""
  rng = np.random.default_rng(number)
  seeds, images = int(rng.integers(6, 8)), int(rng.choice([24, 40]))
  spread = rng.choice([0.0, 0.02, 0.05])
  gain = rng.choice([-1, 1]) * rng.choice([0.0, 0.0, 0.15, 0.2, 0.25, 0.3])
  # One seed may differ from all others by much.
  odd = rng.choice([0.0, 0.1, 0.3]) * np.sign(gain)
  # Of the images that change, so many do for every seed.
  shared = rng.choice([0.0, 0.5, 1.0])
  order = rng.permutation(images)
  right = np.zeros((seeds, 2, images), bool)
  for seed in range(seeds):
    moved = order.copy()
    some = rng.permutation(images)[: round((1 - shared) * images)]
    moved[some] = rng.permutation(moved[some])
    plain = round(images * 0.5)
    more = gain + odd * (seed == 0) + spread * rng.standard_normal()
    right[seed, 0, moved[:plain]] = True
    right[seed, 1, moved[: plain + round(images * more)]] = True
  return right, Plan(margin=float(rng.choice([0.05, 0.1, 0.2])), max_seeds=20)


def said(right, plan):
  """The decision on the question, and the effect at the place."""
  rows = study(right)
  (place,) = effects.per_place(rows, 'kd', 'tl', 'top1')
  return conclusions.decisions(rows, 'kd', 'tl', plan)[-1], place


# Studies in which each kind of verdict is sure, and some just not.
NUMBERS = range(60)


def test_no_two_images_of_a_cell_change_what_is_sure():
  seen = []
  for number in NUMBERS:
    right, plan = made(number)
    decision, place = said(right, plan)
    outer, inner = ends(right[None], *levels(len(right), plan))
    ((low, high),) = ends(right[None], 0.025)
    # The formulas here are those of the answer.
    np.testing.assert_allclose(
      np.ravel([*outer, *inner, low, high, exact_p(right[None])]),
      [
        *(decision.low, decision.high),
        *(decision.inner_low, decision.inner_high),
        *(place.both.low, place.both.high, place.p),
      ],
      atol=1e-12,
    )
    for verdict, called, check in (
      *((one, decision.verdict, of_question(one, plan)) for one in SURE),
      *((one, place.verdict, of_place(one)) for one in ('better', 'worse')),
    ):
      if check(right[None])[0]:
        stays = all(check(changed).all() for changed in neighbours(right))
        assert stays or called != verdict, number
        seen.append((verdict, called == verdict, stays))
      else:
        assert called != verdict, number
  # Each was called sure, and each kind of them was not, for two images.
  for verdict in (*SURE, 'better', 'worse'):
    assert seen.count((verdict, True, True)) >= 4, verdict
  broken = [verdict for verdict, _, stays in seen if not stays]
  assert len(broken) >= 4 and {*broken} & {*SURE} and {*broken} - {*SURE}
