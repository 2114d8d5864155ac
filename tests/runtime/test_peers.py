"""A lost process ends the others with one line."""

import pathlib
import subprocess
import sys

import jax
import pytest

from tlkd_jax.runtime import interrupts, peers
from tlkd_jax.training import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOST = jax.errors.JaxRuntimeError(
  'UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore'
)


class LeftError(Exception):
  pass


@pytest.fixture
def left(monkeypatch) -> list:
  """[what was said, the code] of a process that ended at once."""
  found = []

  def leave(line, code):
    found.extend([line, code])
    raise LeftError

  monkeypatch.setattr(interrupts, 'leave', leave)
  return found


@pytest.mark.parametrize(
  ('count', 'error', 'goes'),
  [
    (1, LOST, False),
    (2, ValueError('x'), False),
    (2, None, False),
    (2, LOST, True),
    (8, LOST, True),
    (
      2,
      ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer'),
      True,
    ),
  ],
)
def test_who_leaves(count, error, goes, left, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  if goes:
    with pytest.raises(LeftError):
      peers.leave_if_lost(error)
    line, code = left
    assert code == 1 and '\n' not in line
    assert 'error: another process of this run was lost' in line
    assert 'Connection closed by peer' in line and 'same command' in line
  else:
    peers.leave_if_lost(error)
    assert not left


def test_before_anything_waits_for_the_other(left, tmp_path, monkeypatch):
  """What saves would, at its end."""
  saved = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(LeftError):
    try:
      raise LOST
    finally:
      saved.close()
  assert left[1] == 1
  monkeypatch.undo()
  saved.close()


def test_a_process_that_leaves_says_one_line():
  code = (
    'import atexit; atexit.register(print, "late")\n'
    'from tlkd_jax.runtime import interrupts\n'
    'try: interrupts.leave("error: x", 3)\n'
    'finally: print("later")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stdout, done.stderr) == (3, '', 'error: x\n')
