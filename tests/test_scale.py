"""Memory known before the run, rematerialisation, and what is compiled."""

import logging
import re

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_train_step import (
  NO_TEACHER,
  TL,
  assert_trees_close,
  make_batch,
  make_step,
  run_steps,
)
from tlkd_jax import arms
from tlkd_jax.models import network
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.settings import with_values
from tlkd_jax.training import loop, memory
from tlkd_jax.training import step as steps

pytestmark = pytest.mark.usefixtures('tiny_models')


def test_rematerialisation_changes_no_gradient():
  """With dropout and BatchNorm's statistics, which it must not draw twice."""
  options = {**TL, 'dropout': 0.3, 'norm_train': True}
  kept, rows, _ = run_steps(2, **options)
  again, others, _ = run_steps(2, **options, remat=True)
  for a, b in zip(kept, again, strict=True):
    assert_trees_close(a.params, b.params, 1e-6)
    assert_trees_close(a.model_state, b.model_state, 1e-6)
  np.testing.assert_allclose(rows[1]['loss'], others[1]['loss'], rtol=1e-5)
  texts = []
  for remat in (False, True):
    step, create, mesh, _ = make_step(**options, remat=remat)
    batch = sharding.shard_batch(make_batch(), mesh)
    jaxpr = step.trace(create(), NO_TEACHER, batch).jaxpr
    texts.append(str(jaxpr))
  assert 'remat' not in texts[0] and 'checkpoint' not in texts[0]
  assert 'remat' in texts[1] or 'checkpoint' in texts[1]


def test_largest_batch_that_fits_is_named():
  """The limit is what 24 images take: of 32 it must say so."""
  step, create, mesh, _ = make_step(**TL)
  arguments = create(), NO_TEACHER

  def batch(size):
    return sharding.shard_batch(make_batch(size=size), mesh)

  needed = memory._needed(step, arguments, batch(24))
  assert needed > 0
  memory.check(step, arguments, batch(24), mesh, free=needed)
  with pytest.raises(ValueError, match='batch_size 32: a step takes') as caught:
    memory.check(step, arguments, batch(32), mesh, free=needed)
  named = int(re.search(r'fits is about (\d+)', str(caught.value)).group(1))
  assert 22 <= named <= 26
  with pytest.raises(ValueError, match='none fits'):
    memory.check(step, arguments, batch(32), mesh, free=1)


def test_memory_of_this_machine():
  free = memory.free_bytes(jax.local_devices())
  assert 2**20 < free * len(jax.local_devices()) < 2**50


def test_run_that_does_not_fit(cache_dir, tmp_path, monkeypatch):
  """Before the first step, unless told not to look."""
  config = tiny.make_config('tl', cache_dir, num_steps=1, data__train_size=20)
  # Enough for the images of a batch, of which there are two on a device, as
  # they are kept and as floats of what is seen of them.
  free = 2 * 3 * (20 * 20 + 4 * 16 * 16)
  monkeypatch.setattr(memory, 'free_bytes', lambda devices: free - 1)
  with pytest.raises(UserError, match='batch_size 8: its images alone.* of 4'):
    arms.run(config, tmp_path / 'too large', sharding.make_mesh())
  monkeypatch.setattr(memory, 'free_bytes', lambda devices: free)
  with pytest.raises(UserError, match='batch_size 8: a step takes'):
    arms.run(config, tmp_path, sharding.make_mesh())
  assert not (tmp_path / 'metrics.jsonl').read_text()
  monkeypatch.setattr(memory, '_needed', None)
  config = with_values(config, {'memory_check': False})
  arms.run(config, tmp_path / 'unchecked', sharding.make_mesh())


def test_each_step_is_compiled_once(cache_dir, tmp_path, monkeypatch, caplog):
  """Over evaluations, a stop and a resume: one update, one evaluation."""
  config = tiny.make_config(
    'tl', cache_dir, num_steps=6, eval_every_steps=2, ema_decay=0.9
  )
  # Or another test may have compiled them.
  network.make_eval_step.cache_clear()
  steps.kept.cache_clear()
  with jax.log_compiles(), caplog.at_level(logging.WARNING, 'jax'):
    with monkeypatch.context() as patch:
      patch.setattr(loop.StopRequest, 'requested', lambda self, step: step == 3)
      with pytest.raises(Interrupted):
        arms.run(config, tmp_path, sharding.make_mesh())
    arms.run(config, tmp_path, sharding.make_mesh())
  lines = [
    record.getMessage()
    for record in caplog.records
    if record.getMessage().startswith('Compiling jit(step)')
  ]
  assert len(lines) == 2, lines
