"""What a checkpoint says of itself: its record, and digests that hold it.

A record is JSON beside the arrays. It holds the digest of the arrays and its
own, so that one wrong bit in either is seen when it is read.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from tlkd_jax.data import Look
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import DTYPES
from tlkd_jax.runtime import sharding

# Key of a record -> the digests of {'arrays', 'record'}; earlier versions have
# none.
_DIGESTS, _DIGESTED = 'digests', {'arrays', 'record'}


@dataclasses.dataclass(frozen=True)
class Description:
  """What a checkpoint says of its model; every version has written it whole.

  Attributes:
    model: name of the variant, a key of models.MODELS.
    num_classes: of its head, as many as `class_names`.
    class_names: in the order of the logits.
    image_size: side of the images that it sees, in pixels.
    crop: share of the short side that the centre crop keeps.
    interpolation: of the resizing before it.
    compute_dtype: a key of network.DTYPES.
    dataset: that it was trained on, as the configuration names it.
    arm: of its run; of 'teacher' no student comes.
    step: updates before it.
    mean: per channel, of its images in 0..255; () are the variant's own.
    std: likewise.
    licences: of all weights that went into it, those of its teachers too.
    positions: learned ones, prefix included; 0 is the variant's own number.
  """

  model: str
  num_classes: int
  class_names: tuple[str, ...]
  image_size: int
  crop: float
  interpolation: str
  compute_dtype: str
  dataset: str
  arm: str
  step: int
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  licences: tuple[str, ...] = ()
  positions: int = 0

  @property
  def look(self) -> Look:
    """How its images are cut from the files."""
    return Look(self.image_size, self.crop, self.interpolation)


def described(step: pathlib.Path) -> Description:
  """The description in the record of a checkpoint's folder.

  Raises:
    ValueError: it is unreadable, lacks a field or has one of another kind; the
      message names the file and all such fields.
  """
  record, path = verified(step, read_record(step)), _path_of(step)
  faults = _faults(record)
  if faults:
    raise ValueError(f'corrupt checkpoint record {path}: {"; ".join(faults)}')
  values = {}
  for field in dataclasses.fields(Description):
    if field.name in record:
      value = record[field.name]
      values[field.name] = tuple(value) if isinstance(value, list) else value
  return Description(**values)


def with_digests(record: dict[str, Any], arrays: Tree) -> dict[str, Any]:
  """A record as it is stored: with the digests of the arrays and its own."""
  digests = {'arrays': digest(arrays), 'record': _digest_of(record)}
  return record | {_DIGESTS: digests}


def _path_of(step: pathlib.Path) -> pathlib.Path:
  return step / 'record' / 'metadata'


def read_record(step: pathlib.Path) -> Any:
  """What the record of a checkpoint holds, its digests too."""
  path = _path_of(step)
  try:
    record = json.loads(path.read_text())
  except (OSError, RecursionError, ValueError) as error:
    raise ValueError(f'corrupt checkpoint record {path}: {error}') from error
  return record


def verified(
  step: pathlib.Path, record: Any, arrays: Tree | None = None
) -> Any:
  """A record without its digests, which it and the arrays must have.

  What is no record stays as it is.

  Raises:
    ValueError: something is not what was saved.
  """
  if not isinstance(record, dict):
    return record
  own = {key: value for key, value in record.items() if key != _DIGESTS}
  digests = record.get(_DIGESTS)
  # Under a name with a wrong bit too, or it would be an earlier version's.
  misnamed = any(
    isinstance(v, dict) and {*v} == _DIGESTED for v in own.values()
  )
  if _DIGESTS not in record and not misnamed:
    return own
  if not isinstance(digests, dict) or digests.get('record') != _digest_of(own):
    raise ValueError(
      f'corrupt checkpoint record {_path_of(step)}: it is not what was saved'
    )
  if arrays is not None and digests.get('arrays') != digest(arrays):
    raise ValueError(
      f'corrupt checkpoint {step}: its arrays are not those that were saved'
    )
  return own


def _digest_of(record: dict[str, Any]) -> str:
  text = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest(tree: Tree) -> str:
  """Of names, shapes, dtypes and values, wherever they lie."""
  found = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    value = sharding.on_host(leaf)
    name = f'{jax.tree_util.keystr(path)} {value.shape} {value.dtype.name}'
    found.update(name.encode() + value.tobytes())
  return found.hexdigest()


def _faults(record: Any) -> list[str]:
  """What keeps a record from being a Description, in words."""
  if not isinstance(record, dict):
    return ['it is not an object']
  fields = dataclasses.fields(Description)
  missing = [
    field.name
    for field in fields
    # Records of older versions lack those with a default.
    if field.name not in record and field.default is dataclasses.MISSING
  ]
  if missing:
    return [f'it lacks {", ".join(missing)}']
  unknown = sorted(record.keys() - {field.name for field in fields})
  if unknown:
    return [f'it has {", ".join(unknown)}, which no version writes']
  faults = []
  for field in fields:
    fits, kind = _KINDS[field.type]
    if field.name not in record:
      continue
    if not fits(record[field.name]):
      faults.append(f'{field.name} is {record[field.name]!r}, expected {kind}')
  if faults:
    return faults
  dtype, names = record['compute_dtype'], record['class_names']
  if dtype not in DTYPES:
    return [f'compute_dtype is {dtype!r}, accepted: {", ".join(DTYPES)}']
  if record['num_classes'] != len(names):
    return [f'num_classes is {record["num_classes"]}, it names {len(names)}']
  return []


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and 0 < value <= 1


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(map(_is_text, value))


def _are_numbers(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(v, int | float) and not isinstance(v, bool) for v in value
  )


# What JSON must hold for a field of this type, and its name in a message.
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
  int: (_is_count, 'a count'),
  float: (_is_share, 'a number in (0, 1]'),
  str: (_is_text, 'a text'),
  tuple[str, ...]: (_are_texts, 'a list of texts'),
  tuple[float, ...]: (_are_numbers, 'a list of numbers'),
}
