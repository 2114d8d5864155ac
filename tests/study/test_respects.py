"""In which respects two arms differ, against values found by hand."""

import json

import numpy as np
import pytest

from tests.study.rows import STUDY, paired, row
from tlkd_jax.answer.rows import Answers, Place, pack
from tlkd_jax.evaluation import degradation
from tlkd_jax.study import pages, respects, results

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)
DIGITS = Place('digits', 10)


def suite(clean, top1, ece=0.1):
  """corruptions.json of a model whose accuracy is `top1` by severity."""
  table = {
    name: {'group': 'noise', 'top1': top1, 'nll': [1.0] * 5, 'ece': [ece] * 5}
    for name in degradation.NAMES
  }
  return {
    'count': 200,
    'clean': {'top1': clean, 'nll': 0.5, 'ece': 0.05},
    'corruptions': table,
    'mean_corrupted_error': {'standard': 1 - float(np.mean(top1))},
  }


def test_relative_errors_slope_and_calibration_under_corruption(tmp_path):
  plain = [0.7, 0.6, 0.5, 0.4, 0.3]
  for one in paired(GAINS):
    if one['arm'] == 'teacher':
      continue
    taught = one['arm'] == 'kd'
    # Better by 0.1 at the least severity, by 0.02 more at each further one.
    top1 = [p + taught * (0.1 + 0.02 * s) for s, p in enumerate(plain)]
    folder = tmp_path / one['folder'] / 'evaluation'
    folder.mkdir(parents=True)
    found = suite(0.8 + 0.1 * taught, top1, 0.2 - 0.05 * taught)
    (folder / 'corruptions.json').write_text(json.dumps(found))
    stored = {k: v for k, v in one.items() if k != 'answers'}
    (folder.parent / 'cell.json').write_text(json.dumps(stored))
  rows = results.collect(tmp_path, 'top1')
  found = {m.name: m for m in respects.under_corruption(rows, 'kd', 'tl')}
  # Errors 0.5 and 0.36; clean ones 0.2 and 0.1.
  assert found['mCE, the reference is 1'].difference == pytest.approx(0.72)
  relative = found['relative mCE, the reference is 1']
  assert relative.difference == pytest.approx(0.26 / 0.3)
  assert relative.p == 2 / 64
  slope = found['gap in accuracy, a severity']
  assert slope.difference == pytest.approx(0.02) and slope.seeds == 6
  ece = found["ECE, ImageNet-C's fifteen"]
  assert (ece.reference, ece.treatment) == pytest.approx((0.2, 0.15))
  assert found['ECE, as they are'].difference == 0
  pages.write(tmp_path, rows, STUDY)
  page = (tmp_path / 'report.md').read_text()
  assert '| relative mCE, the reference is 1 | 6 | 0.867 |' in page


def test_rows_of_earlier_versions_have_accuracies_under_corruption_alone():
  rows = paired(GAINS)
  for one in rows:
    one['degraded'] = {'count': 200, 'top1': {'clean': 0.5, 'noise': 0.4}}
  assert respects.under_corruption(rows, 'kd', 'tl') == []


@pytest.mark.parametrize(
  ('curve', 'steps', 'of_reference'),
  [
    # The level is 0.95 of the lesser best: 0.57, 0.57, 0.532 and 0.5415.
    ([[50, 1.0, 0.58], [100, 2.0, 0.6]], 50, 95),
    ([[100, 2.0, 0.62], [50, 1.0, 0.52]], 75, 95),
    ([[50, 1.0, 0.5], [100, 2.0, 0.56]], 50 + 50 * 0.032 / 0.06, 88.6667),
    ([[50, 1.0, 0.57], [100, 2.0, 0.4]], 50, 90.25),
  ],
)
def test_steps_to_a_level(curve, steps, of_reference):
  rows = []
  for seed in range(3):
    base = [[50, 1.0, 0.3], [100, 2.0, 0.6]]
    rows.append(row('tl', seed, 0.6, curve=base))
    rows.append(row('kd', seed, 0.6, curve=curve))
  (found,) = respects.steps_to_level(rows, 'kd', 'tl')
  assert found.seeds == 3
  assert found.reference == pytest.approx(of_reference, abs=1e-3)
  assert found.treatment == pytest.approx(steps)
  assert found.difference == pytest.approx(steps - of_reference, abs=1e-3)


def test_who_corrects_whom_over_seeds():
  rows = []
  # By seed: two and one corrected of five and four errors.
  for seed, (ours, theirs) in enumerate(
    [('1111100000', '1110000011'), ('1111111000', '1111110000')]
  ):
    for arm, bits in (('kd', ours), ('tl', theirs)):
      right = np.array([bit == '1' for bit in bits])
      hits = pack(Answers('same', right))
      rows.append(row(arm, seed, float(right.mean()), hits=hits))
  (found,) = respects.overlaps(rows, 'kd', 'tl')
  assert (found.both_right, found.both_wrong) == (3 + 6, 3 + 3)
  assert (found.only_treatment, found.only_reference) == (2 + 1, 2)
  assert found.correction[0] == pytest.approx((2 / 5 + 1 / 4) / 2)
  assert found.damage[0] == pytest.approx((2 / 5 + 0) / 2)
  assert respects.overlaps(paired(GAINS), 'kd', 'tl') == []


def test_confusions_are_pooled_and_the_largest_change_is_named(tmp_path):
  rows = paired(GAINS)
  for one in rows:
    wrong = 4 if one['arm'] == 'kd' else 1
    one['confusion'] = [[9, 1], [wrong, 10 - wrong]]
    one['classes'] = ['paper', 'glass']
  counts, names = respects.confusions(rows, DIGITS, 'kd')
  assert counts.tolist() == [[54, 6], [24, 36]]
  assert names == ['paper', 'glass']
  pages.write(tmp_path, rows, STUDY)
  page = (tmp_path / 'report.md').read_text()
  assert '| glass | paper | 0.100 | 0.400 | 0.300 |' in page
  assert '| glass | glass | 0.900 | 0.600 | -0.300 |' in page


def test_what_is_undefined_is_left_out_and_no_error():
  rows = paired(GAINS)
  rows[0]['curve'] = [[5, 1.0, None], [10, None, 0.5]]
  rows[3]['curve'] = [[5, 1.0, None]]
  (steps,) = respects.steps_to_level(rows, 'kd', 'tl')
  assert steps.seeds == len(GAINS) - 1
  for one in rows:
    one['degraded'] = {
      'count': 5,
      'top1': {'clean': None, 'noise': 0.5},
      'errors': dict.fromkeys(degradation.NAMES),
      'top1_by_severity': [None] * 5,
      'nll_by_severity': [None, 1.0, 1.0, 1.0, 1.0],
      'ece_by_severity': [0.1] * 5,
      'nll_clean': None,
      'ece_clean': 0.1,
    }
  found = respects.under_corruption(rows, 'kd', 'tl')
  assert {one.name for one in found if one.seeds == 0} >= {'NLL, as they are'}
  ece = next(one for one in found if one.name.startswith('ECE, Image'))
  assert ece.difference == 0 and ece.seeds == len(GAINS)
