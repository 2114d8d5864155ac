"""The weighted sum of losses: several teachers, stored outputs."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny
from tests.test_train_step import (
  crop,
  make_batch,
  make_models,
  make_state,
  variables,
)
from tlkd_jax import losses, objective, optimizers, sharding, train_step
from tlkd_jax.objective import Objective, Term

pytestmark = pytest.mark.usefixtures('tiny_models')


def one_step(loss_sum, batch, *, teachers=2, mesh=None, extras=None):
  """Metrics of the first update under `teachers` different teachers."""
  mesh = mesh or sharding.make_mesh(1)
  student, teacher = make_models()
  settings = tiny.make_config('kd').optimizer
  schedule = optax.constant_schedule(0.05)
  optimizer = optimizers.make_optimizer(student.model, schedule, settings)
  step = train_step.make_train_step(
    student,
    (teacher,) * teachers,
    optimizer,
    schedule,
    loss_sum,
    crop,
    mesh,
    seed=0,
    norm_train=False,
  )
  given = tuple(variables(teacher, 2 + n) for n in range(teachers))
  constants = sharding.replicate({'teachers': given}, mesh)
  state = make_state(student, optimizer, mesh, **(extras or {}))
  state, metrics = step(state, constants, sharding.shard_batch(batch, mesh))
  return jax.device_get(metrics)


def teacher_outputs(number):
  _, teacher = make_models()
  images = make_batch()['image'].astype(np.float32)
  guide = jax.jit(lambda v, x: train_step.guide(teacher, v, x))
  return jax.device_get(guide(variables(teacher, 2 + number), images))


def student_logits():
  student, _ = make_models()
  images = make_batch()['image'].astype(np.float32)
  apply = jax.jit(lambda v, x: student.model.apply(*v, student.prepare(x))[0])
  return np.asarray(apply(variables(student, 1), images)['logits'], np.float64)


def kd(temperature=3.0, weight=0.7):
  return Term(
    'kd', optax.constant_schedule(weight), {'temperature': temperature}
  )


def kl(target, logits, temperature):
  log_p = special.log_softmax(logits / temperature, -1)
  return (temperature**2 * target * (np.log(target) - log_p)).sum(-1).mean()


def test_two_teachers_by_hand():
  logits = [np.float64(teacher_outputs(n)['outputs']['logits']) for n in (0, 1)]
  targets = [special.softmax(z / 3.0, -1) for z in logits]
  student = student_logits()
  expected = {
    'probabilities': kl(np.mean(targets, 0), student, 3.0),
    'losses': np.mean([kl(q, student, 3.0) for q in targets]),
  }
  assert abs(expected['losses'] - expected['probabilities']) > 1e-2
  for ensemble, value in expected.items():
    metrics = one_step(Objective(1.0, 0.0, (kd(),), ensemble), make_batch())
    assert metrics['soft_loss'] == pytest.approx(value, rel=1e-4), ensemble
    total = metrics['hard_loss'] + 0.7 * value
    assert metrics['loss'] == pytest.approx(total, rel=1e-4)


def test_stored_outputs_replace_the_teachers():
  """The step believes batch['targets']: other outputs, another loss."""
  loss_sum = Objective(1.0, 0.0, (kd(),), 'losses')
  online = one_step(loss_sum, make_batch())
  stored = tuple(teacher_outputs(n)['outputs'] for n in (0, 1))
  targets = tuple({'logits': outputs['logits']} for outputs in stored)
  cached = one_step(loss_sum, make_batch() | {'targets': targets})
  for name, value in online.items():
    assert cached[name] == pytest.approx(value, rel=1e-5), name
  half = jax.tree.map(lambda x: x.astype(np.float16), targets)
  rounded = one_step(loss_sum, make_batch() | {'targets': half})
  assert rounded['soft_loss'] == pytest.approx(online['soft_loss'], rel=1e-2)
  other = jax.tree.map(lambda x: -x, targets)
  wrong = one_step(loss_sum, make_batch() | {'targets': other})
  assert abs(wrong['soft_loss'] - online['soft_loss']) > 1e-2


def test_every_teacher_has_its_own_projector():
  student, teacher = make_models()
  term = dataclasses.replace(kd(), name='fitnet', hyperparameters={})
  loss_sum = Objective(1.0, 0.0, (term,), 'losses')
  split = tiny_split()
  shapes = [train_step.output_shapes(view, 16) for view in (student, teacher)]
  extras = objective.init_extras(
    loss_sum, jax.random.key(0), shapes[0], (shapes[1],) * 2, split
  )
  assert set(extras['projector']['fitnet']) == {'0', '1'}
  # The step donates its state.
  extras = jax.device_get(extras)
  metrics = one_step(loss_sum, make_batch(), extras=extras)
  single = []
  for number in (0, 1):
    value, _ = losses.compute(
      'fitnet',
      student_outputs(),
      teacher_outputs(number)['outputs'],
      None,
      projector=extras['projector']['fitnet'][str(number)],
    )
    single.append(float(value))
  assert abs(single[0] - single[1]) > 1e-3
  assert metrics['soft_loss'] == pytest.approx(np.mean(single), rel=1e-4)


def tiny_split():
  from tlkd_jax.data import Split

  batch = make_batch()
  return Split(batch['image'], batch['label'], batch['index'], ['x'] * 8)


def student_outputs():
  student, _ = make_models()
  images = make_batch()['image'].astype(np.float32)
  apply = jax.jit(lambda v, x: student.model.apply(*v, student.prepare(x))[0])
  return apply(variables(student, 1), images)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'distillation__ensemble': 'mean'}, 'known are losses, probabilities'),
    (
      {
        'distillation__loss': 'fitnet',
        'distillation__more_teachers': ('runs/a',),
      },
      "distillation.ensemble='losses'",
    ),
  ],
)
def test_what_cannot_be_summed_is_refused(changes, message):
  config = tiny.make_config('kd', **changes)
  with pytest.raises(ValueError, match=message):
    objective.make_objective(config, None)
