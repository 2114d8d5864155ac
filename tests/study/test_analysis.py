"""What a study's rows say besides the answer, against values found by hand."""

import dataclasses
import json

import numpy as np
import pytest

from tests.study.rows import STUDY, paired, row
from tlkd_jax.answer.rows import Place, unpack
from tlkd_jax.evaluation import evaluate
from tlkd_jax.evaluation.calibration import SCALED_METRICS
from tlkd_jax.evaluation.metrics import METRICS, compute_metrics
from tlkd_jax.study import analysis, pages, results

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)
DIGITS = Place('digits', 10)


def test_cost_counts_trials_and_teachers():
  rows = paired(GAINS)
  lost = [
    r | {'chosen': False, 'trial': {'rate': 2}} for r in rows if r['seed'] == 0
  ]
  place = DIGITS
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
  assert (found[0].place, found[0].arm) == (DIGITS, 'kd')
  assert found[0].gain == pytest.approx(0.025)
  assert found[0].edge == pytest.approx(0.9 - 0.525)
  assert found[0].agreement == 0.75


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
    DIGITS: {
      (1.0, 0.5): pytest.approx(0.1),
      (4.0, 2.0): pytest.approx(-0.1),
    }
  }


def _degraded(noise: float, count: int = 200) -> dict:
  return {'count': count, 'top1': {'clean': 0.6, 'noise': noise}}


def test_degraded_images_pair_what_both_arms_saw(tmp_path):
  rows = paired(GAINS)
  assert analysis.degraded(rows, 'kd', 'tl') == []
  for r in rows:
    gain = GAINS[r['seed']] if r['arm'] == 'kd' else 0.0
    if r['arm'] != 'teacher':
      r['degraded'] = _degraded(0.4 + gain)
    elif r['seed'] < 2:
      r['degraded'] = _degraded(0.7 + r['seed'] / 10)
  # One seed of other images, one that only one arm has.
  rows[0]['degraded'] = _degraded(0.4, count=100)
  del next(r for r in rows if (r['arm'], r['seed']) == ('kd', 1))['degraded']
  assert (rows[0]['arm'], rows[0]['seed']) == ('tl', 0)
  clean, noise = analysis.degraded(rows, 'kd', 'tl')
  assert (clean.group, clean.test['mean_difference']) == ('clean', 0.0)
  assert (noise.group, noise.test['pairs'], noise.count) == ('noise', 4, 200)
  assert noise.test['mean_difference'] == pytest.approx(np.mean(GAINS[2:]))
  assert noise.reference == pytest.approx(0.4)
  assert noise.teacher == pytest.approx(0.75)
  pages.write(tmp_path, rows, STUDY)
  line = '| digits, 10 per class | noise | 200 | 4 | 0.750 | 0.400 |'
  assert line in (tmp_path / 'report.md').read_text()


def test_degraded_verdicts_are_corrected_over_places():
  def rows(sizes):
    found = [r for size in sizes for r in paired(GAINS, size=size)]
    for r in found:
      r['degraded'] = _degraded(0.4 + 0.1 * (r['arm'] == 'kd'))
    return found

  def verdicts(sizes):
    found = analysis.degraded(rows(sizes), 'kd', 'tl')
    return [one.verdict for one in found if one.group == 'noise']

  # 2 / 64 of each place, and twice as much for two.
  assert verdicts([10]) == ['better']
  assert verdicts([10, 20]) == ['inconclusive'] * 2


def test_a_page_without_rows_of_the_teacher(tmp_path):
  rows = [r for r in paired(GAINS) if r['arm'] != 'teacher']
  rows += [r | {'size': 20, 'num_train': 200} for r in rows]
  pages.write(tmp_path, rows, STUDY)
  assert 'Accuracy on digits' in (tmp_path / 'report.json').read_text()


def test_answers_are_read_from_predictions_at_hand(tmp_path):
  rows = paired(GAINS[:1])
  for entry in rows:
    del entry['answers']
  stored = evaluate.Predictions(
    np.eye(3, dtype=np.float32)[[1, 1, 2]],
    np.zeros((3, 5), np.float32),
    np.array([1, 0, 2]),
    np.array([7, 5, 3]),
  )
  for entry in rows:
    if entry['arm'] != 'tl':
      folder = tmp_path / entry['folder'] / 'predictions'
      evaluate.save(folder / 'test.npz', stored)
  tl, kd, teacher = results.with_answers(tmp_path, rows)
  assert 'answers' not in tl and 'answers' not in teacher
  assert kd['answers'].right.tolist() == [True, False, True]
  assert all('answers' not in row for row in rows)


def _predictions(rng, count, sharp):
  labels = np.arange(count) % 3
  logits = sharp * (np.eye(3)[labels] + rng.normal(0, 0.7, (count, 3)))
  return evaluate.Predictions(
    logits.astype(np.float32),
    np.zeros((count, 2), np.float32),
    labels,
    np.arange(count),
  )


def _study_of_predictions(root):
  """Two seeds of over-confident TL+KD, from the predictions of their cells."""
  rows = paired(GAINS[:2])
  for seed, entry in enumerate(rows):
    del entry['answers']
    rng = np.random.default_rng(seed)
    folder = root / entry['folder']
    for split in ('validation', 'test'):
      sharp = 9.0 if entry['arm'] == 'kd' else 1.5
      stored = _predictions(rng, 300, sharp)
      evaluate.save(folder / 'predictions' / f'{split}.npz', stored)
    teacher = dataclasses.replace(stored, logits=-stored.logits)
    evaluate.save(folder / 'predictions' / 'teacher_test.npz', teacher)
  return rows


def test_rows_of_earlier_versions_are_completed_from_predictions(tmp_path):
  rows = _study_of_predictions(tmp_path)
  for one in results.completed(tmp_path, rows):
    test = one['test']
    # What it said stays.
    assert test['teacher_agreement'] == 0.75
    if one['arm'] == 'kd':
      assert test['nll_scaled'] < metrics_of(tmp_path, one)['nll']
    assert one['temperature'] > (2 if one['arm'] == 'kd' else 0.3)
    assert np.sum(one['confusion']) == 300 and 'classes' not in one
    assert unpack(one['hits']).right.mean() == pytest.approx(
      metrics_of(tmp_path, one)['top1']
    )
    # The least likely class is never the likeliest one.
    assert not unpack(one['agreed']).right.any()
  done = results.completed(tmp_path, rows)
  assert results.completed(tmp_path / 'elsewhere', done) == done
  assert results.completed(tmp_path / 'elsewhere', rows) == rows


def metrics_of(root, row):
  stored = evaluate.load(root / row['folder'] / 'predictions' / 'test.npz')
  return compute_metrics(stored.logits, stored.labels)


def test_calibration_stands_before_and_after_temperature_scaling(tmp_path):
  rows = results.completed(tmp_path, _study_of_predictions(tmp_path))
  for one in rows:
    one['test'] |= metrics_of(tmp_path, one)
  pages.write(tmp_path, rows, STUDY)
  data = json.loads((tmp_path / 'report.json').read_text())
  tables = {t['title']: t for section in data for t in section['tables']}
  before = tables['TL+KD minus TL over all places, all metrics']
  after = tables['TL+KD minus TL over all places, after temperature scaling']
  # Three classes have no top 5.
  names = [row[0] for row in before['rows']]
  assert names == [name for name in METRICS if name != 'top5']
  assert [row[0] for row in after['rows']] == [
    name for name in METRICS if name in SCALED_METRICS
  ]

  def nll(table):
    (found,) = [row for row in table['rows'] if row[0] == 'nll']
    return dict(zip(table['columns'], found, strict=True))

  # What over-confidence costs is all that TL+KD loses here.
  assert nll(before)['difference'] > 0.3 > abs(nll(after)['difference'])
  assert nll(after)['better is'] == 'smaller'


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
  # Of the step that is the best of the cell, or of an earlier one.
  stored = row('kd', 0, 0.5) | {'best_step': 5}
  (folder / 'cell.json').write_text(json.dumps(stored))
  for step in (5, 3):
    suite['step'] = step
    path = folder / 'evaluation' / 'corruptions.json'
    path.write_text(json.dumps(suite))
    kd, _ = results.collect(tmp_path, 'top1')
    assert ('degraded' in kd) is (step == 5)


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


def test_an_edge_counts_the_pairs_that_the_answer_counts():
  """Two seeds of TL+KD on other cores, on which it lost, are no pair."""
  rows = paired((0.03, 0.02, 0.03, -0.30, -0.30))
  for entry in rows:
    cores = 1 + (entry['arm'] == 'kd' and entry['seed'] > 2)
    entry['made'] = {'device': 'cpu', 'cores': cores, 'versions': {}}
  (edge,) = [e for e in analysis.edges(rows, 'tl') if e.arm == 'kd']
  assert edge.gain == pytest.approx(0.08 / 3)
