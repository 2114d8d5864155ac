"""Features on disk: by image, whole or not at all, never of something else."""

import dataclasses
import errno
import json
import os
import threading

import numpy as np
import pytest
from absl import logging

from tlkd_jax.data import Split
from tlkd_jax.training import feature_store
from tlkd_jax.training.feature_store import (
  KEY,
  Store,
  View,
  image_keys,
  row_of,
)

WIDTHS = {'pre_logits': 5, 'patch_mean': 3}
FINGERPRINT = {'backbone weights': 'abc', 'format': 1}


@pytest.fixture
def messages(monkeypatch):
  """What was logged as a warning."""
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *a: lines.append(text % a)
  )
  return lines


def make_store(root, dtype='float32', **changes):
  return Store(root, FINGERPRINT | changes, row_of(WIDTHS, dtype))


def rows_for(keys, view=0, dtype='float32'):
  """A row for each key, a function of it."""
  rows = np.zeros(len(keys), row_of(WIDTHS, dtype))
  rows[KEY] = keys
  for name, width in WIDTHS.items():
    rows[name] = np.asarray(keys)[:, None] % 97 + np.arange(width) + view / 8
  return rows


def filled(root, keys=range(10), **options):
  store = make_store(root, **options)
  with store.claimed():
    for part in np.array_split(np.asarray(keys, np.uint64), 2):
      store.write(1, rows_for(part, view=1))
  return store


def found_in(store, keys, view=1):
  """(what is there of the keys, which are missing)."""
  with store.claimed():
    view = store.read(view)
  places = view.find(np.asarray(keys, np.uint64))
  there = places[places >= 0]
  return view.take(there) if there.size else None, np.flatnonzero(places < 0)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_rows_come_back_by_their_keys(dtype, tmp_path):
  store = make_store(tmp_path, dtype)
  keys = np.asarray([7, 2**64 - 1, 3, 0, 3], np.uint64)
  with store.claimed():
    for part in (keys[:2], keys[2:]):
      store.write(0, rows_for(part, dtype=dtype))
  asked = keys[[4, 0, 1, 3]]
  rows, missing = found_in(store, asked, view=0)
  np.testing.assert_array_equal(rows, rows_for(asked, dtype=dtype))
  assert not missing.size
  # Of another view, of other images, and of nothing at all.
  assert found_in(store, asked, view=1)[1].size == 4
  np.testing.assert_array_equal(found_in(store, [5, 0, 9], view=0)[1], [0, 2])
  assert View([]).find(keys).tolist() == [-1] * 5


def test_another_split_adds_what_it_lacks(tmp_path):
  filled(tmp_path, range(10))
  store = make_store(tmp_path)
  wanted = np.arange(5, 15, dtype=np.uint64)
  _, missing = found_in(store, wanted)
  np.testing.assert_array_equal(wanted[missing], range(10, 15))
  with store.claimed():
    store.write(1, rows_for(wanted[missing], view=1))
  rows, missing = found_in(make_store(tmp_path), np.arange(15))
  assert not missing.size
  np.testing.assert_array_equal(rows, rows_for(np.arange(15), view=1))


def _first(store):
  return sorted(store.folder.glob('view1-*.npy'))[0]


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-7])


def _flip(place):
  def damage(path):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

  return damage


def _lengthen(path):
  path.write_bytes(path.read_bytes() + b'\0' * 64)


def _other_size(path):
  np.save(path, np.zeros((5, 4), np.float32))


def _fewer_rows(path):
  np.save(path, np.load(path)[:3])


def _more_rows(path):
  np.save(path, np.concatenate([np.load(path), np.load(path)[:1]]))


def _wider(path):
  np.save(path, np.zeros(5, row_of(WIDTHS | {'pre_logits': 6}, 'float32')))


def _spoil_header(path):
  """What it holds is no Python any more, in a way that the tokenizer says."""
  path.write_bytes(path.read_bytes().replace(b'}', b'(', 1))


@pytest.mark.parametrize(
  'damage',
  [
    _truncate,
    # In the last row, in a row's key, in the magic, in what the header says.
    *map(_flip, (-20, 130, 3, 60)),
    _other_size,
    _fewer_rows,
    _more_rows,
    _wider,
    _spoil_header,
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(os.urandom(500)),
    lambda path: path.rename(path.with_name('view1-0.npy')),
    lambda path: path.rename(path.with_name('view1-copy.npy')),
  ],
)
def test_what_is_damaged_is_computed_again(damage, tmp_path, messages):
  store = filled(tmp_path)
  damage(_first(store))
  messages.clear()
  rows, missing = found_in(store, range(10))
  assert missing.size == 5
  assert len(messages) == 1 and 'was damaged; it is computed' in messages[0]
  there = np.delete(np.arange(10), missing)
  np.testing.assert_array_equal(rows, rows_for(there, view=1))
  with store.claimed():
    store.write(1, rows_for(missing, view=1))
  messages.clear()
  rows, missing = found_in(store, range(10))
  assert not missing.size and not messages
  np.testing.assert_array_equal(rows, rows_for(np.arange(10), view=1))


def test_bytes_behind_the_rows_change_nothing(tmp_path):
  store = filled(tmp_path)
  _lengthen(_first(store))
  rows, missing = found_in(store, range(10))
  assert not missing.size
  np.testing.assert_array_equal(rows, rows_for(np.arange(10), view=1))


@pytest.mark.parametrize('seed', range(3))
def test_no_wrong_bit_is_ever_read(seed, tmp_path):
  """Wherever it is: header, key or value."""
  store = filled(tmp_path, range(6))
  path = _first(store)
  whole = path.read_bytes()
  draw = np.random.default_rng(seed)
  for _ in range(40):
    data = bytearray(whole)
    data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    path.write_bytes(bytes(data))
    rows, missing = found_in(store, range(6))
    there = np.delete(np.arange(6), missing)
    np.testing.assert_array_equal(rows, rows_for(there, view=1))


@pytest.mark.parametrize('text', ['', '{}', '{"format": 2}', '\xff\xfe'])
def test_foreign_files_under_the_right_name(text, tmp_path, messages):
  store = filled(tmp_path)
  (store.folder / 'fingerprint.json').write_text(text, encoding='latin-1')
  messages.clear()
  assert found_in(store, range(10))[1].size == 10
  assert len(messages) == 1 and 'of something else' in messages[0]
  assert json.loads((store.folder / 'fingerprint.json').read_text())
  assert not list(store.folder.glob('view*'))


@pytest.mark.parametrize('change', [{'backbone weights': 'x'}, {'format': 2}])
def test_of_something_else(change, tmp_path):
  old = filled(tmp_path)
  new = make_store(tmp_path, **change)
  assert new.folder != old.folder
  assert found_in(new, range(10))[1].size == 10
  assert not found_in(old, range(10))[1].size


def test_what_a_kill_left_is_not_read(tmp_path):
  store = filled(tmp_path)
  path = _first(store)
  left = path.with_name(f'{path.name}.1234.tmp')
  left.write_bytes(path.read_bytes()[:200])
  path.unlink()
  other = path.with_name('mine.tmp')
  other.touch()
  assert found_in(store, range(10))[1].size == 5
  assert not left.exists() and other.exists()


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, messages):
  """What was computed is used from memory, and the run goes on."""

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  store = make_store(tmp_path)
  with store.claimed():
    monkeypatch.setattr(feature_store.os, 'fsync', full)
    kept = [
      store.write(0, rows_for(np.arange(n, n + 3, dtype=np.uint64)))
      for n in (0, 3)
    ]
  assert len(messages) == 1
  assert 'No space left' in messages[0] and 'features_dir' in messages[0]
  assert not list(store.folder.glob('view*'))
  view = View(kept)
  places = view.find(np.arange(6, dtype=np.uint64))
  np.testing.assert_array_equal(view.take(places), rows_for(np.arange(6)))


def test_a_place_that_is_no_folder_is_a_warning(tmp_path, messages):
  (tmp_path / 'file').write_text('')
  store = make_store(tmp_path / 'file')
  rows = rows_for(np.arange(3, dtype=np.uint64))
  with store.claimed():
    assert (store.read(0).find(rows[KEY]) == -1).all()
    assert store.write(0, rows) is rows
  assert len(messages) == 1 and 'in memory' in messages[0]


def test_one_run_fills_at_a_time(tmp_path):
  store, found = make_store(tmp_path), []
  keys = np.arange(3, dtype=np.uint64)

  def other_run():
    other = make_store(tmp_path)
    with other.claimed():
      found.append(other.read(0).find(keys))

  thread = threading.Thread(target=other_run)
  with store.claimed():
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not found
    store.write(0, rows_for(keys))
  thread.join(20)
  np.testing.assert_array_equal(found[0], [0, 1, 2])


def some_split(**changes):
  images = np.random.default_rng(0).integers(0, 255, (4, 3, 3, 3), np.uint8)
  split = Split(
    images,
    np.zeros(4, np.int32),
    np.asarray([5, 1, 9, 2]),
    ['a', 'b', 'c', 'd'],
  )
  return dataclasses.replace(split, **changes)


def test_an_image_is_known_by_its_pixels():
  split = some_split()
  keys = {by: image_keys(split, by_index=by) for by in (False, True)}
  assert np.unique(np.concatenate([*keys.values()])).size == 8
  # In another place, under another name and label.
  turned = split.take(np.asarray([2, 0, 3, 1]))
  for by, expected in keys.items():
    found = image_keys(turned, by_index=by)
    np.testing.assert_array_equal(found, expected[[2, 0, 3, 1]])
  # With another number it is another view, and the same image.
  others = some_split(indices=np.asarray([5, 1, 9, 3]))
  np.testing.assert_array_equal(
    image_keys(others, by_index=True) == keys[True], [True] * 3 + [False]
  )
  np.testing.assert_array_equal(image_keys(others, by_index=False), keys[False])
  images = split.images.copy()
  images[1, 2, 2, 2] ^= 1
  changed = image_keys(some_split(images=images), by_index=False)
  np.testing.assert_array_equal(
    changed == keys[False], [True, False, True, True]
  )
