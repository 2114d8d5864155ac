"""One process at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from absl import logging

from tlkd_jax.runtime.errors import UserError, as_user_errors

_FILE = '.lock'
# What a file system without locks says.
_UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


@contextlib.contextmanager
def held(folder: pathlib.Path, *, wanted: bool = True) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made if need be.

  The lock dies with its process, however that ends. On NFS it holds between
  machines where the server has locks; where there are none a warning is given.
  A folder in which nothing was written is removed again.

  Args:
    folder: the folder.
    wanted: False for a process that belongs to the one that holds it.

  Raises:
    UserError: another process is there.
  """
  if not wanted:
    yield
    return
  made = not folder.exists()
  with as_user_errors():
    folder.mkdir(parents=True, exist_ok=True)
  path = folder / _FILE
  with _taken(path) as file:
    try:
      yield
    finally:
      if made and [p.name for p in folder.iterdir()] == [_FILE]:
        path.unlink()
        folder.rmdir()
      # Closing does not suffice where a forked process has the file too.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _taken(path: pathlib.Path) -> Iterator[int]:
  with as_user_errors():
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    yield file
  finally:
    os.close(file)


def _is_same(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is still the one of that name."""
  return path.exists() and os.fstat(file).st_ino == path.stat().st_ino
