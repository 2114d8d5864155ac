"""Zip files as trees, read in place, Deflate64 too."""

import contextlib
import copy
import pathlib
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Generator

from tlkd_jax.data.builders import entries, walk
from tlkd_jax.data.builders.walk import DamagedError, File, LeftOut, Tree

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
# bz2 reports damage as OSError, zipfile what it lacks as RuntimeError.
_ZIP_DAMAGE = (
  *(zipfile.BadZipFile, *entries.DAMAGE, OSError, struct.error, ValueError),
  *(RuntimeError, NotImplementedError, OverflowError),
)


@contextlib.contextmanager
def open_zip(path: str, root: pathlib.Path) -> Generator[Tree]:
  """The tree of a zip; see archives.open_tree for what it raises."""
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
    outside = entries.outside([info.filename for info in archive.infolist()])
    spelt = walk.composed(name for name, _ in members)
    for name, info in members:
      if info.filename in outside:
        tree.left_out.append(LeftOut(name, entries.ELSEWHERE))
        continue
      kind = stat.S_IFMT(info.external_attr >> 16)
      is_folder = name.endswith('/')
      odd = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
      file = File(spelt[name].strip('/'), info.file_size, info.CRC, info)
      entries.add(tree, file, is_folder, odd)
    entries.finish(tree, root.stat().st_size)
    _check_methods(tree)
    yield tree


def _zip_name(info: zipfile.ZipInfo) -> str:
  name = info.filename
  if not info.flag_bits & _UTF8:
    # Many writers store UTF-8 without saying so.
    with contextlib.suppress(UnicodeError):
      name = name.encode('cp437').decode('utf-8')
  return entries.clean(name)


def _is_ascii_or_utf8(info: zipfile.ZipInfo, name: str) -> bool:
  return (
    name.isascii()
    or bool(info.flag_bits & _UTF8)
    or entries.clean(info.filename) != name
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
    if entries.clean(local) != entries.clean(info.orig_filename):
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
