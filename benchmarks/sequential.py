"""Does a study that looks after every seed err as seldom as it says?

  python -m benchmarks.sequential [--studies 10000]

Studies are invented, with and without a difference between their arms, and
judged seed by seed until they are sure or have no seeds left, by the functions
that judge real ones (tlkd_jax.answer.decision). Designs:

  normal      one number a seed, spread 0.5 points
  discrete    one place of 630 images, 95 of them in question; differences are
              counts
  heavy       t with 3 degrees of freedom in place of the normal distribution
  places      three data sets of 360, 630 and 2,000 images, spreads of 1, 2 and
              0.7 points
  drawn       one place of 630 images, among which an arm is better at some and
              worse at others, and that are drawn anew for each study: the null
              holds for all images, not for these

Errors are those of a sure verdict that is wrong: 'helps' or 'hurts' where the
true difference is 0, 'equal' where it is the margin. `one look a seed` is the
t test of 5 % at every look. Prints one JSON line; some minutes of one core.
"""

import argparse
import json

import numpy as np
from scipy import stats

from tlkd_jax.answer.decision import Halves, levels, verdicts
from tlkd_jax.answer.plan import Plan
from tlkd_jax.evaluation import crossed
from tlkd_jax.evaluation.sequential import FIRST_LOOK

_CHUNK = 500
# Share of images whose answers differ from cell to cell.
_CHURN = 0.15
_PLACES = ((360, 0.01), (630, 0.02), (2000, 0.007))


def normal(rng, studies: int, seeds: int, gain: float, spread=0.005):
  """Differences [studies, seeds] and no images' part."""
  values = gain + spread * rng.standard_normal((studies, seeds))
  return values, np.zeros((studies, seeds)), np.zeros((studies, seeds))


def heavy(rng, studies: int, seeds: int, gain: float):
  """As normal, of t with 3 degrees of freedom, whose variance is 3."""
  drawn = rng.standard_t(3, (studies, seeds)) / np.sqrt(3)
  none = np.zeros((studies, seeds))
  return gain + 0.005 * drawn, none, none


def discrete(rng, studies: int, seeds: int, gain: float):
  """Images won less images lost, of 630."""
  return _counts(rng, (studies, seeds), 630, 0.0, gain)


def places(rng, studies: int, seeds: int, gain: float):
  """The mean over three data sets."""
  found = [
    _counts(rng, (studies, seeds), count, spread, gain)
    for count, spread in _PLACES
  ]
  values, images, rest = (np.array([one[i] for one in found]) for i in range(3))
  share = len(_PLACES) ** 2
  return values.mean(axis=0), images.sum(axis=0) / share, rest.sum(0) / share


def _counts(rng, shape, count: int, spread: float, gain: float):
  """Hits of two arms on the same images, by the number of those that differ."""
  own = gain + spread * rng.standard_normal(shape)
  up = np.clip((_CHURN + own) / 2, 0, 1)
  down = np.clip((_CHURN - own) / 2, 0, 1)
  won = rng.binomial(count, up)
  lost = rng.binomial(count - won, np.clip(down / (1 - up), 0, 1))
  values = (won - lost) / count
  # Images are exchangeable here: their part is 0, the rest is known.
  return values, np.zeros(shape), np.full(shape, _CHURN / count)


def drawn(rng, studies: int, seeds: int, gain: float, count=630):
  """Images at which an arm is better or worse whatever the seed."""
  values = np.empty((studies, seeds))
  images, rest = np.zeros((studies, seeds)), np.zeros((studies, seeds))
  for study in range(studies):
    lean = gain + 0.12 * rng.standard_normal((1, count))
    lean = lean + 0.005 * rng.standard_normal((seeds, 1))
    up, down = (np.clip(0.1 + side * lean / 2, 0, 0.5) for side in (1, -1))
    lot = rng.random((seeds, count))
    hits = (lot < up).astype(float) - (lot > 1 - down)
    values[study] = hits.mean(axis=1)
    for n in range(FIRST_LOOK, seeds + 1):
      found = crossed.parts(hits[:n])
      images[study, n - 1] = found.images
      # Of one seed, as of the other designs.
      rest[study, n - 1] = found.rest * n
  return values, images, rest


DESIGNS = {
  'normal': normal,
  'discrete': discrete,
  'heavy': heavy,
  'places': places,
  'drawn': drawn,
}


def judge(values, images, rest, plan: Plan, images_count=630):
  """First sure verdict of each study.

  Args:
    values: [studies, seeds].
    images: variance of the mean that images leave, at each number of seeds.
    rest: least variance of one seed, likewise.
    plan: how it is judged.
    images_count: for degrees of freedom.

  Returns:
    (index into decision.SURE or -1, seeds it took) [studies]; and whether the
    t test of 5 % at every look would once have seen a difference.
  """
  studies, seeds = values.shape
  verdict, took = np.full(studies, -1), np.full(studies, seeds)
  naive = np.zeros(studies, bool)
  for n in range(FIRST_LOOK, seeds + 1):
    mean = values[:, :n].mean(axis=1)
    own = values[:, :n].var(axis=1, ddof=1) / n
    naive |= np.abs(mean) > stats.t.isf(0.025, n - 1) * np.sqrt(own)
    own = np.maximum(own, rest[:, n - 1] / n)
    extra = images[:, n - 1]
    freedom = crossed.freedom(own, n - 1, extra, images_count - 1)
    error = np.sqrt(own + extra)
    outer, inner = (stats.t.isf(p, freedom) * error for p in levels(n, plan))
    now = verdicts(mean, Halves(outer, inner), plan.margin)
    first = (verdict < 0) & (now >= 0)
    verdict[first], took[first] = now[first], n
  return verdict, took, naive


def run(design: str, gain: float, studies: int, plan: Plan, seed=0) -> dict:
  """Shares of verdicts and seeds used, of studies of one design."""
  rng = np.random.default_rng([seed, len(design), round(1e5 * gain) % 10_000])
  found = []
  for start in range(0, studies, _CHUNK):
    count = min(_CHUNK, studies - start)
    found.append(
      judge(*DESIGNS[design](rng, count, plan.max_seeds, gain), plan)
    )
  verdict, took, naive = (
    np.concatenate(part) for part in zip(*found, strict=True)
  )
  return {
    'design': design,
    'gain_points': 100 * gain,
    'max_seeds': plan.max_seeds,
    'studies': studies,
    'helps': float((verdict == 0).mean()),
    'hurts': float((verdict == 1).mean()),
    'equal': float((verdict == 2).mean()),
    'open': float((verdict < 0).mean()),
    'seeds_mean': float(took.mean()),
    'one_look_a_seed': float(naive.mean()),
  }


def coverage(studies: int, seeds: int, count=630, seed=1) -> dict:
  """How often 95 % intervals of a mean hold it, images drawn anew each time.

  Of studies as `drawn`: over seeds alone, and over seeds and images.
  """
  rng = np.random.default_rng(seed)
  alone, both = 0, 0
  for _ in range(studies):
    lean = 0.12 * rng.standard_normal((1, count))
    lean = lean + 0.005 * rng.standard_normal((seeds, 1))
    up, down = (np.clip(0.1 + side * lean / 2, 0, 0.5) for side in (1, -1))
    lot = rng.random((seeds, count))
    hits = (lot < up).astype(float) - (lot > 1 - down)
    found, means = crossed.parts(hits), hits.mean(axis=1)
    own, mean = means.var(ddof=1) / seeds, abs(means.mean())
    alone += mean <= stats.t.isf(0.025, seeds - 1) * np.sqrt(own)
    own = max(own, found.rest)
    freedom = crossed.freedom(own, seeds - 1, found.images, found.freedom)
    both += mean <= stats.t.isf(0.025, freedom) * np.sqrt(own + found.images)
  return {
    'design': 'drawn',
    'seeds': seeds,
    'studies': studies,
    'over_seeds': alone / studies,
    'over_seeds_and_images': both / studies,
  }


def main() -> None:
  """Prints the figures as one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--studies', type=int, default=10_000)
  options = parser.parse_args()
  rows = []
  for design in DESIGNS:
    for gain in (0.0, 0.005):
      # Of single images: a study takes long.
      count = options.studies // (5 if design == 'drawn' and gain else 1)
      rows.append(run(design, gain, count, Plan()))
  for gain in (0.0, 0.005, 0.01, 0.02):
    rows.append(run('normal', gain, 2000, Plan(max_seeds=10)))
    rows.append(run('places', gain, 2000, Plan(max_seeds=10)))
    rows.append(run('places', gain, 2000, Plan(max_seeds=60)))
    if gain > 0.005:
      rows.append(run('normal', gain, 2000, Plan()))
      rows.append(run('places', gain, 2000, Plan()))
  held = [coverage(options.studies // 2, seeds) for seeds in (3, 6, 10, 20)]
  found = {'rows': rows, 'coverage': held}
  print(json.dumps({'benchmark': 'sequential'} | found))


if __name__ == '__main__':
  main()
