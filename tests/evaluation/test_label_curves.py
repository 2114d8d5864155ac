"""What an arm is worth in labels, against values found by hand."""

import math

import numpy as np
import pytest

from benchmarks import label_worth
from tlkd_jax.evaluation import label_curves

SIZES = np.array([10, 20, 50, 100])


def _scores(sizes, factor, noise=0.0, seeds=6, rng_seed=0):
  """Score 0.4 + 0.1 log(factor n): a teacher worth `factor` times the n."""
  rng = np.random.default_rng(rng_seed)
  curve = 0.4 + 0.1 * np.log(factor * sizes)
  return curve[None, :] + noise * rng.normal(size=(seeds, len(sizes)))


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.5, 3.0])
def test_a_known_factor_is_recovered(factor):
  taught, plain = _scores(SIZES, factor), _scores(SIZES, 1.0)
  found = label_curves.efficiency(SIZES, taught, plain)
  expected = pytest.approx(100 * (factor - 1), abs=1e-6)
  ends = found.percent, found.low, found.high
  assert all(end == expected for end in ends)
  for one in label_curves.needed(SIZES, taught, plain):
    labels = factor * one.size
    if labels > 100 * 1.001:
      assert one.labels == one.high == label_curves.MORE and one.low <= 100
    elif labels < 10 * 0.999:
      assert one.labels == one.low == label_curves.FEWER and one.high >= 10
    elif factor != 1:
      assert one.labels == pytest.approx(labels)
      # Candidates lie a sixteenth of the way between two sizes apart.
      assert labels / 1.07 < one.low <= labels * 1.001
      assert labels / 1.001 <= one.high < labels * 1.07


def test_the_jackknife_by_hand():
  """One level only: the ratio is a difference of two straight lines."""
  sizes = np.array([10, 100])
  plain = np.array([[0.0, 1.0]] * 3)
  shift = np.array([0.1, 0.2, 0.3])
  found = label_curves.efficiency(sizes, plain + shift[:, None], plain)
  # A shift in score is that share of log 10; the spread of a mean of three.
  error = 0.1 / np.sqrt(3) * np.log(10)
  half = 4.302652729696142 * error
  ends = [100 * np.expm1(0.2 * np.log(10) + s * half) for s in (-1, 1)]
  assert found.low == pytest.approx(ends[0], rel=1e-6)
  assert found.high == pytest.approx(ends[1], rel=1e-6)


def test_what_the_sizes_do_not_span_is_open():
  sizes = np.array([10, 20])
  plain = np.array([[0.0, 1.0]] * 3)
  shift = np.array([-0.5, 0.2, 0.9])
  found = label_curves.efficiency(sizes, plain + shift[:, None], plain)
  assert found.high == math.inf and found.low == -100


@pytest.mark.parametrize(
  ('shift', 'bounds'),
  [(5.0, (100, label_curves.MORE)), (-5.0, (label_curves.FEWER, 10))],
)
def test_curves_without_common_scores(shift, bounds):
  taught = shift + _scores(SIZES, 1.0, 0.01, 6, 1)
  found = label_curves.efficiency(SIZES, taught, _scores(SIZES, 1.0, 0.01))
  assert math.isnan(found.percent) and math.isnan(found.low)
  for one in label_curves.needed(SIZES, taught, _scores(SIZES, 1.0, 0.01)):
    assert (one.low, one.high) == bounds
    assert one.labels in bounds


def test_a_dip_and_a_plateau_of_one_seed():
  plain = np.array([[0.5, 0.6, 0.58, 0.7]])
  taught = np.array([[0.55, 0.65, 0.65, 0.72]])
  found = label_curves.efficiency(SIZES, taught, plain)
  assert found.percent > 20 and math.isnan(found.low)
  each = label_curves.needed(SIZES, taught, plain)
  assert all(math.isnan(one.low) for one in each)
  assert each[-1].labels == label_curves.MORE


def test_test_images_make_the_intervals_wider():
  rng = np.random.default_rng(0)
  own = [label_worth.by_images(rng, 'trashnet', 20.0, 6) for _ in range(5)]
  sizes = label_worth.CURVES['trashnet'][0]
  for answers in own:
    means = [side.mean(axis=2) for side in answers]
    alone = label_curves.efficiency(sizes, *means)
    both = label_curves.efficiency(sizes, *answers)
    assert both.percent == pytest.approx(alone.percent)
    assert both.low < alone.low and alone.high < both.high
  # Of seeds that all answer alike, what is left are the images.
  same = [np.repeat(side[:1], 3, axis=0) for side in own[0]]
  alone = label_curves.needed(sizes, *(side.mean(axis=2) for side in same))
  for a, b in zip(alone, label_curves.needed(sizes, *same), strict=True):
    assert b.labels == pytest.approx(a.labels)
    assert b.low < 0.95 * a.labels and b.high > 1.05 * min(a.labels, 540)


def test_mistakes_are_named():
  scores = _scores(SIZES, 1.0)
  with pytest.raises(ValueError, match='increasing'):
    label_curves.efficiency([20, 10], scores[:, :2], scores[:, :2])
  for read in (label_curves.efficiency, label_curves.needed):
    with pytest.raises(ValueError, match=r'\[seeds, 4\]'):
      read(SIZES, scores[:, :2], scores)


@pytest.mark.parametrize('sizes', [[60, 540], [49, 98, 343]])
def test_the_same_score_takes_as_many_labels(sizes):
  """At the ends too, where a logarithm there and back is another number."""
  scores = np.linspace(0.5, 0.8, len(sizes)) + np.arange(3)[:, None] / 1000
  found = label_curves.needed(sizes, scores, scores)
  assert [one.labels for one in found] == sizes


def test_on_a_plateau_the_nearest_number_of_labels_is_read():
  plain = np.array([[0.9, 1.0, 1.0, 1.0]] * 3)
  found = label_curves.needed([50, 100, 200, 400], plain, plain)
  assert [one.labels for one in found] == [50, 100, 200, 400]
  # As good with 50 as the plateau, which begins at 100.
  taught = np.array([[1.0, 1.0, 1.0, 1.0]] * 3)
  found = label_curves.needed([50, 100, 200, 400], taught, plain)
  assert [one.labels for one in found] == [100, 100, 200, 400]
