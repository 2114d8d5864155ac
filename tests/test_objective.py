"""The weighted sum of losses: several teachers, stored outputs."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny
from tests.marks import slow
from tests.test_train_step import (
  constants_of,
  make_batch,
  make_lessons_step,
  make_models,
  make_state,
  variables,
)
from tlkd_jax import losses
from tlkd_jax.data import Dataset
from tlkd_jax.losses import shams
from tlkd_jax.models.network import output_shapes
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import make, with_values
from tlkd_jax.training import drawing, guides, lessons, optimizers
from tlkd_jax.training import objective as objectives
from tlkd_jax.training.objective import Objective, Term
from tlkd_jax.training.state import Learner
from tlkd_jax.training.step import Lesson

pytestmark = pytest.mark.usefixtures('tiny_models')


def make_step(loss_sum, *, teachers=2, mesh=None, extras=None, mixing=None):
  """batch -> metrics of the first update under different teachers."""
  mesh = mesh or sharding.make_mesh(1)
  student, teacher = make_models()
  settings = tiny.make_config('kd').optimizer
  schedule = optax.constant_schedule(0.05)
  optimizer = optimizers.make_optimizer(student.model, schedule, settings)
  names = tuple(f'teacher{n}' for n in range(teachers))
  lesson = Lesson(student, loss_sum, optimizer, names)
  update = make_lessons_step(
    {'student': lesson},
    dict.fromkeys(names, teacher),
    schedule,
    mesh,
    mixing=mixing,
  )
  given = {name: variables(teacher, 2 + n) for n, name in enumerate(names)}

  def run(batch, seed=0, step=0, sham=None):
    state = make_state(lesson, mesh, **(extras or {}))
    state = dataclasses.replace(
      state, step=sharding.replicate(np.int32(step), mesh)
    )
    constants = constants_of(mesh, seed, **given)
    if sham:
      constants['sham'] = sharding.replicate(sham, mesh)
    state, metrics = update(state, constants, sharding.shard_batch(batch, mesh))
    return jax.device_get(metrics)

  return run


def one_step(loss_sum, batch, **options):
  return make_step(loss_sum, **options)(batch)


@functools.cache
def teacher_outputs(number):
  _, teacher = make_models()
  images = make_batch()['image'].astype(np.float32)
  params, model_state = variables(teacher, 2 + number)
  given = {'params': params, 'model_state': model_state}
  speak = jax.jit(functools.partial(guides.speak, teacher))
  return jax.device_get(speak(given, images))


def student_logits():
  return np.asarray(student_outputs()['logits'], np.float64)


def kd(temperature=3.0, weight=0.7):
  return Term(
    'kd', optax.constant_schedule(weight), {'temperature': temperature}
  )


def kl(target, logits, temperature):
  log_p = special.log_softmax(logits / temperature, -1)
  return (temperature**2 * target * (np.log(target) - log_p)).sum(-1).mean()


def test_two_teachers_by_hand():
  logits = [np.float64(teacher_outputs(n)['logits']) for n in (0, 1)]
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


def shammed_losses(kind, given):
  sham, labels = shams.make(kind, 5), make_batch()['label']
  logits = [np.float64(teacher_outputs(n)['logits']) for n in (0, 1)]
  shammed = [np.float64(sham(z, labels, 3.0, **given)) for z in logits]
  targets = [special.softmax(z / 3.0, -1) for z in shammed]
  student = student_logits()
  return {
    'probabilities': kl(np.mean(targets, 0), student, 3.0),
    'losses': np.mean([kl(q, student, 3.0) for q in targets]),
  }


@pytest.mark.parametrize('kind', ['permuted', *slow('uniform')])
def test_shams_of_two_teachers_by_hand(kind):
  """Of each teacher, at the temperature of the loss, and of stored ones.

  One program for runs of several seeds.
  """
  stored = {
    f'teacher{n}': {'logits': teacher_outputs(n)['logits']} for n in (0, 1)
  }
  sham = shams.make(kind, 5)
  drawn = [shams.drawn(kind, 5, seed) for seed in (3, 4)]
  expected = [shammed_losses(kind, given) for given in drawn]
  for ensemble in ('probabilities', 'losses'):
    loss_sum = Objective(1.0, 0.0, (kd(),), ensemble, sham=sham)
    run = make_step(loss_sum)
    for given, values in zip(drawn, expected, strict=True):
      value = values[ensemble]
      for batch in (make_batch(), make_batch() | {'targets': stored}):
        soft_loss = run(batch, sham=given)['soft_loss']
        assert soft_loss == pytest.approx(value, rel=1e-4), ensemble
    real = dataclasses.replace(loss_sum, sham=None)
    assert abs(one_step(real, make_batch())['soft_loss'] - value) > 1e-3
  if kind == 'permuted':
    assert abs(expected[0]['losses'] - expected[1]['losses']) > 1e-3


@pytest.mark.parametrize(
  'name, options, expected',
  [
    ('kd', {'temperature': 3.0}, 3.0),
    ('dkd', {'temperature': 2.5}, 2.5),
    ('nkd', {'temperature': 3.0}, 1.0),
    ('logit_mse', {}, 1.0),
  ],
)
def test_a_sham_is_exact_where_the_loss_reads_p_label(name, options, expected):
  seen = []

  def sham(logits, labels, temperature):
    seen.append(float(temperature))
    return logits

  term = Term(name, optax.constant_schedule(1.0), options)
  said = {'logits': np.ones((2, 5), np.float32), 'head': {}}
  objectives.evaluate(
    Objective(1.0, 0.0, (term,), sham=sham),
    ('teacher',),
    Learner({'projector': {}}, {}, (), {}, {}),
    said,
    {'teacher': said},
    np.eye(5, dtype=np.float32)[:2],
    {'label': np.arange(2)},
    jax.random.key(0),
    np.int32(0),
  )
  assert seen == [expected]


def test_stored_outputs_replace_the_teachers():
  """The step believes batch['targets']: other outputs, another loss."""
  loss_sum = Objective(1.0, 0.0, (kd(),), 'losses')
  run = make_step(loss_sum)
  online = run(make_batch())
  targets = {
    f'teacher{n}': {'logits': teacher_outputs(n)['logits']} for n in (0, 1)
  }
  cached = run(make_batch() | {'targets': targets})
  for name, value in online.items():
    assert cached[name] == pytest.approx(value, rel=1e-5), name
  half = jax.tree.map(lambda x: x.astype(np.float16), targets)
  rounded = run(make_batch() | {'targets': half})
  assert rounded['soft_loss'] == pytest.approx(online['soft_loss'], rel=1e-2)
  other = jax.tree.map(lambda x: -x, targets)
  wrong = run(make_batch() | {'targets': other})
  assert abs(wrong['soft_loss'] - online['soft_loss']) > 1e-2


def test_every_teacher_has_its_own_projector():
  student, teacher = make_models()
  term = dataclasses.replace(kd(), name='fitnet', hyperparameters={})
  loss_sum = Objective(1.0, 0.0, (term,), 'losses')
  split = tiny_split()
  names = [str(c) for c in range(5)]
  dataset = Dataset('fake', names, {'train': split}, 16, True, {}, [])
  extras = lessons.make_extras(loss_sum, student, (teacher,) * 2, dataset, 0)
  assert set(extras['projector']['fitnet']) == {'0', '1'}
  # The step donates its state.
  extras = jax.device_get(extras)
  metrics = one_step(loss_sum, make_batch(), extras=extras)
  single = []
  for number in (0, 1):
    value, _ = losses.compute(
      'fitnet',
      student_outputs(),
      teacher_outputs(number),
      None,
      projector=extras['projector']['fitnet'][str(number)],
    )
    single.append(float(value))
  assert abs(single[0] - single[1]) > 1e-3
  assert metrics['soft_loss'] == pytest.approx(np.mean(single), rel=1e-4)


@pytest.mark.parametrize(
  ('name', 'count', 'traced'),
  [
    ('kd', 1, 0),
    ('dkd', 2, 0),
    ('fitnet', 0, 0),
    ('fitnet', 1, 2),
    ('fitnet', 2, 3),
    ('crd', 1, 2),
    ('rkd', 1, 2),
  ],
)
def test_networks_are_traced_for_losses_that_ask_for_shapes(
  name, count, traced, monkeypatch
):
  """A start under 'kd' traced both networks for nothing."""
  student, teacher = make_models()
  asked = []
  monkeypatch.setattr(
    lessons,
    'output_shapes',
    lambda *given: asked.append(given) or output_shapes(*given),
  )
  options = losses.hyperparameters_of(name)
  term = dataclasses.replace(kd(), name=name, hyperparameters=options)
  loss_sum = Objective(1.0, 0.0, (term,), 'losses')
  names = [str(c) for c in range(5)]
  dataset = Dataset('fake', names, {'train': tiny_split()}, 16, True, {}, [])
  lessons.make_extras(loss_sum, student, (teacher,) * count, dataset, 0)
  assert len(asked) == traced


def tiny_split():
  from tlkd_jax.data import Split

  batch = make_batch()
  return Split(batch['image'], batch['label'], batch['index'], ['x'] * 8)


@functools.cache
def student_outputs():
  student, _ = make_models()
  images = make_batch()['image'].astype(np.float32)
  apply = jax.jit(lambda v, x: student.model.apply(*v, student.prepare(x))[0])
  return apply(variables(student, 1), images)


def test_a_sum_of_losses_with_weights_at_the_step():
  """The sum, and each part as it is alone."""

  def falling(step):
    return 0.5 - 0.1 * step

  terms = (kd(), Term('logit_mse', falling, {}), Term('rkd', falling, {}))
  metrics = one_step(Objective(0.3, 0.0, terms), make_batch(), teachers=1)
  parts = [metrics[k] for k in ('soft_loss', 'logit_mse_loss', 'rkd_loss')]
  for term, part in zip(terms, parts, strict=True):
    value, _ = losses.compute(
      term.name,
      student_outputs(),
      teacher_outputs(0),
      None,
      **term.hyperparameters,
    )
    assert part == pytest.approx(float(value), rel=1e-4), term.name
  total = 0.3 * metrics['hard_loss'] + np.dot([0.7, 0.5, 0.5], parts)
  assert metrics['loss'] == pytest.approx(total, rel=1e-5)


def test_losses_that_couple_the_batch_see_all_of_it():
  """Four devices give the value of one: the batch is the global one."""
  weight = optax.constant_schedule(1.0)
  terms = tuple(Term(name, weight, {}) for name in ('rkd', 'dist', 'pkt'))
  loss_sum = Objective(1.0, 0.0, terms)
  one, four = (
    one_step(
      loss_sum, make_batch(), teachers=1, mesh=sharding.make_mesh(devices)
    )
    for devices in (1, 4)
  )
  for name, value in one.items():
    assert four[name] == pytest.approx(value, rel=2e-4), name


def test_temperature_is_that_of_the_step():
  term = dataclasses.replace(kd(), temperature=lambda step: 2.0 + step)
  scheduled = one_step(Objective(1.0, 0.0, (term,)), make_batch(), teachers=1)
  plain = one_step(Objective(1.0, 0.0, (kd(2.0),)), make_batch(), teachers=1)
  assert scheduled['soft_loss'] == pytest.approx(plain['soft_loss'], rel=1e-5)


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('constant', [2.0, 2.0, 2.0, 2.0, 2.0]),
    ('linear', [2.0, 3.0, 4.0, 6.0, 6.0]),
    ('cosine', [2.0, 4 - 2 * 0.5**0.5, 4.0, 6.0, 6.0]),
  ],
)
def test_schedules_by_hand(kind, expected):
  schedule = lessons.make_schedule(kind, 2.0, 6.0, 8)
  values = [float(schedule(np.int32(step))) for step in (0, 2, 4, 8, 20)]
  np.testing.assert_allclose(values, expected, rtol=1e-6)
  schedule = lessons.make_schedule(kind, 2.0, 2.0, 8, warmup=4)
  values = [float(schedule(np.int32(step))) for step in (0, 1, 3, 4, 7)]
  np.testing.assert_allclose(values, [0.5, 1.0, 2.0, 2.0, 2.0], rtol=1e-6)


def test_configuration_of_a_sum():
  config = with_values(
    make('kd', loss='dkd+rkd', student='tiny'),
    {
      'num_steps': 24,
      'distillation.extra.rkd.weight': 0.25,
      'distillation.extra.rkd.schedule': 'linear',
      'distillation.extra.rkd.options.angle_weight': 7.0,
      'distillation.temperature_schedule': 'linear',
      'distillation.end_temperature': 2.0,
    },
  )
  dkd, rkd = lessons.make_objective(config, None, guided=True).terms
  # The published warm-up: a twelfth of the run.
  weights = [float(dkd.weight(step)) for step in (0, 1, 12)]
  np.testing.assert_allclose(weights, [0.5, 1.0, 1.0])
  assert float(dkd.temperature(12)) == 3.0 and rkd.temperature is None
  np.testing.assert_allclose([rkd.weight(0), rkd.weight(12)], [0.25, 0.125])
  assert rkd.hyperparameters['angle_weight'] == 7.0
  with pytest.raises(ValueError, match="names 'rkd' twice"):
    make('kd', loss='rkd+dkd+rkd')
  with pytest.raises(ValueError, match="'rkdd'.*rkd"):
    make('kd', loss='kd+rkdd')


@pytest.mark.parametrize('schedule', ['constant', 'linear'])
@pytest.mark.parametrize('loss', ['kd', 'dkd', 'kd_logit_std+dkd', 'nkd+srd'])
def test_a_sum_has_the_temperature_of_the_settings(loss, schedule):
  """distillation.temperature is of its first loss; others keep their own."""
  first, _, further = loss.partition('+')
  published = {n: losses.hyperparameters_of(n) for n in (first, further) if n}
  changes = {
    'distillation.temperature_schedule': schedule,
    'num_steps': 8,
  }
  config = with_values(make('kd', loss=loss), changes)
  if first != 'kd':
    told = config.distillation.temperature
    assert told == published[first]['temperature']
  config = with_values(config, {'distillation.temperature': 7.0})
  terms = lessons.make_objective(config, None, guided=True).terms
  assert terms[0].hyperparameters['temperature'] == 7.0
  # Of a further loss that was not chosen by name, and brought nothing.
  bare = with_values(make('kd'), changes | {'distillation.extra.dkd': {}})
  terms += lessons.make_objective(bare, None, guided=True).terms[1:]
  for term in terms[1:]:
    own = losses.hyperparameters_of(term.name)['temperature']
    assert objectives._temperature(term, 0) == own


def test_both_networks_and_the_labels_see_the_mixed_images():
  """Mixing that reverses the batch is a reversed batch."""

  def reverse(images, soft_labels, key):
    del key
    return images[::-1], soft_labels[::-1]

  loss_sum = Objective(1.0, 0.1, (kd(),))
  batch = make_batch()
  other = batch | {'image': np.roll(batch['image'], 1, 0)}
  plain = one_step(loss_sum, batch, teachers=1)
  run = make_step(loss_sum, teachers=1, mixing=reverse)
  mixed, unequal = run(batch), run(other)
  for name, value in plain.items():
    assert mixed[name] == pytest.approx(value, rel=1e-5), name
  assert abs(unequal['hard_loss'] - plain['hard_loss']) > 1e-3
  targets = {'teacher0': {'logits': np.zeros((8, 5), np.float32)}}
  with pytest.raises(ValueError, match='not those of mixed images'):
    one_step(loss_sum, batch | {'targets': targets}, teachers=1, mixing=reverse)


def test_mixing_is_of_the_seed_and_the_step():
  """The step draws one key for each pair, and the mixing uses it."""
  keys = []

  def spy(images, soft_labels, key):
    jax.debug.callback(
      lambda data: keys.append(tuple(np.asarray(data).tolist())),
      jax.random.key_data(key),
    )
    return images, soft_labels

  run = make_step(Objective(), teachers=0, mixing=spy)
  for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
    run(make_batch(), seed=seed, step=step)
  jax.effects_barrier()
  assert keys[0] == keys[1] and len(set(keys)) == 3
  config = tiny.make_config('kd', augment__mixup_alpha=1.0)
  images = make_batch()['image'].astype(np.float32)
  soft = np.eye(8, dtype=np.float32)
  mixed, _ = drawing.make_mixing(config)(images, soft, jax.random.key(0))
  assert np.abs(mixed - images).max() > 1
  assert drawing.make_mixing(tiny.make_config('kd')) is None


def test_images_without_label_count_for_the_teacher_alone():
  batch = make_batch()
  loss_sum = Objective(1.0, 0.1, (kd(),))
  run = make_step(loss_sum, teachers=1)
  whole = run(batch)
  hidden = batch | {'label': np.where(np.arange(8) < 3, batch['label'], -1)}
  some = run(hidden)
  log_p = special.log_softmax(student_logits(), -1)
  own = log_p[np.arange(8), batch['label']]
  expected = -(0.9 * own + 0.1 * log_p.mean(-1))
  assert whole['hard_loss'] == pytest.approx(expected.mean(), rel=1e-5)
  assert some['hard_loss'] == pytest.approx(expected[:3].mean(), rel=1e-5)
  assert some['soft_loss'] == pytest.approx(whole['soft_loss'], rel=1e-5)
  right = log_p.argmax(-1)[:3] == batch['label'][:3]
  assert some['accuracy'] == pytest.approx(right.mean())
  none = run(batch | {'label': np.full(8, -1, np.int32)})
  assert none['hard_loss'] == 0 and np.isfinite(none['gradient_norm'])


def test_the_log_says_what_is_bridged():
  student, teacher = make_models()
  own, theirs = (output_shapes(v, 16) for v in (student, teacher))
  smaller = jax.tree.map(lambda x: x, theirs)
  shape = smaller['features']['stage2'].shape
  smaller['features']['stage2'] = jax.ShapeDtypeStruct(
    (1, 2, 2, shape[3]), np.float32
  )
  lines = losses.bridges('fitnet', own, smaller, stages=('stage2',))
  assert lines == [
    'fitnet: stage2 4x4x8 of the student with stage2 2x2x16 of the teacher, '
    'pooled to 2x2, through a learned projector'
  ]
  (line,) = losses.bridges('rkd', own, theirs)
  assert line.startswith('rkd: pre_logits 16 of the student')
  assert losses.bridges('kd', own, theirs) == []
