"""One cell, one process: claims that survive neither their process nor a host.

A claim is a file made with O_EXCL in the cell's folder, that its owner touches
while it lives. It is void when its process is gone (on the same host), or was
not touched for STALE_SECONDS (on another).
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Generator

from tlkd_jax.runtime import interrupts

TOUCH_SECONDS = 20.0
STALE_SECONDS = 900.0
_FILE = 'claim'


def take(folder: pathlib.Path, lock: pathlib.Path) -> bool:
  """Claims a folder for this process, unless a living process holds it.

  Args:
    folder: made if need be.
    lock: a file that all processes of this host which claim have in common.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / _FILE
  # Two processes that find the same void claim must not both replace it.
  with _locked(lock):
    if holder(folder) is not None:
      return False
    path.unlink(missing_ok=True)
    try:
      file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
      return False
    own = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'born': _born(os.getpid()),
    }
    with os.fdopen(file, 'w') as stream:
      json.dump(own, stream)
  return True


def release(folder: pathlib.Path) -> None:
  """Gives a claim of this process up."""
  (folder / _FILE).unlink(missing_ok=True)


def holder(folder: pathlib.Path) -> str | None:
  """'HOST:PID' of the living process that holds a folder, or None."""
  path = folder / _FILE
  try:
    age = time.time() - path.stat().st_mtime
  except FileNotFoundError:
    return None
  try:
    claim = json.loads(path.read_text())
    host, pid, born = claim['host'], claim['pid'], claim['born']
  except FileNotFoundError:
    return None
  except (KeyError, TypeError, ValueError):
    # Being written, or cut off by a crash in that moment.
    return 'unknown' if age < TOUCH_SECONDS else None
  if host == socket.gethostname():
    alive = _born(pid) is not None and _born(pid) == born
  else:
    alive = age < STALE_SECONDS
  return f'{host}:{pid}' if alive else None


@contextlib.contextmanager
def touching(folder: pathlib.Path) -> Generator[None]:
  """Keeps this process's claim fresh while open, then gives it up."""
  done = threading.Event()

  def touch() -> None:
    while not done.wait(TOUCH_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(folder / _FILE)

  thread = threading.Thread(target=touch, daemon=True)
  thread.start()
  try:
    with interrupts.undone(lambda: release(folder)):
      yield
  finally:
    done.set()
    thread.join()
    release(folder)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Generator[None]:
  with path.open('a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _born(pid: int) -> str | None:
  """When a process started, None if there is none; ids are used again."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    if pathlib.Path('/proc/self').exists():
      return None
    return _answers(pid)
  state, *fields = stat.rpartition(')')[2].split()
  # Field 22 of proc(5); a zombie holds nothing.
  return None if state == 'Z' else fields[18]


def _answers(pid: int) -> str | None:
  # macOS has no /proc.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return 'alive'
