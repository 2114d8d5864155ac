"""Reads and writes safetensors files.

The library checks a file's header; the values are read here, since it knows
NumPy's own dtypes alone.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from tlkd_jax.models.weights.torch_records import DTYPES, WeightsError

_DTYPES = {
  'F64': DTYPES['float64'],
  'F32': DTYPES['float32'],
  'F16': DTYPES['float16'],
  'BF16': DTYPES['bfloat16'],
  'I64': DTYPES['int64'],
  'I32': DTYPES['int32'],
  'I16': DTYPES['int16'],
  'I8': DTYPES['int8'],
  'U64': DTYPES['uint64'],
  'U32': DTYPES['uint32'],
  'U16': DTYPES['uint16'],
  'U8': DTYPES['uint8'],
  'BOOL': DTYPES['bool'],
  'F8_E4M3': DTYPES['float8_e4m3fn'],
  'F8_E4M3FNUZ': DTYPES['float8_e4m3fnuz'],
  'F8_E5M2': DTYPES['float8_e5m2'],
  'F8_E5M2FNUZ': DTYPES['float8_e5m2fnuz'],
  'F8_E8M0': DTYPES['float8_e8m0fnu'],
}
# Of NumPy.
_MAX_RANK = 64


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file, in its order.

  Raises:
    WeightsError: It is damaged, empty, or of a dtype or rank that no array
      has; the tensor is named.
  """
  try:
    with safetensors.safe_open(path, 'np') as file:
      names = file.keys()
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise WeightsError(f'safetensors cannot read it: {error}') from error
  if not names:
    raise WeightsError('a safetensors file without tensors')
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    header = json.loads(file.read(length))
  arrays = {}
  for name in header:
    if name != '__metadata__':
      arrays[name] = _read_one(path, name, header[name], 8 + length)
  return arrays


def _read_one(
  path: pathlib.Path, name: str, entry: dict, start: int
) -> np.ndarray:
  if entry['dtype'] not in _DTYPES:
    raise WeightsError(
      f'{name:.200} has the dtype {entry["dtype"]}; accepted: '
      f'{", ".join(_DTYPES)}'
    )
  dtype, shape = _DTYPES[entry['dtype']], entry['shape']
  if len(shape) > _MAX_RANK:
    raise WeightsError(
      f'{name:.200} has {len(shape)} dimensions; accepted: at most {_MAX_RANK}'
    )
  begin, end = entry['data_offsets']
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise WeightsError(f'{name:.200} has {end - begin} bytes for {shape}')
  data = np.fromfile(path, np.uint8, end - begin, offset=start + begin)
  if dtype == np.bool_:
    return (data != 0).reshape(shape)
  return data.view(dtype).reshape(shape)


def write(
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
