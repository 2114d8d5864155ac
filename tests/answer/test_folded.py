"""Answers over folds: each seed is tested on a fold of one pool."""

import dataclasses

import numpy as np
import pytest

from tests.study.rows import row
from tlkd_jax.answer import conclusions, folded, hits
from tlkd_jax.answer.decision import decide_primary
from tlkd_jax.answer.plan import Plan
from tlkd_jax.answer.rows import Answers
from tlkd_jax.evaluation import crossed, overlapping


def of_folds(differences, count=1000, folds=5, first=0.5):
  """Rows of TL and TL+KD, seed by seed, on the images of their folds."""
  found = []
  for seed, difference in enumerate(differences):
    for arm, top1 in (('tl', first), ('kd', first + difference)):
      right = np.arange(count) < round(count * top1)
      answers = Answers(f'fold {seed % folds}', right)
      found.append(row(arm, seed, top1, folds=folds, answers=answers))
  return found


def pairs(rows, seeds):
  place = hits.Place('digits', 10)
  at = {(r['arm'], r['seed']): r for r in rows}
  return {place: {s: (at['kd', s], at['tl', s]) for s in seeds}}


@pytest.mark.parametrize('runs', [5, 7, 10, 20])
@pytest.mark.parametrize('folds', [2, 5, 10])
def test_the_variance_is_that_of_nadeau_and_bengio(runs, folds):
  values = np.random.default_rng(runs).normal(size=(runs, 40))
  now, least, most = overlapping.parts(values, folds, 1.0)
  spread = values.mean(axis=1).var(ddof=1)
  assert now.images == pytest.approx(spread / (folds - 1))
  freedom = crossed.freedom(spread / runs, runs - 1, now.images, now.freedom)
  assert float(freedom) == pytest.approx(min(runs, folds) - 1)
  # Two images of the one run that moves it most.
  assert least.images < now.images < most.images
  brute = []
  for run in range(runs):
    for flips in (-2, 2):
      moved = values.copy()
      moved[run, :2] += flips / 2
      brute.append(moved.mean(axis=1).var(ddof=1) / (folds - 1))
  assert (
    least.images <= min(brute) + 1e-12 and max(brute) <= most.images + 1e-12
  )


def test_more_seeds_of_the_same_folds_do_not_make_it_sure():
  """Twenty runs of five folds are no twenty sets of test images."""
  gains = np.tile([0.03, -0.01, 0.05, 0.0, 0.02], 4)
  rows = of_folds(gains)
  over = hits.over_images(pairs(rows, range(20)), range(20))
  decision = decide_primary(gains, over, Plan())
  drawn = [dict(r, folds=0) for r in rows]
  anew = hits.over_images(pairs(drawn, range(20)), range(20))
  loose = decide_primary(gains, anew, Plan())
  assert loose.verdict == 'helps'
  assert decision.verdict == 'not yet known'
  assert decision.high - decision.low > 2 * (loose.high - loose.low)
  # What no number of seeds makes smaller.
  assert decision.floor == pytest.approx(1.96 * gains.std(ddof=1) / 2, rel=1e-2)


def test_images_of_all_folds_count_once():
  rows = of_folds(np.zeros(10), count=30)
  for entry in rows:
    if entry['seed'] % 5 == 0:
      right = entry['answers'].right[:-1]
      entry['answers'] = dataclasses.replace(entry['answers'], right=right)
  over = hits.over_images(pairs(rows, range(10)), range(10))
  assert over.count == 4 * 30 + 29


def test_several_seeds_on_one_fold_are_seeds_on_one_test_split():
  """As with data.fold, whose rows have no folds."""
  rows = [dict(r, folds=0) for r in of_folds([0.1] * 6, folds=1)]
  blocks = hits.make_blocks(pairs(rows, range(6)), range(6))
  assert [(b.folds, b.nested, b.count) for b in blocks] == [(0, False, 1000)]


@pytest.mark.parametrize(
  ('seeds', 'said'),
  [
    (range(1), '1 of the 5 folds is tested so far.'),
    (range(3), '3 of the 5 folds are tested so far.'),
    (range(7), 'Each image is tested 1 or 2 times'),
    (range(100, 104), '4 of the 5 folds are tested so far.'),
    (range(10), 'the run of seed i is tested on fold i mod 5'),
  ],
)
def test_the_answer_says_what_it_rests_on(seeds, said):
  (text,) = folded.remarks([(s, {'folds': 5}) for s in seeds])
  assert said in text and 'Nadeau and Bengio (2003)' in text
  assert ('tested' in text.partition('others. ')[2]) == (len(seeds) != 10)


def test_other_answers_say_nothing_of_folds():
  assert folded.remarks([(0, {}), (1, {'folds': 0})]) == []


def test_the_remark_stands_with_the_answer():
  rows = of_folds([0.01, 0.03, 0.02, 0.05, 0.04])
  drawn = conclusions.draw(rows, 'kd', 'tl', ('top1',))
  assert any('fold i mod 5' in remark for remark in drawn.remarks)
  assert '5,000 test images' in drawn.sentence
  plain = [dict(r, folds=0) for r in rows]
  drawn = conclusions.draw(plain, 'kd', 'tl', ('top1',))
  assert not any('fold' in remark for remark in drawn.remarks)


def test_other_metrics_and_places_count_the_overlap_too():
  """Twenty runs of five folds whose NLL differs by fold, not by method."""
  by_fold = np.array([0.03, -0.01, 0.05, 0.02, 0.03])
  noise = np.random.default_rng(0).normal(0, 0.002, 20)
  rows = of_folds(np.zeros(20))
  for entry in rows:
    seed = entry['seed']
    more = by_fold[seed % 5] + noise[seed] if entry['arm'] == 'kd' else 0.0
    entry['test']['nll'] = 1.0 + more
  found = conclusions.draw(rows, 'kd', 'tl', ('top1', 'nll'))
  (nll,) = found.secondary
  (place,) = found.per_place['nll']
  apart = [dict(r, folds=0) for r in rows]
  alone = conclusions.draw(apart, 'kd', 'tl', ('top1', 'nll'))
  assert alone.secondary[0].verdict == 'worse' and alone.secondary[0].p < 0.001
  difference = nll.x - nll.y
  error = difference.std(ddof=1) * (1 / 20 + 1 / 4) ** 0.5
  for one in (nll, place):
    assert one.verdict == 'inconclusive'
    assert one.p == one.test['p_t'] > 0.05 > one.test['p_sign_flip']
    half = (one.test['ci_high'] - one.test['ci_low']) / 2
    assert half == pytest.approx(2.776 * error, rel=1e-3)


def test_what_folds_leave_is_not_said_to_be_the_choice_of_test_images():
  gains = np.tile([0.03, -0.01, 0.05, 0.0, 0.02], 4)
  text = conclusions.draw(of_folds(gains), 'kd', 'tl', ('top1',)).sentence
  assert 'training sets of folds share their images alone leaves' in text
  assert 'test images alone leaves' not in text
