import math

import numpy as np
import pytest

from tests.evaluation.golden import ARRAYS, GOLDEN, SETS
from tlkd_jax.evaluation import fidelity

KEYS = {
  'ref/agreement_teacher_{}': 'agreement',
  'gnosis/agreement_teacher_{}': 'agreement',
  'sklearn/kappa_teacher_{}': 'agreement_kappa',
  'ref/kl_teacher||{}': 'kl_teacher_student',
  'torch/kl_teacher||{}(batchmean)': 'kl_teacher_student',
  'ref/kl_{}||teacher': 'kl_student_teacher',
  'ref/js_teacher_{}_nats': 'js_divergence',
  'ref/total_variation_teacher_{}': 'total_variation',
  'ref/agreement_when_teacher_wrong_{}': 'agreement_where_teacher_wrong',
  'ref/student_right_given_teacher_wrong_{}': 'accuracy_where_teacher_wrong',
}


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('arm', ['tl', 'kd'])
@pytest.mark.parametrize('key', sorted(KEYS))
def test_golden(name, arm, key):
  got = fidelity.FIDELITY[KEYS[key]](
    ARRAYS[f'{name}/{arm}_logits'],
    ARRAYS[f'{name}/teacher_logits'],
    ARRAYS[f'{name}/labels'],
  )
  # gnosis computes in float32; a divergence of 0 comes out as 1e-17.
  atol = 1e-7 if key.startswith('gnosis') else 1e-15
  expected = GOLDEN[name]['pair'][key.format(arm)]
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=atol)


def test_disagreement_of_the_two_arms():
  for name in SETS:
    got = 1 - fidelity.agreement(
      ARRAYS[f'{name}/tl_logits'], ARRAYS[f'{name}/kd_logits']
    )
    expected = GOLDEN[name]['pair']['ref/disagreement_tl_kd']
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_cka_golden():
  x, y = ARRAYS['cka/X'], ARRAYS['cka/Y']
  golden = GOLDEN['cka']
  for key in ('gnosis/linear_CKA', 'ref/linear_cka_feature_space'):
    np.testing.assert_allclose(fidelity.linear_cka(x, y), golden[key])
  np.testing.assert_allclose(
    fidelity.linear_cka(x, x), golden['gnosis/linear_CKA(X,X)']
  )
  np.testing.assert_allclose(
    fidelity.debiased_linear_cka(x, y),
    golden['ref/debiased_linear_cka(Song/Nguyen)'],
    rtol=1e-6,
  )


def test_cka_of_wide_features_takes_the_other_product():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(12, 4, 5, 2)), rng.normal(size=(12, 30))
  kernels = [v.reshape(12, -1) @ v.reshape(12, -1).T for v in (x, y)]
  for k in kernels:
    np.fill_diagonal(k, 0.0)

  def hsic(k, m):
    """Song et al. 2012, equation 5."""
    one = np.ones(12)
    return (
      np.trace(k @ m)
      + (one @ k @ one) * (one @ m @ one) / (11 * 10)
      - 2 / 10 * (one @ k @ m @ one)
    )

  k, m = kernels
  expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
  got = fidelity.debiased_linear_cka(x, y)
  np.testing.assert_allclose(got, expected, rtol=1e-9)
  assert abs(got) < 0.3 < fidelity.linear_cka(x, y)


def test_cka_ignores_rotation_and_scale():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(50, 6))
  rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  for cka in (fidelity.linear_cka, fidelity.debiased_linear_cka):
    assert cka(x, 3.0 * x @ rotation + 7.0) == pytest.approx(1.0)


def test_undefined_values_are_nan():
  constant = np.full((9, 3), 0.1)
  other = np.random.default_rng(2).normal(size=(9, 4))
  assert math.isnan(fidelity.linear_cka(constant, other))
  assert math.isnan(fidelity.debiased_linear_cka(constant, other))
  assert math.isnan(fidelity.debiased_linear_cka(other[:3], other[:3]))
  right, labels = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 0])
  values = fidelity.compute_fidelity(right, right, labels)
  undefined = {name for name, v in values.items() if math.isnan(v)}
  assert undefined == {
    'agreement_kappa',
    'agreement_where_teacher_wrong',
    'accuracy_where_teacher_wrong',
  }


def test_saturated_logits_stay_finite():
  logits = 1e4 * np.eye(3)
  values = fidelity.compute_fidelity(logits, logits[::-1], np.arange(3))
  assert all(math.isfinite(v) for v in values.values())
  assert values['js_divergence'] == pytest.approx(2 / 3 * math.log(2))
  assert values['kl_teacher_student'] == pytest.approx(2 / 3 * 1e4)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='one shape'):
    fidelity.agreement(np.zeros((2, 3)), np.zeros((3, 3)))
  with pytest.raises(ValueError, match='teacher_logits must be finite'):
    fidelity.agreement(np.zeros((1, 2)), np.full((1, 2), np.inf))
  with pytest.raises(ValueError, match='same examples'):
    fidelity.linear_cka(np.zeros((2, 3)), np.zeros((3, 3)))
