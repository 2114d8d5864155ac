"""Mutual learning: each network is the other's teacher, and learns like it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.test_methods import METHODS, rows
from tests.test_resume import assert_same_run
from tests.test_train_step import (
  CLASSES,
  assert_trees_close,
  crop,
  make_batch,
  variables,
)
from tests.workdirs import arrays
from tlkd_jax import arms, inference, models
from tlkd_jax.data import Dataset, Split
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models import create_model
from tlkd_jax.models.families import inverted
from tlkd_jax.models.families.inverted import Row
from tlkd_jax.models.network import Network, make_eval_step
from tlkd_jax.report import page
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import from_config
from tlkd_jax.training import (
  build,
  objective,
  optimizers,
)
from tlkd_jax.training import (
  loop as train,
)
from tlkd_jax.training import (
  state as train_state,
)
from tlkd_jax.training import (
  step as train_step,
)

pytestmark = pytest.mark.usefixtures('tiny_models')
MUTUAL = {'distillation__mutual': True}
# Paths of tests/workdirs.arrays -> of a model's flat parameters.
_PEERS = 'params.peer.student.'


def views(dropout: float = 0.0) -> dict[str, Network]:
  """A student, and a peer that sees larger images, alone with dropout."""

  def view(name, size, dropout):
    model = create_model(name, num_classes=CLASSES, dropout=dropout)
    return Network(model, size, jnp.float32)

  return {
    'student': view('tiny', 16, 0.0),
    'peer': view('tiny_teacher', 24, dropout),
  }


SEEDS = {'student': 1, 'peer': 2}


@functools.cache
def examples() -> Dataset:
  batch = make_batch()
  names = [str(c) for c in range(CLASSES)]
  split = Split(
    batch['image'], batch['label'], np.arange(8), [str(i) for i in range(8)]
  )
  return Dataset('fake', names, {'train': split}, 16, True, {}, [])


def make_step(loss='kd', dropout=0.0, guides=(), learner='student', **changes):
  """(step, state, constants); with guides 'mutual' the other learns too."""
  both = views(dropout)
  other = {'student': 'peer', 'peer': 'student'}[learner]
  mutual = guides == 'mutual'
  config = tiny.make_config(
    'kd',
    loss=loss,
    # Groups of parameters, which each network has by its own stages and head.
    optimizer__layer_decay=0.7,
    optimizer__head_multiplier=3.0,
    **changes,
  )
  total = objective.make_objective(config, examples())
  schedule = optimizers.learning_rate_schedule(0.05, 10, 0.0, 0.0)

  def of(role):
    made = optimizers.make_optimizer(
      both[role].model, schedule, config.optimizer
    )
    guide = both['peer' if role == 'student' else 'student']
    extras = build.distillation_extras(
      total, both[role], (guide,), examples(), 0
    )
    params, model_state = variables(both[role], SEEDS[role])
    params = {'student': params, 'projector': extras['projector']}
    return made, params, model_state, extras['memory']

  optimizer, params, model_state, memory = of(learner)
  kept = None
  if mutual:
    others, params['peer'], statistics, bank = of(other)
    optimizer = optimizers.side_by_side(optimizer, others)
    kept = {'model_state': statistics, 'memory': bank}
  mesh = sharding.make_mesh(1)
  step = train_step.make_train_step(
    both[learner],
    () if mutual else (both[other],),
    optimizer,
    schedule,
    total,
    crop,
    mesh,
    seed=0,
    norm_train=build.norm_train(config),
    head_only=config.optimizer.train_only == 'head',
    peer=both[other] if mutual else None,
  )
  state = train_state.create(
    params, model_state, optimizer, ema=False, memory=memory, peer=kept
  )
  guide = () if mutual else (variables(both[other], SEEDS[other]),)
  state, constants = sharding.replicate((state, {'teachers': guide}), mesh)
  # Owned by the step, which donates it.
  state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)

  return step, state, constants


def one_update(**settings):
  step, state, constants = make_step(**settings)
  return jax.device_get(step(state, constants, make_batch()))


def largest_move(before, after) -> float:
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
  return max(jax.tree.leaves(moved))


@pytest.mark.parametrize('loss', ['kd', 'sp', 'fitnet', 'crd'])
def test_an_update_is_that_of_two_ordinary_students(loss):
  """Each under a teacher with the other's weights; frozen BatchNorm."""
  both, metrics = one_update(loss=loss, guides='mutual')
  own, alone = one_update(loss=loss)
  theirs, others = one_update(loss=loss, learner='peer')
  for name in ('student', 'projector'):
    assert_trees_close(both.params[name], own.params[name], 1e-6)
    assert_trees_close(both.params['peer'][name], theirs.params[name], 1e-6)
  assert_trees_close(both.memory, own.memory, 1e-6)
  assert_trees_close(both.peer['memory'], theirs.memory, 1e-6)
  for role, state in (('student', own), ('peer', theirs)):
    start = variables(views()[role], SEEDS[role])[0]
    assert largest_move(start, state.params['student']) > 1e-3
  for name in ('loss', 'hard_loss', 'soft_loss', 'accuracy'):
    assert metrics[name] == pytest.approx(alone[name], rel=1e-4)
    assert metrics[f'peer_{name}'] == pytest.approx(others[name], rel=1e-4)
  assert metrics['teacher_accuracy'] == pytest.approx(metrics['peer_accuracy'])
  assert metrics['soft_loss'] > 1e-3 and metrics['peer_soft_loss'] > 1e-3
  # Both are clipped, each by its own norm.
  assert alone['gradient_norm'] > 1 and others['gradient_norm'] > 1


@pytest.mark.parametrize('loss', METHODS)
def test_every_method_has_a_step(loss):
  """As traced: it keeps the structure and the shapes of the whole state."""
  step, *arguments = make_step(loss=loss, guides='mutual')
  shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  after, metrics = step.eval_shape(*arguments, make_batch())
  assert shapes(after) == shapes(arguments[0])
  assert {'soft_loss', 'peer_soft_loss'} <= metrics.keys()


def test_the_peer_guides_in_training_mode():
  """Its dropout moves the student's target, and nothing else of it."""
  _, noisy = one_update(guides='mutual', dropout=0.5)
  _, clean = one_update(guides='mutual')
  assert noisy['hard_loss'] == pytest.approx(clean['hard_loss'], abs=1e-6)
  for name in ('peer_hard_loss', 'soft_loss'):
    assert abs(noisy[name] - clean[name]) > 1e-2


def test_batch_statistics_of_both_are_learned():
  changes = {'batch_norm': 'train'}
  both, _ = one_update(guides='mutual', **changes)
  own, _ = one_update(**changes)
  theirs, _ = one_update(learner='peer', **changes)
  assert_trees_close(both.model_state, own.model_state, 1e-6)
  assert_trees_close(both.peer['model_state'], theirs.model_state, 1e-6)
  start = variables(views()['peer'], SEEDS['peer'])[1]
  assert largest_move(start, both.peer['model_state']) > 1e-3


def test_two_half_batches_are_one_batch():
  whole, _ = one_update(guides='mutual')
  step, state, constants = make_step(
    guides='mutual', optimizer__accumulate_steps=2
  )
  start = jax.device_get(state.params)
  for half in (slice(0, 4), slice(4, 8)):
    assert_trees_close(jax.device_get(state.params), start, 0)
    batch = {key: value[half] for key, value in make_batch().items()}
    state, _ = step(state, constants, batch)
  assert_trees_close(jax.device_get(state.params), whole.params, 1e-6)


def test_a_linear_probe_of_both():
  both, metrics = one_update(guides='mutual', optimizer__train_only='head')
  found = {'student': both.params, 'peer': both.params['peer']}
  for role, params in found.items():
    start = flatten(variables(views()[role], SEEDS[role])[0])
    after = flatten(params['student'])
    moved = {name for name in start if np.any(start[name] != after[name])}
    assert moved == {'head.kernel', 'head.bias'}
  _, whole = one_update(guides='mutual')
  assert metrics['gradient_norm'] < whole['gradient_norm']


def test_the_peer_has_groups_of_its_own(cache_dir, tmp_path, monkeypatch):
  """Three stages beside the student's two, as a run sets them up."""
  row = functools.partial(Row, kernel_size=3, expand=1, repeats=1, fused=True)
  stages = tuple((row(stride=s, channels=8),) for s in (1, 2, 2))
  shallow = tiny._design(8)
  design = dataclasses.replace(shallow, stages=inverted.scale(stages, 8))
  spec = inverted.spec(design, inverted.timm_modules, image_size=32)
  monkeypatch.setitem(models.MODELS, 'deep', spec)
  changes = MUTUAL | {
    'teacher__name': 'deep',
    'optimizer__layer_decay': 0.5,
    'optimizer__head_multiplier': 3.0,
    'optimizer__weight_decay': 0.0,
    'optimizer__clip_norm': 0.0,
    'optimizer__warmup_fraction': 0.0,
    'optimizer__momentum': 0.0,
    'optimizer__learning_rate': 1.0,
  }
  config = tiny.make_config('kd', cache_dir, **changes)
  dataset, mesh = build.load_dataset(config), sharding.make_mesh(1)
  run, optimizer, extras = train._build(config, tmp_path, dataset, mesh)
  params = {'student': run.learner.params, 'projector': {}}
  params['peer'] = extras['peer']
  ones = jax.tree.map(jnp.ones_like, params)
  changes, _ = optimizer.update(ones, optimizer.init(params), params)
  expected = {'head': 3.0, 'neck': 0.5, 'blocks.0': 0.5**4, 'stem': 0.5**5}
  for prefix, factor in expected.items():
    theirs = flatten(changes['peer']['student'])
    found = {float(-v.max()) for k, v in theirs.items() if k.startswith(prefix)}
    assert found == {factor}
  own = flatten(changes['student'])
  found = {float(-v.max()) for k, v in own.items() if k.startswith('blocks.0')}
  assert found == {0.5**3}


def settings(**changes):
  """A run in which both networks learn fast."""
  return (
    MUTUAL
    | {
      'distillation__warmup_fraction': 0.0,
      'optimizer__name': 'adamw',
      'optimizer__learning_rate': 2e-2,
      'optimizer__warmup_fraction': 0.0,
      # All images in every batch: no noise of sampling.
      'batch_size': 40,
      'num_steps': 20,
      'log_every_steps': 5,
      'eval_every_steps': 10,
    }
    | changes
  )


@pytest.fixture(scope='module')
def finished(cache_dir, tmp_path_factory):
  """Workdir of TL and mutual learning, with the printed table."""
  workdir = tmp_path_factory.mktemp('mutual')
  with tiny.registered():
    config = tiny.make_config('compare', cache_dir, **settings())
    summaries = arms.run(config, workdir, sharding.make_mesh(1))
    return workdir, summaries, arms.table(summaries)


def test_both_losses_fall(finished):
  workdir, _, _ = finished
  found = rows(workdir / 'kd')
  for name in ('loss', 'peer_loss', 'hard_loss', 'peer_hard_loss'):
    first, *_, last = (row[name] for row in found)
    assert last < first - 0.05


def test_no_teacher_is_trained_before(finished):
  workdir, summaries, _ = finished
  assert list(summaries) == ['tl', 'kd']
  assert {p.parent.name for p in workdir.rglob('config.json')} == {'tl', 'kd'}


def test_the_peer_of_the_best_step_is_measured_and_kept(finished):
  workdir, summaries, table = finished
  run, summary = workdir / 'kd', summaries['kd']
  description = build.checkpoints.read_description(run / 'peer')
  assert description.model == 'tiny_teacher'
  assert description.step == summary['best_step']
  peer = build.restore_model(str(run / 'peer'), description)
  own = build.load_dataset(tiny.make_config('kd', **data_of(run)))
  start = build.load_model(
    tiny.make_config('kd', **data_of(run)), 'teacher', own.class_names
  )
  assert largest_move(start.params, peer.params) > 1e-3
  if summary['best_step'] == 20:
    kept = {k: v for k, v in arrays(run).items() if k.startswith(_PEERS)}
    assert len(kept) == len(flatten(peer.params))
    for name, value in flatten(peer.params).items():
      np.testing.assert_array_equal(kept[_PEERS + name], value)
  split = own.splits['test']
  eval_step = make_eval_step(peer.network, sharding.make_mesh(1))
  logits = eval_step((peer.params, peer.model_state), split.images)['logits']
  saved = evaluate.load(run / 'predictions' / 'teacher_test.npz')
  np.testing.assert_allclose(logits, saved.logits, rtol=1e-4, atol=1e-4)
  top1 = (saved.logits.argmax(-1) == saved.labels).mean()
  assert summary['teacher']['test']['top1'] == pytest.approx(top1)
  labels = [line.split('  ')[0] for line in table.splitlines()]
  assert {'peer', 'TL', 'TL+KD'} <= set(labels) and 'teacher' not in labels


def data_of(run) -> dict:
  config = json.loads((run / 'config.json').read_text())
  return {'data__cache_dir': config['data']['cache_dir']}


def test_evaluation_and_report_of_such_a_run(finished, tmp_path):
  workdir, _, _ = finished
  text = inference.evaluate_run(str(workdir), sharding.make_mesh(1))
  assert [line.split(' ')[0] for line in text.splitlines()[2:]] == (
    ['tl'] * 2 + ['kd'] * 2
  )
  page.write([workdir], tmp_path / 'report', replicates=20)
  told = (tmp_path / 'report' / 'report.md').read_text()
  assert 'peer' in told and 'Likeness to the teacher' in told


@pytest.mark.parametrize('loss', ['fitnet', 'crd'])
def test_learnable_parts_and_memories_of_both(loss, cache_dir, tmp_path):
  changes = settings(num_steps=2, eval_every_steps=2, log_every_steps=1)
  config = tiny.make_config('kd', cache_dir, loss=loss, **changes)
  summary = arms.run(config, tmp_path, sharding.make_mesh())['kd']
  assert summary['teacher']['test']['count'] == 40
  kept = arrays(tmp_path)
  assert any(name.startswith('params.projector.') for name in kept)
  assert any(name.startswith('params.peer.projector.') for name in kept)
  assert any(n.startswith('peer.memory.') for n in kept) == (loss == 'crd')
  for row in rows(tmp_path):
    assert np.isfinite([row['soft_loss'], row['peer_soft_loss']]).all()


@pytest.mark.parametrize('place', ['a step', 'the two best'])
def test_a_resumed_run_is_an_uninterrupted_one(
  place, uninterrupted, cache_dir, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    if place == 'a step':
      patch.setattr(train.StopRequest, 'requested', lambda self, n: n == 5)
    else:
      patch.setattr(train.Checkpoints, 'save_peer', interrupt)
    with pytest.raises(Interrupted):
      stateful(cache_dir, tmp_path)
  stateful(cache_dir, tmp_path)
  assert_same_run(uninterrupted, tmp_path)
  a, b = (arrays(run / 'peer', 'best') for run in (uninterrupted, tmp_path))
  assert a.keys() == b.keys() and len(a) > 10
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def interrupt(*_):
  raise Interrupted('between the best student and the best peer')


@pytest.fixture(scope='module')
def uninterrupted(cache_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  with tiny.registered():
    stateful(cache_dir, workdir)
  return workdir


def stateful(cache_dir, workdir):
  """All that such a state can hold; intervals that do not divide each other."""
  changes = MUTUAL | {
    'num_steps': 10,
    'log_every_steps': 3,
    'eval_every_steps': 4,
    'batch_norm': 'train',
    'ema_decay': 0.9,
    'student__drop_path': 0.2,
    'teacher__drop_path': 0.2,
    'optimizer__name': 'adamw',
    'optimizer__learning_rate': 3e-2,
  }
  config = tiny.make_config('kd', cache_dir, loss='kd+crd', **changes)
  arms.run(config, workdir, sharding.make_mesh())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'distillation__more_teachers': ('runs/a',)}, 'more_teachers'),
    ({'distillation__assistants': ('tiny',)}, 'assistants'),
    ({'distillation__generations': 2}, 'generations is 2.*accepted: 1'),
    ({'targets__mode': 'cached', 'targets__views': 2}, "mode is 'cached'.*onl"),
    ({'teacher__num_steps': 7}, 'teacher.num_steps is 7'),
    ({'distillation__hard_weight': 0.0}, 'hard_weight is 0'),
  ],
)
def test_what_needs_a_teacher_that_stays_is_refused(changes, message):
  from_config(tiny.make_config('kd', **changes))
  with pytest.raises(ValueError, match=f'{message}.*') as error:
    from_config(tiny.make_config('kd', **MUTUAL, **changes))
  assert 'distillation.mutual' in str(error.value)


@pytest.mark.parametrize('arm', ['kd', 'compare'])
def test_two_networks_that_start_alike_are_refused(
  arm, compare_run, cache_dir, tmp_path
):
  start = str(compare_run / 'tl')
  changes = MUTUAL | {
    'teacher__name': 'tiny',
    'teacher__checkpoint': start,
    'student__checkpoint': start,
  }
  config = tiny.make_config(arm, cache_dir, **changes)
  with pytest.raises(UserError, match='start as one network.*teacher.name'):
    arms.run(config, tmp_path, sharding.make_mesh())
  # Nothing that a better command would trip over.
  assert not list(tmp_path.iterdir())


def test_a_peer_may_start_from_a_finished_run(compare_run, cache_dir, tmp_path):
  config = tiny.make_config(
    'kd',
    cache_dir,
    **MUTUAL,
    teacher__checkpoint=str(compare_run / 'teacher'),
    num_steps=1,
    optimizer__warmup_fraction=0.0,
    optimizer__learning_rate=1e-6,
  )
  summary = arms.run(config, tmp_path, sharding.make_mesh())['kd']
  before = evaluate.load(compare_run / 'teacher' / 'predictions' / 'test.npz')
  after = evaluate.load(tmp_path / 'predictions' / 'teacher_test.npz')
  np.testing.assert_allclose(before.logits, after.logits, atol=1e-2)
  assert np.any(before.logits != after.logits)
  assert summary['mutual']
