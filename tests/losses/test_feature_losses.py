"""Losses on features, relations and memories against golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.losses import LOSSES, boundaries

BOTH = (0, 1)
# file, variant, stages of the file to use, hyperparameters, factor
CASES = [
  ('fitnet_hint', '', None, {}, 1),
  ('at', '', BOTH, {'p': 2}, 1),
  ('at', '__p4', BOTH, {'p': 4}, 1),
  ('at', '__repdistiller', BOTH, {}, 1),
  ('at', '__single_equalsize_zagoruyko', (1,), {}, 1),
  ('at', '__single_equalsize_torchdistill_code', (1,), {}, 1),
  ('ft', '', (0,), {'p1': 2, 'p2': 1}, 1),
  ('sp', '', None, {}, 1),
  ('sp', '__repdistiller', None, {}, 1),
  ('ickd', '', (0,), {}, 1),
  ('nst', '', None, {}, 1),
  ('nst', '__repdistiller', None, {}, 1),
  ('fsp', '', BOTH, {}, 1),
  ('ab', '', BOTH, {'margin': 1.0}, 1),
  ('delta', '', None, {}, 1),
  ('reviewkd_hcl', '', (0, 1, 2), {'levels': '4,2,1'}, 1),
  ('reviewkd_hcl', '__stage0_torchdistill', (0,), {}, 1),
  ('reviewkd_hcl', '__stage0_mdistiller', (0,), {}, 1),
  ('rkd', '', None, {'eps': 1e-12, 'smooth_l1_beta': 1.0}, 1),
  ('rkd', '__repdistiller', None, {}, 1),
  ('rkd', '__torchdistill', None, {}, 1),
  (
    'rkd',
    '__distance_only_w1',
    None,
    {'distance_weight': 1.0, 'angle_weight': 0.0},
    1,
  ),
  ('rkd', '__author_distance', None, {'angle_weight': 0.0}, 25),
  ('rkd', '__author_angle', None, {'distance_weight': 0.0}, 50),
  (
    'rkd',
    '__angle_only_w1',
    None,
    {'distance_weight': 0.0, 'angle_weight': 1.0},
    1,
  ),
  (
    'rkd',
    '__KDLib_default_0.5_0.5',
    None,
    {'distance_weight': 0.5, 'angle_weight': 0.5},
    1,
  ),
  ('pkt', '', None, {'eps': 1e-7}, 1),
  ('pkt', '__repdistiller', None, {}, 1),
  ('pkt', '__torchdistill', None, {}, 1),
  ('pkt', '__author', None, {}, 1),
  ('cc', '', None, {'gamma': 0.4, 'max_p': 2}, 1),
  (
    'cc',
    '__torchdistill_bilinear_batchmean',
    None,
    {'kernel': 'bilinear'},
    1,
  ),
  (
    'cc',
    '__torchdistill_gaussian_g0.4_p2_batchmean',
    None,
    {'kernel': 'gaussian'},
    1,
  ),
]


@pytest.mark.parametrize(
  'name, variant, stages, hyperparameters, factor',
  CASES,
  ids=[case[0] + case[1] for case in CASES],
)
def test_golden(golden, name, variant, stages, hyperparameters, factor):
  data = golden(name)
  teacher = data.outputs('teacher', stages)

  def loss_fn(student):
    return LOSSES[name].function(student, teacher, None, **hyperparameters)

  data.check(
    loss_fn, data.outputs('student', stages), variant=variant, factor=factor
  )


def test_golden_fitnet_convreg(golden):
  data = golden('fitnet_convreg')
  projector = {
    'stage1': {
      'kernel': data['in_conv_kernel_HWIO'],
      'bias': data['in_conv_bias'],
      'bn_scale': data['in_bn_scale'],
      'bn_bias': data['in_bn_bias'],
    }
  }
  teacher = data.outputs('teacher')
  data.check(
    lambda student: LOSSES['fitnet_convreg'].function(
      student,
      teacher,
      None,
      projector=projector,
      bn_eps=data.hyperparameter('bn_eps'),
    ),
    data.outputs('student'),
  )


def test_golden_vid(golden, assert_gradient_close):
  data = golden('vid')
  projector = {
    'stage1': {
      'layer0': {'kernel': data['in_W0_HWIO']},
      'layer1': {'kernel': data['in_W1_HWIO']},
      'layer2': {'kernel': data['in_W2_HWIO']},
      'log_scale': data['in_log_scale'],
    }
  }
  teacher = data.outputs('teacher')

  def loss_fn(student, projector):
    return LOSSES['vid'].function(
      student, teacher, None, projector=projector, eps=1e-5
    )

  data.check(loss_fn, data.outputs('student'), projector)
  data.check(
    loss_fn, data.outputs('student'), projector, variant='__mdistiller'
  )
  gradient_fn = jax.jit(jax.grad(loss_fn, argnums=1))
  gradient = gradient_fn(data.outputs('student'), projector)
  # The file's gradients of the parameters were accumulated over its two equal
  # losses ('' and '__mdistiller'); those of the inputs were not.
  gradient = jax.tree.map(lambda x: 2 * x, gradient['stage1'])
  assert_gradient_close(gradient['log_scale'], data['grad_log_scale'])
  for i in range(3):
    assert_gradient_close(
      gradient[f'layer{i}']['kernel'], data[f'grad_W{i}_HWIO']
    )


def test_golden_mgd(golden):
  data = golden('mgd')
  projector = {
    'stage1': {
      'align': {'kernel': data['in_align_HWIO'], 'bias': data['in_align_bias']},
      'layer0': {'kernel': data['in_g0_HWIO'], 'bias': data['in_g0_bias']},
      'layer1': {'kernel': data['in_g2_HWIO'], 'bias': data['in_g2_bias']},
    }
  }
  teacher = data.outputs('teacher')
  data.check(
    lambda student: LOSSES['mgd'].function(
      student,
      teacher,
      None,
      projector=projector,
      mask_uniform=data['in_mask_uniform'],
      alpha_mgd=data.hyperparameter('alpha_mgd'),
      lambda_mgd=data.hyperparameter('lambda_mgd'),
    ),
    data.outputs('student'),
  )


@pytest.mark.parametrize('variant, factor', [('', 1), ('__clovaai_sum', 0.25)])
def test_golden_ofd(golden, variant, factor):
  data = golden('ofd_partial_l2')
  teacher = data.outputs('teacher')
  data.check(
    lambda student: LOSSES['ofd_partial_l2'].function(
      student, teacher, None, margin=data['in_margin']
    ),
    data.outputs('student'),
    variant=variant,
    factor=factor,
  )


def test_golden_ofd_margin(golden):
  data = golden('ofd_margin')
  margin = boundaries.ofd_margin(data['in_bn_scale'], data['in_bn_bias'])
  np.testing.assert_allclose(margin, data['margin'], rtol=1e-5)


def test_ofd_weighs_stages_and_estimates_margins():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 4, 3, 3, 5)).astype(np.float32)
  loss_fn = jax.jit(LOSSES['ofd'].function)
  one = loss_fn(
    {'features': {'stage1': student}}, {'features': {'stage1': teacher}}, None
  )
  margin = np.stack([np.mean(c[c < 0]) for c in np.moveaxis(teacher, 3, 0)])
  given = loss_fn(
    {'features': {'stage1': student}},
    {'features': {'stage1': teacher}},
    None,
    margin=margin,
  )
  np.testing.assert_allclose(one, given, rtol=1e-5)
  two = loss_fn(
    {'features': {'stage1': student, 'stage2': student}},
    {'features': {'stage1': teacher, 'stage2': teacher}},
    None,
  )
  np.testing.assert_allclose(two, 1.5 * one, rtol=1e-5)


def test_golden_srrl(golden, assert_gradient_close):
  data = golden('srrl')
  teacher = data.outputs('teacher')

  def loss_fn(student, logits):
    return LOSSES['srrl'].function(
      student,
      teacher,
      None,
      alpha=1.0,
      beta=5.0,
      student_logits_via_teacher_head=logits,
    )

  logits = data['in_student_logits_via_teacher_head']
  data.check(loss_fn, data.outputs('student'), logits)
  gradient_fn = jax.jit(jax.grad(loss_fn, argnums=1))
  gradient = gradient_fn(data.outputs('student'), logits)
  assert_gradient_close(gradient, data['grad_student_logits_via_teacher_head'])


@pytest.mark.parametrize(
  ('name', 'variant', 'hyperparameters'),
  [
    ('cosine', '', {}),
    ('smooth_l1', '', {}),
    ('smooth_l1', '__beta0.5', {'smooth_l1_beta': 0.5}),
  ],
)
def test_golden_of_projected_embeddings(
  golden, assert_gradient_close, name, variant, hyperparameters
):
  data = golden(name)
  projector = {'kernel': data['in_kernel'], 'bias': data['in_bias']}
  teacher = data.outputs('teacher')

  def loss_fn(student, projector):
    return LOSSES[name].function(
      student,
      teacher,
      None,
      projector={'pre_logits': projector},
      **hyperparameters,
    )

  student = data.outputs('student')
  data.check(loss_fn, student, projector, variant=variant)
  gradient = jax.jit(jax.grad(loss_fn, argnums=1))(student, projector)
  for part, value in gradient.items():
    assert_gradient_close(value, data.arrays[f'grad_{part}{variant}'])


def test_golden_srd(golden):
  data = golden('srd')

  def with_logits(outputs):
    return outputs | {'logits': outputs['pre_logits'][:, :10]}

  teacher = with_logits(data.outputs('teacher'))
  data.check(
    lambda student: LOSSES['srd'].function(
      with_logits(student), teacher, None, exponent=4.0, temperature=4.0
    ),
    data.outputs('student'),
  )


def test_golden_crd(golden, assert_gradient_close):
  data = golden('crd')
  projector = {
    side: {
      'kernel': data[f'in_embed_{letter}_W_out_in'].T,
      'bias': data[f'in_embed_{letter}_b'],
    }
    for side, letter in (('student', 's'), ('teacher', 't'))
  }
  memory = {
    'student': data['in_memory_v1'],
    'teacher': data['in_memory_v2'],
    'student_z': jnp.float32(-1),
    'teacher_z': jnp.float32(-1),
  }
  outputs = data.outputs('student'), data.outputs('teacher')

  def loss_fn(student, projector, memory):
    return LOSSES['crd'].function(
      student,
      outputs[1],
      None,
      projector=projector,
      memory=memory,
      index=data['in_idx'],
      contrast_idx=data['in_contrast_idx'],
      n_data=50,
      nce_k=6,
      nce_t=0.07,
      nce_m=0.5,
      eps=1e-7,
    )

  step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True))
  (loss, after), gradient = step(outputs[0], projector, memory)
  np.testing.assert_allclose(loss, data['loss'], rtol=1e-5)
  np.testing.assert_allclose(after['student_z'], data['in_Z_v1'], rtol=1e-5)
  np.testing.assert_allclose(after['teacher_z'], data['in_Z_v2'], rtol=1e-5)
  for side, number in (('student', 1), ('teacher', 2)):
    np.testing.assert_allclose(
      after[side], data[f'in_memory_v{number}_after'], atol=1e-6
    )
  assert_gradient_close(gradient[0]['pre_logits'], data['grad_student_emb'])
  first = gradient[1]
  (loss, again), gradient = step(outputs[0], projector, after)
  np.testing.assert_allclose(loss, data['loss__second_call'], rtol=1e-5)
  assert_gradient_close(
    gradient[0]['pre_logits'], data['grad_student_emb__second_call']
  )
  assert again['student_z'] == after['student_z']
  # The file's gradients of the parameters were accumulated over both calls.
  total = jax.tree.map(jnp.add, first, gradient[1])
  for side, letter in (('student', 's'), ('teacher', 't')):
    assert_gradient_close(
      total[side]['kernel'].T, data[f'grad_embed_{letter}_W_out_in']
    )
    assert_gradient_close(total[side]['bias'], data[f'grad_embed_{letter}_b'])
