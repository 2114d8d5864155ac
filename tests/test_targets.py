"""Stored teacher targets: the same training, without the teacher."""

import dataclasses
import itertools
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_bad_input import call_main
from tests.workdirs import arrays
from tlkd_jax import arms, losses
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import (
  decoding,
  features,
  guides,
  lessons,
  loop,
  networks,
  target_store,
  targets,
  views,
)
from tlkd_jax.training import run as run_parts
from tlkd_jax.training.metric_writers import read_rows
from tlkd_jax.training.objective import Objective, Term

pytestmark = [
  pytest.mark.usefixtures('tiny_models'),
  # How ml_collections 1.1.0 loads a file.
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
]

# 40 images, so that an epoch has 5 steps and the third repeats the first.
STEPS, VIEWS, BATCHES = 15, 2, 5
LEARNING_RATE = 1e-2
SETTINGS = {
  'num_steps': STEPS,
  'optimizer__learning_rate': LEARNING_RATE,
  'eval_every_steps': 10,
  'augment__crop': 'random_resized',
  'augment__brightness': 0.3,
  'targets__views': VIEWS,
  'distillation__soft_weight': 30.0,
}


class Counts:
  """How often the teacher was traced, and batches of targets computed."""

  def __init__(self):
    self.traced = 0
    self.computed = 0


@pytest.fixture
def counts(monkeypatch):
  made = Counts()
  speak, computed = guides.speak, targets._computed

  def count_speak(*args):
    made.traced += 1
    return speak(*args)

  def count_batches(*args):
    for item in computed(*args):
      made.computed += 1
      yield item

  monkeypatch.setattr(guides, 'speak', count_speak)
  # Or another test may have traced it.
  views.program.cache_clear()
  monkeypatch.setattr(targets, '_computed', count_batches)
  return made


@pytest.fixture
def messages(monkeypatch):
  lines = []
  log = types.SimpleNamespace(info=lambda text, *a: lines.append(text % a))
  monkeypatch.setattr(target_store, 'logging', log)
  return lines


@pytest.fixture(scope='module')
def start(cache_dir, compare_run):
  """Runs TL+KD in a new folder beside its targets; returns the workdir."""
  number = itertools.count()

  def call(mode: str, folder: pathlib.Path, workdir=None, **changes):
    workdir = workdir or folder / f'run{next(number)}'
    settings = {'teacher__checkpoint': str(compare_run / 'teacher')} | changes
    config = tiny.make_config(
      'kd',
      cache_dir,
      **(SETTINGS | settings),
      targets__mode=mode,
      targets__dir=str(folder / 'targets'),
    )
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop, 'finish', lambda *_: {})
      arms.run(config, workdir, sharding.make_mesh())
    return workdir

  return call


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('shared')


@pytest.fixture(scope='module')
def online(start, folder):
  with tiny.registered():
    return start('online', folder)


def losses_of(workdir) -> np.ndarray:
  return np.asarray(
    [r['loss'] for r in read_rows(workdir / 'metrics.jsonl') if 'loss' in r]
  )


def assert_same(left, right):
  for kind in ('latest', 'best'):
    a, b = arrays(left, kind), arrays(right, kind)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  np.testing.assert_array_equal(losses_of(left), losses_of(right))


def test_what_is_stored_is_what_the_losses_read():
  def stored(*names, **hyperparameters):
    terms = tuple(Term(name, float, hyperparameters) for name in names)
    return targets.outputs_read(Objective(terms=terms))

  assert stored('kd') == stored('kd', 'dkd') == ('logits',)
  assert stored('rkd') == stored('kd', 'srrl') == ('logits', 'pre_logits')
  for name in ('srrl', 'simkd'):
    assert stored(name, stages=None) == ('logits', 'pre_logits')


@pytest.mark.parametrize(
  ('name', 'stages'),
  [
    (name, stages)
    for name, loss in losses.LOSSES.items()
    for stages in (None, ('stage2',))
    if loss.guide != 'start'
    and (stages is None or 'stages' in losses.hyperparameters_of(name))
  ],
)
def test_no_loss_that_reads_maps_comes_so_far(name, stages):
  """Settings refuse it, alone and beside another."""
  options = losses.hyperparameters_of(name)
  options |= {'stages': stages} if 'stages' in options else {}
  other = 'kd' if name != 'kd' else 'logit_mse'
  for chosen in (
    {'distillation.loss': name, 'distillation.options': options},
    {
      'distillation.loss': other,
      f'distillation.extra.{name}': {'options': options},
    },
  ):
    values = {'targets.mode': 'cached', 'targets.views': 2} | chosen
    if losses.find(name).reads_of(options) == 'maps':
      with pytest.raises(ValueError, match=f"'{name}' compares feature maps"):
        with_values(Settings(), values)
      continue
    config = with_values(Settings(), values)
    objective = lessons.make_objective(config, None, guided=True)
    assert set(targets.outputs_read(objective)) <= {'logits', 'pre_logits'}


def test_float32_is_bitwise_online(start, online, folder, counts):
  cached = start('cached', folder, targets__dtype='float32')
  assert_same(online, cached)
  # Each view once, in the batches of the run; the step has no teacher in it.
  assert counts.computed == VIEWS * BATCHES and counts.traced == 1


def test_float16_to_its_precision(start, online, folder):
  """With other views the losses are much further away than that."""
  exact = losses_of(online)
  cached = losses_of(start('cached', folder, targets__dtype='float16'))
  other = losses_of(start('online', folder, targets__views=0))
  np.testing.assert_allclose(cached, exact, rtol=2.0**-11)
  assert not np.array_equal(cached, exact)
  assert np.abs(other - exact).max() > 20 * np.abs(cached - exact).max()


def test_runs_share_targets(start, folder, counts, messages):
  """Other weights of the losses: no teacher, neither traced nor run."""
  start('cached', folder)
  messages.clear()
  counts.computed = counts.traced = 0
  start('cached', folder, optimizer__learning_rate=3e-3)
  assert counts.computed == counts.traced == 0
  assert sum('are used' in line for line in messages) == 1


def test_a_run_of_fewer_epochs_computes_fewer_views(
  start, tmp_path, counts, messages
):
  start('cached', tmp_path, num_steps=4)
  assert counts.computed == BATCHES
  start('cached', tmp_path, num_steps=7)
  assert counts.computed == 2 * BATCHES
  text = '\n'.join(messages)
  assert '40 of 40 are computed' in text and '40 of 80 are computed' in text


def test_step_with_targets_holds_no_teacher(start, folder, monkeypatch):
  """Of the teacher the last layer is an argument, and nothing is computed."""
  seen = []

  def stop(run, state, progress, checkpoints, batches, *_):
    batch = sharding.shard_batch(next(batches), run.mesh)
    seen.append((run.step, state, run_parts.make_constants(run), batch))
    raise Interrupted('seen')

  monkeypatch.setattr(loop, '_steps', stop)
  flops = {}
  for mode in ('cached', 'online'):
    with pytest.raises(Interrupted):
      start(mode, folder)
    step, *arguments = seen.pop()
    leaves = len(jax.tree.leaves(arguments[1]['guides']))
    assert leaves == 2 if mode == 'cached' else leaves > 10
    flops[mode] = step.lower(*arguments).cost_analysis()['flops']
  assert flops['cached'] < 0.9 * flops['online']


def test_losses_on_embeddings_of_several_teachers(start, tmp_path, compare_run):
  """One set of targets each; the second teacher is of another model."""
  start(
    'cached',
    tmp_path,
    distillation__loss='pkt',
    distillation__ensemble='losses',
    distillation__more_teachers=(str(compare_run / 'tl'),),
    num_steps=2,
  )
  sets = list((tmp_path / 'targets').glob('*/fingerprint.json'))
  names = {json.loads(path.read_text())['teacher'] for path in sets}
  assert len(sets) == 2 and names == {'tiny', 'tiny_teacher'}
  for path in sets:
    assert np.load(path.with_name('view0.npy'))['pre_logits'].std() > 0


@pytest.fixture(scope='module')
def fingerprint(cache_dir, compare_run):
  """(**changes) -> what is said of the targets of such a run."""
  mesh = sharding.make_mesh()

  def call(**changes):
    settings = {'teacher__checkpoint': str(compare_run / 'teacher')} | changes
    settings = SETTINGS | {'targets__mode': 'cached'} | settings
    config = tiny.make_config('kd', cache_dir, **settings)
    dataset = decoding.load_dataset(config)
    teachers = networks.load_teachers(config, dataset.class_names)
    (teacher,) = teachers.values()
    (recipe,) = targets.recipes(
      config,
      lessons.make_objective(config, dataset, guided=True),
      {name: teacher.network for name, teacher in teachers.items()},
      dataset,
    ).values()
    assert recipe.root == compare_run / 'teacher' / 'targets'
    variables = run_parts.constants(teacher, dataset.splits['train'])
    return json.loads(json.dumps(recipe.fingerprint(variables, mesh)))

  return call


@pytest.fixture(scope='module')
def unchanged(fingerprint):
  with tiny.registered():
    return fingerprint()


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    ({'augment__brightness': 0.2}, 'augmentation'),
    ({'augment__randaugment_ops': 1}, 'augmentation'),
    ({'augment__flip': 'on'}, 'augmentation'),
    ({'seed': 1}, 'augmentation'),
    ({'num_train_per_class': 3}, 'data'),
    ({'teacher__interpolation': 'bilinear'}, 'data'),
    ({'teacher__crop': 0.5}, 'data'),
    ({'batch_size': 20}, 'batches'),
    ({'compute_dtype': 'bfloat16'}, 'preprocessing'),
    ({'teacher__image_size': 24}, 'preprocessing'),
    ({'distillation__loss': 'pkt'}, 'stored'),
    ({'targets__dtype': 'float32'}, 'stored'),
    ({'targets__top_k': 3}, 'stored'),
  ],
)
def test_fingerprint_names_what_changed(change, named, fingerprint, unchanged):
  changed = fingerprint(**change)
  assert named in [key for key in unchanged if unchanged[key] != changed[key]]


def test_fingerprint_is_that_of_the_run_also_after_another(
  fingerprint, unchanged
):
  assert fingerprint(seed=1) != unchanged
  assert fingerprint() == unchanged


def test_another_teacher_of_the_same_kind(start, folder, messages):
  """Other weights: computed anew although all else agrees."""
  start('cached', folder, num_steps=1, targets__dtype='float32')
  load = networks.load_teachers

  def changed(*args):
    loaded = load(*args)['teacher']
    params = jax.tree.map(lambda x: x * 1.5, loaded.params)
    return {'teacher': dataclasses.replace(loaded, params=params)}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(networks, 'load_teachers', changed)
    cached = start('cached', folder, num_steps=3, targets__dtype='float32')
    assert_same(start('online', folder, num_steps=3), cached)
  assert any('differ in teacher weights' in line for line in messages)


def test_weights_decide_the_digest():
  """Values, shapes, names, and which are parameters."""
  ones = np.ones((2, 3), np.float32)
  trees = [
    {'params': {'a': {'kernel': ones}}},
    {'params': {'a': {'kernel': ones.reshape(3, 2)}}},
    {'params': {'a': {'scale': ones}}},
    {'params': {'a': {'kernel': np.nextafter(ones, 2)}}},
    {'params': {}, 'model_state': {'a': {'kernel': ones}}},
    {'params': {'a': {'kernel': ones}}, 'folds': {'bias': ones}},
  ]
  assert len({features.digest(variables) for variables in trees}) == 6
  assert features.digest(trees[0]) == features.digest(
    {'params': {'a': {'kernel': ones.copy()}}}
  )


def test_resumed_run_is_the_uninterrupted_one(start, folder, tmp_path):
  whole = start('cached', folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.StopRequest, 'requested', lambda self, step: step == 7)
    with pytest.raises(Interrupted):
      start('cached', folder, tmp_path)
  assert arrays(tmp_path)['step'] == 7
  start('cached', folder, tmp_path)
  assert_same(whole, tmp_path)


def test_killed_fill_goes_on(start, online, tmp_path, counts, monkeypatch):
  """All but the last batch before the kill are kept."""
  write, done = targets.Store.write, []

  def killed(self, view, start, rows):
    write(self, view, start, rows)
    done.append(view)
    if len(done) == BATCHES + 3:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(targets.Store, 'write', killed)
    with pytest.raises(KeyboardInterrupt):
      start('cached', tmp_path, targets__dtype='float32')
  counts.computed = 0
  cached = start('cached', tmp_path, targets__dtype='float32')
  assert counts.computed == BATCHES - 2
  assert_same(online, cached)


def test_a_mistake_is_named_before_the_data_are_opened(
  tmp_path, monkeypatch, capsys
):
  arguments = tiny.arguments(
    'compare', tmp_path / 'none', targets__mode='cached', targets__views=2
  )
  code = call_main(
    monkeypatch,
    *arguments,
    '--config.distillation.loss=fitnet',
    f'--workdir={tmp_path / "run"}',
  )
  assert code == 2
  assert "'fitnet' compares feature maps" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
