"""Mutual learning: each network is the other's teacher, and learns like it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.marks import slow
from tests.test_methods import rows
from tests.test_resume import assert_same_run
from tests.test_train_step import (
  CLASSES,
  assert_trees_close,
  constants_of,
  make_batch,
  make_lessons_step,
  variables,
)
from tests.workdirs import arrays
from tlkd_jax import arms, evaluating, models, protocols
from tlkd_jax.data import Dataset, Split
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models import create_model
from tlkd_jax.models.families import inverted
from tlkd_jax.models.families.inverted import Row
from tlkd_jax.models.network import Network, make_eval_step
from tlkd_jax.report import closing, page
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import (
  checkpoints,
  decoding,
  lessons,
  loop,
  networks,
  optimizers,
  run,
)
from tlkd_jax.training.finished import restore
from tlkd_jax.training.state import Beginning, create
from tlkd_jax.training.step import Lesson

pytestmark = pytest.mark.usefixtures('tiny_models')
MUTUAL = {'distillation__mutual': True}
# Path of tests/workdirs.arrays -> of a model's flat parameters.
_PEERS = 'learners.peer.params.weights.'


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


def lessons_between(config, both, names, schedule, averaged=()):
  """(lessons, beginnings) of some of two networks, each taught by the other."""
  other = {'student': 'peer', 'peer': 'student'}
  total = lessons.make_objective(config, examples(), guided=True)
  learned, begun = {}, {}
  for name in names:
    guide = other[name]
    optimizer = optimizers.make_optimizer(
      both[name].model, schedule, config.optimizer
    )
    learned[name] = Lesson(both[name], total, optimizer, (guide,))
    extras = lessons.make_extras(
      total, both[name], (both[guide],), examples(), 0
    )
    params, model_state = variables(both[name], SEEDS[name])
    params = {'weights': params, 'projector': extras['projector']}
    begun[name] = Beginning(
      params, model_state, extras['memory'], averaged=name in averaged
    )
  return learned, begun


def make_step(loss='kd', dropout=0.0, mutual=False, learner='student', **given):
  """(step, state, constants); if `mutual` the other one learns too."""
  both = views(dropout)
  config = tiny.make_config(
    'kd',
    loss=loss,
    # Groups of parameters, which each network has by its own stages and head.
    optimizer__layer_decay=0.7,
    optimizer__head_multiplier=3.0,
    **given,
  )
  schedule = optimizers.learning_rate_schedule(0.05, 10, 0.0, 0.0)
  names = tuple(both) if mutual else (learner,)
  learned, begun = lessons_between(config, both, names, schedule)
  mesh = sharding.make_mesh(1)
  frozen = {name: both[name] for name in both if name not in names}
  step = make_lessons_step(
    learned, frozen, schedule, mesh, **vars(run.make_mode(config))
  )
  state = create(begun, {name: it.optimizer for name, it in learned.items()})
  constants = constants_of(
    mesh,
    rows=lessons.rows(learned, examples()),
    **{name: variables(both[name], SEEDS[name]) for name in frozen},
  )
  state = sharding.replicate(state, mesh)
  # Owned by the step, which donates it.
  state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
  return step, state, constants


@functools.cache
def one_update(**given):
  """(learners after it, metrics), which nobody changes."""
  step, state, constants = make_step(**given)
  state, metrics = jax.device_get(step(state, constants, make_batch()))
  return state.learners, metrics


def largest_move(before, after) -> float:
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
  return max(jax.tree.leaves(moved))


@pytest.mark.parametrize('loss', ['crd', *slow('kd', 'fitnet')])
def test_an_update_is_that_of_two_ordinary_students(loss):
  """Each under a teacher with the other's weights; frozen BatchNorm."""
  both, metrics = one_update(loss=loss, mutual=True)
  for name, prefix in (('student', ''), ('peer', 'peer_')):
    alone, own = one_update(loss=loss, learner=name)
    assert_trees_close(both[name].params, alone[name].params, 1e-6)
    assert_trees_close(both[name].memory, alone[name].memory, 1e-6)
    assert bool(jax.tree.leaves(both[name].memory)) == (loss == 'crd')
    start = variables(views()[name], SEEDS[name])[0]
    assert largest_move(start, alone[name].params['weights']) > 1e-3
    for metric in (
      *('loss', 'hard_loss', 'soft_loss', 'accuracy', 'gradient_norm'),
      'teacher_accuracy',
    ):
      assert metrics[prefix + metric] == pytest.approx(own[metric], rel=1e-4)
    # Each is clipped by its own norm.
    assert own['gradient_norm'] > 1
  assert metrics['teacher_accuracy'] == pytest.approx(metrics['peer_accuracy'])
  assert metrics['soft_loss'] > 1e-3 and metrics['peer_soft_loss'] > 1e-3


def test_the_peer_guides_in_training_mode():
  """Its dropout moves the student's target, and nothing else of it."""
  _, noisy = one_update(mutual=True, dropout=0.5)
  _, clean = one_update(mutual=True)
  assert noisy['hard_loss'] == pytest.approx(clean['hard_loss'], abs=1e-6)
  for name in ('peer_hard_loss', 'soft_loss'):
    assert abs(noisy[name] - clean[name]) > 1e-2


def test_batch_statistics_of_both_are_learned():
  both, _ = one_update(mutual=True, batch_norm='train')
  for name in ('student', 'peer'):
    alone, _ = one_update(learner=name, batch_norm='train')
    assert_trees_close(both[name].model_state, alone[name].model_state, 1e-6)
    start = variables(views()[name], SEEDS[name])[1]
    assert largest_move(start, both[name].model_state) > 1e-3


def test_two_half_batches_are_one_batch():
  whole, _ = one_update(mutual=True)
  step, state, constants = make_step(mutual=True, optimizer__accumulate_steps=2)
  params = {name: it.params for name, it in state.learners.items()}
  start = jax.device_get(params)
  for half in (slice(0, 4), slice(4, 8)):
    params = {name: it.params for name, it in state.learners.items()}
    assert_trees_close(jax.device_get(params), start, 0)
    batch = {key: value[half] for key, value in make_batch().items()}
    state, _ = step(state, constants, batch)
  for name, learner in jax.device_get(state.learners).items():
    assert_trees_close(learner.params, whole[name].params, 1e-6)


def test_a_linear_probe_of_both():
  both, metrics = one_update(mutual=True, optimizer__train_only='head')
  for name, learner in both.items():
    start = flatten(variables(views()[name], SEEDS[name])[0])
    after = flatten(learner.params['weights'])
    moved = {path for path in start if np.any(start[path] != after[path])}
    assert moved == {'head.kernel', 'head.bias'}
  _, whole = one_update(mutual=True)
  for metric in ('gradient_norm', 'peer_gradient_norm'):
    assert metrics[metric] < whole[metric]


def test_three_networks_teach_each_other():
  """Nothing in the step knows that there are two."""
  view, schedule = views()['student'], lambda step: 0.05
  config = tiny.make_config('kd')
  total = lessons.make_objective(config, examples(), guided=True)
  optimizer = optimizers.make_optimizer(view.model, schedule, config.optimizer)
  names = ('a', 'b', 'c')
  learned = {
    name: Lesson(view, total, optimizer, tuple(n for n in names if n != name))
    for name in names
  }
  begun = {}
  for seed, name in enumerate(names):
    params, model_state = variables(view, seed)
    params = {'weights': params, 'projector': {}}
    begun[name] = Beginning(params, model_state, {})
  mesh = sharding.make_mesh(1)
  step = make_lessons_step(learned, {}, schedule, mesh)
  state = create(begun, dict.fromkeys(names, optimizer))
  _, metrics = step(state, constants_of(mesh), make_batch())
  assert {'soft_loss', 'b_soft_loss', 'c_soft_loss'} <= metrics.keys()
  assert len({float(metrics[f'{n}soft_loss']) for n in ('', 'b_', 'c_')}) == 3


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
  dataset, mesh = decoding.load_dataset(config), sharding.make_mesh(1)
  made = run.set_up(config, tmp_path, dataset, mesh)

  def moves(name):
    optimizer = made.lessons[name].optimizer
    params = {'weights': made.learners[name].params, 'projector': {}}
    ones = jax.tree.map(jnp.ones_like, params)
    changes, _ = optimizer.update(ones, optimizer.init(params), params)
    return flatten(changes['weights'])

  theirs = moves('peer')
  expected = {'head': 3.0, 'neck': 0.5, 'blocks.0': 0.5**4, 'stem': 0.5**5}
  for prefix, factor in expected.items():
    found = {float(-v.max()) for k, v in theirs.items() if k.startswith(prefix)}
    assert found == {factor}
  own = moves('student')
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
    folders = protocols.folders(config, workdir)
    return workdir, summaries, closing.table(summaries, folders)


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
  folder, summary = workdir / 'kd', summaries['kd']
  description = checkpoints.read_description(folder / 'peer')
  assert description.model == 'tiny_teacher'
  assert description.step == summary['best_step']
  peer = restore(str(folder / 'peer'), description)
  own = decoding.load_dataset(tiny.make_config('kd', **data_of(folder)))
  start = networks.load(
    tiny.make_config('kd', **MUTUAL, **data_of(folder)), 'peer', own.class_names
  )
  assert largest_move(start.params, peer.params) > 1e-3
  if summary['best_step'] == 20:
    kept = {k: v for k, v in arrays(folder).items() if k.startswith(_PEERS)}
    assert len(kept) == len(flatten(peer.params))
    for name, value in flatten(peer.params).items():
      np.testing.assert_array_equal(kept[_PEERS + name], value)
  split = own.splits['test']
  eval_step = make_eval_step(peer.network, sharding.make_mesh(1))
  logits = eval_step((peer.params, peer.model_state), split.images)['logits']
  saved = evaluate.load(folder / 'predictions' / 'teacher_test.npz')
  np.testing.assert_allclose(logits, saved.logits, rtol=1e-4, atol=1e-4)
  top1 = (saved.logits.argmax(-1) == saved.labels).mean()
  assert summary['teacher']['test']['top1'] == pytest.approx(top1)
  labels = [line.split('  ')[0] for line in table.splitlines()]
  assert {'peer', 'TL', 'TL+KD'} <= set(labels) and 'teacher' not in labels


def data_of(folder) -> dict:
  config = json.loads((folder / 'config.json').read_text())
  return {'data__cache_dir': config['data']['cache_dir']}


def test_evaluation_and_report_of_such_a_run(finished, tmp_path):
  workdir, _, _ = finished
  text = evaluating.evaluate_run(str(workdir), sharding.make_mesh(1))
  assert [line.split(' ')[0] for line in text.splitlines()[2:]] == (
    ['tl'] * 2 + ['kd'] * 2
  )
  page.write([workdir], tmp_path / 'report', replicates=20)
  told = (tmp_path / 'report' / 'report.md').read_text()
  assert 'peer' in told and 'Likeness to the teacher' in told


def test_learnable_parts_and_memories_of_both(uninterrupted):
  summary = json.loads((uninterrupted / 'summary.json').read_text())
  assert summary['teacher']['test']['count'] == 40
  kept = arrays(uninterrupted)
  for name in ('student', 'peer'):
    for part in (
      'params.projector.fitnet.',
      'params.projector.crd.',
      'memory.',
    ):
      prefix = f'learners.{name}.{part}'
      assert any(key.startswith(prefix) for key in kept), prefix
  for row in rows(uninterrupted):
    for name in ('soft_loss', 'fitnet_loss', 'crd_loss'):
      assert np.isfinite([row[name], row[f'peer_{name}']]).all()


@pytest.mark.parametrize('place', ['the two best', *slow('a step')])
def test_a_resumed_run_is_an_uninterrupted_one(
  place, stateful, uninterrupted, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    if place == 'a step':
      patch.setattr(loop.StopRequest, 'requested', lambda self, n: n == 5)
    else:
      save = loop.Checkpoints.save_best

      def interrupt(self, model, description, other=''):
        if other:
          raise Interrupted('between the best student and the best peer')
        save(self, model, description, other)

      patch.setattr(loop.Checkpoints, 'save_best', interrupt)
    with pytest.raises(Interrupted):
      stateful(tmp_path)
  stateful(tmp_path)
  assert_same_run(uninterrupted, tmp_path)
  a, b = (arrays(run / 'peer', 'best') for run in (uninterrupted, tmp_path))
  assert a.keys() == b.keys() and len(a) > 10
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope='module')
def uninterrupted(stateful, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  with tiny.registered():
    stateful(workdir)
  return workdir


@pytest.fixture(scope='module')
def stateful(cache_dir):
  """Runs with all that such a state can hold; odd intervals."""
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
  config = tiny.make_config('kd', cache_dir, loss='kd+fitnet+crd', **changes)

  def run(workdir):
    arms.run(config, workdir, sharding.make_mesh())

  return run


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
