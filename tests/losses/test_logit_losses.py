"""Logit losses against golden numbers, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.losses import LOSSES
from tlkd_jax.losses.supervised import cross_entropy, soft_cross_entropy

# file, variant, hyperparameters, factor on the file's numbers. A factor of T^2
# stands where the library named in the variant drops it.
CASES = [
  ('kd', '', dict(temperature=4.0), 1),
  ('kd', '__repdistiller', dict(temperature=4.0), 1),
  ('kd', '__hunto', dict(temperature=4.0), 1),
  ('kd', '__logit_stand_repo_off', dict(temperature=4.0), 1),
  ('kd', '__tllib_noT2', dict(temperature=4.0), 16),
  ('kd', '__torchdistill_alpha0_noT2', dict(temperature=4.0), 16),
  ('kd_logit_std', '', dict(temperature=2.0, eps=1e-7, ddof=1), 1),
  ('kd_logit_std', '__weighted9', dict(temperature=2.0), 1 / 9),
  ('kd_logit_std', '__torchdistill_alpha0_noT2', dict(temperature=2.0), 4),
  ('dkd', '', dict(alpha=1.0, beta=8.0, temperature=4.0), 1),
  ('dkd', '__tckd_only', dict(alpha=1.0, beta=0.0, temperature=4.0), 1),
  ('dkd', '__nckd_only', dict(alpha=0.0, beta=1.0, temperature=4.0), 1),
  ('dkd_binary', '', dict(alpha=1.0, beta=8.0, temperature=4.0), 1),
  ('dkd_binary', '__nckd_only', dict(alpha=0.0, beta=1.0), 1),
  ('dkd_logit_std', '', dict(alpha=1.0, beta=2.0, temperature=2.0), 1),
  ('dist', '', dict(beta=1.0, gamma=1.0, temperature=1.0, eps=1e-8), 1),
  ('dist', '__tau4', dict(temperature=4.0), 1),
  (
    'dist',
    '__beta2_gamma2_tau4',
    dict(beta=2.0, gamma=2.0, temperature=4.0),
    1,
  ),
  ('dist', '__inter_only', dict(gamma=0.0), 1),
  ('dist', '__intra_only', dict(beta=0.0), 1),
  ('dist', '__torchdistill_tau1', dict(), 1),
  ('dist', '__torchdistill_tau4', dict(temperature=4.0), 1),
  ('dist', '__hunto_segmentation_tau1', dict(), 1),
  ('nkd', '', dict(temp=1.0, gamma=1.5), 1),
  ('nkd', '__temp2', dict(temperature=2.0), 1),
  ('nkd', '__target_only', dict(gamma=0.0), 1),
  ('wsld', '', dict(temp=4.0, alpha=2.25), 1),
  ('logit_mse', '', dict(), 1),
  ('mlkd_cc_bc', '', dict(temperature=4.0), 1),
  ('mlkd_cc_bc', '__cc', dict(temperature=4.0, bc_weight=0.0), 1),
  ('mlkd_cc_bc', '__bc', dict(temperature=4.0, cc_weight=0.0), 1),
  ('ce_label_smoothing', '', dict(smoothing=0.1), 1),
  ('bv_distances', '', dict(t=1.0), 1),
  ('bv_distances', '__t10', dict(temperature=10.0), 1),
  ('bv_distances', '__t2', dict(t=2.0), 1),
  ('bv_distances', '__mdistiller_kl_t10', dict(temperature=10.0), 1),
  ('bv_distances', '__hard', dict(kind='hard'), 1),
  ('bv_distances', '__hard_ls0.1', dict(kind='hard', label_smoothing=0.1), 1),
  ('bv_distances', '__euclidean', dict(kind='euclidean'), 1),
  ('bv_distances', '__l2', dict(kind='l2'), 1),
  (
    'bv_distances',
    '__logsoftmax_euclidean',
    {'kind': 'logsoftmax_euclidean'},
    1,
  ),
]
LOGIT_LOSSES = sorted({case[0] for case in CASES}) + ['function_matching']
# Losses whose least value is zero, reached when the student is the teacher.
ZERO_AT_TEACHER = [
  'kd', 'kd_logit_std', 'dkd', 'dkd_logit_std', 'dist', 'logit_mse', 'mlkd',
  'function_matching', 'bv_distances',
]  # fmt: skip


@pytest.mark.parametrize(
  'name, variant, hyperparameters, factor',
  CASES,
  ids=[case[0] + case[1] for case in CASES],
)
def test_golden(golden, name, variant, hyperparameters, factor):
  data = golden(name)
  labels = data['in_labels'] if 'in_labels' in data.arrays else None
  teacher = data.outputs('teacher')

  def loss_fn(student):
    return LOSSES[name].function(student, teacher, labels, **hyperparameters)

  data.check(loss_fn, data.outputs('student'), variant=variant, factor=factor)


@pytest.mark.parametrize(
  'variant, hard_weight, soft_weight',
  [
    ('__mix_mdistiller_ce0.1_kd0.9', 0.1, 0.9),
    ('__mix_torchdistill_alpha0.1', 0.1, 0.9),
    ('__mix_zagoruyko_alpha0.9', 0.1, 0.9),
    ('__mix_timm_task0.1', 0.1, 0.9),
    ('__ce_only', 1.0, 0.0),
  ],
)
def test_golden_mixes(golden, variant, hard_weight, soft_weight):
  data = golden('kd')
  teacher = data.outputs('teacher')

  def loss_fn(student):
    soft = LOSSES['kd'].function(student, teacher, None, temperature=4.0)
    hard = cross_entropy(student['logits'], data['in_labels'])
    return hard_weight * hard + soft_weight * soft

  data.check(loss_fn, data.outputs('student'), variant=variant)


def test_golden_function_matching(golden, assert_gradient_close):
  data = golden('function_matching_mixup')
  views = data['in_mixed_images'].reshape(6, -1)
  teacher = {'logits': views @ data['in_W_teacher']}

  def loss_fn(kernel):
    student = {'logits': views @ kernel}
    return LOSSES['function_matching_mixup'].function(
      student, teacher, None, t=data.hyperparameter('t')
    )

  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(data['in_W_student'])
  np.testing.assert_allclose(loss, data.arrays['loss'], rtol=1e-5)
  assert_gradient_close(gradient, data.arrays['grad_W_student'])


def test_soft_cross_entropy_extends_cross_entropy():
  logits = jax.random.normal(jax.random.key(0), (6, 4)) * 3
  labels = jnp.array([0, 1, 2, 3, 0, 1])
  onehot = jax.nn.one_hot(labels, 4)
  soft = 0.7 * onehot + 0.3 * jnp.roll(onehot, 1, axis=0)
  expected = 0.7 * cross_entropy(logits, labels) + 0.3 * cross_entropy(
    logits, jnp.roll(labels, 1)
  )
  np.testing.assert_allclose(
    soft_cross_entropy(logits, soft), expected, rtol=1e-6
  )


@pytest.mark.parametrize('name', ZERO_AT_TEACHER)
def test_zero_when_student_is_teacher(name):
  logits = jax.random.normal(jax.random.key(1), (8, 5)) * 4
  labels = jnp.arange(8) % 5
  outputs = {'logits': logits}
  loss = jax.jit(LOSSES[name].function)(outputs, outputs, labels)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)


@pytest.mark.parametrize('name', ['nkd', 'wsld'])
def test_gradient_vanishes_when_student_is_teacher(name):
  # Cross-entropy forms: the least value is an entropy, not zero. NKD's target
  # term is left out; it alone does not stop at the teacher.
  logits = jax.random.normal(jax.random.key(1), (8, 5)) * 2
  labels = jnp.arange(8) % 5

  def loss_fn(student):
    outputs = {'logits': student}, {'logits': logits}
    loss = LOSSES[name].function(*outputs, labels)
    if name == 'nkd':
      loss -= LOSSES[name].function(*outputs, labels, gamma=0.0)
    return loss

  gradient_fn = jax.jit(jax.grad(loss_fn))
  gradient = gradient_fn(logits)
  shifted = gradient_fn(logits + jnp.eye(8, 5, k=1))
  assert jnp.max(jnp.abs(gradient)) < 1e-5 < jnp.max(jnp.abs(shifted)) / 100


def test_kd_tends_to_logit_matching():
  """T -> infinity: half the mean squared gap of the centred logits.

  Hinton et al. 2015, section 2.1.
  """
  rng = np.random.default_rng(2)
  student, teacher = 3 * rng.normal(size=(2, 16, 10)).astype(np.float32)

  def loss_fn(z):
    return LOSSES['kd'].function(
      {'logits': z}, {'logits': teacher}, None, temperature=1e5
    )

  gap = student - teacher
  gap = gap - gap.mean(axis=1, keepdims=True)
  loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(student)
  np.testing.assert_allclose(loss, np.mean(np.square(gap)) / 2, rtol=2e-3)
  np.testing.assert_allclose(gradient, gap / 160, atol=2e-5)
