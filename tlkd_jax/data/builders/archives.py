"""Folders, zip and tar files as trees, read in place.

Names are taken as a careful unpacker would: without a leading slash or drive,
without '..', with backslashes as separators. Of two members of one name the
later counts. Links and devices are left out.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import pathlib
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Generator
from typing import IO

from tlkd_jax.data.builders import entries, walk, zips
from tlkd_jax.data.builders.walk import DamagedError, File, LeftOut, Tree

_OPENERS = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\0': lzma.open,
  b'\x5d\0\0': lzma.open,
}


@contextlib.contextmanager
def open_tree(
  path: str, spool_in: str | os.PathLike | None = None
) -> Generator[Tree]:
  """The tree of a folder, a .zip or a .tar, also .tar.gz, .bz2 and .xz.

  A compressed tar is unpacked once into a file without a name, since its
  members can only be read in order.

  Args:
    path: of the folder or file.
    spool_in: the folder of that file; by default the system's.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
    ValueError: if it is none of them, damaged, encrypted, packed by a method
      that is not known, or so much larger unpacked that it is an attack.
    OSError: a folder in it cannot be read.
  """
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise FileNotFoundError(f'folder:{path}: no such folder, zip or tar file')
  if root.is_dir():
    with walk.open_folder(path) as tree:
      yield tree
  elif not root.is_file():
    raise _no_archive(path)
  elif is_tar(root):
    with _open_tar(path, root, spool_in) as tree:
      yield tree
  elif zipfile.is_zipfile(root):
    with zips.open_zip(path, root) as tree:
      yield tree
  else:
    raise _no_archive(path)


def is_tar(path: pathlib.Path) -> bool:
  """Whether a regular file is a tar or a compressed one."""
  if not path.is_file():
    return False
  with path.open('rb') as file:
    head = file.read(512)
  compressed = any(head.startswith(magic) for magic in _OPENERS)
  return compressed or head[257:262] == b'ustar'


def _no_archive(path: str) -> ValueError:
  return ValueError(
    f'folder:{path}: neither a folder nor a zip or tar file (.zip, .tar, '
    '.tar.gz, .tar.bz2, .tar.xz); unpack it into a folder'
  )


@contextlib.contextmanager
def _open_tar(
  path: str, root: pathlib.Path, spool_in: str | os.PathLike | None
) -> Generator[Tree]:
  packed = root.stat().st_size
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(root.open('rb'))
    head = file.read(8)
    file.seek(0)
    for magic, opener in _OPENERS.items():
      if head.startswith(magic):
        file = stack.enter_context(
          _unpacked(path, opener(file), packed, spool_in)
        )
        break
    reader = _TarReader(file)
    tree = Tree(path, 'tar', reader.read)
    members = _members(path, file)
    outside = entries.outside([member.name for member in members])
    spelt = walk.composed(entries.clean(member.name) for member in members)
    for member in members:
      name = spelt[entries.clean(member.name)]
      if member.name in outside:
        tree.left_out.append(LeftOut(name, entries.ELSEWHERE))
        continue
      plain = member.isreg() and not member.issparse()
      place = (member.offset_data, member.size)
      entry = File(name.strip('/'), member.size, int(member.mtime), place)
      entries.add(tree, entry, member.isdir(), not plain)
    entries.finish(tree, packed)
    yield tree


@contextlib.contextmanager
def _unpacked(
  path: str, stream: IO[bytes], packed: int, spool_in
) -> Generator[IO[bytes]]:
  """A file without a name that holds what a compressed stream holds."""
  if spool_in is not None:
    pathlib.Path(spool_in).mkdir(parents=True, exist_ok=True)
  with stream, tempfile.TemporaryFile(dir=spool_in) as spool:
    size = 0
    while True:
      try:
        block = stream.read(1 << 20)
      except (*entries.DAMAGE, OSError) as error:
        raise ValueError(
          f'folder:{path}: the tar file is damaged or cut short after '
          f'{size} bytes: {error}'
        ) from error
      if not block:
        break
      size += len(block)
      entries.check_ratio(path, size, packed)
      try:
        spool.write(block)
      except OSError as error:
        place = spool_in or tempfile.gettempdir()
        raise OSError(
          f'{path} could not be unpacked in {place}: {error.strerror}'
        ) from error
    spool.seek(0)
    yield spool


def _members(path: str, file: IO[bytes]) -> list[tarfile.TarInfo]:
  try:
    with tarfile.open(fileobj=file, mode='r:') as archive:
      members = archive.getmembers()
      end = archive.offset
  except (tarfile.TarError, *entries.DAMAGE, ValueError) as error:
    raise ValueError(f'folder:{path}: a damaged tar file: {error}') from error
  # tarfile takes a damaged header for the end of the archive.
  file.seek(end)
  if any(file.read(tarfile.BLOCKSIZE)):
    raise ValueError(f'folder:{path}: the tar file is damaged at byte {end}')
  return members


class _TarReader:
  """Reads members of an uncompressed tar."""

  def __init__(self, file: IO[bytes]):
    self._file = file
    self._lock = threading.Lock()

  def read(self, file: File, count: int = -1) -> bytes:
    start, size = file.origin
    wanted = size if count < 0 else min(count, size)
    with self._lock:
      self._file.seek(start)
      data = self._file.read(wanted)
    if len(data) < wanted:
      raise DamagedError('cut short in the tar')
    return data
