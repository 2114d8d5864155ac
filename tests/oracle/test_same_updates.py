"""The step by names makes, bit for bit, the updates of the step before it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.oracle import objective as old_objectives
from tests.oracle import optimizers as old_optimizers
from tests.oracle import state as old_states
from tests.oracle import step as old_steps
from tests.oracle import transfer as old_transfers
from tlkd_jax import losses
from tlkd_jax.data import Dataset, Split, mixing
from tlkd_jax.models import create_model
from tlkd_jax.models.network import Loaded, Network, output_shapes
from tlkd_jax.runtime import sharding
from tlkd_jax.training import lessons, optimizers, run, start
from tlkd_jax.training.state import Beginning, create
from tlkd_jax.training.step import Lesson, Mode, make_step

pytestmark = pytest.mark.usefixtures('tiny_models')
CLASSES, STEPS = 5, 3
SEED = {'student': 1, 'teacher': 2, 'teacher2': 4, 'peer': 2}
TERMS = {
  'transfer__l2_sp': 0.3,
  'transfer__l2_sp_head': 0.2,
  'transfer__delta': 0.01,
  'transfer__bss': 0.05,
  'transfer__bss_k': 2,
  'transfer__lwf': 0.4,
  'transfer__co_tuning': 0.6,
}
COMMON = {
  'student__weights': 'a file with a head',
  'optimizer__layer_decay': 0.7,
  'optimizer__head_multiplier': 3.0,
  'optimizer__clip_norm': 1.0,
}


def make_batch(step: int = 0, size: int = 8) -> dict:
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
    'label': rng.integers(0, CLASSES, size).astype(np.int32),
    'mask': np.ones(size, np.float32),
    'index': np.arange(size),
    'view': np.zeros(size, np.int32),
  }


def augmentation(images, index, view, *, seed):
  del index, view
  noise = jax.random.uniform(jax.random.key(seed), images.shape)
  return images.astype(jnp.float32) * 0.9 + 20.0 * noise


def network(name: str, dropout: float = 0.2) -> Network:
  teacher = name in ('teacher', 'peer')
  model = create_model(
    'tiny_teacher' if teacher else 'tiny',
    num_classes=CLASSES,
    dropout=dropout if name in ('student', 'peer') else 0.0,
  )
  return Network(model, 24 if teacher else 16, jnp.float32)


def variables(view: Network, seed: int):
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


def source_head(seed):
  rng = np.random.default_rng(seed)
  return {
    'kernel': rng.normal(size=(16, 7)).astype(np.float32),
    'bias': rng.normal(size=7).astype(np.float32),
  }


def starting_point():
  params, model_state = variables(network('student'), 3)
  table = np.random.default_rng(9).uniform(size=(CLASSES, 7))
  table = (table / table.sum(1, keepdims=True)).astype(np.float32)
  return params, model_state, source_head(2), table


def examples() -> Dataset:
  batch = make_batch()
  names = [str(c) for c in range(CLASSES)]
  split = Split(
    batch['image'], batch['label'], np.arange(8), [str(i) for i in range(8)]
  )
  return Dataset('fake', names, {'train': split}, 16, True, {}, [])


def stored(name: str, batch: dict) -> dict:
  """A teacher's outputs of the batch's views, as a store gives them."""
  view = network(name)

  @jax.jit
  def said(given, images):
    return view.model.apply(*given, view.prepare(images))[0]

  images = jax.jit(functools.partial(augmentation, seed=5))(
    batch['image'], batch['index'], batch['view']
  )
  outputs = said(variables(view, SEED[name]), images)
  return jax.device_get({k: outputs[k] for k in ('logits', 'pre_logits')})


def batches(cached: tuple[str, ...], by_name: bool) -> list[dict]:
  made = [make_batch(number) for number in range(STEPS)]
  for batch in made if cached else ():
    found = {name: stored(name, batch) for name in cached}
    batch['targets'] = found if by_name else tuple(found.values())
  return made


def before(config, teachers, mutual, cached, mode):
  """The old step: (states, metrics) after the last update, on the host."""
  mesh = sharding.make_mesh(1)
  schedule = optimizers.learning_rate_schedule(0.05, 10, 0.1, 0.0)
  total = old_objectives.make_objective(config, examples())
  names = ('student', 'peer') if mutual else ('student',)
  parts, made = {}, {}
  for name in names:
    view = network(name)
    others = [network(n) for n in teachers or [n for n in names if n != name]]
    guides_shapes = tuple(output_shapes(other, 16) for other in others)
    seed = 2**30 if name == 'peer' else 0
    extras = old_objectives.init_extras(
      total,
      jax.random.fold_in(jax.random.key(seed), 1),
      output_shapes(view, 16),
      guides_shapes,
      examples().splits['train'],
    )
    params, model_state = variables(view, SEED[name])
    params = {'student': params, 'projector': extras['projector']}
    parts[name] = params, model_state, extras['memory']
    made[name] = old_optimizers.make_optimizer(
      view.model, schedule, config.optimizer
    )
  params, model_state, memory = parts['student']
  transfer = old_transfers.make_transfer(config)
  constants = {'seed': np.int32(5)}
  if transfer is not None:
    params['source_head'] = source_head(1)
    keys = ('params', 'model_state', 'head', 'relationship')
    constants['start'] = dict(zip(keys, starting_point(), strict=True))
  optimizer, kept = made['student'], None
  if mutual:
    params['peer'], statistics, bank = parts['peer']
    optimizer = old_optimizers.side_by_side(optimizer, made['peer'])
    kept = {'model_state': statistics, 'memory': bank}
  step = old_steps.make_train_step(
    network('student'),
    tuple(network(name) for name in teachers),
    optimizer,
    schedule,
    total,
    augmentation,
    mesh,
    mixing=mode.mixing,
    seed=None,
    norm_train=mode.norm_train,
    transfer=transfer,
    batch_chance=mode.batch_chance,
    head_only=mode.head_only,
    ema_decay=mode.ema_decay,
    remat='blocks' if mode.remat else 'none',
    peer=network('peer') if mutual else None,
  )
  state = old_states.create(
    params,
    model_state,
    optimizer,
    ema=mode.ema_decay > 0,
    memory=memory,
    peer=kept,
  )
  constants['teachers'] = tuple(
    variables(network(name), SEED[name]) for name in teachers
  )
  return update(step, state, constants, batches(cached, False), mesh)


def after(config, teachers, mutual, cached, mode):
  """The same by the new step."""
  mesh = sharding.make_mesh(1)
  schedule = optimizers.learning_rate_schedule(0.05, 10, 0.1, 0.0)
  names = ('student', 'peer') if mutual else ('student',)
  frozen = {name: network(name) for name in teachers}
  learned, beginnings = {}, {}
  constants = {
    name: run.constants(Loaded(view, *variables(view, SEED[name])))
    for name, view in frozen.items()
  }
  for name in names:
    view = network(name)
    taught_by = teachers or tuple(n for n in names if n != name)
    objective = lessons.make_objective(
      config, examples(), guided=bool(taught_by)
    )
    extras = lessons.make_extras(
      objective,
      view,
      tuple(network(other) for other in taught_by),
      examples(),
      2**30 if name == 'peer' else 0,
    )
    params, model_state = variables(view, SEED[name])
    params = {'weights': params, 'projector': extras['projector']}
    kept = start.make_terms(config, view.model) if name == 'student' else ()
    if kept:
      keys = ('params', 'model_state', 'source_head', 'relationship')
      constants['start'] = dict(zip(keys, starting_point(), strict=True))
      params['source_head'] = source_head(1)
      frozen['start'] = view
      objective = dataclasses.replace(objective, terms=objective.terms + kept)
    optimizer = optimizers.make_optimizer(
      view.model, schedule, config.optimizer
    )
    learned[name] = Lesson(view, objective, optimizer, tuple(taught_by))
    beginnings[name] = Beginning(
      params,
      model_state,
      extras['memory'],
      averaged=mode.ema_decay > 0 and name == 'student',
    )
  step = make_step(learned, frozen, augmentation, schedule, mode, mesh)
  state = create(beginnings, {n: made.optimizer for n, made in learned.items()})
  constants = {'guides': constants, 'seed': np.int32(5)}
  return update(step, state, constants, batches(cached, True), mesh)


def update(step, state, constants, given, mesh):
  state, constants = sharding.replicate((state, constants), mesh)
  state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
  rows = []
  for batch in given:
    state, metrics = step(state, constants, sharding.shard_batch(batch, mesh))
    rows.append(jax.device_get(metrics))
  return jax.device_get(state), rows


def assert_same(old, new, mutual):
  (state, rows), (again, others) = old, new
  own = again.learners['student']
  pairs = [
    (state.params['student'], own.params['weights']),
    (state.params['projector'], own.params['projector']),
    (
      state.params.get('source_head', {}),
      own.params.get('source_head', {}),
    ),
    (state.model_state, own.model_state),
    (state.memory, own.memory),
    (state.ema, own.ema),
    (
      jax.tree.leaves(state.opt_state['student'])
      if mutual
      else jax.tree.leaves(state.opt_state),
      jax.tree.leaves(own.opt_state),
    ),
  ]
  if mutual:
    peer = again.learners['peer']
    pairs += [
      (state.params['peer']['student'], peer.params['weights']),
      (state.params['peer']['projector'], peer.params['projector']),
      (state.peer['model_state'], peer.model_state),
      (state.peer['memory'], peer.memory),
    ]
  for left, right in pairs:
    jax.tree.map(np.testing.assert_array_equal, left, right)
  assert len(jax.tree.leaves(pairs[0][0])) > 5
  for row, other in zip(rows, others, strict=True):
    shared = row.keys() & other.keys()
    if mutual:
      # One norm over both networks before, one for each now.
      shared -= {'gradient_norm'}
    assert {'loss', 'hard_loss', 'accuracy'} <= shared
    assert row.keys() <= other.keys()
    for name in shared:
      assert row[name] == other[name], name
    assert np.isfinite(list(other.values())).all()


MIXED = functools.partial(mixing.mix, mixup_alpha=0.4, cutmix_alpha=1.0)
CASES = {
  'tl': {'arm': 'tl'},
  'tl, smoothing, average': {
    'arm': 'tl',
    'mode': {'ema_decay': 0.5},
    'changes': {'label_smoothing': 0.1},
  },
  'tl, statistics': {'arm': 'tl', 'mode': {'norm_train': True}},
  'tl, stochastic': {
    'arm': 'tl',
    'mode': {'norm_train': True, 'batch_chance': 0.5},
  },
  'tl, probe': {
    'arm': 'tl',
    'mode': {'head_only': True},
    'changes': {'optimizer__train_only': 'head'},
  },
  'tl, remat': {'arm': 'tl', 'mode': {'remat': True}},
  'tl, mixing': {'arm': 'tl', 'mode': {'mixing': MIXED}},
  'tl, accumulation': {
    'arm': 'tl',
    'changes': {'optimizer__accumulate_steps': 2},
  },
  'tl, all of transfer': {'arm': 'tl', 'changes': TERMS},
  **{
    f'tl, {name}': {
      'arm': 'tl',
      'changes': {f'transfer__{name}': 0.5},
    }
    for name in ('l2_sp', 'delta', 'bss', 'lwf', 'co_tuning')
  },
  'kd, all of transfer': {'changes': TERMS},
  'kd, mixing': {'mode': {'mixing': MIXED, 'norm_train': True}},
  'kd, average': {'mode': {'ema_decay': 0.5, 'norm_train': True}},
  'kd, schedules': {
    'changes': {
      'distillation__schedule': 'cosine',
      'distillation__temperature_schedule': 'linear',
      'distillation__end_temperature': 1.5,
      'distillation__warmup_fraction': 0.5,
    },
  },
  'kd, adamw': {
    'changes': {
      'optimizer__name': 'adamw',
      'optimizer__freeze_until_step': 1,
    },
  },
  'kd, cached': {'cached': ('teacher',)},
  'two teachers': {'teachers': ('teacher', 'teacher2')},
  'two teachers, losses': {
    'teachers': ('teacher', 'teacher2'),
    'changes': {'distillation__ensemble': 'losses'},
    'loss': 'fitnet',
  },
  'two teachers, cached': {
    'teachers': ('teacher', 'teacher2'),
    'cached': ('teacher', 'teacher2'),
    'changes': {'distillation__ensemble': 'losses'},
    'loss': 'pkt',
  },
  'a sum': {'loss': 'kd+at+rkd'},
  **{
    f'mutual, {name}': {'mutual': True, 'loss': name}
    for name in ('kd', 'sp', 'fitnet', 'crd', 'simkd')
  },
  'mutual, statistics': {'mutual': True, 'mode': {'norm_train': True}},
  'mutual, probe': {
    'mutual': True,
    'mode': {'head_only': True},
    'changes': {'optimizer__train_only': 'head'},
  },
  'mutual, average, transfer': {
    'mutual': True,
    'mode': {'ema_decay': 0.5},
    'changes': TERMS,
  },
  **{
    name: {'loss': name}
    for name, loss in losses.LOSSES.items()
    if loss.guide != 'start'
  },
}


@pytest.mark.parametrize('case', CASES)
def test_same_updates(case):
  given = {
    'arm': 'kd',
    'loss': 'kd',
    'mutual': False,
    'cached': (),
    'mode': {},
    'changes': {},
    **CASES[case],
  }
  teachers = ('teacher',) if given['arm'] == 'kd' else ()
  teachers = () if given['mutual'] else given.get('teachers', teachers)
  config = tiny.make_config(
    given['arm'], loss=given['loss'], **COMMON, **given['changes']
  )
  arguments = (
    config,
    teachers,
    given['mutual'],
    given['cached'],
    Mode(**given['mode']),
  )
  assert_same(before(*arguments), after(*arguments), given['mutual'])


def test_it_can_fail():
  """Another seed of the step moves what is compared."""
  config = tiny.make_config('kd', **COMMON)
  arguments = config, ('teacher',), False, ()
  old = before(*arguments, Mode())
  new = after(*arguments, Mode(norm_train=True))
  with pytest.raises(AssertionError):
    assert_same(old, new, False)
