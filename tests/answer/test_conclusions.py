"""The answer in words, and what belongs to it."""

import json
import pathlib

import numpy as np
import pytest

from tests.study.rows import LABELS, answering, paired, row
from tlkd_jax.answer import conclusions, words, worth
from tlkd_jax.answer.rows import make_answers
from tlkd_jax.report import verdict_blocks

ROOT = pathlib.Path(__file__).resolve().parents[2]
GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)


def draw(rows, metrics=('top1', 'nll')):
  return conclusions.draw(rows, 'kd', 'tl', metrics)


@pytest.mark.parametrize(
  ('gains', 'start'),
  [
    (GAINS, 'Yes, it helps: '),
    ([-g for g in GAINS], 'No, it hurts: '),
    ((0.001, -0.001, 0.001, 0.0, 0.0), 'Equal within the margin: '),
    ((0.03, -0.03, 0.02, -0.02, 0.01, 0.0), 'Not yet known: '),
  ],
)
def test_the_answer_begins_with_the_verdict(gains, start):
  assert draw(paired(gains)).sentence.startswith(start)


def test_four_seeds_are_not_looked_at_and_the_answer_says_so():
  found = draw(paired(GAINS[:4]))
  assert found.sentence.startswith('Not yet known: ')
  assert '4 paired seeds' in found.sentence
  assert 'The first look is after 5 seeds.' in found.sentence
  assert found.looks == [] and found.decision.more >= 1
  assert '6 seeds are the least' in found.remarks[0]


def test_the_answer_names_effect_interval_and_verdicts():
  rows = paired((*GAINS, 0.02)) + paired((*GAINS, 0.02), size=20)
  rows += paired([-g for g in (*GAINS, 0.02)], size=50)
  text = draw(rows).sentence
  # Three places of seven seeds: 3 * 2 / 128 is below 0.05.
  assert 'better at 2, worse at 1, inconclusive at 0' in text
  rows = paired(GAINS) + paired([-g for g in GAINS], size=20)
  rows += paired(GAINS, size=50)
  found = draw(rows)
  text = found.sentence
  assert 'better at 0, worse at 0, inconclusive at 3' in text
  # (0.025 - 0.025 + 0.025) / 3 of each seed.
  assert '+0.83 points over 3 places' in text
  low, high = 100 * found.decision.low, 100 * found.decision.high
  assert f'{low:+.2f} to {high:+.2f} over 6 paired seeds and' in text
  # The same images at each place: once.
  assert 'and 10,000 test images' in text
  # TL is at 0.525 on average.
  assert '53.3 % for TL+KD and 52.5 % for TL' in text


def test_what_so_few_seeds_cannot_decide_alone_is_said():
  rows = paired(GAINS) + paired(GAINS, size=20)
  found = draw(rows)
  assert found.sentence.startswith('Yes, it helps: ')
  assert (
    'corrected for 2 places no exact p gets below 0.0625' in (found.remarks[0])
  )
  assert '7 seeds are the least' in found.remarks[0]
  assert not [text for text in draw(paired(GAINS)).remarks if 'least' in text]


def test_an_incomplete_study_has_no_answer():
  rows = [r for r in paired(GAINS) if r['arm'] != 'tl']
  assert draw(rows).sentence.startswith('There is no answer yet')


def test_places_that_are_not_finished_are_named():
  rows = paired([0.3] * 6) + paired([0.1] * 2, size=20)
  text = draw(rows).sentence
  assert 'left out of the mean: digits, 20 per class' in text


def test_one_seed_says_nothing_about_the_method():
  rows = paired([0.1]) + paired([0.1], size=20)
  text = draw(rows).sentence
  assert text.startswith('Not yet known: one seed.')
  assert '+10.00 points over 2 places' in text
  assert text.endswith('seen only over several seeds.')


def test_what_needs_no_teacher_is_named_beside_the_answer():
  rows = paired(GAINS)
  assert draw(rows).rivals == []
  rows += [row('probe', seed, 0.45 + seed / 100) for seed in range(6)]
  found = draw(rows)
  (text,) = [t for t in found.remarks if t.startswith('Without a teacher')]
  assert 'probe minus TL -5.00 points (-5.00 to -5.00; 1 place, ' in text
  assert 'TL+KD minus probe +7.50 points' in text


def test_pairs_left_out_are_named():
  rows = paired(GAINS)
  for entry, first in zip(rows, (0, 1), strict=False):
    images = first + np.arange(3)
    entry['answers'] = make_answers(np.eye(3), np.arange(3), images)
  found = draw(rows)
  assert found.overall.seeds == (1, 2, 3, 4, 5)
  assert found.remarks[-2] == (
    'TL+KD and TL of seed 0 on digits, 10 per class have no predictions of the '
    'same test images and were left out.'
  )


def test_by_place_has_every_metric():
  rows = paired(GAINS) + paired(GAINS, size=20)
  found = draw(rows)
  assert [
    [effect.metric for effect in effects] for effects in found.by_place.values()
  ] == [['top1', 'nll']] * 2
  # Accuracy is always one.
  assert list(draw(rows, ('nll',)).per_place) == ['top1', 'nll']


def test_worth_in_labels():
  """TL+KD at n equals TL at 2 n: the teacher is worth 100 % more labels."""
  scores = {10: 0.5, 20: 0.6, 40: 0.7, 80: 0.8}
  rows = []
  for size in (10, 20, 40):
    for seed in range(3):
      jitter = seed / 1000
      rows.append(row('tl', seed, scores[size] + jitter, size=size))
      rows.append(row('kd', seed, scores[2 * size] + jitter, size=size))
  (found,) = worth.in_labels(rows, 'kd', 'tl')
  assert found.over_curve.percent == pytest.approx(100)
  assert found.sizes == (100, 200, 400) and found.outside == [400]
  assert [one.labels for one in found.by_size[:2]] == pytest.approx([200, 400])
  assert (found.seeds, found.images) == ((0, 1, 2), 0)
  drawn = draw(rows)
  text = words.worth(found, drawn.labels)
  assert 'TL+KD is worth +100 % labels' in text
  assert "At 400 training images its accuracy lies beyond the ends of TL's" in (
    text
  )
  assert text in drawn.remarks
  (table,) = verdict_blocks.in_labels(drawn, 'rows')
  last = dict(zip(table.columns, table.rows[-1], strict=True))
  # Never a number that no run had.
  assert last['TL needs'] == 'more than 400, the largest tried'
  assert last['to'] == 'more than 400, the largest tried'
  assert last['labels'] == 'more than +0 %'
  assert worth.in_labels(paired(GAINS), 'kd', 'tl') == []
  # Sizes that hold equally many images are no curve.
  same = [r | {'num_train': 100} for r in rows]
  assert worth.in_labels(same, 'kd', 'tl') == []


def test_a_worth_of_answers_counts_the_test_images():
  rows = paired([0.02, 0.03, 0.04]) + paired([0.02, 0.03, 0.04], size=20)
  for entry in rows:
    if entry['size'] == 20:
      entry['test'] = entry['test'] | {'top1': entry['test']['top1'] + 0.1}
  (found,) = worth.in_labels(answering(rows, 1000), 'kd', 'tl')
  assert found.images == 1000
  assert 'over seeds and test images' in words.worth(found, LABELS)
  (alone,) = worth.in_labels(
    [{k: v for k, v in r.items() if k != 'answers'} for r in rows], 'kd', 'tl'
  )
  assert alone.images == 0
  assert found.over_curve.percent == pytest.approx(alone.over_curve.percent)
  assert found.over_curve != alone.over_curve


def test_curves_that_share_no_accuracy_have_no_worth():
  rows = paired([0.4, 0.4]) + paired([0.4, 0.4], size=20)
  (text,) = [t for t in draw(rows).remarks if t.startswith('On digits')]
  assert 'share no accuracy' in text


def test_the_committed_study_gives_the_numbers_of_the_docs():
  """docs/results.md: +0.70 points (+0.22 to +1.17), p = 0.031."""
  rows = json.loads((ROOT / 'docs' / 'study' / 'results.json').read_text())
  found = draw(rows)
  test = found.overall.test
  assert test['mean_difference'] == pytest.approx(0.006965208692576423)
  assert test['ci_low'] == pytest.approx(0.0022174198538663353)
  assert test['ci_high'] == pytest.approx(0.01171299753128651)
  assert (found.overall.p, test['pairs']) == (2 / 64, 6)
  assert len(found.overall.places) == 10 and not found.overall.left_out
  # Its rows have no answers to single images, and six seeds are few.
  assert found.sentence.startswith('Not yet known: ')
  assert 'answers to single test images are not at hand' in found.sentence
  assert found.decision.alone == 'not yet known'
  assert 'Nothing was stated before the runs' in found.remarks[1]
  assert {effect.verdict for effect in found.per_place['top1']} == {
    'inconclusive'
  }
  (smoothing,) = [
    one
    for one in found.rivals
    if one.against_reference.arm == 'tl_label_smoothing'
  ]
  against = smoothing.treatment_against.test
  assert round(100 * against['mean_difference'], 2) == -0.26
  assert round(100 * smoothing.against_reference.test['ci_low'], 2) == 0.63
