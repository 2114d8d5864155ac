"""One process at a time in a folder, or at a file.

A lock dies with its process, however that ends. On NFS it holds between
machines where the server has locks; where there are none a warning is given.

What a cache holds is used by several at once: each says so by `keep`, and only
what is `unused` is removed.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Generator

from absl import logging

from tlkd_jax.runtime import atomic
from tlkd_jax.runtime.errors import UserError, as_user_errors

_FILE = '.lock'
# What a file system without locks says.
_UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
# Files that this process keeps, open; of more, those of longest ago are let go:
# a process makes many runs one after the other, none of which needs so many.
_kept: dict[str, int] = {}
_MOST_KEPT = 256


@contextlib.contextmanager
def held(
  folder: pathlib.Path, *, wanted: bool = True, part: str = ''
) -> Generator[None]:
  """Keeps other processes out of a folder, which is made if need be.

  A folder in which nothing was written is removed again. What writes that were
  killed have left in it is removed too.

  Args:
    folder: the folder.
    wanted: False for a process that belongs to the one that holds it.
    part: what of it is held, where others may hold other parts; '' is all.

  Raises:
    UserError: another process is there.
  """
  if not wanted:
    yield
    return
  made = not folder.exists()
  with as_user_errors():
    folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as locks:
    whole = fcntl.LOCK_SH if part else fcntl.LOCK_EX
    locks.enter_context(_taken(folder / _FILE, whole))
    if part:
      locks.enter_context(_taken(folder / f'{_FILE}.{part}', fcntl.LOCK_EX))
    else:
      atomic.sweep(folder)
    try:
      yield
    finally:
      if made and not part and [p.name for p in folder.iterdir()] == [_FILE]:
        (folder / _FILE).unlink()
        folder.rmdir()


@contextlib.contextmanager
def in_turn(path: pathlib.Path, what: str) -> Generator[bool]:
  """Waits until no other process holds a file, and holds it.

  Args:
    path: the file; its folder is made if need be.
    what: is done meanwhile, for the message of one that waits.

  Yields:
    Whether it is held: False on a file system without locks, or read-only.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    # What nobody can write to can be read without waiting.
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
      raise
    yield False
    return
  try:
    yield _waited(file, what)
  finally:
    _release(file)
    os.close(file)


def keep(path: pathlib.Path) -> None:
  """Lets nobody remove what a file stands for while this process uses it.

  That is until the process has ended, or has kept `_MOST_KEPT` others since.
  The file's time is that of the last such call. Waits for a removal that is
  under way. Where no file can be made nothing is kept, without a message: who
  uses the folder next says why.

  Args:
    path: the file; its folder is made if need be.
  """
  name = os.path.realpath(path)
  with contextlib.suppress(OSError):
    file = _kept.pop(name, None)
    while file is None or not _is_same(file, path):
      if file is not None:
        os.close(file)
      path.parent.mkdir(parents=True, exist_ok=True)
      # Not to be written to: where there is one, it can be kept by those who
      # may only read.
      file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
      try:
        fcntl.flock(file, fcntl.LOCK_SH)
      except OSError:
        os.close(file)
        raise
    _kept[name] = file
    if len(_kept) > _MOST_KEPT:
      os.close(_kept.pop(next(iter(_kept))))
    os.utime(path)


@contextlib.contextmanager
def unused(path: pathlib.Path) -> Generator[bool]:
  """Whether no process keeps a file; while this is open, none begins to.

  Args:
    path: the file, which may be removed meanwhile. One that is not there is
      kept by none.

  Yields:
    False too where it cannot be told, for want of rights or of locks.
  """
  try:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except FileNotFoundError:
    # Nor is there a folder for it.
    yield True
    return
  except OSError:
    yield False
    return
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      free = _is_same(file, path)
    except OSError:
      free = False
    yield free
  finally:
    _release(file)
    os.close(file)


def _waited(file: int, what: str) -> bool:
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('waits for the process that %s', what)
      fcntl.flock(file, fcntl.LOCK_EX)
  except OSError as error:
    if error.errno not in _UNABLE:
      raise
    return False
  return True


def _release(file: int) -> None:
  # Closing does not suffice where a forked process has the file too.
  with contextlib.suppress(OSError):
    fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _taken(path: pathlib.Path, kind: int) -> Generator[None]:
  with as_user_errors():
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
      owner = os.read(file, 200).decode(errors='replace').strip()
      raise UserError(
        f'{path.parent} is in use by another process'
        f'{f" ({owner})" if owner else ""}: wait until it has ended, stop it, '
        'or give another --workdir'
      ) from error
    except OSError as error:
      if error.errno not in _UNABLE:
        raise
      logging.warning(
        '%s cannot be locked (%s): see that no other command writes there',
        *(path.parent, error.strerror),
      )
    if not _is_same(file, path):
      raise UserError(f'{path.parent} was just left by another process')
    os.ftruncate(file, 0)
    os.write(file, f'process {os.getpid()} on {socket.gethostname()}'.encode())
    try:
      yield
    finally:
      _release(file)
  finally:
    os.close(file)


def _is_same(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is still the one of that name."""
  return path.exists() and os.fstat(file).st_ino == path.stat().st_ino
