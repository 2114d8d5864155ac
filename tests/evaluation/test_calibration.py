import numpy as np
import pytest
from scipy import optimize

from tests.evaluation.golden import ARMS, ARRAYS, GOLDEN
from tlkd_jax.evaluation import calibration, metrics, predictions, reliability


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_temperature_golden(name, arm):
  logits = ARRAYS[f'{name}/{arm}_logits']
  labels = ARRAYS[f'{name}/labels']
  golden = GOLDEN[name][arm]
  result = calibration.temperature_scaling(logits, labels, logits, labels)
  np.testing.assert_allclose(
    result['temperature'], golden['scipy/temperature'], rtol=1e-6
  )
  np.testing.assert_allclose(
    result['after']['nll'], golden['scipy/nll_after_T'], rtol=1e-6
  )
  np.testing.assert_allclose(
    result['after']['ece'],
    golden['torchmetrics/ece_15_after_T'],
    rtol=0,
    atol=2e-6,
  )
  # The unbounded optimum of this set is at infinity.
  assert result['at_bound'] == (name == 'edge_n40_c4')
  if not result['at_bound']:
    np.testing.assert_allclose(
      result['temperature'], golden['torch_lbfgs/temperature'], rtol=1e-4
    )


def test_temperature_is_taken_from_validation_alone():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 5, 400)
  logits = 3 * rng.normal(size=(400, 5)) + 3 * np.eye(5)[labels]
  val, test = slice(0, 200), slice(200, 400)
  result = calibration.temperature_scaling(
    logits[val], labels[val], logits[test], labels[test]
  )
  best = optimize.minimize_scalar(
    lambda t: metrics.nll(logits[val] / t, labels[val]), bounds=(0.1, 20)
  )
  assert result['temperature'] == pytest.approx(best.x, rel=1e-4)
  assert result['before'] == {
    name: metrics.METRICS[name](logits[test], labels[test])
    for name in calibration.SCALED_METRICS
  }
  assert result['after']['nll'] < result['before']['nll']


def test_temperature_at_its_bounds():
  logits = 3.0 * np.eye(4)
  right, wrong = np.arange(4), (np.arange(4) + 1) % 4
  fit = calibration.fit_temperature
  assert fit(logits, right) == calibration.MIN_TEMPERATURE
  assert fit(logits, wrong) == calibration.MAX_TEMPERATURE
  assert fit(np.full((4, 3), 2.0), np.zeros(4, int)) == 1.0
  assert fit(1e4 * np.eye(4), right) == calibration.MIN_TEMPERATURE


def test_ece_level_of_a_calibrated_model():
  rng = np.random.default_rng(3)
  logits = 2 * rng.normal(size=(300, 6))
  level = calibration.calibrated_ece_level(logits, seed=0, num_simulations=300)
  assert level == calibration.calibrated_ece_level(
    logits, seed=0, num_simulations=300
  )
  # Labels drawn from the full predictive distribution, one split at a time.
  cumulative = np.cumsum(predictions.softmax(logits), axis=1)
  direct = []
  for _ in range(300):
    uniform = rng.random((300, 1))
    labels = np.minimum((uniform > cumulative).sum(axis=1), 5)
    direct.append(reliability.ece(logits, labels))
  error = np.std(direct) / np.sqrt(300)
  assert abs(level['mean'] - np.mean(direct)) < 5 * error
  assert level['mean'] > 0.02
  assert abs(level['quantile_95'] - np.quantile(direct, 0.95)) < 0.01


def test_beyond_the_temperatures_that_are_searched_nothing_is_scaled():
  """All of validation right: the NLL falls for ever as T gets smaller."""
  rng = np.random.default_rng(0)
  labels = np.arange(200) % 2
  sure = np.eye(2)[labels] * 3.0
  test = sure + rng.normal(0, 2, sure.shape)
  found = calibration.scaled_metrics(sure[:40], labels[:40], test, labels)
  assert {*found} == {f'{name}_scaled' for name in calibration.SCALED_METRICS}
  assert np.isnan([*found.values()]).all()
  found = calibration.scaled_metrics(test[:40], labels[:40], test, labels)
  assert np.isfinite([*found.values()]).all()
