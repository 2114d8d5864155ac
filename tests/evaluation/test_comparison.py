import json
import math

import numpy as np
import pytest

from tests.evaluation.golden import ARRAYS, GOLDEN, SETS
from tlkd_jax.evaluation import comparison, metrics


def _runs(name):
  return tuple(
    ARRAYS[f'{name}/{key}'] for key in ('kd_logits', 'tl_logits', 'labels')
  )


@pytest.mark.parametrize('name', SETS)
def test_mcnemar_golden(name):
  kd, tl, labels = _runs(name)
  golden = GOLDEN[name]['pair']
  got = comparison.mcnemar(kd.argmax(1) == labels, tl.argmax(1) == labels)
  statistic, p = golden['statsmodels/mcnemar_exact=True_correction=False']
  assert min(got['only_x'], got['only_y']) == statistic
  np.testing.assert_allclose(got['p_exact'], p, rtol=1e-6)
  np.testing.assert_allclose(
    got['p_mid'], golden['ref/mcnemar_midp'], rtol=1e-6
  )
  exact = got['only_x'] + got['only_y'] < 25
  assert got['p'] == got['p_exact' if exact else 'p_mid']
  assert got['test'] == ('exact' if exact else 'mid-p')


@pytest.mark.parametrize('name', SETS)
def test_error_overlap_golden(name):
  got = comparison.error_overlap(*_runs(name))
  (both, only_tl), (only_kd, neither) = GOLDEN[name]['pair'][
    'table[[both,tl_only],[kd_only,neither]]'
  ]
  assert got['both_right'] == both and got['both_wrong'] == neither
  assert got['only_y_right'] == only_tl and got['only_x_right'] == only_kd
  rates = (got['correction_rate'], got['damage_rate'], got['error_jaccard'])
  np.testing.assert_allclose(
    rates,
    (
      only_kd / (only_kd + neither),
      only_tl / (only_tl + both),
      neither / (neither + only_kd + only_tl),
    ),
  )


@pytest.mark.parametrize('name', SETS)
def test_paired_bootstrap_golden(name):
  golden = GOLDEN[name]['pair']
  got = comparison.paired_bootstrap(
    *_runs(name), names=['top1'], seed=123, num_replicates=2000
  )['top1']
  np.testing.assert_allclose(
    got['difference'], golden['acc_diff_kd_minus_tl'], rtol=1e-6
  )
  key = (
    'ref/paired_bootstrap_percentile95(default_rng(123).integers(0,n,(2000,n)))'
  )
  np.testing.assert_allclose(
    [got['low'], got['high']], golden[key], rtol=1e-6, atol=1e-12
  )


def test_paired_bootstrap_of_all_metrics():
  kd, tl, labels = _runs('overconf_n500_c10')
  got = comparison.paired_bootstrap(kd, tl, labels, num_replicates=200)
  assert list(got) == list(metrics.METRICS)
  for name, values in got.items():
    assert values['low'] <= values['high'], name
    assert values['undefined_share'] == 0.0
    assert values['difference'] == values['x'] - values['y']
  top1 = got['top1']
  assert top1['low'] < top1['difference'] < top1['high']
  # Both models see the same resamples: easy and hard draws cancel.
  nll = got['nll']
  apart = np.hypot(nll['x_high'] - nll['x_low'], nll['y_high'] - nll['y_low'])
  assert nll['high'] - nll['low'] < apart
  assert got['nll']['high'] < 0 < got['top1']['low']
  same = comparison.paired_bootstrap(kd, kd, labels, num_replicates=20)
  assert all(v['low'] == v['high'] == 0.0 for v in same.values())


def test_mcnemar_edge_cases():
  none = comparison.mcnemar(np.ones(3, bool), np.ones(3, bool))
  assert none['p'] == none['p_mid'] == 1.0 and none['test'] == 'exact'
  x = np.arange(24) < 24
  assert comparison.mcnemar(x, ~x)['p'] == pytest.approx(2 / 2**24)
  x = np.arange(25) < 25
  wide = comparison.mcnemar(x, ~x)
  assert wide['test'] == 'mid-p' and wide['p'] == pytest.approx(1 / 2**25)


def test_undefined_values_are_nan():
  right = np.array([[2.0, 0.0], [0.0, 2.0]])
  labels = np.array([0, 1])
  overlap = comparison.error_overlap(right, right, labels)
  assert math.isnan(overlap['correction_rate'])
  assert math.isnan(overlap['error_jaccard']) and overlap['damage_rate'] == 0
  got = comparison.paired_bootstrap(right, right, labels, num_replicates=10)
  assert got['top5']['undefined_share'] == 1.0
  assert math.isnan(got['top5']['low'])


def test_per_class_deltas_and_most_changed():
  labels = np.array([0, 0, 1, 1, 2])
  y = 4.0 * np.eye(3)[[0, 1, 1, 1, 0]]
  x = 4.0 * np.eye(3)[[0, 0, 2, 1, 0]]
  deltas = comparison.per_class_deltas(x, y, labels)
  np.testing.assert_allclose(deltas['recall'], [0.5, -0.5, 0.0])
  np.testing.assert_array_equal(deltas['corrected'], [1, 0, 0])
  np.testing.assert_array_equal(deltas['damaged'], [0, 1, 0])
  np.testing.assert_array_equal(deltas['support'], [2, 2, 1])
  changed = comparison.most_changed(x, y, labels, count=3)
  assert [d['position'] for d in changed['improved']] == [1]
  (worse,) = changed['worsened']
  assert worse['position'] == 2 and worse['label'] == 1
  assert (worse['x_class'], worse['y_class']) == (2, 1)
  assert worse['change'] == pytest.approx(
    worse['x_probability'] - worse['y_probability']
  )
  json.dumps(changed)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='same examples'):
    comparison.error_overlap(np.zeros((2, 3)), np.zeros((3, 3)), [0, 0])
  with pytest.raises(ValueError, match='unknown metric'):
    comparison.paired_bootstrap(
      np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 1]), names=['f1']
    )
