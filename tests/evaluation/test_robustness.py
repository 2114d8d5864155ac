"""Corruption errors against golden ones, and the slope of a gap."""

import numpy as np
import pytest

from tests.evaluation.golden import GOLDEN
from tlkd_jax.evaluation import degradation, robustness, statistics

MCE = GOLDEN['mce']


def golden_errors():
  accuracy = MCE['acc[corruption][severity]']
  errors = {name: 1 - np.array(row) for name, row in accuracy.items()}
  reference = {n: np.full(5, e) for n, e in MCE['alexnet_err'].items()}
  return errors, reference


def test_mce_golden():
  errors, reference = golden_errors()
  found = robustness.corruption_errors(
    errors,
    1 - MCE['clean_acc'],
    reference,
    MCE['alexnet_clean_err'],
    degradation.STANDARD,
  )
  expected = MCE['robustness_metrics/result']
  assert set(found['ce']) == set(errors) and found['ce_defined'] == 15
  for name in errors:
    for kind in ('ce', 'relative_ce'):
      value = expected[f'imagenet_c/{name}/{kind}']
      assert found[kind][name] == pytest.approx(value, rel=1e-9), name
  for kind in ('mce', 'relative_mce'):
    value = expected[f'imagenet_c/{kind}']
    assert found[kind] == pytest.approx(value, rel=1e-9)
  mean = robustness.mean_corrupted_error(errors, degradation.STANDARD)
  assert mean == pytest.approx(1 - expected['imagenet_c/accuracy/mean'])


def test_a_reference_without_errors_leaves_ce_undefined():
  errors = {'fog': np.full(5, 0.2), 'snow': np.full(5, 0.4)}
  reference = {'fog': np.zeros(5), 'snow': np.full(5, 0.2)}
  found = robustness.corruption_errors(
    errors, 0.1, reference, 0.2, ('fog', 'snow', 'frost')
  )
  assert np.isnan(found['ce']['fog']) and found['ce_defined'] == 1
  assert found['mce'] == pytest.approx(2.0)
  # The reference does not get worse: no rise to compare with.
  assert found['relative_ce_defined'] == 0 and np.isnan(found['relative_mce'])


def test_gap_slope_is_the_line_through_the_gaps():
  rng = np.random.default_rng(0)
  x, y = rng.random((2, 3, 5, 40)) < 0.6
  found = robustness.gap_slope(x, y, range(1, 6))
  gaps = (x.astype(float) - y).mean(axis=(0, 2))
  np.testing.assert_allclose(found['gaps'], gaps)
  assert found['slope'] == pytest.approx(np.polyfit(range(1, 6), gaps, 1)[0])
  each = np.polyfit(range(1, 6), (x.astype(float) - y).mean(axis=0), 1)[0]
  interval = statistics.mean_interval(each)
  assert found['low'] == pytest.approx(interval['low'])
  assert found['high'] == pytest.approx(interval['high'])
  same = robustness.gap_slope(x, x, range(1, 6))
  assert same['slope'] == same['low'] == same['high'] == 0
  assert np.isnan(same['p'])


def test_gap_slope_coverage():
  """Of intervals for images whose gap truly grows by 0.05 a severity."""
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(200):
    base = rng.random((2, 1, 60))
    y = base[None, 0] > 0.5
    gain = 0.05 * np.arange(1, 6)[:, None]
    x = base[None, 0] > 0.5 - gain
    found = robustness.gap_slope(x, np.broadcast_to(y, x.shape), range(1, 6))
    covered += found['low'] <= 0.05 <= found['high']
  assert 180 <= covered <= 199


def test_cells_of_other_images_are_not_compared():
  with pytest.raises(ValueError, match='same cells'):
    robustness.gap_slope(np.ones((1, 5, 3)), np.ones((1, 5, 4)), range(1, 6))
