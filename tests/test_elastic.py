"""A run that goes on on another number of devices is the run that did not."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays, saved_step
from tlkd_jax import arms
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.training import loop
from tlkd_jax.training.metric_writers import read_rows
from tlkd_jax.training.summary import SPLITS

pytestmark = pytest.mark.usefixtures('tiny_models')

STEPS = 8
# Dropout, statistics of the global batch, random crops, moments, an average.
STATEFUL = {
  'num_steps': STEPS,
  'log_every_steps': 1,
  'eval_every_steps': STEPS,
  'batch_norm': 'train',
  'augment__crop': 'random_resized',
  'ema_decay': 0.9,
  'student__drop_path': 0.2,
  'optimizer__name': 'adamw',
  'memory_check': False,
}
# Sums over images, and the norm over parts of a gradient, are in another order:
# relative to a loss, to a logit and to the largest weight of an array.
BOUND = 1e-5


def go_on(config, workdir, devices, until, monkeypatch) -> list[dict]:
  """Runs up to a step on so many devices; says of each step what it was of."""
  seen = []
  set_up = loop.set_up

  def spied(*arguments):
    run = set_up(*arguments)

    def step(state, constants, batch):
      opt_state = jax.tree.leaves(state.learners['student'].opt_state)
      parts = [
        x.size // max(1, x.addressable_shards[0].data.size) for x in opt_state
      ]
      row = {k: np.asarray(batch[k]).tolist() for k in ('index', 'view')}
      seen.append(row | {'number': int(state.step), 'parts': max(parts)})
      return run.step(state, constants, batch)

    return dataclasses.replace(run, step=step)

  with monkeypatch.context() as patch:
    patch.setattr(sharding, '_LEAST', 1)
    patch.setattr(loop, 'set_up', spied)
    patch.setattr(
      loop.StopRequest, 'requested', lambda self, step: step == until < STEPS
    )
    mesh = sharding.make_mesh(devices)
    if until < STEPS:
      with pytest.raises(Interrupted, match='resume with the same command'):
        arms.run(config, workdir, mesh)
    else:
      arms.run(config, workdir, mesh)
  return seen


@pytest.fixture(scope='module')
def alone(cache_dir, tmp_path_factory):
  """A run on one device that was not interrupted, and what its steps saw."""
  workdir = tmp_path_factory.mktemp('alone')
  with tiny.registered(), pytest.MonkeyPatch.context() as monkeypatch:
    config = tiny.make_config('tl', cache_dir, **STATEFUL)
    return workdir, go_on(config, workdir, 1, STEPS, monkeypatch)


@pytest.mark.parametrize(
  ('kind', 'stages'),
  [
    pytest.param('none', ((4, 2), (2, 4), (1, STEPS)), marks=pytest.mark.slow),
    # And to more of them again.
    ('state', ((4, 2), (2, 4), (1, 6), (4, STEPS))),
  ],
)
def test_devices_may_be_others(
  kind, stages, alone, cache_dir, tmp_path, monkeypatch
):
  config = tiny.make_config(
    'tl', cache_dir, optimizer__sharding=kind, **STATEFUL
  )
  before, expected = alone
  seen = []
  for devices, until in stages:
    rows = go_on(config, tmp_path, devices, until, monkeypatch)
    parts = {row.pop('parts') for row in rows}
    assert parts == {devices if kind == 'state' else 1}
    seen += rows
    if devices == 4 and until < STEPS:
      # Of 8 images; nothing is lost by having tried.
      with pytest.raises(
        UserError, match='8 does not divide over 3 devices; accepted: a multip'
      ):
        arms.run(config, tmp_path, sharding.make_mesh(3))
      assert saved_step(tmp_path) == until
  assert seen == [
    {k: v for k, v in row.items() if k != 'parts'} for row in expected
  ]
  assert_close_runs(before, tmp_path)


def assert_close_runs(left, right):
  losses = [
    [
      (row['step'], row['loss'])
      for row in read_rows(run / 'metrics.jsonl')
      if row['split'] == 'train'
    ]
    for run in (left, right)
  ]
  assert len(losses[0]) == STEPS
  np.testing.assert_allclose(*losses, rtol=BOUND)
  a, b = arrays(left), arrays(right)
  assert a.keys() == b.keys() and any('opt_state' in name for name in a)
  for name, value in a.items():
    largest = np.abs(value).max(initial=1e-3)
    np.testing.assert_allclose(
      value, b[name], rtol=0, atol=BOUND * largest, err_msg=name
    )
  for split in SPLITS:
    logits = [
      evaluate.load(run / 'predictions' / f'{split}.npz').logits
      for run in (left, right)
    ]
    np.testing.assert_allclose(*logits, rtol=BOUND, atol=BOUND)
