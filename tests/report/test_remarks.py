"""What is said below the closing table."""

import numpy as np

from tlkd_jax.evaluation import comparison
from tlkd_jax.report import tables

SAID = {'p_label': 0.58, 'effective_classes': 3.7, 'agreement': 0.97}


def summary(top1, nll=0.5, seconds=10.0, **more):
  test = {'top1': top1, 'nll': nll, 'count': 40}
  return {'student': {'test': test}, 'seconds': seconds} | more


def said(*, teacher_seconds=None, changes=None):
  teacher = {'test': {'top1': 0.7, 'nll': 0.5, 'count': 40}}
  says = {
    'temperature': 2.0,
    'training views': SAID,
    'validation': SAID | {'p_label': 0.3},
  }
  found = {
    'tl': summary(0.5),
    'kd': summary(
      0.6, 0.4, 15.0, teacher=teacher, teacher_says={'teacher': says}
    ),
  }
  if teacher_seconds is not None:
    found['teacher'] = {'teacher': teacher, 'seconds': teacher_seconds}
  return tables.remarks(found, changes)


def test_what_the_teacher_knew_cost_and_brought():
  knew, better, cost, gain = said(teacher_seconds=5.0)
  assert 'teacher said of training views (temperature 2): p(label) 0.58' in knew
  assert 'right on 0.97 of them; of validation images 0.30' in knew
  assert better == 'The teacher is better than TL by 0.200 top-1.'
  assert '10 s for TL, 15 s for TL+KD and 5 s for its teacher: 2.0' in cost
  assert gain.startswith('TL+KD minus TL on test: +0.100 top-1, -0.100 NLL. ')
  assert '15 s for TL+KD: 1.5 times' in said()[2]


def test_the_interval_stands_with_what_was_won_and_lost():
  kd, tl = np.arange(400) < 240, np.arange(400) >= 200
  changes = comparison.mcnemar(kd, tl) | {'low': -0.0123, 'high': 0.2}
  found = {'tl': summary(tl.mean()), 'kd': summary(kd.mean())}
  text = tables.remarks(found, changes)[-1]
  won, lost = int((kd & ~tl).sum()), int((~kd & tl).sum())
  assert f'; {won} test images won, {lost} lost, ' in text
  assert '95 % over images -0.012 to +0.200, McNemar p = ' in text
