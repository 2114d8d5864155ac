"""JSON and npz files of an evaluation: whole or not at all, readable by all."""

import io
import json
import math
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tlkd_jax.runtime import atomic, sealed

# What reading an archive with a wrong byte raises.
_DAMAGED = (
  AttributeError,
  EOFError,
  KeyError,
  NotImplementedError,
  OSError,
  OverflowError,
  RuntimeError,
  SyntaxError,
  TypeError,
  tokenize.TokenError,
  ValueError,
  zipfile.BadZipFile,
  zlib.error,
)


def plain(value: Any) -> Any:
  """Arrays and numpy scalars to lists and numbers; NaN and infinity to None."""
  if isinstance(value, dict):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, np.generic):
    return plain(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def number(value: float | None) -> float:
  """A number that was read from JSON; NaN where it was none.

  That is null, and NaN or an infinity in files of earlier versions.
  """
  if value is None or not math.isfinite(value):
    return math.nan
  return float(value)


def dumps(value: Any, indent: int | None = None, **options: Any) -> str:
  """`plain(value)` as JSON that every reader takes, which has no NaN."""
  return json.dumps(plain(value), indent=indent, allow_nan=False, **options)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes `plain(value)`; the folder is made if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  sealed.write_text(path, dumps(value, indent=1) + '\n')


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a compressed .npz with its digest; the folder is made if need be.

  An archive's own checksums say nothing of a member that is no longer listed.
  """
  sealed.unseal(path)
  atomic.replace_arrays(path, arrays)
  sealed.seal(path)


def read_arrays(
  path: pathlib.Path, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads an .npz whole, or unpacks the arrays named alone.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or lacks a name; the message names the file.
  """
  stream = io.BytesIO(sealed.read_bytes(path))
  try:
    with np.load(stream, allow_pickle=False) as archive:
      found = {name: archive[name] for name in names or archive.files}
  except _DAMAGED as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  # NumPy gives the bytes of a member that is no array.
  odd = [name for name, value in found.items() if isinstance(value, bytes)]
  if odd:
    raise ValueError(f'{path} is damaged: {", ".join(odd)} holds no array')
  return found
