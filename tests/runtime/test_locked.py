"""One process at a time in a folder."""

import errno
import os
import signal
import subprocess
import sys
import threading

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


@pytest.mark.parametrize(
  ('first', 'second', 'goes'),
  [
    ('', '', False),
    ('', '1-of-2', False),
    ('1-of-2', '', False),
    ('1-of-2', '1-of-2', False),
    ('1-of-2', '2-of-2', True),
  ],
)
def test_parts_of_a_folder(first, second, goes, tmp_path):
  with locked.held(tmp_path, part=first):
    if goes:
      with locked.held(tmp_path, part=second):
        pass
    else:
      with (
        pytest.raises(UserError, match='is in use by another process'),
        locked.held(tmp_path, part=second),
      ):
        pass
  with locked.held(tmp_path, part=second):
    pass


@pytest.mark.parametrize('place', ['', '.sums', 'predictions', 'evaluation'])
def test_what_a_killed_write_left_is_removed(place, tmp_path):
  (tmp_path / place).mkdir(exist_ok=True)
  left = tmp_path / place / 'summary.json.4711.tmp'
  others = [
    tmp_path / place / name for name in ('notes.tmp', 'a.1.tmp.txt', '.1.tmp')
  ]
  others.append(tmp_path / 'checkpoints' / 'summary.json.4711.tmp')
  for path in (left, *others):
    path.parent.mkdir(exist_ok=True)
    path.touch()
  # Another part's process may be writing.
  with locked.held(tmp_path, part='1-of-2'):
    assert left.exists()
  with locked.held(tmp_path):
    assert not left.exists()
  assert all(path.exists() for path in others)


def test_one_waits_for_another(tmp_path, caplog):
  lock = tmp_path / 'locks' / 'key'
  done = []

  def other():
    with locked.in_turn(lock, 'fills it') as alone:
      done.append(alone)

  thread = threading.Thread(target=other)
  with locked.in_turn(lock, 'fills it') as alone:
    assert alone
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not done
  thread.join(20)
  assert done == [True]


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS, errno.ENOLCK])
def test_where_nobody_can_lock_nobody_waits(number, tmp_path, monkeypatch):
  def unable(*_):
    raise OSError(number, 'no')

  name = 'flock' if number == errno.ENOLCK else 'open'
  owner = locked.fcntl if number == errno.ENOLCK else locked.os
  monkeypatch.setattr(owner, name, unable)
  with locked.in_turn(tmp_path / 'key', 'fills it') as alone:
    assert not alone


@pytest.fixture
def kept(monkeypatch):
  """What this process keeps, nothing at first."""
  found: dict[str, int] = {}
  monkeypatch.setattr(locked, '_kept', found)
  yield found
  for file in found.values():
    os.close(file)


def is_unused(path) -> bool:
  with locked.unused(path) as free:
    return free


def test_what_is_kept_is_in_use(kept, tmp_path):
  path = tmp_path / 'locks' / 'key.used'
  assert is_unused(path) and not path.parent.exists()
  locked.keep(path)
  assert not is_unused(path) and len(kept) == 1
  os.utime(path, (0, 0))
  locked.keep(path)
  assert len(kept) == 1 and path.stat().st_mtime > 1e9
  # Removed by one who thought otherwise, it is kept anew.
  path.unlink()
  locked.keep(path)
  assert path.exists() and not is_unused(path) and len(kept) == 1


def test_nobody_begins_to_use_what_is_removed(kept, tmp_path):
  path = tmp_path / 'key.used'
  path.touch()
  thread = threading.Thread(target=locked.keep, args=(path,))
  with locked.unused(path) as free:
    assert free
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    path.unlink()
  thread.join(20)
  assert path.exists() and not is_unused(path)


def test_a_long_process_lets_go_of_what_was_longest_ago(
  kept, tmp_path, monkeypatch
):
  monkeypatch.setattr(locked, '_MOST_KEPT', 3)
  paths = [tmp_path / f'{number}.used' for number in range(4)]
  for path in (*paths[:3], paths[0], paths[3]):
    locked.keep(path)
  assert [is_unused(path) for path in paths] == [False, True, False, False]


@pytest.mark.parametrize('number', [errno.EACCES, errno.ENOSPC, errno.ENOLCK])
def test_where_nothing_can_be_kept_nothing_is_removed(
  number, kept, tmp_path, monkeypatch
):
  def unable(*_):
    raise OSError(number, 'no')

  path = tmp_path / 'key.used'
  path.touch()
  name = 'flock' if number == errno.ENOLCK else 'open'
  owner = locked.fcntl if number == errno.ENOLCK else locked.os
  handles = len(os.listdir('/proc/self/fd'))
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, unable)
    locked.keep(path)
    assert not kept and not is_unused(path)
  assert len(os.listdir('/proc/self/fd')) == handles


def test_a_folder_that_may_only_be_read_can_be_kept(kept, tmp_path):
  path = tmp_path / 'locks' / 'key.used'
  path.parent.mkdir()
  path.touch()
  path.chmod(0o444)
  path.parent.chmod(0o555)
  locked.keep(path)
  assert not is_unused(path)
  path.parent.chmod(0o755)
