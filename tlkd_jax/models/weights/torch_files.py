"""Reads state dicts from PyTorch and safetensors files, without PyTorch.

    state_dict = read_state_dict('resnet50-11ad3fa6.pth')

The format is found by content, not by name:

- legacy `torch.save`: five pickles (magic number, protocol, system, object,
  storage keys), then every storage as its element count and raw bytes;
- zip `torch.save`: `<name>/data.pkl`, `<name>/data/<key>` per storage and
  `<name>/byteorder`, all of them stored, not compressed;
- safetensors;
- a folder, or an index, of such files (see `folders`).

Pickles are interpreted by `torch_pickle`, which restores tensors only;
`selection` says which of its entries are the weights.
"""

import dataclasses
import io
import math
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from tlkd_jax.models.weights import (
  folders,
  safetensors_files,
  selection,
  torch_pickle,
)
from tlkd_jax.models.weights.safetensors_files import write as write_safetensors
from tlkd_jax.models.weights.selection import Selected
from tlkd_jax.models.weights.torch_records import (
  Storage,
  Tensor,
  WeightsError,
  refuse_foreign,
)
from tlkd_jax.runtime.errors import listed

__all__ = ['read', 'read_state_dict', 'write_safetensors']

# torch.serialization.MAGIC_NUMBER and PROTOCOL_VERSION.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

# What the tensors may weigh relative to the file: some share a storage, but
# an expanded tensor (stride 0) could claim any size.
_MAX_EXPANSION = 16
_FREE_BYTES = 1 << 20

_OTHER_FORMATS = {
  b'<': 'an HTML or XML page (a failed download?)',
  b'version https://git-lfs': 'a Git LFS pointer, not the file it points to',
  b'\x1f\x8b': 'a gzip archive; unpack it first',
  b'\x89HDF': 'an HDF5 file',
}
_ACCEPTED = (
  'accepted is a state dict of tensors that torch.save wrote (zip or legacy '
  'format), or a safetensors file'
)


def read_state_dict(
  path: str | os.PathLike, *, allow_non_finite: bool = False
) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint as NumPy arrays.

  A wrapped dictionary is unwrapped (the names of `selection.WRAPPERS` in their
  order, so averaged weights come first), and what DistributedDataParallel,
  torch.compile and FSDP put into names is removed. What is no tensor is left
  out.

  Args:
    path: A file of `torch.save` (zip or legacy) or of safetensors, the index
      of several, or a folder with one of these.
    allow_non_finite: Whether NaN and infinite values are accepted.

  Returns:
    Name to array, in the order of the file: contiguous, writable, with the
    shape and dtype of the file (bfloat16 and float8 are those of ml_dtypes).

  Raises:
    FileNotFoundError: There is no such file.
    WeightsError: (a ValueError) The file is damaged, needs anything but
      tensors for its weights, or holds no state dict or values that are not
      finite.
  """
  return read(path, allow_non_finite=allow_non_finite).tensors


def read(
  path: str | os.PathLike, *, allow_non_finite: bool = False
) -> Selected:
  """As `read_state_dict`, with what the file says beside its arrays."""
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: there is no such weight file')
  try:
    if path.is_dir():
      path = folders.find(path)
    if not path.is_file():
      raise WeightsError('this is no file')
    if path.name.endswith(folders.INDEX):
      found = _read_several(path)
    else:
      found = _read(path)
    arrays = selection.plain_names(found.tensors)
    if not allow_non_finite:
      _check_values(arrays)
  except WeightsError as error:
    raise WeightsError(f'{path}: {error}; {_ACCEPTED}') from error
  return dataclasses.replace(found, tensors=arrays)


def _read_several(path: pathlib.Path) -> Selected:
  arrays: dict[str, np.ndarray] = {}
  for file, names in folders.read_index(path).items():
    try:
      found = _read(path.with_name(file)).tensors
    except WeightsError as error:
      raise WeightsError(f'{file}: {error}') from error
    missing = [name for name in names if name not in found]
    if missing:
      raise WeightsError(
        f'{file} lacks {len(missing)} of the tensors that the index places '
        f'there: {listed(missing)}'
      )
    arrays |= {name: found[name] for name in names}
  return Selected(arrays)


def _read(path: pathlib.Path) -> Selected:
  file_size = path.stat().st_size
  with path.open('rb') as file:
    head = file.read(265)
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < file_size:
    return Selected(safetensors_files.read(path))
  if head.startswith(b'PK\x03\x04'):
    return _read_zip(path, file_size)
  if head.startswith(b'\x80'):
    return _read_legacy(path, file_size)
  if head[257:262] == b'ustar':
    raise WeightsError('a tar archive, the format before PyTorch 0.1.10')
  for magic, description in _OTHER_FORMATS.items():
    if head.startswith(magic):
      raise WeightsError(description)
  raise WeightsError('an empty file' if not head else 'an unknown format')


def _read_legacy(path: pathlib.Path, file_size: int) -> Selected:
  with path.open('rb') as file:
    stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  magic, _ = torch_pickle.load(stream)
  if magic != _MAGIC_NUMBER:
    refuse_foreign(magic)
    raise WeightsError('a pickle that torch.save did not write')
  version, _ = torch_pickle.load(stream)
  if version != _PROTOCOL_VERSION:
    raise WeightsError('a legacy file of an unknown protocol version')
  torch_pickle.load(stream)  # The saving system; storages are little-endian.
  content, storages = torch_pickle.load(stream)
  selected = selection.select(content)
  keys, _ = torch_pickle.load(stream)
  records = _locate_storages(stream, keys, storages)
  return _materialise(selected, records.__getitem__, '<', file_size)


def _locate_storages(
  stream: mmap.mmap, keys: object, storages: Mapping[str, Storage]
) -> dict[str, memoryview]:
  """Finds the raw storages that follow the pickles of a legacy file."""
  if (
    not isinstance(keys, list)
    or not all(type(key) in (str, int) for key in keys)
    or sorted(map(str, keys)) != sorted(storages)
  ):
    raise WeightsError('the list of storage keys does not fit the tensors')
  data, start = memoryview(stream), stream.tell()
  records = {}
  for key in map(str, keys):
    size = int.from_bytes(data[start : start + 8], 'little')
    end = start + 8 + size * storages[key].dtype.itemsize
    if size != storages[key].size:
      raise WeightsError(
        f'truncated or damaged: storage {key} has {size} elements where '
        f'{storages[key].size} are expected'
      )
    if end > len(data):
      raise WeightsError(
        f'truncated: storage {key} ends at byte {end:,}, the file at '
        f'{len(data):,}'
      )
    records[key] = data[start + 8 : end]
    start = end
  return records


def _read_zip(path: pathlib.Path, file_size: int) -> Selected:
  try:
    with zipfile.ZipFile(path) as archive:
      return _read_archive(archive, file_size)
  except WeightsError:
    raise
  except (
    zipfile.BadZipFile,
    # What zipfile raises for fields that make no sense.
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
  ) as error:
    raise WeightsError(f'a damaged zip archive ({error})') from error


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Selected:
  names = [
    name for name in archive.namelist() if name.split('/')[-1] == 'data.pkl'
  ]
  if len(names) != 1:
    raise WeightsError('a zip archive without one data.pkl')
  root = names[0].removesuffix('data.pkl')
  if f'{root}constants.pkl' in archive.namelist():
    raise WeightsError('a TorchScript archive, a program and no state dict')
  records = _check_archive(archive, file_size)
  order = b'little'
  if f'{root}byteorder' in records:
    order = archive.read(records[f'{root}byteorder'])
  if order not in (b'little', b'big'):
    raise WeightsError('a byte order that is neither little nor big')
  content, storages = torch_pickle.load(io.BytesIO(archive.read(names[0])))
  cache: dict[str, bytes] = {}

  def read(key: str) -> bytes:
    if key not in cache:
      name = f'{root}data/{key}'
      if name not in records:
        raise WeightsError(f'the record {name} is missing')
      needed = storages[key].size * storages[key].dtype.itemsize
      if records[name].file_size < needed:
        raise WeightsError(
          f'the record {name} has {records[name].file_size:,} bytes where '
          f'its tensors claim {needed:,}'
        )
      cache[key] = archive.read(records[name])
    return cache[key]

  order = '<' if order == b'little' else '>'
  return _materialise(selection.select(content), read, order, file_size)


def _check_archive(
  archive: zipfile.ZipFile, file_size: int
) -> dict[str, zipfile.ZipInfo]:
  """Refuses what expands: torch.save stores its records uncompressed."""
  records = {}
  for record in archive.infolist():
    if record.filename in records:
      raise WeightsError(f'the record {record.filename} is there twice')
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
      raise WeightsError(
        f'the record {record.filename} is compressed or encrypted, which '
        'torch.save never does (a zip of a checkpoint? unpack it first)'
      )
    records[record.filename] = record
  claimed = sum(record.file_size for record in records.values())
  if claimed > file_size:
    raise WeightsError(
      f'its records claim {claimed:,} bytes in a file of {file_size:,}'
    )
  return records


def _materialise(
  selected: Selected,
  read: Callable[[str], bytes | memoryview],
  byte_order: str,
  file_size: int,
) -> Selected:
  """Copies tensors out of their storages, in native byte order."""
  tensors = selected.tensors
  limit = _MAX_EXPANSION * file_size + _FREE_BYTES
  total = sum(tensor.nbytes for tensor in tensors.values())
  if total > limit:
    raise WeightsError(
      f'its tensors claim {total:,} bytes, over the limit of {limit:,} '
      f'({_MAX_EXPANSION} times the file)'
    )
  arrays = {}
  for name, tensor in tensors.items():
    arrays[name] = _copy_tensor(tensor, read(tensor.storage.key), byte_order)
  return dataclasses.replace(selected, tensors=arrays)


def _copy_tensor(
  tensor: Tensor, data: bytes | memoryview, byte_order: str
) -> np.ndarray:
  if math.prod(tensor.shape) == 0:
    return np.empty(tensor.shape, tensor.dtype)
  storage, itemsize = tensor.storage, tensor.dtype.itemsize
  flat = np.frombuffer(data, np.uint8)
  start = storage.offset * storage.dtype.itemsize + tensor.offset * itemsize
  last = sum(
    (length - 1) * stride
    for length, stride in zip(tensor.shape, tensor.strides, strict=True)
  )
  flat = flat[start : start + (last + 1) * itemsize]
  # bfloat16 has no byte-swapped dtype, so bytes are swapped as integers.
  flat = flat.view(np.dtype(f'{byte_order}u{itemsize}'))
  view = np.lib.stride_tricks.as_strided(
    flat, tensor.shape, [stride * itemsize for stride in tensor.strides]
  )
  native = view.astype(f'=u{itemsize}', order='C')
  if tensor.dtype == np.bool_:
    return native != 0
  return native.view(tensor.dtype)


def _check_values(state_dict: Mapping[str, np.ndarray]) -> None:
  for name, array in state_dict.items():
    if array.dtype.kind in 'biu':
      continue
    count = array.size - int(np.count_nonzero(np.isfinite(array)))
    if count:
      raise WeightsError(
        f'{name} has {count} values of {array.size} that are NaN or infinite'
      )
    if name.endswith('running_var') and (array < 0).any():
      raise WeightsError(f'{name} has variances below 0')
