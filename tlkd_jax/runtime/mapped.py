"""Arrays in files that are mapped into memory."""

import hashlib
import os
import pathlib
import shutil

import numpy as np

_AT_ONCE = 2**24


def create(
  path: pathlib.Path, dtype: np.dtype | type, shape: tuple[int, ...]
) -> np.memmap:
  """A new .npy file, mapped to be filled, its place on the disk taken.

  A mapped page for which the disk has no room would kill the process where it
  is written.

  Raises:
    OSError: the disk is too small; nothing is left of the file.
  """
  try:
    array = np.lib.format.open_memmap(path, 'w+', dtype, shape)
    _reserve(path)
  except OSError as error:
    path.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raise OSError(
      f'{path.parent}: {needed / 1e9:.3g} GB are needed for {path.name} and '
      f'{free / 1e9:.3g} GB are free ({error.strerror})'
    ) from error
  return array


def load(path: pathlib.Path) -> np.ndarray | None:
  """A .npy file, mapped to be read; None of one whose header is damaged."""
  try:
    return np.load(path, mmap_mode='r')
  # What is raised depends on where the damage is.
  except Exception:
    return None


def digest(array: np.ndarray) -> str:
  """Of the bytes of an array [N, ...], which may exceed the memory."""
  found = hashlib.blake2b(digest_size=16)
  rows = max(1, _AT_ONCE // max(1, array[:1].nbytes))
  for start in range(0, len(array), rows):
    found.update(array[start : start + rows].tobytes())
  return found.hexdigest()


def _reserve(path: pathlib.Path) -> None:
  # macOS has no such call, and allocates when it maps.
  if hasattr(os, 'posix_fallocate'):
    with path.open('r+b') as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
