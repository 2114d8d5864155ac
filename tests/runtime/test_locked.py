"""One process at a time in a folder."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from tlkd_jax.runtime import locked
from tlkd_jax.runtime.errors import UserError

HOLD = (
  'import pathlib, sys, time\n'
  'from tlkd_jax.runtime import locked\n'
  'with locked.held(pathlib.Path(sys.argv[1])):\n'
  '  print("held", flush=True); time.sleep(60)\n'
)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_process(tmp_path, number):
  command = [sys.executable, '-c', HOLD, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout is not None
    assert other.stdout.readline() == 'held\n'
    with (
      pytest.raises(UserError, match=rf'in use .*\(process {other.pid} on'),
      locked.held(tmp_path),
    ):
      pass
    other.send_signal(number)
    other.wait(20)
  with locked.held(tmp_path):
    pass


def test_in_one_process_too(tmp_path):
  with locked.held(tmp_path / 'a'):
    with (
      pytest.raises(UserError, match=f'in use .*{os.getpid()}'),
      locked.held(tmp_path / 'a'),
    ):
      pass
    with locked.held(tmp_path / 'b'), locked.held(tmp_path / 'a' / 'fold1'):
      pass
    with locked.held(tmp_path / 'a', wanted=False):
      pass


def test_a_mistake_leaves_no_folder(tmp_path):
  with pytest.raises(ValueError), locked.held(tmp_path / 'new'):
    raise ValueError
  assert not (tmp_path / 'new').exists()
  (tmp_path / 'old').mkdir()
  for name in ('old', 'kept'):
    with pytest.raises(ValueError), locked.held(tmp_path / name):
      if name == 'kept':
        (tmp_path / 'kept' / 'config.json').touch()
      raise ValueError
    assert (tmp_path / name).exists()


def test_a_file_system_without_locks_is_a_warning(
  tmp_path, monkeypatch, caplog
):
  def unable(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(locked.fcntl, 'flock', unable)
  with locked.held(tmp_path):
    pass
  assert 'cannot be locked' in caplog.text
