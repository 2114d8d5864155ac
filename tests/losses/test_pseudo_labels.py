"""Self-training and FixMatch against the published formulas, in float64."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.losses.conftest import close
from tlkd_jax.losses import LOSSES

# Some answers of the teacher are sure, others are not.
RNG = np.random.default_rng(5)
STUDENT = RNG.normal(size=(16, 7))
TEACHER = RNG.normal(size=(16, 7)) * np.linspace(0.5, 6.0, 16)[:, None]


def compute(name, **options):
  def loss(student):
    given = {'logits': TEACHER.astype(np.float32)}
    return LOSSES[name].function({'logits': student}, given, None, **options)

  return jax.jit(jax.value_and_grad(loss))(STUDENT.astype(np.float32))


@pytest.mark.parametrize('threshold', [0.0, 0.5, 0.95, 1.0])
def test_hard_pseudo_labels_by_hand(threshold):
  """Sohn 2020, equation 4; without threshold Lee 2013, equation 15."""
  q = special.softmax(TEACHER, -1)
  mask = (q.max(-1) >= threshold).astype(float)
  onehot = np.eye(7)[q.argmax(-1)]
  nll = -(onehot * special.log_softmax(STUDENT, -1)).sum(-1)
  value, gradient = compute('pseudo_label', threshold=threshold)
  np.testing.assert_allclose(value, (mask * nll).sum() / 16, rtol=1e-6)
  expected = mask[:, None] * (special.softmax(STUDENT, -1) - onehot) / 16
  np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)
  if threshold in (0.5, 0.95):
    assert 0 < mask.sum() < 16


def test_soft_pseudo_labels_by_hand():
  """Xie 2020, equation 2: cross-entropy; KD at T = 1 less its entropy."""
  q, log_p = special.softmax(TEACHER, -1), special.log_softmax(STUDENT, -1)
  entropy = -(q * np.log(q)).sum(-1).mean()
  value, gradient = compute('kd', temperature=1.0)
  cross_entropy = -(q * log_p).sum(-1).mean()
  np.testing.assert_allclose(value, cross_entropy - entropy, rtol=1e-5)
  close(gradient, (np.exp(log_p) - q) / 16)


def test_the_target_is_a_constant():
  def loss(teacher):
    student = {'logits': STUDENT.astype(np.float32)}
    return LOSSES['pseudo_label'].function(student, {'logits': teacher}, None)

  gradient = jax.jit(jax.grad(loss))(TEACHER.astype(np.float32))
  np.testing.assert_array_equal(gradient, 0)
