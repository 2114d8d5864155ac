"""Zip and tar files as trees, read in place.

Names are taken as a careful unpacker would: without a leading slash or drive,
without '..', with backslashes as separators. Of two members of one name the
later counts. Links and devices are left out.
"""

import bz2
import contextlib
import copy
import gzip
import lzma
import os
import pathlib
import re
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from tlkd_jax.data.builders import walk
from tlkd_jax.data.builders.walk import DamagedError, File, LeftOut, Tree

# Archives of more than this much are refused if they are that much smaller
# than what they hold. Images are compressed already; blank BMP files reach 100.
_MAX_RATIO = 200
_FREE_BYTES = 1 << 30

_DEFLATE64 = 9
_METHODS = {
  1: 'shrink',
  6: 'implode',
  _DEFLATE64: 'Deflate64',
  93: 'Zstandard',
  95: 'xz',
  96: 'JPEG',
  97: 'WavPack',
  98: 'PPMd',
}
_READ_METHODS = {
  zipfile.ZIP_STORED,
  zipfile.ZIP_DEFLATED,
  zipfile.ZIP_BZIP2,
  zipfile.ZIP_LZMA,
} | ({93} if hasattr(zipfile, 'ZIP_ZSTANDARD') else set())
_BLOCK = 1 << 16
_ENCRYPTED, _UTF8 = 0x1, 0x800
_LOCAL_HEADER = struct.Struct('<26x2H')

_OPENERS = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\0': lzma.open,
  b'\x5d\0\0': lzma.open,
}
_ELSEWHERE = "a name that leads elsewhere, with '..'"
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
# bz2 reports damage as OSError, zipfile what it lacks as RuntimeError.
_ZIP_DAMAGE = (
  *(zipfile.BadZipFile, *_DAMAGE, OSError, struct.error, ValueError),
  *(RuntimeError, NotImplementedError, OverflowError),
)


@contextlib.contextmanager
def open_tree(
  path: str, spool_in: str | os.PathLike | None = None
) -> Iterator[Tree]:
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
    with _open_zip(path, root) as tree:
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
def _open_zip(path: str, root: pathlib.Path) -> Iterator[Tree]:
  try:
    archive = zipfile.ZipFile(root)
  except _ZIP_DAMAGE as error:
    raise ValueError(f'folder:{path}: a damaged zip file: {error}') from error
  with archive:
    reader = _ZipReader(archive)
    tree = Tree(path, 'zip', reader.read)
    members = [(_zip_name(info), info) for info in archive.infolist()]
    guessed = [
      name for name, info in members if not _is_ascii_or_utf8(info, name)
    ]
    if guessed:
      tree.notes.append(
        f'{len(guessed)} names in the zip are in no stated encoding and were '
        f'read as code page 437, such as {guessed[0]}'
      )
    outside = _outside([info.filename for info in archive.infolist()])
    for name, info in members:
      if info.filename in outside:
        tree.left_out.append(LeftOut(name, _ELSEWHERE))
        continue
      kind = stat.S_IFMT(info.external_attr >> 16)
      is_folder = name.endswith('/')
      odd = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
      file = File(name.strip('/'), info.file_size, info.CRC, info)
      _add(tree, file, is_folder, odd)
    _finish(tree, root.stat().st_size)
    _check_methods(tree)
    yield tree


def _zip_name(info: zipfile.ZipInfo) -> str:
  name = info.filename
  if not info.flag_bits & _UTF8:
    # Many writers store UTF-8 without saying so.
    with contextlib.suppress(UnicodeError):
      name = name.encode('cp437').decode('utf-8')
  return _clean(name)


def _is_ascii_or_utf8(info: zipfile.ZipInfo, name: str) -> bool:
  return (
    name.isascii()
    or bool(info.flag_bits & _UTF8)
    or _clean(info.filename) != name
  )


def _clean(name: str) -> str:
  """Folders as we name them; a final slash is kept."""
  name = name.replace('\\', '/')
  name = re.sub(r'^[A-Za-z]:(?=/)', '', name)
  name = walk.printable(name.encode('utf-8', 'surrogateescape'))
  parts = [p for p in name.split('/') if p not in ('', '.', '..')]
  return '/'.join(parts) + '/' * name.endswith('/')


def _outside(names: list[str]) -> set[str]:
  """Names with '..' in an archive where others have none."""
  found = {name for name in names if '..' in re.split(r'[/\\]', name)}
  return found if len(found) < len(set(names)) else set()


def _add(tree: Tree, file: File, is_folder: bool, odd: bool) -> None:
  """Sorts one member into a tree."""
  if not file.name:
    return
  parts = file.parts
  for depth, part in enumerate(parts, start=1):
    if not walk.is_system(part):
      continue
    name = '/'.join(parts[:depth])
    if depth < len(parts) or is_folder:
      name += '/'
      direct = depth == len(parts) - 1 and not is_folder
      if walk.may_be_class(part) and direct:
        held = tree.hidden.get(parts[:depth], 0)
        image = walk.looks_like_image(parts[-1])
        tree.hidden[parts[:depth]] = held + image
    tree.left_out.append(LeftOut(name, "hidden or a system's"))
    return
  above = parts if is_folder else parts[:-1]
  tree.folders.update(above[:depth] for depth in range(len(above) + 1))
  if is_folder:
    return
  if odd:
    tree.left_out.append(LeftOut(file.name, 'link or device in an archive'))
  else:
    tree.files.append(file)


def _finish(tree: Tree, packed: int) -> None:
  """Keeps the last member of each name; refuses what grows too much."""
  last = {file.name: file for file in tree.files}
  twice = [file for file in tree.files if last[file.name] is not file]
  tree.left_out[:] = dict.fromkeys(tree.left_out)
  tree.left_out += [
    LeftOut(file.name, 'once more under the same name in the archive')
    for file in twice
  ]
  tree.files[:] = sorted(last.values(), key=lambda file: file.name)
  total = sum(
    file.size for file in tree.files if file.size <= walk.MAX_FILE_BYTES
  )
  _check_ratio(tree.location, total, packed)


def _check_ratio(path: str, unpacked: int, packed: int) -> None:
  if unpacked > max(_FREE_BYTES, _MAX_RATIO * packed):
    raise ValueError(
      f'folder:{path}: {packed / 1e6:.1f} MB hold more than '
      f'{unpacked / 1e9:.1f} GB, {_MAX_RATIO} times as much or more: this is '
      'taken for an attack. If it is not, unpack it into a folder'
    )


def _check_methods(tree: Tree) -> None:
  """Says before long work which members cannot be read at all."""
  for file in tree.files:
    info = file.origin
    if not walk.looks_like_image(file.name):
      continue
    if info.flag_bits & _ENCRYPTED:
      raise ValueError(
        f'folder:{tree.location}: {file.name} is encrypted; unpack it into a '
        'folder'
      )
    method = info.compress_type
    if method in _READ_METHODS or method == _DEFLATE64 and _inflate64():
      continue
    known = _METHODS.get(method, 'unknown')
    hint = 'pip install inflate64, or ' if method == _DEFLATE64 else ''
    raise ValueError(
      f'folder:{tree.location}: {file.name} is packed by method {method} '
      f'({known}), which is not read; {hint}unpack it into a folder'
    )


def _inflate64():
  """The optional package that unpacks Deflate64; None without."""
  try:
    import inflate64
  except ImportError:
    return None
  return inflate64


class _ZipReader:
  """Reads members of an open zip."""

  def __init__(self, archive: zipfile.ZipFile):
    self._archive = archive
    self._lock = threading.Lock()

  def read(self, file: File, count: int = -1) -> bytes:
    info = file.origin
    try:
      if info.compress_type == _DEFLATE64:
        return self._read_deflate64(info)[: count if count >= 0 else None]
      with self._archive.open(self._as_written(info)) as stream:
        return stream.read(count)
    except _ZIP_DAMAGE as error:
      raise DamagedError(f'damaged in the zip: {error}') from error

  def _header(self, info: zipfile.ZipInfo) -> tuple[bytes, int]:
    """(name beside the data, where the data begins)."""
    file = self._archive.fp
    assert file is not None
    file.seek(info.header_offset)
    name_size, extra_size = _LOCAL_HEADER.unpack(file.read(30))
    return file.read(name_size), file.tell() + extra_size

  def _as_written(self, info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The member under its local name: some writers give it two."""
    if not info.orig_filename.startswith(('/', '\\')):
      return info
    with self._lock:
      name, _ = self._header(info)
    encoding = 'utf-8' if info.flag_bits & _UTF8 else 'cp437'
    local = name.decode(encoding, 'replace')
    if _clean(local) != _clean(info.orig_filename):
      return info
    other = copy.copy(info)
    other.orig_filename = local
    return other

  def _read_deflate64(self, info: zipfile.ZipInfo) -> bytes:
    package = _inflate64()
    if package is None:
      raise NotImplementedError('Deflate64; pip install inflate64')
    file = self._archive.fp
    assert file is not None
    with self._lock:
      _, start = self._header(info)
      file.seek(start)
      packed = file.read(info.compress_size)
    inflater, data = package.Inflater(), bytearray()
    # Bit by bit: what a lying header does not announce never fills the memory.
    for at in range(0, len(packed), _BLOCK):
      data += inflater.inflate(packed[at : at + _BLOCK])
      if len(data) > info.file_size:
        raise zipfile.BadZipFile('it is longer than announced')
    if zlib.crc32(data) != info.CRC:
      raise zipfile.BadZipFile('its checksum differs')
    return bytes(data)


@contextlib.contextmanager
def _open_tar(
  path: str, root: pathlib.Path, spool_in: str | os.PathLike | None
) -> Iterator[Tree]:
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
    outside = _outside([member.name for member in members])
    for member in members:
      name = _clean(member.name)
      if member.name in outside:
        tree.left_out.append(LeftOut(name, _ELSEWHERE))
        continue
      plain = member.isreg() and not member.issparse()
      place = (member.offset_data, member.size)
      entry = File(name.strip('/'), member.size, int(member.mtime), place)
      _add(tree, entry, member.isdir(), not plain)
    _finish(tree, packed)
    yield tree


@contextlib.contextmanager
def _unpacked(
  path: str, stream: IO[bytes], packed: int, spool_in
) -> Iterator[IO[bytes]]:
  """A file without a name that holds what a compressed stream holds."""
  if spool_in is not None:
    pathlib.Path(spool_in).mkdir(parents=True, exist_ok=True)
  with stream, tempfile.TemporaryFile(dir=spool_in) as spool:
    size = 0
    while True:
      try:
        block = stream.read(1 << 20)
      except (*_DAMAGE, OSError) as error:
        raise ValueError(
          f'folder:{path}: the tar file is damaged or cut short after '
          f'{size} bytes: {error}'
        ) from error
      if not block:
        break
      size += len(block)
      _check_ratio(path, size, packed)
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
  except (tarfile.TarError, *_DAMAGE, ValueError) as error:
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
