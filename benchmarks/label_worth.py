"""Do the intervals of "worth x % labels" hold what they should?

  python -m benchmarks.label_worth [--studies 2000]

Studies are invented from known curves, with known noise, in the shape of the
studies of docs/results.md, and read by the functions that read real ones
(tlkd_jax.evaluation.label_curves). Curves:

  digits      four sizes, 50 to 500 images
  trashnet    four sizes, 60 to 540
  cifar10     two sizes, 100 and 500

An arm worth 20 % labels has the curve of plain fine-tuning at 1.2 times the
labels; the truth is what the curves without noise give, between sizes straight
in log n as everywhere. Noise: seeds, with spreads as seen, half of it shared by
both arms; or `images`: answers to 300 test images, drawn anew for each study,
which the interval is told. `percentile` is the percentile bootstrap over seeds,
of fewer studies. Prints one JSON line; about five minutes of one core.
"""

import argparse
import json

import numpy as np
from scipy import stats

from tlkd_jax.evaluation import label_curves

# Sizes, accuracies, spreads over seeds.
CURVES = {
  'digits': (
    (50, 100, 200, 500),
    (0.830, 0.874, 0.912, 0.931),
    (0.021, 0.030, 0.012, 0.010),
  ),
  'trashnet': (
    (60, 120, 300, 540),
    (0.549, 0.634, 0.714, 0.754),
    (0.050, 0.022, 0.014, 0.022),
  ),
  'cifar10': ((100, 500), (0.566, 0.699), (0.010, 0.009)),
}
SEEDS = (3, 6, 10)
_SHARED = 0.5
_IMAGES = 300
# Variances of an image's difficulty: for all, for one arm; of a single answer.
_DIFFICULTY, _OF_ARM, _ANSWER = 1.0, 0.3, 0.5


def truth(name: str, percent: float) -> tuple[np.ndarray, np.ndarray]:
  """Scores of the arm and of plain fine-tuning, [F] each."""
  sizes, plain, _ = CURVES[name]
  log_sizes = np.log(sizes)
  # Beyond the largest size as before it.
  more = 2 * log_sizes[-1] - log_sizes[-2], 2 * plain[-1] - plain[-2]
  x, y = np.append(log_sizes, more[0]), np.append(plain, more[1])
  return np.interp(log_sizes + np.log1p(percent / 100), x, y), np.array(plain)


def by_seeds(rng, name: str, percent: float, seeds: int):
  """Scores of both arms, [seeds, F] each."""
  spreads = np.array(CURVES[name][2])
  both = rng.standard_normal((seeds, len(spreads)))
  return [
    curve
    + spreads
    * (
      np.sqrt(_SHARED) * both
      + np.sqrt(1 - _SHARED) * rng.standard_normal(both.shape)
    )
    for curve in truth(name, percent)
  ]


def by_images(rng, name: str, percent: float, seeds: int):
  """Answers of both arms to images that are drawn, [seeds, F, images] each."""
  spreads = np.array(CURVES[name][2])
  difficulty = np.sqrt(_DIFFICULTY) * rng.standard_normal(_IMAGES)
  found = []
  for curve in truth(name, percent):
    level = stats.norm.ppf(curve)
    # The seed's spread as one of the latent score.
    own = spreads / stats.norm.pdf(level)
    total = np.sqrt(1 + own**2) * np.sqrt(_DIFFICULTY + _OF_ARM + _ANSWER)
    scale = total / np.sqrt(1 + own**2)
    latent = (level * total)[None, :, None] + np.zeros((seeds, 1, _IMAGES))
    latent += (scale * own)[None, :, None] * rng.standard_normal(
      (seeds, len(own), 1)
    )
    latent += difficulty + np.sqrt(_OF_ARM) * rng.standard_normal(_IMAGES)
    latent += np.sqrt(_ANSWER) * rng.standard_normal(latent.shape)
    found.append(latent > 0)
  return found


NOISE = {'seeds': by_seeds, 'images': by_images}


def run(
  name: str, percent: float, seeds: int, noise: str, studies: int, seed=0
) -> dict:
  """How often intervals hold the truth, over the curve and size by size."""
  sizes = CURVES[name][0]
  curves = [np.stack([curve] * 2) for curve in truth(name, percent)]
  true = label_curves.efficiency(sizes, *curves).percent
  each = [one.labels for one in label_curves.needed(sizes, *curves)]
  rng = np.random.default_rng([seed, seeds, len(name), round(percent)])
  held, widths, unknown = 0, [], 0
  at_sizes = np.zeros(len(sizes))
  for _ in range(studies):
    drawn = NOISE[noise](rng, name, percent, seeds)
    found = label_curves.efficiency(sizes, *drawn)
    # An interval that is not known claims nothing.
    unknown += np.isnan(found.low)
    held += not (found.low > true or found.high < true)
    widths.append(found.high - found.low)
    at_sizes += [
      one.low <= labels <= one.high
      for one, labels in zip(
        label_curves.needed(sizes, *drawn), each, strict=True
      )
    ]
  return {
    'curves': name,
    'noise': noise,
    'percent': percent,
    'truth': true,
    'seeds': seeds,
    'studies': studies,
    'held': held / studies,
    'unknown': unknown / studies,
    'median_width': float(np.nanmedian(widths)),
    'held_by_size': (at_sizes / studies).tolist(),
  }


def percentile(name: str, percent: float, seeds: int, studies: int) -> dict:
  """The same of the percentile bootstrap over seeds, over the curve."""
  sizes = CURVES[name][0]
  curves = [np.stack([curve] * 2) for curve in truth(name, percent)]
  true = label_curves.efficiency(sizes, *curves).percent
  rng = np.random.default_rng([1, seeds])
  held = 0
  for _ in range(studies):
    both = by_seeds(rng, name, percent, seeds)
    draws = []
    for _ in range(200):
      rows = rng.integers(0, seeds, seeds)
      # One row: no interval is asked for.
      means = [side[rows].mean(axis=0, keepdims=True) for side in both]
      draws.append(label_curves.efficiency(sizes, *means).percent)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    held += low <= true <= high
  return {
    'curves': name,
    'percent': percent,
    'seeds': seeds,
    'studies': studies,
    'held': held / studies,
  }


def main() -> None:
  """Prints the figures as one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--studies', type=int, default=2000)
  studies = parser.parse_args().studies
  rows = [
    run(name, percent, seeds, noise, studies)
    for noise in NOISE
    for name in CURVES
    for percent in (0.0, 20.0)
    for seeds in SEEDS
    if noise == 'seeds' or name == 'trashnet'
  ]
  before = [
    percentile(name, 20.0, seeds, max(studies // 5, 1))
    for name in CURVES
    for seeds in SEEDS
  ]
  found = {'rows': rows, 'percentile': before}
  print(json.dumps({'benchmark': 'label_worth'} | found))


if __name__ == '__main__':
  main()
