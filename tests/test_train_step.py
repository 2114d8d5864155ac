"""The jitted update: losses by hand, the teacher's role, devices, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from tests import tiny
from tlkd_jax.data import Dataset, Split
from tlkd_jax.models import create_model
from tlkd_jax.models.network import Network, make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.training import guides, lessons, optimizers, run
from tlkd_jax.training.objective import Objective, Term
from tlkd_jax.training.showing import Views
from tlkd_jax.training.state import Beginning
from tlkd_jax.training.state import create as create_state
from tlkd_jax.training.step import Lesson, Mode
from tlkd_jax.training.step import make_step as make_step_of

pytestmark = pytest.mark.usefixtures('tiny_models')
CLASSES = 5
NO_TEACHER = {'guides': {}, 'seed': np.int32(0)}


def make_batch(step: int = 0, size: int = 8) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
    'label': rng.integers(0, CLASSES, size).astype(np.int32),
    'mask': np.ones(size, np.float32),
    'index': np.arange(size),
    'view': np.zeros(size, np.int32),
  }


def crop(images, index, view, seed):
  """An augmentation that changes nothing."""
  del index, view, seed
  return images.astype(jnp.float32)


def make_models(teacher_size: int = 16, dtype=jnp.float32, dropout=0.0):
  student = create_model('tiny', num_classes=CLASSES, dropout=dropout)
  teacher = create_model('tiny_teacher', num_classes=CLASSES)
  return Network(student, 16, dtype), Network(teacher, teacher_size, dtype)


def variables(view: Network, seed: int):
  """Weights large enough that logits and their KL are not tiny."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    name = path.rpartition('.')[2]
    if name in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
    scale = 1.5 * np.prod(shape.shape[:-1], dtype=float) ** -0.5
    return (rng.normal(size=shape.shape) * scale).astype(np.float32)

  model = view.model
  return (
    optimizers.map_with_path(draw, model.params_shape),
    optimizers.map_with_path(draw, model.model_state_shape),
  )


def make_objective(soft, hard, temperature, label_smoothing):
  terms = ()
  if soft is not None:
    weight = optax.constant_schedule(soft)
    terms = (Term('kd', weight, {'temperature': temperature}),)
  return Objective(hard, label_smoothing, terms)


@functools.cache
def make_step(
  *,
  soft: float | None,
  hard: float = 1.0,
  temperature: float = 3.0,
  label_smoothing: float = 0.0,
  devices: int = 1,
  teacher_size: int = 16,
  dtype=jnp.float32,
  dropout: float = 0.0,
  rate: float = 0.05,
  accumulate: int = 1,
  **options,
):
  """(step, create state, mesh, views); compiled once for equal arguments."""
  mesh = sharding.make_mesh(devices)
  views = make_models(teacher_size, dtype, dropout)
  settings = tiny.make_config(
    'kd', optimizer__accumulate_steps=accumulate
  ).optimizer
  schedule = optimizers.learning_rate_schedule(rate, 10, 0.0, 0.0)
  lesson = Lesson(
    views[0],
    make_objective(soft, hard, temperature, label_smoothing),
    optimizers.make_optimizer(views[0].model, schedule, settings),
    () if soft is None else ('teacher',),
  )
  step = make_lessons_step(
    {'student': lesson},
    {} if soft is None else {'teacher': views[1]},
    schedule,
    mesh,
    **options,
  )

  def create():
    return make_state(lesson, mesh, 'ema_decay' in options)

  return step, create, mesh, views


def make_lessons_step(lessons, frozen, schedule, mesh, placed=None, **options):
  of_mode = [field.name for field in dataclasses.fields(Mode)]
  mode = Mode(**{k: v for k, v in options.items() if k in of_mode})
  drawn = {k: v for k, v in options.items() if k not in of_mode}
  views = Views(crop, **drawn)
  return make_step_of(lessons, frozen, views, schedule, mode, mesh, placed)


def make_state(lesson, mesh, ema=False, projector=None, memory=None):
  params, model_state = variables(lesson.network, 1)
  given = Beginning(
    {'weights': params, 'projector': projector or {}},
    model_state,
    memory or {},
    averaged=ema,
  )
  state = create_state({'student': given}, {'student': lesson.optimizer})
  return jax.device_put(state, sharding.replicated(mesh))


def constants_of(mesh, seed: int = 0, rows=None, **guides):
  """Constants of a step: name of a guide -> (params, model_state).

  `rows` are from lessons.rows.
  """
  given = {
    name: {'params': params, 'model_state': model_state}
    for name, (params, model_state) in guides.items()
  }
  given = {'guides': given, 'seed': np.int32(seed)} | (rows or {})
  return sharding.replicate(given, mesh)


def run_steps(steps: int = 3, **options):
  """(learner after every step, metrics of every step, the constants)."""
  step, create, mesh, views = make_step(**options)
  state = create()
  guides = {}
  if options['soft'] is not None:
    guides = {'teacher': variables(views[1], 2)}
  constants = constants_of(mesh, **guides)
  learners, rows = [], []
  for number in range(steps):
    batch = sharding.shard_batch(make_batch(number), mesh)
    state, metrics = step(state, constants, batch)
    assert int(state.step) == number + 1
    learners.append(jax.device_get(state.learners['student']))
    rows.append(jax.device_get(metrics))
  return learners, rows, constants


KD = {'soft': 0.7, 'hard': 0.3}
TL = {'soft': None}


def assert_trees_close(a, b, tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b
  )


def test_loss_is_the_formula_by_hand():
  _, rows, _ = run_steps(1, **KD)
  batch = make_batch()
  logits = []
  for view, seed in zip(make_models(), (1, 2), strict=True):
    spec = view.model.spec
    mean, std = np.float32(spec.mean), np.float32(spec.std)
    pixels = (batch['image'].astype(np.float32) - mean) / std
    outputs, _ = jax.jit(view.model.apply)(*variables(view, seed), pixels)
    logits.append(np.asarray(outputs['logits'], np.float64))
  student, teacher = logits
  own = special.log_softmax(student, -1)[np.arange(8), batch['label']]
  hard = -own.mean()
  q, p = (special.log_softmax(z / 3.0, -1) for z in (student, teacher))
  soft = 9.0 * (np.exp(p) * (p - q)).sum(-1).mean()
  assert soft > 0.1
  np.testing.assert_allclose(rows[0]['hard_loss'], hard, rtol=1e-5)
  np.testing.assert_allclose(rows[0]['soft_loss'], soft, rtol=1e-4)
  np.testing.assert_allclose(
    rows[0]['loss'], 0.3 * hard + 0.7 * soft, rtol=1e-4
  )
  accuracy = (teacher.argmax(-1) == batch['label']).mean()
  assert rows[0]['teacher_accuracy'] == pytest.approx(accuracy)


def test_one_program_serves_all_seeds():
  """The seed is an argument: it moves dropout and views."""
  drawn = []

  def shifted(images, index, view, seed):
    del index, view
    drawn.append(seed)
    return images.astype(jnp.float32) + 10 * seed

  mesh, (view, _) = sharding.make_mesh(1), make_models(dropout=0.3)
  settings = tiny.make_config('kd').optimizer
  schedule = optax.constant_schedule(0.05)
  optimizer = optimizers.make_optimizer(view.model, schedule, settings)
  lesson = Lesson(view, make_objective(None, 1.0, 3.0, 0.0), optimizer)
  shared = make_step_of(
    {'student': lesson}, {}, Views(shifted), schedule, Mode(), mesh
  )
  batch = sharding.shard_batch(make_batch(), mesh)
  losses = []
  for seed in (0, 7, 0):
    state = make_state(lesson, mesh)
    _, metrics = shared(state, constants_of(mesh, seed), batch)
    losses.append(float(metrics['loss']))
  assert losses[0] == losses[2] != losses[1]
  assert len(drawn) == 1


def test_no_soft_weight_is_plain_fine_tuning():
  """With dropout: the keys of the student do not depend on the teacher."""
  guided, rows, _ = run_steps(4, soft=0.0, dropout=0.3)
  alone, plain, _ = run_steps(4, soft=None, dropout=0.3)
  assert 'soft_loss' in rows[0] and 'soft_loss' not in plain[0]
  assert_trees_close(guided[-1].params, alone[-1].params, 1e-6)


def test_teacher_is_neither_changed_nor_donated():
  """Its statistics stay although the student's BatchNorm is in train mode."""
  states, _, guide = run_steps(**KD, norm_train=True)
  student, teacher = make_models()
  assert not any(x.is_deleted() for x in jax.tree.leaves(guide))
  before = dict(
    zip(('params', 'model_state'), variables(teacher, 2), strict=True)
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(guide['guides']['teacher']),
    before,
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    states[-1].model_state,
    variables(student, 1)[1],
  )
  assert min(jax.tree.leaves(moved)) > 1e-3


def test_teacher_gets_no_gradient():
  _, view = make_models()
  params, model_state = variables(view, 2)

  def total(params, images):
    given = {'params': params, 'model_state': model_state}
    outputs = guides.speak(view, given, images)
    return sum(jnp.sum(x) for x in jax.tree.leaves(outputs))

  images = make_batch()['image'].astype(np.float32)
  grads = jax.jit(jax.grad(total, argnums=(0, 1)))(params, images)
  assert all(np.all(g == 0) for g in jax.tree.leaves(jax.device_get(grads)))


def test_teacher_is_in_evaluation_mode():
  """Its outputs do not depend on the other images, and dropout is off."""
  _, view = make_models()
  images = make_batch()['image'].astype(np.float32)
  speak = jax.jit(functools.partial(guides.speak, view))
  params, model_state = variables(view, 2)
  given = {'params': params, 'model_state': model_state}
  whole = speak(given, images)['logits']
  again = speak(given, images)['logits']
  halves = [speak(given, x)['logits'] for x in (images[:4], images[4:])]
  np.testing.assert_array_equal(whole, again)
  np.testing.assert_allclose(
    whole, np.concatenate(halves), rtol=1e-5, atol=1e-5
  )


def test_teacher_sees_its_own_size():
  _, small, _ = run_steps(1, **KD)
  _, large, _ = run_steps(1, **KD, teacher_size=24)
  assert large[0]['hard_loss'] == pytest.approx(small[0]['hard_loss'], abs=1e-6)
  assert abs(large[0]['soft_loss'] - small[0]['soft_loss']) > 1e-3
  _, view = make_models(24)
  prepared = jax.eval_shape(view.prepare, make_batch()['image'])
  assert prepared.shape == (8, 24, 24, 3)


@pytest.mark.parametrize('norm_train', [False, True])
def test_devices_do_not_change_the_losses(norm_train):
  """BatchNorm in train mode uses the global batch: else this differs by far."""
  one, rows, _ = run_steps(**KD, norm_train=norm_train)
  four, split, _ = run_steps(**KD, norm_train=norm_train, devices=4)
  for a, b in zip(rows, split, strict=True):
    del a['gradient_norm'], b['gradient_norm']
    assert_trees_close(a, b, 1e-5)
  assert_trees_close(one[-1].model_state, four[-1].model_state, 1e-5)


def test_bfloat16_compute_keeps_float32_state():
  half, rows, _ = run_steps(**KD, dtype=jnp.bfloat16, norm_train=True)
  _, full, _ = run_steps(**KD, norm_train=True)
  dtypes = {np.dtype(x.dtype) for x in jax.tree.leaves(half[-1])}
  assert dtypes == {np.dtype('float32'), np.dtype('int32')}
  for a, b in zip(rows, full, strict=True):
    assert all(np.isfinite(v) for v in a.values())
    assert a['loss'] == pytest.approx(b['loss'], rel=0.05)
  assert rows[0]['loss'] != full[0]['loss']


def test_dropout_depends_on_seed_and_step():
  def losses(seed):
    step, create, mesh, _ = make_step(soft=None, dropout=0.3)
    values = []
    for number in (0, 1, 0):
      # A state of its own each time: the step donates it.
      state = dataclasses.replace(create(), step=jnp.int32(number))
      state = jax.device_put(state, sharding.replicated(mesh))
      batch = sharding.shard_batch(make_batch(), mesh)
      given = constants_of(mesh, seed)
      values.append(float(step(state, given, batch)[1]['loss']))
    return values

  first = losses(0)
  assert first[0] == first[2] != first[1]
  assert not set(losses(1)) & set(first)


def test_state_is_donated_and_counted():
  _, rows, _ = run_steps(2, **TL)
  rates = [row['learning_rate'] for row in rows]
  expected = [0.05, 0.05 * (1 + np.cos(np.pi / 10)) / 2]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)
  step, create, mesh, _ = make_step(**TL)
  before = create()
  step(before, NO_TEACHER, sharding.shard_batch(make_batch(), mesh))
  assert all(x.is_deleted() for x in jax.tree.leaves(before.learners))


def test_two_half_batches_are_one_batch():
  """Without BatchNorm's batch statistics, and with clipping.

  Of the average of weights too, whose decay is that of the update.
  """
  states, _, _ = run_steps(1, **TL, ema_decay=0.15)
  step, create, mesh, _ = make_step(**TL, ema_decay=0.15, accumulate=2)
  state, found = create(), []
  for number in range(2):
    start = jax.device_get(state.learners['student'])
    for half in (slice(0, 4), slice(4, 8)):
      own = state.learners['student']
      assert_trees_close((own.params, own.ema), (start.params, start.ema), 0)
      batch = {k: value[half] for k, value in make_batch(number).items()}
      state, _ = step(state, NO_TEACHER, sharding.shard_batch(batch, mesh))
    found += [start, jax.device_get(state.learners['student'])]
  assert_trees_close(found[1].params, states[0].params, 1e-6)
  assert_trees_close(found[1].ema, states[0].ema, 1e-6)
  expected = jax.tree.map(
    lambda a, n: 0.15 * a + 0.85 * n, found[1].ema, found[3].params['weights']
  )
  assert_trees_close(found[3].ema, expected, 1e-6)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), found[1].params, found[0].params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_label_smoothing_by_hand():
  _, plain, _ = run_steps(1, **TL)
  _, smooth, _ = run_steps(1, **TL, label_smoothing=0.2)
  view, _ = make_models()
  pixels = (make_batch()['image'].astype(np.float32) - 127.0) / 128.0
  outputs, _ = jax.jit(view.model.apply)(*variables(view, 1), pixels)
  log_p = special.log_softmax(np.asarray(outputs['logits'], np.float64), -1)
  expected = 0.8 * float(plain[0]['loss']) - 0.2 * log_p.mean()
  assert smooth[0]['loss'] == pytest.approx(expected, rel=1e-5)
  assert abs(smooth[0]['loss'] - plain[0]['loss']) > 1e-3


def test_average_of_weights_by_hand():
  """With a warm-up: decay min(d, (1 + t) / (10 + t)) at update t."""
  states, _, _ = run_steps(3, **TL, ema_decay=0.15)
  average = variables(make_models()[0], 1)[0]
  for state, decay in zip(states, (0.1, 0.15, 0.15), strict=True):
    average = jax.tree.map(
      lambda a, n, d=decay: d * a + (1 - d) * n,
      average,
      state.params['weights'],
    )
    assert_trees_close(state.ema, average, 1e-6)
  assert states[-1].evaluated()[0] is states[-1].ema


def test_projector_and_memory_travel_with_the_state():
  """A loss with a projector (FitNets) and one with a memory (CRD)."""
  split = Split(
    make_batch()['image'],
    make_batch()['label'],
    np.arange(8) * 3,
    [str(i) for i in range(8)],
  )
  names = [str(c) for c in range(CLASSES)]
  dataset = Dataset('fake', names, {'train': split}, 16, True, {}, [])
  student, teacher = make_models()
  mesh = sharding.make_mesh(1)
  for loss, part in (('fitnet', 'projector'), ('crd', 'memory')):
    config = tiny.make_config('kd', distillation__loss=loss)
    total = lessons.make_objective(config, dataset, guided=True)
    extras = lessons.make_extras(total, student, (teacher,), dataset, 0)
    schedule = optimizers.learning_rate_schedule(0.05, 10, 0.0, 0.0)
    optimizer = optimizers.make_optimizer(
      student.model, schedule, config.optimizer
    )
    lesson = Lesson(student, total, optimizer, ('teacher',))
    step = make_lessons_step(
      {'student': lesson}, {'teacher': teacher}, schedule, mesh
    )
    before = jax.device_get(extras)
    state = make_state(lesson, mesh, **extras)
    batch = make_batch() | {'index': split.indices}
    given = constants_of(
      mesh,
      rows=lessons.rows({'student': lesson}, dataset),
      teacher=variables(teacher, 2),
    )
    assert ('rows' in given) == (part == 'memory')
    state, metrics = step(state, given, sharding.shard_batch(batch, mesh))
    assert np.isfinite(metrics['soft_loss'])
    learner = state.learners['student']
    after = {
      'projector': learner.params['projector'],
      'memory': learner.memory,
    }
    changed = jax.tree.map(
      lambda a, b: bool(np.any(a != b)), jax.device_get(after), before
    )
    assert any(jax.tree.leaves(changed[part])), loss


def test_evaluation_step_is_the_model():
  view, _ = make_models()
  mesh = sharding.make_mesh(4)
  given = variables(view, 1)
  images = make_batch()['image']
  outputs = make_eval_step(view, mesh)(
    sharding.replicate(given, mesh),
    sharding.shard_batch({'image': images}, mesh)['image'],
  )
  pixels = (images.astype(np.float32) - 127.0) / 128.0
  expected, _ = jax.jit(view.model.apply)(*given, pixels)
  assert set(outputs) == {'logits', 'pre_logits'}
  np.testing.assert_allclose(
    outputs['logits'], expected['logits'], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  ('batch_norm', 'train_only', 'expected'),
  [
    ('frozen', 'all', False),
    ('train', 'all', True),
    ('train', 'head', False),
  ],
)
def test_whose_statistics_are_trained(batch_norm, train_only, expected):
  config = tiny.make_config(
    'tl', batch_norm=batch_norm, optimizer__train_only=train_only
  )
  assert run.make_mode(config).norm_train is expected
