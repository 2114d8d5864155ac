"""The verdict on the primary question, against values found by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.study.rows import answering, row
from tlkd_jax.answer import conclusions, decision, effects, hits
from tlkd_jax.answer.plan import Plan
from tlkd_jax.answer.rows import Answers, Place, make_answers, pack, unpack
from tlkd_jax.evaluation import crossed

PLACE = Place('digits', 10)


def pairs_of(reference, arm, images='a', place=PLACE):
  """{place: seed -> rows} of hits, bool [S, N] each."""
  return {
    place: {
      seed: tuple(
        {'answers': Answers(images, side[seed])} for side in (arm, reference)
      )
      for seed in range(len(arm))
    }
  }


def judge(reference, arm, plan=None):
  pairs = pairs_of(reference, arm)
  over = hits.over_images(pairs, range(len(arm)))
  difference = arm.mean(axis=1) - reference.mean(axis=1)
  return decision.decide_primary(difference, over, plan or Plan())


def drawn(seeds, count, gain, *, spread=0.0, seed=0):
  """Hits of two arms: each image of each cell anew, seeds apart by spread."""
  rng = np.random.default_rng(seed)
  level = 0.6 + gain + spread * rng.standard_normal((seeds, 1))
  return (
    rng.random((seeds, count)) < 0.6,
    rng.random((seeds, count)) < level,
  )


@pytest.mark.parametrize(
  ('gain', 'spread', 'count', 'expected'),
  [
    (0.05, 0.005, 4000, 'helps'),
    (-0.05, 0.005, 4000, 'hurts'),
    (0.0, 0.0, 60_000, 'equal within the margin'),
    (0.0, 0.03, 4000, 'not yet known'),
  ],
)
def test_the_four_verdicts(gain, spread, count, expected):
  found = judge(*drawn(10, count, gain, spread=spread))
  assert found.verdict == expected
  assert (found.more == 0) == (expected != 'not yet known')
  assert found.images == count and found.seeds == 10


def test_what_is_apart_and_within_the_margin_is_said_to_be_both():
  found = judge(*drawn(10, 40_000, 0.02), Plan(margin=0.05))
  assert found.verdict == 'helps' and found.within


def test_nothing_is_sure_before_the_first_look():
  sides = drawn(4, 4000, 0.2)
  found = judge(*sides)
  assert found.verdict == 'not yet known' and math.isnan(found.low)
  assert judge(*drawn(5, 4000, 0.2)).verdict == 'helps'


def test_a_gain_on_images_that_happen_to_be_there_is_not_sure():
  """All seeds gain the same 12 of 300 images: seeds alone are certain."""
  reference = np.zeros((8, 300), bool)
  arm = reference.copy()
  arm[:, :3] = True
  # No two seeds are quite alike.
  for seed in range(8):
    arm[seed, 10 + seed] = seed % 2
  found = judge(reference, arm)
  assert found.alone == 'helps' and found.verdict == 'not yet known'
  assert found.low < 0 < found.high
  # More seeds do not make the images others.
  assert found.more is None and found.floor > found.mean / 2


def test_without_answers_nothing_is_sure_and_what_is_missing_is_said():
  rows = [
    row(arm, seed, 0.5 + 0.1 * (arm == 'kd') + seed / 1000 * (arm == 'kd'))
    for seed in range(8)
    for arm in ('tl', 'kd')
  ]
  found = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  assert found.decision.verdict == 'not yet known'
  assert found.decision.alone == 'helps'
  assert 'answers to single test images are not at hand' in found.sentence
  assert 'over seeds alone it would be "helps"' in found.sentence
  # No number of seeds is promised that would do without them.
  assert found.decision.more is None
  assert 'would tell' not in found.sentence
  sure = conclusions.draw(answering(rows), 'kd', 'tl', ('top1',))
  assert sure.sentence.startswith('Yes, it helps: ')
  # One run of ten lacks them.
  del rows[3]['answers']
  found = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  assert found.decision.verdict == 'not yet known'


def flipped(reference, arm):
  """Both arms with every two images of every one cell answered otherwise."""
  seeds, count = arm.shape
  for side, seed in itertools.product((0, 1), range(seeds)):
    for chosen in itertools.combinations(range(count), 2):
      both = [reference.copy(), arm.copy()]
      both[side][seed, list(chosen)] ^= True
      yield both


def seen(reference, arm, plan):
  """The verdict of the intervals as they are, whatever flips would do."""
  over = hits.over_images(pairs_of(reference, arm), range(len(arm)))
  difference = arm.mean(axis=1) - reference.mean(axis=1)
  half = decision._halves(
    difference.var(ddof=1) / len(arm), over.now, len(arm), plan
  )
  index = decision.verdicts(difference.mean(), half, plan.margin)
  return decision._name(index)


@pytest.mark.parametrize(
  ('gain', 'margin', 'expected'),
  [
    (0.85, 0.3, 'helps'),
    (-0.85, 0.3, 'hurts'),
    (0.0, 0.49, 'equal within the margin'),
  ],
)
def test_two_images_of_one_cell_change_no_sure_verdict(gain, margin, expected):
  """Every pair of flips of every cell, one after the other."""
  plan, sure = Plan(max_seeds=5, margin=margin), 0
  for seed in range(8):
    rng = np.random.default_rng(seed)
    reference = rng.random((5, 16)) < 0.5 - gain / 2
    arm = rng.random((5, 16)) < 0.5 + gain / 2
    found = judge(reference, arm, plan).verdict
    if found == expected:
      sure += 1
      for both in flipped(reference, arm):
        assert seen(*both, plan) == expected
    if sure == 2:
      return
  raise AssertionError('nothing was sure, so that nothing was tested')


def test_a_verdict_that_two_images_would_change_is_not_called_sure():
  """The gain shrinks until it is fragile, and only then is it unknown."""
  seen = []
  for right in range(90, -1, -1):
    reference = np.zeros((6, 300), bool)
    arm = np.zeros((6, 300), bool)
    for seed in range(6):
      # Another part of the images for each seed.
      start, count = 45 * seed, (right + seed) // 6 + seed % 2
      arm[seed, np.arange(start, start + count) % 300] = True
    found = judge(reference, arm)
    seen.append((found.verdict, found.fragile))
  assert seen[0] == ('helps', False)
  assert ('not yet known', True) in seen
  assert seen[-1] == ('not yet known', False)
  order = [('helps', False), ('not yet known', True), ('not yet known', False)]
  assert [order.index(one) for one in seen] == sorted(map(order.index, seen))


def test_two_images_change_no_verdict_at_a_place_either():
  """Six equal signs, the smallest by one image: p = 0.031 by one image."""
  rows = []
  for seed in range(6):
    gain = 0.01 if seed == 3 else 0.08 + seed / 100
    rows += [row('tl', seed, 0.5), row('kd', seed, 0.5 + gain)]
  (effect,) = effects.per_place(answering(rows, 100), 'kd', 'tl', 'top1')
  assert effect.p == 2 / 64 and effect.verdict == 'inconclusive'
  (effect,) = effects.per_place(answering(rows), 'kd', 'tl', 'top1')
  assert effect.verdict == 'better'


def test_bounds_hold_all_that_two_flips_do_to_the_images_part():
  rng = np.random.default_rng(4)
  values = rng.integers(-1, 2, (4, 12)).astype(float)
  least, most = crossed.changed(values, 1.0)
  for seed in range(4):
    for chosen in itertools.combinations(range(12), 2):
      for signs in itertools.product((-1, 1), repeat=2):
        moved = values.copy()
        moved[seed, list(chosen)] += signs
        if np.abs(moved).max() > 1:
          continue
        now = crossed.parts(moved)
        assert least.images <= now.images + 1e-15 <= most.images + 2e-15
        assert least.rest <= now.rest + 1e-15 <= most.rest + 2e-15


def test_parts_of_seeds_and_images_are_those_they_were_drawn_with():
  rng = np.random.default_rng(1)
  found = []
  for _ in range(300):
    images = 0.3 * rng.standard_normal((1, 50))
    rest = 0.5 * rng.standard_normal((6, 50))
    found.append(crossed.parts(images + rest))
  assert np.mean([one.images for one in found]) == pytest.approx(
    0.3**2 / 50, rel=0.05
  )
  assert np.mean([one.rest for one in found]) == pytest.approx(
    0.5**2 / 300, rel=0.05
  )


def test_sizes_of_one_data_set_share_their_images():
  rng = np.random.default_rng(2)
  sides = rng.random((2, 5, 30)) < 0.5
  once = pairs_of(*sides)
  twice = once | pairs_of(*sides, place=Place('digits', 20))
  other = once | pairs_of(*sides, images='b', place=Place('other', 10))
  seeds = range(5)
  alone = hits.over_images(once, seeds)
  both = hits.over_images(twice, seeds)
  # The same answers twice are no more images.
  assert both.now.images == pytest.approx(alone.now.images)
  assert (both.count, both.steps) == (30, (1 / 60,))
  apart = hits.over_images(other, seeds)
  assert apart.now.images == pytest.approx(alone.now.images / 2)
  assert apart.count == 60


def test_images_that_each_seed_draws_are_in_the_seeds_spread():
  rng = np.random.default_rng(2)
  pairs = pairs_of(*(rng.random((2, 5, 30)) < 0.5))
  for seed, sides in pairs[PLACE].items():
    for side in sides:
      side['answers'] = dataclasses.replace(side['answers'], images=f'{seed}')
  found = hits.over_images(pairs, range(5))
  assert found.now.images == 0 and found.now.rest > 0


@pytest.mark.parametrize('spread', [0.01, 0.02])
def test_more_seeds_would_tell_by_the_power_that_is_stated(spread):
  """As many as it says do tell, four times of five."""
  rng = np.random.default_rng(5)
  reference, arm = drawn(6, 20_000, 0.012, spread=spread, seed=9)
  plan = Plan(max_seeds=30)
  found = judge(reference, arm, plan)
  assert found.verdict == 'not yet known' and found.more > 0
  total, told = found.seeds + found.more, 0
  for _ in range(200):
    values = rng.normal(found.mean, found.spread, total)
    over = hits.over_images(pairs_of(reference, arm), range(6))
    none = dataclasses.replace(over.now, images=0.0, rest=0.0)
    over = dataclasses.replace(over, now=none, least=none, most=none)
    later = decision.decide_primary(values, over, plan)
    told += later.verdict != 'not yet known'
  assert 0.72 < told / 200 < 0.95


def test_packed_answers_are_an_eighth_and_come_back():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(630, 6))
  labels, order = rng.integers(0, 6, 630), rng.permutation(630)
  found = make_answers(logits, labels, np.arange(630))
  again = make_answers(logits[order], labels[order], np.arange(630)[order])
  assert found.same_images(again) and (found.right == again.right).all()
  packed = pack(found)
  assert len(packed['right']) < 630 / 6 + 4
  back = unpack(packed)
  assert back.same_images(found) and (back.right == found.right).all()
  for damage in ({'right': packed['right'][:8]}, {'count': 9}, {'right': '!'}):
    with pytest.raises(ValueError, match='damaged'):
      unpack(packed | damage)
  with pytest.raises(ValueError, match='damaged'):
    unpack({'images': 'a'})


@pytest.mark.parametrize(
  ('count', 'expected'),
  [
    (100, 'not yet known'),
    (360, 'not yet known'),
    (600, 'not yet known'),
    (2000, 'equal within the margin'),
  ],
)
def test_answers_that_are_all_alike_say_little_of_other_images(count, expected):
  """None of N images differs: of all, up to 3 in N may (95 %)."""
  right = np.ones((20, count), bool)
  found = judge(right, right)
  assert found.verdict == expected
  assert found.low == -found.high and found.high > 3 / count
  assert (found.more is None) == (expected == 'not yet known')
  assert found.from_images == pytest.approx(1.8237 / count, rel=1e-4)
  # A seed's own images each time: all of them are as many images.
  own = {
    PLACE: {
      seed: tuple({'answers': Answers(f'{seed}', right[seed])} for _ in 'ab')
      for seed in range(20)
    }
  }
  over = hits.over_images(own, range(20))
  assert over.now.unseen == pytest.approx((1.8237 / count / 20) ** 2, rel=1e-3)


def test_nothing_is_added_where_images_do_differ():
  over = hits.over_images(pairs_of(*drawn(10, 630, 0.02)), range(10))
  assert over.now.unseen == over.least.unseen == over.most.unseen == 0


def test_seeds_that_it_takes_are_those_after_which_it_is_sure():
  """Of arms that are alike, where two flipped images count most."""
  right = np.ones((40, 1500), bool)
  for seeds in (5, 6, 8):
    found = judge(right[:seeds], right[:seeds])
    assert found.fragile == (found.verdict == 'not yet known')
    total = seeds + found.more
    assert judge(right[:total], right[:total]).verdict != 'not yet known'
    if found.more:
      before = judge(right[: total - 1], right[: total - 1])
      assert before.verdict == 'not yet known'


def test_what_is_fragile_may_become_another_verdict():
  """Equal by two images at eleven seeds; with as many again it helps."""
  rng = np.random.default_rng(5)
  seen = 0
  for _ in range(300):
    reference = rng.random((11, 1000)) < 0.9
    arm = reference | (rng.random((11, 1000)) < rng.uniform(0.0, 0.06))
    found = judge(reference, arm)
    more = judge(np.tile(reference, (4, 1)), np.tile(arm, (4, 1)))
    if found.fragile and more.verdict != 'not yet known':
      assert found.more is not None
      seen += 1
  assert seen > 3


def test_a_test_set_that_changed_on_the_way_counts_once():
  """Seed 7 was tested on one image more: the others' images are the same."""
  rows = []
  for seed in range(8):
    hit = np.zeros(300 + (seed == 7), bool)
    for arm in ('tl', 'kd'):
      own = hit.copy()
      if arm == 'kd':
        own[:3], own[10 + seed] = True, seed % 2
      rows.append(row(arm, seed, float(own.mean())))
      rows[-1]['answers'] = Answers(f'{len(hit)}', own)
  drawn = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  assert drawn.overall.seeds == (0, 1, 2, 3, 4, 5, 6)
  assert drawn.decision.verdict == 'not yet known'
  assert drawn.decision.from_images > 0
  (said,) = (r for r in drawn.remarks if 'left out' in r)
  assert 'seed 7' in said and 'tested on other images than most seeds' in said
  # Where each seed has images of its own none is left out.
  for entry in rows:
    entry['answers'] = dataclasses.replace(
      entry['answers'], images=f'{entry["seed"]}'
    )
  drawn = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  assert len(drawn.overall.seeds) == 8
