"""An arm against its reference, at each place and over all, by hand."""

import math

import numpy as np
import pytest

from tests.study.rows import paired, row
from tlkd_jax.answer import conclusions, effects
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Answers, Place, make_answers
from tlkd_jax.evaluation import comparison, statistics

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)
DIGITS = Place('digits', 10)


def one_place(rows, metric='top1', arm='kd'):
  (effect,) = effects.per_place(rows, arm, 'tl', metric)
  return effect


def test_pairs_are_of_one_seed_whatever_the_order():
  effect = one_place(paired(GAINS)[::-1])
  np.testing.assert_allclose(effect.x - effect.y, GAINS)
  assert effect.seeds == (0, 1, 2, 3, 4, 5)
  rows = [r for r in paired(GAINS) if (r['arm'], r['seed']) != ('tl', 2)]
  effect = one_place(rows)
  assert effect.seeds == (0, 1, 3, 4, 5)
  np.testing.assert_allclose(effect.x - effect.y, np.delete(GAINS, 2))


def test_one_place():
  effect = one_place(paired(GAINS))
  assert effect.places == (DIGITS,)
  assert effect.test['mean_difference'] == pytest.approx(0.025)
  # All six signs agree: 2 of the 64 patterns are as extreme.
  assert effect.p == effect.test['p_sign_flip'] == 2 / 64
  assert effect.p == effect.test['smallest_p']
  assert effect.verdict == 'better'


def test_a_verdict_is_corrected_over_places():
  """0.03125 each is not below 0.05 when two are asked."""
  rows = paired(GAINS) + paired(GAINS, size=20)
  found = effects.per_place(rows, 'kd', 'tl', 'top1')
  assert [e.test['p_sign_flip'] for e in found] == [2 / 64] * 2
  assert [e.p for e in found] == [4 / 64] * 2
  assert [e.verdict for e in found] == ['inconclusive'] * 2
  # Other metrics, and other arms, are other questions.
  assert one_place(paired(GAINS), 'nll').p == 1.0
  assert one_place(paired(GAINS), arm='teacher').p == 2 / 64
  # With seven seeds two places can be decided.
  rows = paired((*GAINS, 0.02)) + paired((*GAINS, 0.02), size=20)
  found = effects.per_place(rows, 'kd', 'tl', 'top1')
  assert [e.verdict for e in found] == ['better'] * 2


def test_lower_is_better_where_it_is():
  rows = [
    r | {'test': r['test'] | {'nll': 0.5 - 0.01 * r['seed']}}
    if r['arm'] == 'kd'
    else r
    for r in paired(GAINS)
  ]
  effect = one_place(rows, 'nll')
  assert effect.test['mean_difference'] < 0 and effect.verdict == 'better'


def test_what_is_undefined_does_not_count():
  rows = paired(GAINS)
  for r in rows:
    if r['arm'] == 'kd' and r['seed'] < 2:
      r['test'] = r['test'] | {'nll': None if r['seed'] else math.nan}
  effect = one_place(rows, 'nll')
  assert effect.seeds == (2, 3, 4, 5) and not np.isnan(effect.x).any()


def test_overall_weighs_data_sets_equally():
  rows = paired([0.3] * 6) + paired([0.3] * 6, size=20)
  rows += paired([0.0] * 6, dataset='other')
  effect = effects.overall(rows, 'kd', 'tl', 'top1')
  assert effect.test['mean_difference'] == pytest.approx(0.15)
  assert len(effect.places) == 3 and effect.left_out == ()
  own = [r for r in rows if r['dataset'] == 'digits']
  only = effects.overall(own, 'kd', 'tl', 'top1')
  assert only.test['mean_difference'] == pytest.approx(0.3)


def test_overall_is_one_test_of_each_seeds_mean():
  rows = paired(GAINS) + paired([-g for g in GAINS], size=20)
  rows += paired(GAINS, size=50)
  effect = effects.overall(rows, 'kd', 'tl', 'top1')
  by_hand = statistics.mean_interval([g / 3 for g in GAINS])
  for key, name in (
    ('mean_difference', 'mean'),
    ('ci_low', 'low'),
    ('ci_high', 'high'),
  ):
    assert effect.test[key] == pytest.approx(by_hand[name])
  assert effect.p == 2 / 64 and effect.verdict == 'better'


def test_a_place_that_is_not_finished_is_left_out_by_name():
  rows = paired([0.3] * 6) + paired([0.1] * 2, size=20)
  effect = effects.overall(rows, 'kd', 'tl', 'top1')
  assert effect.test['mean_difference'] == pytest.approx(0.3)
  assert effect.places == (DIGITS,) and len(effect.seeds) == 6
  assert effect.left_out == (Place('digits', 20),)


def test_without_a_pair_there_is_no_effect():
  rows = [r for r in paired(GAINS) if r['arm'] != 'tl']
  assert effects.per_place(rows, 'kd', 'tl', 'top1') == []
  effect = effects.overall(rows, 'kd', 'tl', 'top1')
  assert effect.seeds == () and effect.verdict == 'inconclusive'


def test_a_recipe_makes_a_place_of_its_own():
  rows = paired(GAINS, recipe='num_steps=9') + paired(GAINS)
  found = effects.per_place(rows, 'kd', 'tl', 'top1')
  assert [str(e.places[0]) for e in found] == [
    'digits, 10 per class',
    'digits, 10 per class, num_steps=9',
  ]


def answering(rows, right_of, count=200, first=0):
  """Rows with answers to `count` images; right_of: row -> bool [count]."""
  labels = np.arange(count) % 3
  for entry in rows:
    logits = np.eye(3)[(labels + ~right_of(entry)) % 3]
    # In another order for every run.
    order = np.random.default_rng(entry['seed']).permutation(count)
    entry['answers'] = make_answers(logits[order], labels[order], first + order)
  return rows


def test_over_images_the_images_decide():
  """All seeds gain the same 40 of 200 images."""
  gained = np.arange(200) < 40
  rows = answering(
    paired(GAINS[:2]),
    lambda r: gained if r['arm'] == 'kd' else np.zeros(200, bool),
  )
  images = one_place(rows).images
  assert images is not None and images.count == 200
  error = 1.96 * math.sqrt(0.2 * 0.8 / 200)
  assert images.low == pytest.approx(0.2 - error, abs=0.01)
  assert images.high == pytest.approx(0.2 + error, abs=0.01)
  assert images.mcnemar_p is None
  # Without all answers there is no such interval.
  del rows[0]['answers']
  assert one_place(rows).images is None
  assert one_place(rows, 'nll').images is None


def test_one_seed_is_compared_over_images_as_two_models_are():
  """Interval and p are those of comparison, from the same predictions."""
  rng = np.random.default_rng(3)
  labels = rng.integers(0, 3, 150)
  rows, logits = paired([0.1]), {}
  for entry in rows:
    logits[entry['arm']] = rng.normal(size=(150, 3)) + np.eye(3)[labels]
    entry['answers'] = make_answers(
      logits[entry['arm']], labels, np.arange(150)
    )
  effect = one_place(rows)
  sides = logits['kd'], logits['tl']
  both = comparison.paired_bootstrap(*sides, labels, names=['top1'])['top1']
  images = effect.images
  assert images is not None
  assert images.low == pytest.approx(both['low'], abs=1e-12)
  assert images.high == pytest.approx(both['high'], abs=1e-12)
  right = [side.argmax(1) == labels for side in sides]
  assert images.mcnemar_p == comparison.mcnemar(*right)['p']
  assert effect.verdict == 'inconclusive'


def test_runs_on_other_test_images_are_no_pair():
  rows = answering(paired(GAINS), lambda r: np.arange(200) < 90)
  moved = [r for r in rows if r['arm'] == 'kd' and r['seed'] == 2]
  answering(moved, lambda r: np.arange(200) < 90, first=1)
  assert one_place(rows).seeds == (0, 1, 3, 4, 5)
  assert effects.overall(rows, 'kd', 'tl', 'top1').seeds == (0, 1, 3, 4, 5)
  assert list(runs.mismatched(rows, 'kd', 'tl')) == [(DIGITS, 2)]
  # So are other classes of the same images.
  answering(moved, lambda r: np.arange(200) < 90)
  assert not runs.mismatched(rows, 'kd', 'tl')
  labels = np.arange(200) % 3
  labels[0] += 1
  moved[0]['answers'] = make_answers(np.eye(3)[labels], labels, np.arange(200))
  assert list(runs.mismatched(rows, 'kd', 'tl')) == [(DIGITS, 2)]


def test_trials_that_were_not_chosen_count_nowhere():
  rows = paired(GAINS)
  lost = row('kd', 0, 0.0, chosen=False)
  del lost['test']
  assert one_place([*rows, lost]).seeds == one_place(rows).seeds


def test_arms_that_share_a_label_are_told_apart():
  rows = [row('tl', 0, 0.5), row('a', 0, 0.5, label='x')]
  rows.append(row('b', 0, 0.5, label='x'))
  assert runs.labels(rows) == {'tl': 'TL', 'a': 'x (a)', 'b': 'x (b)'}


@pytest.mark.parametrize(
  ('won', 'lost', 'more'),
  [(4, 0, False), (5, 0, False), (7, 1, False), (9, 2, False), (9, 1, True)],
)
def test_one_seed_is_no_more_than_its_p_says(won, lost, more):
  """The bootstrap's interval leaves 0 earlier than McNemar's exact test."""
  right = np.ones((2, 200), bool)
  right[1, :won] = right[0, won : won + lost] = False
  rows = [
    row(arm, 0, float(own.mean()), answers=Answers('same', own))
    for arm, own in zip(('kd', 'tl'), right, strict=True)
  ]
  drawn = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  (alone,) = drawn.per_place['top1']
  assert alone.images.low > 0
  assert (alone.images.mcnemar_p < 0.05) == more
  assert ('which is no more than' in drawn.sentence) != more
