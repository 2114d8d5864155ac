"""What a finished run is to another: its end, its classes and their order."""

import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import change_description
from tlkd_jax import evaluating
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.training import checkpoints, finished, networks

pytestmark = pytest.mark.usefixtures('tiny_models')

DIGITS = tuple(str(k) for k in range(10))


@pytest.fixture
def run(compare_run, tmp_path):
  """A copy of a finished TL+KD run that may be changed."""
  shutil.copytree(compare_run / 'kd', tmp_path / 'kd')
  return tmp_path / 'kd'


def test_a_run_with_a_summary_is_finished(run):
  assert finished.unfinished(run) is None
  finished.check_finished(str(run))


@pytest.mark.parametrize('place', ['', 'peer'])
def test_a_run_that_was_stopped_is_not_finished(place, run):
  """Nor is another network of it."""
  shutil.copytree(run / 'checkpoints', run / 'peer' / 'checkpoints')
  (run / 'summary.json').unlink()
  best = checkpoints.read_description(run).step
  reason = finished.unfinished(run / place)
  assert f'the best so far is step {best} of 6' in reason
  with pytest.raises(ValueError, match='stopped before its end'):
    finished.check_finished(str(run / place))


def test_a_checkpoint_alone_is_not_judged(run, tmp_path):
  shutil.copytree(run / 'checkpoints', tmp_path / 'alone' / 'checkpoints')
  assert finished.unfinished(tmp_path / 'alone') is None


USES = [
  ('kd', 'teacher.checkpoint'),
  ('kd', 'distillation.more_teachers'),
  ('tl', 'student.checkpoint'),
]


@pytest.mark.parametrize(('arm', 'key'), USES)
def test_a_run_that_was_stopped_neither_teaches_nor_starts(arm, key, run):
  (run / 'summary.json').unlink()
  value = (str(run),) if key.endswith('more_teachers') else str(run)
  changes = {key.replace('.', '__'): value, 'teacher__name': 'tiny'}
  settings = tiny.make_config(arm, **changes)
  load = networks.load_teachers if arm == 'kd' else networks.load_learners
  with pytest.raises(ValueError, match='stopped before its end: the best so f'):
    load(settings, list(DIGITS))
  (run / 'summary.json').write_text('{}')
  assert load(settings, list(DIGITS))


def describe(class_names):
  return types.SimpleNamespace(class_names=tuple(class_names))


@pytest.mark.parametrize(
  ('theirs', 'ours', 'order'),
  [
    ('abc', 'abc', None),
    ('bca', 'abc', [2, 0, 1]),
    ('ba', 'ab', [1, 0]),
    (DIGITS, DIGITS[::-1], list(range(9, -1, -1))),
    # As numbers and as texts.
    (DIGITS + ('10',), sorted((*DIGITS, '10')), [0, 1, 10, *range(2, 10)]),
  ],
)
def test_the_order_of_the_classes(theirs, ours, order, monkeypatch):
  lines = []
  log = types.SimpleNamespace(info=lambda text, *a: lines.append(text % a))
  monkeypatch.setattr(finished, 'logging', log)
  found = finished.class_order('runs/t', describe(theirs), list(ours))
  if order is None:
    assert found is None and not lines
    return
  (line,) = lines
  assert found.tolist() == order
  assert [theirs[k] for k in order] == list(ours)
  assert line.startswith('runs/t has the classes') and 'another order' in line


@pytest.mark.parametrize(
  ('theirs', 'ours', 'message'),
  [
    ('abc', 'abd', 'on 3 .* has 3; only in the checkpoint: c; .*data: d'),
    ('abc', 'ab', 'on 3 classes, the data has 2; only in the checkpoint: c'),
    ('ab', 'abc', 'on 2 classes, the data has 3; only in the data: c'),
    ('ab', 'AB', 'only in the checkpoint: a, b; only in the data: A, B'),
  ],
)
def test_other_classes(theirs, ours, message):
  with pytest.raises(ValueError, match=message):
    finished.class_order('runs/t', describe(theirs), list(ours))


def test_evaluation_matches_classes_by_name(run):
  """As if the run had been on data whose classes stand in another order."""
  before = evaluate.load(run / 'predictions' / 'test.npz')
  change_description(run, class_names=list(DIGITS[::-1]))
  evaluating.evaluate_run(str(run), sharding.make_mesh())
  after = evaluate.load(run / 'predictions' / 'test.npz')
  np.testing.assert_array_equal(after.logits, before.logits[:, ::-1])
  np.testing.assert_array_equal(after.labels, before.labels)


@pytest.mark.parametrize(('arm', 'key'), USES)
def test_teachers_and_starts_have_the_order_of_the_data(arm, key, run):
  value = (str(run),) if key.endswith('more_teachers') else str(run)
  changes = {key.replace('.', '__'): value, 'teacher__name': 'tiny'}
  settings = tiny.make_config(arm, **changes)
  load = networks.load_teachers if arm == 'kd' else networks.load_learners
  (own,) = load(settings, list(DIGITS)).values()
  (mapped,) = load(settings, list(DIGITS[::-1])).values()
  head, other = (dict(x.params).pop('head') for x in (own, mapped))
  for name in ('kernel', 'bias'):
    np.testing.assert_array_equal(other[name], head[name][..., ::-1])
  rest = (
    {k: v for k, v in x.params.items() if k != 'head'} for x in (own, mapped)
  )
  jax.tree.map(np.testing.assert_array_equal, *rest)


def test_every_head_has_the_order_of_the_data(monkeypatch):
  head = {'kernel': np.arange(6.0).reshape(2, 3), 'bias': np.arange(3.0)}
  params = {'stem': np.arange(3.0), 'head': head, 'deep': {'head2': head}}
  restored = {'params': params, 'model_state': {}}
  monkeypatch.setattr(checkpoints, 'read_model', lambda *_: restored)
  spec = types.SimpleNamespace(head=('head', 'deep.head2'))
  model = types.SimpleNamespace(
    spec=spec, params_shape=params, model_state_shape={}
  )
  found, _ = finished._read('run', model, np.array([2, 0, 1]))
  for place in (found['head'], found['deep']['head2']):
    assert place['bias'].tolist() == [2, 0, 1]
    assert place['kernel'].tolist() == [[2, 0, 1], [5, 3, 4]]
  assert found['stem'].tolist() == [0, 1, 2]
  assert params['head']['bias'].tolist() == [0, 1, 2]


def test_the_runs_below_a_folder_are_named(compare_run):
  with pytest.raises(FileNotFoundError, match='no checkpoint') as error:
    checkpoints.read_description(compare_run)
  for name in ('kd', 'teacher', 'tl'):
    assert str(pathlib.Path(compare_run) / name) in str(error.value)
