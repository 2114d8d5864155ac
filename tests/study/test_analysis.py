"""What a study concludes from its rows, against values found by hand."""

import json
import math

import numpy as np
import pytest

from tests.study.rows import STUDY, paired, row
from tlkd_jax.evaluation import evaluate, statistics
from tlkd_jax.study import analysis, answer, pages, results

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)


def test_pairs_are_of_one_seed_whatever_the_order():
  rows = paired(GAINS)
  x, y = analysis.pairs(rows[::-1], ('digits', 10), 'kd', 'tl', 'top1')
  np.testing.assert_allclose(x - y, GAINS)
  without = [r for r in rows if (r['arm'], r['seed']) != ('tl', 2)]
  x, y = analysis.pairs(without, ('digits', 10), 'kd', 'tl', 'top1')
  np.testing.assert_allclose(x - y, [g for i, g in enumerate(GAINS) if i != 2])


def test_compare_one_place():
  tests = analysis.compare(paired(GAINS), STUDY)
  test = next(t for t in tests if (t['arm'], t['metric']) == ('kd', 'top1'))
  assert test['mean_difference'] == pytest.approx(0.025)
  # All six signs agree: 2 of the 64 patterns are as extreme.
  assert test['p_sign_flip'] == test['smallest_p'] == 2 / 64
  assert test['verdict'] == 'better'
  # The other metric ties everywhere: its p is 1, so Holm doubles this one.
  assert test['p_holm'] == pytest.approx(4 / 64)
  assert {t['arm'] for t in tests} == {'kd', 'teacher'}


def test_five_seeds_cannot_decide_and_the_answer_says_so():
  rows = paired(GAINS[:5])
  text = answer.sentence(rows, STUDY, analysis.compare(rows, STUDY))
  assert text.startswith('Inconclusive')
  assert '5 paired seeds' in text and '0.0625' in text


def test_answer_names_effect_interval_and_verdicts():
  rows = paired(GAINS) + paired([-g for g in GAINS], size=20)
  rows = [r | {'num_train': 10 * r['size']} for r in rows]
  rows += paired(GAINS, size=50)
  text = answer.sentence(rows, STUDY, analysis.compare(rows, STUDY))
  assert 'better at 2, worse at 1, inconclusive at 0' in text
  # (0.025 - 0.025 + 0.025) / 3 of each seed.
  assert '+0.83 points over 3 places' in text
  low, high = (
    statistics.mean_interval([g / 3 for g in GAINS])[k] for k in ('low', 'high')
  )
  assert f'{100 * low:+.2f} to {100 * high:+.2f}' in text


def test_what_needs_no_teacher_is_named_beside_the_answer():
  rows = paired(GAINS)
  assert answer.rivals_in_words(rows, STUDY) == []
  rows += [row('probe', seed, 0.45 + seed / 100) for seed in range(6)]
  (text,) = answer.rivals_in_words(rows, STUDY)
  assert 'probe minus TL -5.00 points (-5.00 to -5.00; 1 place, ' in text
  assert 'TL+KD minus probe +7.50 points' in text


def test_an_incomplete_study_has_no_overall_answer():
  rows = [r for r in paired(GAINS) if r['arm'] != 'tl']
  text = answer.sentence(rows, STUDY, analysis.compare(rows, STUDY))
  assert text.startswith('There is no answer yet')


def test_overall_weighs_data_sets_equally():
  rows = paired([0.3] * 6) + paired([0.3] * 6, size=20)
  rows += paired([0.0] * 6, dataset='other')
  test = analysis.overall(rows, 'kd', 'tl', 'top1')
  assert test['mean_difference'] == pytest.approx(0.15)
  assert test['places'] == 3
  only = analysis.overall(rows, 'kd', 'tl', 'top1', 'digits')
  assert only['mean_difference'] == pytest.approx(0.3)


def test_a_place_that_is_not_finished_is_left_out_by_name():
  rows = paired([0.3] * 6) + paired([0.1] * 2, size=20)
  rows = [r | {'num_train': 10 * r['size']} for r in rows]
  test = analysis.overall(rows, 'kd', 'tl', 'top1')
  assert test['mean_difference'] == pytest.approx(0.3)
  assert (test['pairs'], test['left_out']) == (6, [('digits', 20)])
  text = answer.sentence(rows, STUDY, analysis.compare(rows, STUDY))
  assert 'left out of the mean: digits, 20 per class' in text


def test_lower_is_better_where_it_is():
  rows = [
    r | {'test': r['test'] | {'nll': 0.5 - 0.01 * r['seed']}}
    if r['arm'] == 'kd'
    else r
    for r in paired(GAINS)
  ]
  tests = analysis.compare(rows, STUDY)
  test = next(t for t in tests if (t['arm'], t['metric']) == ('kd', 'nll'))
  assert test['mean_difference'] < 0 and test['verdict'] == 'better'


def test_worth_in_labels():
  """TL+KD at n equals TL at 2 n: the teacher is worth 100 % more labels."""
  scores = {10: 0.5, 20: 0.6, 40: 0.7, 80: 0.8}
  rows = []
  for size in (10, 20, 40):
    for seed in range(3):
      jitter = seed / 1000
      rows.append(row('tl', seed, scores[size] + jitter, size=size))
      rows.append(row('kd', seed, scores[2 * size] + jitter, size=size))
  found = analysis.worth(rows, 'kd', 'tl', 'digits')
  assert found['percent_more_labels'] == pytest.approx(100)
  assert found['sizes'] == [100, 200, 400] and found['outside'] == [400]
  text = answer.worth_in_words(rows, STUDY, 'digits')
  assert '+100 % labels' in text and 'At 400 training images' in text
  assert analysis.worth(paired(GAINS), 'kd', 'tl', 'digits') is None


def test_cost_counts_trials_and_teachers():
  rows = paired(GAINS)
  lost = [
    r | {'chosen': False, 'trial': {'rate': 2}} for r in rows if r['seed'] == 0
  ]
  place = ('digits', 10)
  assert analysis.cost(rows, place, 'tl')['seconds'] == 10
  spent = analysis.cost(rows, place, 'kd')
  assert spent == {
    'seconds': 20,
    'teacher_seconds': 10,
    'train_images': 640,
    'forward_images': 320,
  }
  with_trials = analysis.cost(rows + lost, place, 'kd')
  assert with_trials['seconds'] == pytest.approx(20 * 7 / 6)


def test_friedman_ranks_arms_over_places():
  rows = []
  for size in (10, 20, 30):
    for seed in range(2):
      rows.append(row('tl', seed, 0.5, size=size))
      rows.append(row('kd', seed, 0.7, size=size))
      rows.append(row('probe', seed, 0.4, size=size))
      rows.append(row('teacher', seed, 0.9, size=size))
  found = analysis.friedman(rows, 'top1', 'tl')
  ranks = dict(zip(found['arms'], found['mean_ranks'], strict=True))
  assert ranks == {'tl': 2, 'kd': 1, 'probe': 3} and found['blocks'] == 3
  assert analysis.friedman(paired(GAINS), 'top1', 'tl') is None


def test_edge_of_the_teacher_and_gain():
  found = analysis.edges(paired(GAINS), 'tl')
  assert len(found) == 1
  assert found[0]['gain'] == pytest.approx(0.025)
  assert found[0]['edge'] == pytest.approx(0.9 - 0.525)


def test_sensitivity_reads_the_keys_that_arms_set():
  keys = ('distillation.temperature', 'distillation.soft_weight')
  rows = paired(GAINS)
  for t, w, gain in ((1.0, 0.5, 0.1), (4.0, 2.0, -0.1)):
    changes = dict(zip(keys, (t, w), strict=True))
    rows += [
      row(f'kd_T{t:g}', seed, 0.5 + seed / 100 + gain, changes=changes)
      for seed in range(6)
    ]
  found = analysis.sensitivity(rows, 'tl')
  assert found == {
    ('digits', 10): {
      (1.0, 0.5): pytest.approx(0.1),
      (4.0, 2.0): pytest.approx(-0.1),
    }
  }


def test_interval_over_images_pairs_images(tmp_path):
  """The images decide where all seeds gain the same ones."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 200)
  right = np.eye(3, dtype=np.float32)[labels]
  wrong = np.roll(right, 1, axis=1)
  gained = np.arange(200) < 40
  rows = paired(GAINS[:2])
  for entry in rows:
    logits = wrong.copy() if entry['arm'] == 'tl' else right.copy()
    if entry['arm'] == 'kd':
      logits[~gained] = wrong[~gained]
    stored = evaluate.Predictions(logits, logits, labels, np.arange(200))
    path = tmp_path / entry['folder'] / 'predictions' / 'test.npz'
    evaluate.save(path, stored)
  low, high = answer.items_interval(tmp_path, rows, STUDY, ('digits', 10))
  error = 1.96 * math.sqrt(0.2 * 0.8 / 200)
  assert low == pytest.approx(0.2 - error, abs=0.01)
  assert high == pytest.approx(0.2 + error, abs=0.01)
  elsewhere = answer.items_interval(
    tmp_path / 'none', rows, STUDY, ('digits', 10)
  )
  assert np.isnan(elsewhere).all()


def _degraded(noise: float, count: int = 200) -> dict:
  return {'count': count, 'top1': {'clean': 0.6, 'noise': noise}}


def test_degraded_images_pair_what_both_arms_saw(tmp_path):
  rows = paired(GAINS)
  assert analysis.degraded(rows, STUDY) == []
  for r in rows:
    gain = GAINS[r['seed']] if r['arm'] == 'kd' else 0.0
    if r['arm'] != 'teacher':
      r['degraded'] = _degraded(0.4 + gain)
  # One seed of other images, one that only one arm has.
  rows[0]['degraded'] = _degraded(0.4, count=100)
  del next(r for r in rows if (r['arm'], r['seed']) == ('kd', 1))['degraded']
  assert (rows[0]['arm'], rows[0]['seed']) == ('tl', 0)
  clean, noise = analysis.degraded(rows, STUDY)
  assert (clean['group'], clean['mean_difference']) == ('clean', 0.0)
  assert (noise['group'], noise['pairs'], noise['count']) == ('noise', 4, 200)
  assert noise['mean_difference'] == pytest.approx(np.mean(GAINS[2:]))
  assert noise['reference'] == pytest.approx(0.4)
  pages.write(tmp_path, rows, STUDY)
  line = '| digits, 10 per class | noise | 200 | 4 | 0.400 |'
  assert line in (tmp_path / 'report.md').read_text()


def test_results_take_up_what_the_corruption_suite_left(tmp_path):
  suite = {'count': 5, 'clean': {'top1': 0.5}}
  suite['mean_corrupted_error'] = {'noise': 0.75, 'camera': None}
  for arm in ('tl', 'kd'):
    folder = tmp_path / 'cells' / 'digits' / '10' / arm / 'seed0'
    (folder / 'evaluation').mkdir(parents=True)
    (folder / 'cell.json').write_text(json.dumps(row(arm, 0, 0.5)))
  (folder / 'evaluation' / 'corruptions.json').write_text(json.dumps(suite))
  kd, tl = results.collect(tmp_path, 'top1')
  assert kd['degraded'] == {'count': 5, 'top1': {'clean': 0.5, 'noise': 0.25}}
  assert 'degraded' not in tl


def test_page_says_the_answer_first_and_the_files_agree(tmp_path):
  rows = paired(GAINS) + paired([-g for g in GAINS], size=20)
  # A seed that only one arm has counts nowhere.
  rows.append(rows[1] | {'seed': 9})
  text = pages.write(tmp_path, rows, STUDY)
  page = (tmp_path / 'index.html').read_text()
  assert page.index('the mean test accuracy') < page.index('<table')
  assert 'http' not in page.replace('http://www.w3.org', '')
  data = json.loads((tmp_path / 'report.json').read_text())
  assert data[0]['texts'][0] == text
  assert text in (tmp_path / 'report.md').read_text()
  keys = [section['key'] for section in data]
  assert keys[:3] == ['answer', 'curves', 'arms'] and 'lost' in keys
  lost = next(section for section in data if section['key'] == 'lost')
  assert 'digits, 20 per class (-2.50 points' in lost['texts'][0]
