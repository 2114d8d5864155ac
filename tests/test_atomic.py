"""A write that fails leaves what was there, and nothing beside it."""

import os
import time

import numpy as np
import pytest

from tlkd_jax.runtime import atomic


@pytest.mark.parametrize(
  'write',
  [
    # Half of a surrogate pair has no bytes in UTF-8.
    lambda path: atomic.replace_text(path, 'new \ud800'),
    lambda path: atomic.replace_arrays(path, {'a': _Unreadable()}),
  ],
  ids=['text', 'arrays'],
)
def test_a_failed_write_changes_nothing(write, tmp_path):
  path = tmp_path / 'file'
  path.write_text('old')
  with pytest.raises(ValueError):
    write(path)
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


class _Unreadable:
  def __array__(self, dtype=None, copy=None):
    raise ValueError('half of it was written')


def test_what_was_written_is_there(tmp_path):
  atomic.replace_text(tmp_path / 'a.txt', 'new')
  atomic.replace_arrays(tmp_path / 'deep' / 'a.npz', {'a': np.arange(3)})
  assert (tmp_path / 'a.txt').read_text() == 'new'
  with np.load(tmp_path / 'deep' / 'a.npz') as stored:
    np.testing.assert_array_equal(stored['a'], np.arange(3))
  assert sorted(p.name for p in tmp_path.rglob('*')) == [
    'a.npz',
    'a.txt',
    'deep',
  ]


def test_two_processes_of_one_number_write_apart(tmp_path):
  """As in two containers, which share the folder and not their processes."""
  path = tmp_path / 'a.txt'
  with atomic.replacing(path) as one:
    with atomic.replacing(path) as other:
      other.write_text('whole')
      one.write_text('half of')
    assert path.read_text() == 'whole'
    one.write_text('half of another, and the rest')
  assert path.read_text() == 'half of another, and the rest'
  assert [*tmp_path.iterdir()] == [path]


def test_what_a_kill_leaves_is_swept(tmp_path):
  with atomic.replacing(tmp_path / 'a.txt') as temporary:
    names = [temporary.name, 'a.txt.4711.tmp']
    temporary.touch()
  mine = tmp_path / 'a.txt.4711-of.tmp'
  for path in (*(tmp_path / name for name in names), mine):
    path.touch()
  atomic.sweep(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {'a.txt', mine.name}


@pytest.mark.parametrize(('age', 'stays'), [(10, True), (7200, False)])
def test_a_later_write_removes_what_a_killed_one_left(age, stays, tmp_path):
  left, other = tmp_path / 'a.txt.4711.tmp', tmp_path / 'a.txt.old.tmp'
  for path in (left, other):
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
  atomic.replace_text(tmp_path / 'a.txt', 'new')
  assert left.exists() == stays and other.exists()
