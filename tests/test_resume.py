"""A run that was stopped, killed or crashed ends as if nothing had happened."""

import contextlib
import json
import os
import random
import resource
import select
import signal
import termios
import time

import numpy as np
import pytest

from tests import tiny
from tests.marks import slow
from tests.workdirs import arrays, saved_step, wait_for_step
from tlkd_jax import arms
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, RunError
from tlkd_jax.training import loop
from tlkd_jax.training.metric_writers import read_rows
from tlkd_jax.training.summary import SPLITS

pytestmark = pytest.mark.usefixtures('tiny_models')

# All that a state can hold: dropout, trained statistics, momentum, an average;
# row and evaluation intervals that do not divide each other; views of images
# that are kept larger than they are seen.
STATEFUL = {
  'num_steps': 10,
  'log_every_steps': 3,
  'eval_every_steps': 4,
  'batch_norm': 'train',
  'augment.crop': 'random_resized',
  'data.train_size': 20,
  'ema_decay': 0.9,
  'student.drop_path': 0.2,
  'optimizer.name': 'adamw',
  'optimizer.learning_rate': 3e-2,
}


def changes():
  return {key.replace('.', '__'): value for key, value in STATEFUL.items()}


def assert_same_run(left, right):
  for kind, kept in (('latest', 2), ('best', 1)):
    steps = [
      sorted(p.name for p in (run / 'checkpoints' / kind).iterdir())
      for run in (left, right)
    ]
    assert steps[0] == steps[1] and len(steps[0]) == kept
    a, b = arrays(left, kind), arrays(right, kind)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  rows = [
    [{k: v for k, v in row.items() if k != 'seconds'} for row in read_rows(p)]
    for p in (left / 'metrics.jsonl', right / 'metrics.jsonl')
  ]
  assert rows[0] == rows[1]
  summaries = [
    json.loads((run / 'summary.json').read_text()) for run in (left, right)
  ]
  for summary in summaries:
    del summary['seconds'], summary['images_per_second']
  assert summaries[0] == summaries[1]
  for split in SPLITS:
    a, b = (
      evaluate.load(folder / 'predictions' / f'{split}.npz')
      for folder in (left, right)
    )
    np.testing.assert_array_equal(a.logits, b.logits)


class Crash(Exception):
  """Stands for a power cut in the middle of a step."""


@pytest.fixture(scope='module')
def runner(cache_dir, compare_run):
  """Runs the kd arm in a folder."""

  def call(workdir, **more):
    teacher = {'teacher__checkpoint': str(compare_run / 'teacher')}
    settings = teacher | changes() | more
    config = tiny.make_config('kd', cache_dir, **settings)
    return arms.run(config, workdir, sharding.make_mesh())['kd']

  return call


@pytest.fixture(scope='module')
def uninterrupted(runner, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  with tiny.registered():
    runner(workdir)
  return workdir


@pytest.mark.parametrize('stop_at', [5, *slow(1, 8, 10)])
def test_stop_request(stop_at, runner, uninterrupted, tmp_path, monkeypatch):
  """Before the first row, between rows, at an evaluation, at the last step."""
  with monkeypatch.context() as patch:
    patch.setattr(
      loop.StopRequest, 'requested', lambda self, step: step == stop_at
    )
    with pytest.raises(Interrupted, match='resume with the same command'):
      runner(tmp_path)
  assert arrays(tmp_path)['step'] == stop_at
  assert not (tmp_path / 'summary.json').exists()
  runner(tmp_path)
  assert_same_run(uninterrupted, tmp_path)


@pytest.mark.parametrize('crash_at', [9, *slow(6)])
def test_crash(crash_at, runner, uninterrupted, tmp_path, monkeypatch):
  """Rows and steps after the last checkpoint are made again, not twice."""

  def crash(self, step):
    if step == crash_at:
      raise Crash
    return False

  with monkeypatch.context() as patch:
    patch.setattr(loop.StopRequest, 'requested', crash)
    with pytest.raises(Crash):
      runner(tmp_path)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 9, "split": "tr')
  runner(tmp_path)
  assert_same_run(uninterrupted, tmp_path)


def test_crash_between_best_and_latest(
  runner, uninterrupted, tmp_path, monkeypatch
):
  def crash(self, *_):
    raise Crash

  with monkeypatch.context() as patch:
    patch.setattr(loop.Checkpoints, 'save', crash)
    with pytest.raises(Crash):
      runner(tmp_path)
  runner(tmp_path)
  assert_same_run(uninterrupted, tmp_path)


def test_crash_while_finishing(runner, uninterrupted, tmp_path, monkeypatch):
  def crash(*_):
    raise Crash

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'finish', crash)
    with pytest.raises(Crash):
      runner(tmp_path)
  monkeypatch.setattr(loop, '_steps', crash)
  runner(tmp_path)
  assert_same_run(uninterrupted, tmp_path)


def test_full_disk_keeps_the_last_good_checkpoint(
  runner, uninterrupted, tmp_path, monkeypatch
):
  """A limit on file sizes makes Orbax's own writes fail half-way."""
  save = loop.Checkpoints.save

  def full(self, state, progress):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = 1024 if int(state.step) > 4 else limits[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (small, limits[1]))
    try:
      return save(self, state, progress)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Checkpoints, 'save', full)
    with pytest.raises(RunError, match='could not save.*step 8.*step 4 stays'):
      runner(tmp_path)
  assert arrays(tmp_path)['step'] == 4
  # As if another step had been saved: resuming does not write over it.
  leftover = tmp_path / 'checkpoints' / 'latest' / '8.orbax-checkpoint-tmp'
  leftover.rename(leftover.with_name('7.orbax-checkpoint-tmp'))
  runner(tmp_path)
  assert_same_run(uninterrupted, tmp_path)
  leftovers = [
    p for p in tmp_path.rglob('*') if 'orbax-checkpoint-tmp' in p.name
  ]
  assert not leftovers


def test_finished_run_is_not_repeated(runner, uninterrupted, monkeypatch):
  before = (uninterrupted / 'summary.json').read_text()
  monkeypatch.setattr(loop, '_start', None)
  assert runner(uninterrupted) == json.loads(before)


def test_early_stopping_stays_stopped(cache_dir, tmp_path, monkeypatch):
  config = tiny.make_config(
    'tl',
    cache_dir,
    num_steps=9,
    eval_every_steps=1,
    early_stopping=2,
    optimizer__learning_rate=0.0,
  )
  finish = loop.finish

  def crash(*_):
    raise Crash

  monkeypatch.setattr(loop, 'finish', crash)
  with pytest.raises(Crash):
    arms.run(config, tmp_path, sharding.make_mesh())
  monkeypatch.setattr(loop, 'finish', finish)
  summary = arms.run(config, tmp_path, sharding.make_mesh())['tl']
  assert arrays(tmp_path)['step'] == 3 and summary['best_step'] == 1


def lose_the_terminal(start_main, command, workdir) -> int:
  """Resumes on a terminal, which goes as a lost connection's does.

  Returns:
    The step that was saved before.
  """
  before, shown = saved_step(workdir), b''
  ours, theirs = os.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  process = start_main(*command, output=theirs)
  os.close(theirs)
  deadline = time.monotonic() + 200
  # Its bar fills the terminal, which must be read or it waits.
  while b'%|' not in shown or saved_step(workdir) == before:
    if select.select([ours], [], [], 0.05)[0]:
      with contextlib.suppress(OSError):
        shown += os.read(ours, 65536)
    assert process.poll() is None and time.monotonic() < deadline, shown
  step = saved_step(workdir)
  os.close(ours)
  for _ in range(2):
    # From the terminal, and from its shell.
    process.send_signal(signal.SIGHUP)
  assert process.wait(timeout=200) == 0
  return step


def test_kill_and_sigterm(start_main, cache_dir, tmp_path):
  """One run is killed, resumed, asked to stop, and resumed; another is not.

  The other is of this process, which compiles what all of them use.
  """
  given = {
    'num_steps': 250,
    'log_every_steps': 20,
    'eval_every_steps': 25,
    'ema_decay': 0.9,
  }
  config = tiny.make_config('tl', cache_dir, **given)
  arms.run(config, tmp_path / 'whole', sharding.make_mesh(1))

  arguments = tiny.arguments('tl', cache_dir, **given)
  command = [*arguments, f'--workdir={tmp_path / "parts"}']
  process = start_main(*command)
  wait_for_step(tmp_path / 'parts', process, 25)
  time.sleep(random.uniform(0, 1))
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL

  process = start_main(*command)
  step = wait_for_step(tmp_path / 'parts', process, 50)
  wait_for_step(tmp_path / 'parts', process, step + 1)
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=200)
  assert process.returncode == 0, error
  assert 'resume with the same command' in error
  assert 'Traceback' not in error

  step = lose_the_terminal(start_main, command, tmp_path / 'parts')
  assert saved_step(tmp_path / 'parts') > step
  assert not (tmp_path / 'parts' / 'summary.json').exists()

  process = start_main(*command)
  out, error = process.communicate(timeout=200)
  assert process.returncode == 0, error
  assert 'TL' in out and 'Traceback' not in error
  assert_same_run(tmp_path / 'whole', tmp_path / 'parts')
