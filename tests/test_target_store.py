"""Targets on disk: exact, whole or not at all, and never of something else."""

import errno
import json
import re
import threading

import numpy as np
import pytest
from absl import logging
from scipy import special

from tlkd_jax.runtime import mapped
from tlkd_jax.training import target_store
from tlkd_jax.training.target_store import Layout, Store

WIDTHS = {'logits': 5, 'pre_logits': 3}
ROWS, VIEWS = 10, 2
FINGERPRINT = {'teacher weights': 'abc', 'data': 'def', 'format': 1}


@pytest.fixture
def messages(monkeypatch):
  """What was logged."""
  lines = []
  monkeypatch.setattr(logging, 'info', lambda text, *a: lines.append(text % a))
  return lines


def outputs(view: int = 0, scale: float = 3.0, rows: int = ROWS):
  rng = np.random.default_rng(view)
  return {
    name: (scale * rng.normal(size=(rows, width))).astype(np.float32)
    for name, width in WIDTHS.items()
  }


def make_store(root, dtype='float32', rows=ROWS, **changes):
  layout = Layout(WIDTHS, dtype)
  return Store(root, FINGERPRINT | changes, layout, rows), layout


def fill(store, layout, views=VIEWS):
  first = store.missing(views)
  for view, start in enumerate(first):
    if start < ROWS:
      rows = {k: v[start:] for k, v in outputs(view).items()}
      store.write(view, start, layout.encode(rows))
      store.commit(view)
  return first


def filled(root, **options):
  store, layout = make_store(root, **options)
  with store.claimed():
    fill(store, layout)
  return store, layout


def assert_right(store, tolerance=0.0):
  rows = np.asarray([3, 0, 9, 3])
  views = np.asarray([1, 0, 1, 0], np.int32)
  found = store.open(VIEWS)(rows, views)
  whole = [outputs(view) for view in range(VIEWS)]
  for name in WIDTHS:
    expected = np.stack(
      [whole[v][name][r] for r, v in zip(rows, views, strict=True)]
    )
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], expected, rtol=tolerance)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('float32', 0.0), ('float16', 2.0**-11)]
)
def test_rows_come_back(dtype, tolerance, tmp_path):
  store, _ = filled(tmp_path, dtype=dtype)
  assert_right(store, tolerance)
  assert store.missing(VIEWS) == [ROWS, ROWS]


def test_large_logits():
  """float16 holds +-1000; what it cannot hold is an error, not infinity."""
  layout = Layout({'logits': 3}, 'float16')
  given = np.asarray([[-1000.0, 0.5, 1000.0]], np.float32)
  np.testing.assert_array_equal(
    layout.decode(layout.encode({'logits': given}))['logits'], given
  )
  with pytest.raises(ValueError, match=r'7e\+04.*targets.dtype.*float32'):
    layout.encode({'logits': given * 70})
  wide = Layout({'logits': 3}, 'float32')
  assert wide.decode(wide.encode({'logits': given * 70}))['logits'].max() == 7e4
  with pytest.raises(ValueError, match='not finite'):
    wide.encode({'logits': given * np.nan})


def test_top_k_by_hand():
  """Exact for the k at temperature 1, the rest of the mass spread evenly."""
  logits = np.float32([[1.0, 4.0, -2.0, 3.0, 0.0], [9.0, 8.0, 7.0, 6.0, 5.0]])
  layout = Layout(WIDTHS, 'float32', top_k=2)
  given = {'logits': logits, 'pre_logits': np.ones((2, 3), np.float32)}
  found = layout.decode(layout.encode(given))
  p, q = special.softmax(logits, -1), special.softmax(found['logits'], -1)
  for row, top in enumerate(([1, 3], [0, 1])):
    others = [c for c in range(5) if c not in top]
    np.testing.assert_array_equal(found['logits'][row, top], logits[row, top])
    np.testing.assert_allclose(q[row, top], p[row, top], rtol=1e-6)
    np.testing.assert_allclose(
      q[row, others], p[row, others].sum() / 3, rtol=1e-6
    )
  np.testing.assert_array_equal(found['pre_logits'], given['pre_logits'])
  # As stated: warmer, the rest weighs more than it should.
  p, q = (
    special.softmax(logits / 4, -1),
    special.softmax(found['logits'] / 4, -1),
  )
  assert q[0, [0, 2, 4]].sum() > p[0, [0, 2, 4]].sum()


def test_top_k_takes_less_room():
  widths = {'logits': 1000}
  small = Layout(widths, 'float16', top_k=10).row.itemsize
  assert small <= 10 * (2 + 4) + 2 < Layout(widths, 'float16').row.itemsize
  # As many as there are: nothing to cut.
  assert (
    Layout(widths, 'float16', top_k=1000).row == Layout(widths, 'float16').row
  )


@pytest.mark.parametrize(
  'change',
  [
    {'teacher weights': 'abd'},
    {'data': 'deg'},
    {'augmentation': {'flip': 'True'}},
  ],
)
def test_of_something_else(change, tmp_path, messages):
  """Other targets of the same folder stay, are not used, and are named."""
  old, _ = filled(tmp_path)
  messages.clear()
  new, _ = make_store(tmp_path, **change)
  assert new.missing(VIEWS) == [0, 0] and new.folder != old.folder
  assert len(messages) == 1
  assert f'those of {old.folder.name} differ in {[*change][0]}' in messages[0]
  assert old.missing(VIEWS) == [ROWS, ROWS]


def test_foreign_files_under_the_right_name(tmp_path, messages):
  store, layout = filled(tmp_path)
  path = store.folder / 'fingerprint.json'
  path.write_text(json.dumps(FINGERPRINT | {'data': 'other'}))
  messages.clear()
  assert store.missing(VIEWS) == [0, 0]
  assert len(messages) == 1 and 'of something else' in messages[0]
  assert not list(store.folder.glob('view*'))
  fill(store, layout)
  assert_right(store)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[-20] ^= 1
  path.write_bytes(data)


def _spoil_header(path):
  """What it holds is no Python any more, in a way that the tokenizer says."""
  path.write_bytes(path.read_bytes().replace(b'}', b'(', 1))


def _replace(path):
  np.save(path, np.zeros((ROWS, 5), np.float32))


@pytest.mark.parametrize(
  'damage',
  [
    _truncate,
    _flip_a_bit,
    _spoil_header,
    _replace,
    lambda path: path.write_bytes(b''),
    lambda path: path.with_suffix('.sum').unlink(),
    lambda path: path.with_suffix('.sum').write_bytes(b'\xff'),
  ],
)
def test_damaged_view_is_computed_again(damage, tmp_path, messages):
  store, layout = filled(tmp_path)
  damage(store.folder / 'view1.npy')
  messages.clear()
  assert fill(store, layout) == [ROWS, 0]
  assert len(messages) == 1
  assert re.search(r'10 of 20 are computed.*view1.npy was damaged', messages[0])
  assert_right(store)


def test_killed_fill_goes_on(tmp_path, messages):
  store, layout = make_store(tmp_path)
  store.missing(VIEWS)
  rows = {k: v[:6] for k, v in outputs(0).items()}
  store.write(0, 0, layout.encode(rows))
  again, layout = make_store(tmp_path)
  with pytest.raises(FileNotFoundError, match='targets.dir'):
    again.open(VIEWS)
  with pytest.raises(AssertionError):
    again.commit(0)
  messages.clear()
  assert fill(again, layout) == [6, 0]
  assert 'view0.part was not finished' in messages[0]
  assert_right(again)
  assert not list(store.folder.glob('*.part'))


def test_killed_before_the_first_row(tmp_path):
  """A file that was being made of NaN, with zeros behind, is not taken."""
  store, layout = make_store(tmp_path)
  store.folder.mkdir(parents=True)
  np.save(store.folder / 'view0.npy', np.zeros(ROWS, layout.row))
  (store.folder / 'view0.npy').rename(store.folder / 'view0.new')
  assert fill(store, layout) == [0, 0]
  assert_right(store)


def test_damaged_part_is_computed_again(tmp_path):
  store, layout = make_store(tmp_path)
  store.folder.mkdir(parents=True)
  store.missing(VIEWS)
  store.write(0, 0, layout.encode(outputs(0)))
  _truncate(store.folder / 'view0.part')
  assert fill(store, layout) == [0, 0]
  assert_right(store)


@pytest.mark.parametrize('seed', range(3))
def test_a_wrong_bit_in_a_part_is_computed_again(seed, tmp_path):
  """It would be summed as good when the view is whole."""
  store, layout = make_store(tmp_path)
  store.missing(VIEWS)
  for start in range(0, 8, 2):
    rows = {k: v[start : start + 2] for k, v in outputs(0).items()}
    store.write(0, start, layout.encode(rows))
  part = store.folder / 'view0.part'
  whole = part.read_bytes()
  begin = len(whole) - ROWS * layout.row.itemsize
  draw = np.random.default_rng(seed)
  for row in range(8):
    spot = begin + row * layout.row.itemsize
    spot += int(draw.integers(layout.row.itemsize))
    changed = bytearray(whole)
    changed[spot] ^= 1 << int(draw.integers(8))
    part.write_bytes(bytes(changed))
    assert make_store(tmp_path)[0].missing(VIEWS)[0] <= row // 2 * 2
  part.write_bytes(whole)
  assert fill(*make_store(tmp_path)) == [8, 0]
  assert_right(store)


@pytest.mark.parametrize(
  ('text', 'first'),
  [
    (None, 0),
    ('', 0),
    ('0 2 abc', 0),
    ('2 2 ', 0),
    ('garbage', 0),
    ('0 2', 0),
    ('-1 2 a', 0),
  ],
)
def test_a_part_whose_lines_are_gone(text, first, tmp_path):
  """What nothing vouches for is computed again."""
  store, layout = make_store(tmp_path)
  store.missing(VIEWS)
  store.write(0, 0, layout.encode({k: v[:4] for k, v in outputs(0).items()}))
  lines = store.folder / 'view0.rows'
  lines.unlink() if text is None else lines.write_text(text)
  assert make_store(tmp_path)[0].missing(VIEWS) == [first, 0]
  fill(*make_store(tmp_path))
  assert_right(store)


def test_a_full_disk_is_a_message(tmp_path, monkeypatch):
  """A mapped page without room would be a bus error where it is written."""

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(mapped.os, 'posix_fallocate', full)
  store, layout = make_store(tmp_path)
  store.missing(VIEWS)
  with pytest.raises(OSError, match=r'GB are needed for .* GB are free'):
    store.write(0, 0, layout.encode(outputs(0)))
  assert not list(store.folder.glob('view0*'))


def test_a_view_that_was_filled_and_not_named_is_named(tmp_path, monkeypatch):
  """As where the disk is full when its checksum is written."""
  store, layout = make_store(tmp_path)

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(target_store, 'replace_text', full)
    store.folder.mkdir()
    store.write(0, 0, layout.encode(outputs(0)))
    with pytest.raises(OSError):
      store.commit(0)
  again, _ = make_store(tmp_path)
  assert not list(store.folder.glob('*.npy'))
  fill(again, layout)
  assert_right(again)


def test_what_a_kill_left_is_removed(tmp_path):
  store, layout = make_store(tmp_path)
  with store.claimed():
    fill(store, layout)
  left = store.folder / 'view0.sum.4711.tmp'
  left.touch()
  with store.claimed():
    assert not left.exists()
  assert_right(store)


def test_one_run_fills_at_a_time(tmp_path):
  store, layout = make_store(tmp_path)
  found = []

  def other_run():
    other, _ = make_store(tmp_path)
    with other.claimed():
      found.append(other.missing(VIEWS))

  thread = threading.Thread(target=other_run)
  with store.claimed():
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not found
    assert fill(store, layout) == [0, 0]
  thread.join(20)
  assert found == [[ROWS, ROWS]]
