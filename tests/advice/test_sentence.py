"""The one sentence is the study's verdict, whatever the rows."""

import math
import re

import numpy as np
import pytest

from tests.study.rows import row
from tlkd_jax.advice import sentence
from tlkd_jax.advice.choosing import Choice
from tlkd_jax.advice.sentence import Grounds
from tlkd_jax.answer import conclusions
from tlkd_jax.answer.decision import HELPS, UNKNOWN
from tlkd_jax.answer.plan import Plan
from tlkd_jax.answer.rows import Answers

CHOICE = Choice(
  'student', 64, 'teacher=t.pth', 96, 100, 1.0, 60.0, True, '', True
)
COUNT = 10_000


def grounds(gains, longer=0.0, noise=0.0005, count=COUNT, **changes):
  rows = []
  for seed, gain in enumerate(gains):
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    for arm, top1 in (
      ('tl', 0.5),
      ('kd', 0.5 + gain + rng.normal(0, noise)),
      (sentence.COST_MATCHED, 0.5 + longer + rng.normal(0, noise)),
    ):
      right = np.zeros(count, bool)
      right[order[: round(count * top1)]] = True
      answers = Answers('same', right)
      rows.append(row(arm, seed, right.mean(), answers=answers, size=0))
  found = {
    'conclusion': conclusions.draw(rows, 'kd', 'tl', ('top1',), Plan()),
    'choice': CHOICE,
    'seconds': {'tl': 120.0, 'kd': 300.0, sentence.COST_MATCHED: 290.0},
    'steps': 2.4,
    'milliseconds': 1.93,
    'worth': None,
    'seconds_a_seed': 720.0,
  }
  return Grounds(**found | changes)


CASES = [
  ([0.03] * 6, 0.0, 'Use a teacher, it helps: '),
  ([0.03] * 6, 0.05, 'Do not use a teacher but its time: TL+KD helps'),
  ([-0.03] * 6, 0.0, 'Do not use a teacher: TL+KD hurts'),
  ([0.0] * 6, 0.0, 'are equal within the margin'),
  ([0.03] * 4, 0.0, 'whether it helps is not yet known'),
  ([0.06, -0.04, 0.05, -0.05, 0.01], 0.0, 'is not yet known'),
  ([], 0.0, 'no seed has finished all arms; the same command goes on'),
]


@pytest.mark.parametrize(('gains', 'longer', 'said'), CASES)
def test_the_sentence_has_the_verdict(gains, longer, said):
  made = grounds(gains, longer)
  text, decision = sentence.write(made), made.conclusion.decision
  assert said in text
  # 'helps' is said of nothing else.
  assert (decision.verdict == HELPS) == ('not yet known' not in text) or (
    'helps' not in text
  )
  assert decision.verdict in text
  assert sentence.use_teacher(made) == text.startswith('Use a teacher')
  # One sentence: a full stop ends it, and stands nowhere else but in numbers.
  assert text.endswith('.') and text.count('. ') == 0
  assert 'nan' not in text


@pytest.mark.parametrize(
  ('gains', 'parts'),
  [
    (
      [0.03] * 6,
      [
        'student at 64 px for 100 steps with teacher at 96 px',
        '6 seeds and 10,000 test images',
        '5 min of training in place of 2 min',
        '1.9 ms a prediction',
        'worth a number of labels that is not known',
      ],
    ),
    (
      [0.0] * 6,
      ['90 % interval', 'fine-tune student alone at 64 px for 100 steps'],
    ),
    ([0.03] * 3, ['the first look is after 5 seeds, about 24 min more']),
  ],
)
def test_it_says_gain_cost_and_recipe(gains, parts):
  text = sentence.write(grounds(gains))
  for part in parts:
    assert part in text, text


def test_a_teachers_time_is_more_steps():
  assert sentence.num_steps(grounds([0.03] * 6)) == 100
  longer = grounds([0.03] * 6, 0.05)
  assert sentence.num_steps(longer) == 240
  assert 'alone at 64 px for 240 steps' in sentence.write(longer)
  # Whatever a teacher does: steps that gain without one are advised.
  for gains in ([-0.03] * 6, [0.0] * 6, [0.03] * 3):
    longer = grounds(gains, 0.05)
    assert sentence.num_steps(longer) == 240
    assert re.search(
      r"alone at 64 px for 240 steps \(TL\+KD's computation, \+\d\.\d\d points "
      r'over 100 steps, \+4\.\d\d to \+5\.\d\d\), 5 min of training, 1\.9 ms',
      sentence.write(longer),
    )
  for longer in (
    grounds([0.0] * 6, -0.05),
    grounds([0.0], 0.05),
    grounds([0.0] * 6, 0.0),
    grounds([0.0] * 6, 0.05, steps=math.nan),
  ):
    assert sentence.num_steps(longer) == 100
    assert 'computation' not in sentence.write(longer)


def test_what_it_would_take_to_know():
  few = grounds([0.02, -0.01, 0.03, 0.0, 0.01], count=60, noise=0.0)
  decision = few.conclusion.decision
  assert decision.verdict == UNKNOWN
  text = sentence.write(few)
  if decision.more is None:
    assert 'no number of seeds would tell with these images' in text
  else:
    assert f'about {decision.more} more seed' in text


def test_times_that_are_not_known_are_not_said():
  seconds = dict.fromkeys(('tl', 'kd', sentence.COST_MATCHED), math.nan)
  text = sentence.write(grounds([], seconds=seconds, steps=math.nan))
  assert 'of training' not in text and 'nan' not in text
  assert 'fine-tune student alone at 64 px' in text


@pytest.mark.parametrize(
  ('worth', 'said'),
  [
    ((18.4, 6.0, 28.0), 'worth +18 % labels (+6 to +28)'),
    ((18.4, math.nan, math.nan), 'worth +18 % labels)'),
    ((18.4, -100.0, math.inf), 'worth +18 % labels (fewer to more)'),
    ((math.nan, 1.0, 2.0), 'worth a number of labels that is not known'),
  ],
)
def test_what_it_is_worth_in_labels(worth, said):
  made = grounds([0.03] * 6, worth=sentence.Labels(*worth))
  assert said in sentence.write(made)
