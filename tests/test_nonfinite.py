"""Numbers that are not finite are named, or left out without a trace."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import RunError, UserError
from tlkd_jax.training import decoding, loop, nonfinite, run
from tlkd_jax.training.metric_writers import read_rows
from tlkd_jax.training.state import Learner, State

NAN, INF = float('nan'), float('inf')


def made_up(params, statistics=0.0, **metrics):
  """A step of a network of one number, and the state before it."""

  def step(state, constants, batch):
    old = state.learners['student']
    new = Learner(
      {'weights': jnp.float32(params)},
      {'mean': jnp.float32(statistics)},
      {'count': old.opt_state['count'] + 1},
      {'bank': jnp.float32(statistics)},
      {},
    )
    values = {'loss': 1.0, 'gradient_norm': 1.0, 'accuracy': NAN} | metrics
    found = {name: jnp.float32(value) for name, value in values.items()}
    return State(state.step + 1, {'student': new}), found

  before = Learner(
    {'weights': jnp.float32(1.0)},
    {'mean': jnp.float32(1.0)},
    {'count': jnp.int32(7)},
    {'bank': jnp.float32(1.0)},
    {},
  )
  return step, State(jnp.int32(3), {'student': before})


@pytest.mark.parametrize(
  ('params', 'metrics', 'good'),
  [
    (2.0, {}, True),
    (2.0, {'loss': NAN}, False),
    (2.0, {'loss': -INF}, False),
    (2.0, {'gradient_norm': INF}, False),
    (2.0, {'hard_loss': NAN}, False),
    (2.0, {'peer_loss': NAN}, False),
    (2.0, {'peer_gradient_norm': NAN}, False),
    (NAN, {}, False),
    (INF, {}, False),
  ],
)
def test_a_step_that_is_left_out_changes_its_number_alone(
  params, metrics, good
):
  step, state = made_up(params, statistics=5.0, **metrics)
  before = jax.device_get(state.learners)
  batch = {'label': np.zeros(1, np.int32)}
  mesh = sharding.make_mesh(1)
  after, found = nonfinite.skipping(step, mesh)(state, {}, batch)
  assert int(after.step) == 4 and float(found['skipped']) == (not good)
  learner = jax.device_get(after.learners)['student']
  if good:
    assert float(learner.params['weights']) == params
    assert float(learner.model_state['mean']) == 5.0
    assert int(learner.opt_state['count']) == 8
  else:
    assert jax.tree.all(
      jax.tree.map(np.array_equal, learner, before['student'])
    )


ROW = {
  'loss': 1.0,
  'hard_loss': 1.0,
  'soft_loss': 1.0,
  'at_loss': 1.0,
  'gradient_norm': 1.0,
}


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ({}, ''),
    ({'hard_loss': NAN, 'loss': NAN}, 'the loss is nan .*logits of the stud'),
    ({'loss': NAN, 'soft_loss': NAN}, ': soft_loss is not finite'),
    ({'loss': INF, 'at_loss': INF}, 'is inf .*at_loss is not .*the guides'),
    ({'loss': INF, 'soft_loss': INF, 'at_loss': NAN}, 'soft_loss, at_loss'),
    ({'gradient_norm': NAN}, 'every loss is finite, the gradient is not'),
    ({'loss': INF}, 'every term is finite, their weighted sum is not'),
    ({'skipped': 1.0}, 'weights are not finite after the update'),
    ({'skipped': 0.0}, ''),
    ({'peer_loss': NAN, 'peer_hard_loss': NAN}, 'loss of the peer is nan'),
    ({'peer_loss': NAN, 'peer_soft_loss': NAN}, ': soft_loss is not finite'),
  ],
)
def test_the_culprit(values, said):
  row = ROW | {f'peer_{k}': v for k, v in ROW.items()} | values
  found = nonfinite.find(row, {'student': '', 'peer': 'peer_'})
  assert re.search(said, found) and bool(found) == bool(said)


@pytest.fixture
def poisoned(monkeypatch):
  """The steps of these numbers have a loss that is not finite."""
  steps: set[int] = set()
  make_step = run.shared_step

  def make(*arguments):
    step = make_step(*arguments)

    def call(state, constants, batch):
      number = state.step + 1
      bad = jnp.isin(number, jnp.asarray(sorted(steps), jnp.int32))
      after, metrics = step(state, constants, batch)
      spoil = jnp.where(bad, NAN, 0.0)
      learners = {
        name: dataclasses.replace(
          learner,
          params=jax.tree.map(lambda x: x + spoil, learner.params),
          model_state=jax.tree.map(lambda x: x + spoil, learner.model_state),
        )
        for name, learner in after.learners.items()
      }
      metrics = metrics | {
        name: metrics[name] + spoil for name in ('loss', 'hard_loss')
      }
      return State(after.step, learners), metrics

    return jax.jit(call, donate_argnums=0)

  monkeypatch.setattr(run, 'shared_step', make)
  return steps


def fine_tune(cache_dir, workdir, **changes):
  given = {
    'num_steps': 8,
    'log_every_steps': 2,
    'eval_every_steps': 4,
    'on_nonfinite': 'skip',
    'batch_norm': 'train',
  }
  config = tiny.make_config('tl', cache_dir, **given | changes)
  dataset = decoding.load_dataset(config)
  return loop.fine_tune(config, workdir, dataset, sharding.make_mesh(1))


def test_single_steps_are_left_out(
  poisoned, cache_dir, tiny_models, tmp_path, caplog
):
  poisoned |= {3, 5, 6}
  summary = fine_tune(cache_dir, tmp_path / 'a', most_nonfinite=3)
  assert summary['skipped_steps'] == 3
  assert 'at step 3, learning rate' in caplog.text
  assert 'the step is left out, 3 so far' in caplog.text
  rows = read_rows(tmp_path / 'a' / 'metrics.jsonl')
  found = [row['skipped_steps'] for row in rows if row['split'] == 'train']
  assert found == [0.0, 1.0, 3.0, 3.0]
  assert all(np.isfinite(row.get('loss', 0.0)) for row in rows)
  for name, value in arrays(tmp_path / 'a').items():
    assert np.isfinite(value).all(), name
  with pytest.raises(
    RunError, match=r'more than 2 steps .*most_nonfinite'
  ) as e:
    fine_tune(cache_dir, tmp_path / 'b', most_nonfinite=2)
  assert 'step 6' in str(e.value)
  assert 'last good checkpoint: step 4 in' in str(e.value)
  # It goes on from there, and comes to the same.
  poisoned.clear()
  stopped = json.loads(
    next(
      (tmp_path / 'b').glob('checkpoints/latest/4/record/metadata')
    ).read_text()
  )
  assert stopped['skipped'] == 1


def test_without_a_bad_step_it_is_the_run_that_it_was(
  compare_run, cache_dir, tiny_models, tmp_path
):
  config = tiny.make_config('tl', cache_dir, on_nonfinite='skip')
  dataset = decoding.load_dataset(config)
  loop.fine_tune(config, tmp_path, dataset, sharding.make_mesh())
  left, right = arrays(compare_run / 'tl'), arrays(tmp_path)
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_allclose(left[name], right[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize('place', ['weights', 'std', 'mean'])
def test_a_network_that_cannot_be_finite_is_refused(
  place, cache_dir, tiny_models, tmp_path, monkeypatch
):
  load = run.networks.load_learners

  def spoil_one(array):
    array = np.array(array)
    array.flat[0] = NAN
    return array

  def spoilt(*arguments):
    found = load(*arguments)
    student = found['student']
    if place == 'weights':
      params = jax.tree.map(spoil_one, student.params)
      return {'student': dataclasses.replace(student, params=params)}
    model = student.network.model
    value = (0.0, 1.0, 1.0) if place == 'std' else (NAN, 0.0, 0.0)
    spec = dataclasses.replace(model.spec, **{place: value})
    model = dataclasses.replace(model, spec=spec)
    network = dataclasses.replace(student.network, model=model)
    return {'student': dataclasses.replace(student, network=network)}

  monkeypatch.setattr(run.networks, 'load_learners', spoilt)
  said = 'begins with 1 of' if place == 'weights' else 'normalises'
  with pytest.raises(UserError, match=f'the student {said}.*not finite'):
    fine_tune(cache_dir, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
