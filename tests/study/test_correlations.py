"""What goes with the gain: cross-fitted, with p, and blind to shared noise."""

import numpy as np
import pytest

from tests.study.rows import row
from tlkd_jax.answer.rows import Answers, pack
from tlkd_jax.study import correlations
from tlkd_jax.study.correlations import AGREEMENT, EDGE

COUNT = 400


def _packed(rng, share):
  return pack(Answers('same', rng.random(COUNT) < share))


def _study(rng, gains, edges, seeds=4, spread=0.0, images=True):
  """One place for each gain; every run is off by its own noise."""
  rows = []
  for number, (gain, edge) in enumerate(zip(gains, edges, strict=True)):
    size = 10 * (number + 1)
    for seed in range(seeds):
      for arm, share in (
        ('tl', 0.5),
        ('kd', 0.5 + gain),
        ('teacher', 0.5 + edge),
      ):
        top1 = share + spread * rng.standard_normal()
        one = row(arm, seed, top1, size=size)
        if images:
          one['hits'] = _packed(rng, top1)
          one['test']['top1'] = None
        if arm == 'kd':
          one['agreed'] = _packed(rng, 0.6 + edge)
        one['test']['teacher_agreement'] = 0.6 + edge
        rows.append(one)
  return rows


@pytest.mark.parametrize('images', [True, False])
def test_a_gain_that_follows_the_edge_is_seen(images):
  edges = np.linspace(0.0, 0.3, 6)
  rows = _study(np.random.default_rng(0), edges, edges, images=images)
  found, places = correlations.with_gain(rows, 'kd', 'tl')
  assert places == 6
  assert [one.what for one in found] == [EDGE, AGREEMENT]
  for one in found:
    assert one.r > 0.9 and one.p < 0.05 and one.images == images
  text = correlations.words(found, places, 'TL+KD', 'TL')
  assert 'one point a place (6)' in text and 'p = ' in text
  assert ('of other seeds and test images' in text) == images


def test_exact_p_by_hand():
  """Of four places in order two of 24 orders are as far from 0."""
  edges = [0.0, 0.1, 0.2, 0.3]
  rows = _study(np.random.default_rng(0), edges, edges, images=False)
  found, _ = correlations.with_gain(rows, 'kd', 'tl')
  assert found[0].r == pytest.approx(1) and found[0].p == 2 / 24


def test_noise_that_both_share_is_not_seen():
  """Without any effect, edge and gain of the same runs correlate by a half."""
  naive, fitted, small = [], [], 0
  for trial in range(60):
    rng = np.random.default_rng(trial)
    rows = _study(rng, [0] * 6, [0] * 6, spread=0.05, images=False)
    found, _ = correlations.with_gain(rows, 'kd', 'tl')
    fitted.append(found[0].r)
    small += found[0].p < 0.05
    means = {
      arm: np.array(
        [
          np.mean(
            [
              one['test']['top1']
              for one in rows
              if (one['arm'], one['size']) == (arm, size)
            ]
          )
          for size in range(10, 70, 10)
        ]
      )
      for arm in ('tl', 'kd', 'teacher')
    }
    gain, edge = (means[arm] - means['tl'] for arm in ('kd', 'teacher'))
    naive.append(np.corrcoef(gain, edge)[0, 1])
  assert np.mean(naive) > 0.35
  assert abs(np.mean(fitted)) < 0.15
  assert small <= 8


@pytest.mark.parametrize(
  ('gains', 'said'),
  [
    ([0.1, 0.2, 0.3], 'not told from 3 places: that takes 4'),
    ([0.1] * 5, 'At all 5 places the gain of TL+KD is alike.'),
  ],
)
def test_what_cannot_be_told_is_not(gains, said):
  rows = _study(np.random.default_rng(0), gains, gains, images=False)
  found, places = correlations.with_gain(rows, 'kd', 'tl')
  assert found == []
  assert said in correlations.words(found, places, 'TL+KD', 'TL')
