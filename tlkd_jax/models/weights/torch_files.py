"""Reads state dicts from PyTorch and safetensors files, without PyTorch.

    state_dict = read_state_dict('resnet50-11ad3fa6.pth')

The format is found by content, not by name:

- legacy `torch.save`: five pickles (magic number, protocol, system, object,
  storage keys), then every storage as its element count and raw bytes;
- zip `torch.save`: `<name>/data.pkl`, `<name>/data/<key>` per storage and
  `<name>/byteorder`, all of them stored, not compressed;
- safetensors, through the safetensors library.

Pickles are interpreted by `torch_pickle`, which restores tensors only.
"""

import io
import math
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from tlkd_jax.models.weights import torch_pickle
from tlkd_jax.models.weights.torch_pickle import Storage, Tensor, WeightsError

# torch.serialization.MAGIC_NUMBER and PROTOCOL_VERSION.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

# What the tensors may weigh relative to the file: some share a storage, but
# an expanded tensor (stride 0) could claim any size.
_MAX_EXPANSION = 16
_FREE_BYTES = 1 << 20

# Looked up in this order, and again inside what was found.
WRAPPERS = (
  'state_dict_ema',
  'model_ema',
  'ema_state_dict',
  'ema',
  'state_dict',
  'model_state_dict',
  'model',
  'module',
)
_PREFIXES = ('module.', '_orig_mod.')
# The update count of torch.optim.swa_utils.AveragedModel.
_AVERAGED_MODEL_COUNT = 'n_averaged'

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

  A wrapped dictionary is unwrapped (the names of `WRAPPERS` in their order,
  so averaged weights come first), and the prefixes `module.` and `_orig_mod.`
  are removed where all names have them. What is no tensor is left out.

  Args:
    path: A file of `torch.save` (zip or legacy) or of safetensors.
    allow_non_finite: Whether NaN and infinite values are accepted.

  Returns:
    Name to array, in the order of the file: contiguous, writable, with the
    shape and dtype of the file (bfloat16 is `ml_dtypes.bfloat16`).

  Raises:
    FileNotFoundError: There is no such file.
    WeightsError: (a ValueError) The file is damaged, refers to anything but
      tensors, or holds no state dict or values that are not finite.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: there is no such weight file')
  if not path.is_file():
    raise WeightsError(f'{path}: this is no file; {_ACCEPTED}')
  try:
    state_dict = _read(path)
    if not allow_non_finite:
      _check_finite(state_dict)
  except WeightsError as error:
    raise WeightsError(f'{path}: {error}; {_ACCEPTED}') from error
  return state_dict


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  file_size = path.stat().st_size
  with path.open('rb') as file:
    head = file.read(265)
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < file_size:
    return _read_safetensors(path)
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


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    arrays = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, KeyError, TypeError) as error:
    raise WeightsError(f'safetensors cannot read it: {error}') from error
  if not arrays:
    raise WeightsError('a safetensors file without tensors')
  for name, array in arrays.items():
    if array.dtype not in torch_pickle.DTYPES.values():
      raise WeightsError(f'{name} has the dtype {array.dtype}')
  return _strip_prefixes(arrays)


def _read_legacy(path: pathlib.Path, file_size: int) -> dict[str, np.ndarray]:
  with path.open('rb') as file:
    stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  if torch_pickle.load(stream)[0] != _MAGIC_NUMBER:
    raise WeightsError('a pickle that torch.save did not write')
  version, _ = torch_pickle.load(stream)
  if version != _PROTOCOL_VERSION:
    raise WeightsError('a legacy file of an unknown protocol version')
  torch_pickle.load(stream)  # The saving system; storages are little-endian.
  content, storages = torch_pickle.load(stream)
  tensors = _select(content)
  keys, _ = torch_pickle.load(stream)
  records = _locate_storages(stream, keys, storages)
  return _materialise(tensors, records.__getitem__, '<', file_size)


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


def _read_zip(path: pathlib.Path, file_size: int) -> dict[str, np.ndarray]:
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


def _read_archive(
  archive: zipfile.ZipFile, file_size: int
) -> dict[str, np.ndarray]:
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
  return _materialise(_select(content), read, order, file_size)


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
  tensors: Mapping[str, Tensor],
  read: Callable[[str], bytes | memoryview],
  byte_order: str,
  file_size: int,
) -> dict[str, np.ndarray]:
  """Copies tensors out of their storages, in native byte order."""
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
  return arrays


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


def _holds_tensors(value: object) -> bool:
  return isinstance(value, dict) and any(
    isinstance(entry, Tensor) for entry in value.values()
  )


def _select(content: object) -> dict[str, Tensor]:
  """Unwraps a checkpoint's state dict and keeps its tensors."""
  if isinstance(content, Tensor):
    raise WeightsError('a single tensor')
  if not isinstance(content, dict):
    raise WeightsError(f'a {type(content).__name__}, no dictionary')
  state_dict = _unwrap(content, depth=3)
  if state_dict is None:
    names = ', '.join(repr(key)[:40] for key in list(content)[:10])
    raise WeightsError(
      f'no state dict in it: its entries are {names or "none"}, and weights '
      f'are looked for there and under {", ".join(WRAPPERS)}'
    )
  tensors = {}
  for name, value in state_dict.items():
    if _holds_tensors(value):
      raise WeightsError(
        f'tensors both beside and inside its entry {name!r:.40}, which is '
        f'none of the known names: {", ".join(WRAPPERS)}'
      )
    if isinstance(value, Tensor):
      if not isinstance(name, str):
        raise WeightsError(f'a tensor whose name is {name!r}, no text')
      tensors[name] = value
  return _strip_prefixes(tensors)


def _unwrap(content: dict, depth: int) -> dict | None:
  for wrapper in WRAPPERS:
    inner = content.get(wrapper)
    if isinstance(inner, dict) and depth:
      found = _unwrap(inner, depth - 1)
      if found is not None:
        return found
  return content if _holds_tensors(content) else None


def _strip_prefixes(tensors: dict) -> dict:
  """Removes what DistributedDataParallel and torch.compile put in front."""
  while True:
    names = [name for name in tensors if name != _AVERAGED_MODEL_COUNT]
    for prefix in _PREFIXES:
      if names and all(name.startswith(prefix) for name in names):
        tensors = {name[len(prefix) :]: tensors[name] for name in names}
        break
    else:
      return tensors


def _check_finite(state_dict: Mapping[str, np.ndarray]) -> None:
  for name, array in state_dict.items():
    if array.dtype.kind in 'biu':
      continue
    count = array.size - int(np.count_nonzero(np.isfinite(array)))
    if count:
      raise WeightsError(
        f'{name} has {count} values of {array.size} that are NaN or infinite'
      )


def write_safetensors(
  path: str | os.PathLike,
  state_dict: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a state dict; the file appears whole or not at all.

  Args:
    path: The file, replaced if it exists.
    state_dict: Name to array.
    metadata: Text that the header carries.
  """
  path = pathlib.Path(path)
  contiguous = {
    name: np.ascontiguousarray(array).reshape(np.shape(array))
    for name, array in state_dict.items()
  }
  content = safetensors.numpy.save(contiguous, dict(metadata or {}))
  unfinished = path.with_name(f'.{path.name}.{os.getpid()}.unfinished')
  try:
    with unfinished.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)
