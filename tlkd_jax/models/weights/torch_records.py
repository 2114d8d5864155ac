"""What a PyTorch file's pickle is read as: records, checked, never called.

Names that a pickle refers to are `Global`, what it makes by calling one that
is not in `CALLS` is `Foreign`, tensors say where in which storage they lie.
The rebuild functions are those of `torch/_utils.py` and `torch/_tensor.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

MAX_RANK = 32

DTYPES = {
  'float64': np.dtype(np.float64),
  'float32': np.dtype(np.float32),
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'int64': np.dtype(np.int64),
  'int32': np.dtype(np.int32),
  'int16': np.dtype(np.int16),
  'int8': np.dtype(np.int8),
  'uint8': np.dtype(np.uint8),
  'uint16': np.dtype(np.uint16),
  'uint32': np.dtype(np.uint32),
  'uint64': np.dtype(np.uint64),
  'bool': np.dtype(np.bool_),
  'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'float8_e4m3fnuz': np.dtype(ml_dtypes.float8_e4m3fnuz),
  'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
  'float8_e5m2fnuz': np.dtype(ml_dtypes.float8_e5m2fnuz),
  'float8_e8m0fnu': np.dtype(ml_dtypes.float8_e8m0fnu),
}

STORAGE_DTYPES = {
  'DoubleStorage': DTYPES['float64'],
  'FloatStorage': DTYPES['float32'],
  'HalfStorage': DTYPES['float16'],
  'BFloat16Storage': DTYPES['bfloat16'],
  'LongStorage': DTYPES['int64'],
  'IntStorage': DTYPES['int32'],
  'ShortStorage': DTYPES['int16'],
  'CharStorage': DTYPES['int8'],
  'ByteStorage': DTYPES['uint8'],
  'BoolStorage': DTYPES['bool'],
  'UntypedStorage': DTYPES['uint8'],
}


class WeightsError(ValueError):
  """A weight file that is damaged, unsafe or not a state dict."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that a pickle refers to; it is never imported."""

  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
  """What a pickle makes by a call that is not made here.

  Attributes:
    name: of what it calls, or an opcode in words.
    bare: whether it is called without arguments.
    entries: items that are set on it, as on a dictionary.
    attributes: that are set on it.
  """

  name: str
  bare: bool = False
  entries: dict = dataclasses.field(default_factory=dict)
  attributes: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Storage:
  """A flat run of `numel` elements, stored in the file under `key`.

  `size` counts the elements of the whole record; a view of it (old legacy
  files have them) starts `offset` elements in.
  """

  key: str
  dtype: np.dtype
  size: int
  offset: int
  numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor's elements lie in its storage, in elements."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Bytes of the tensor once it is copied out."""
    size = self.dtype.itemsize
    for length in self.shape:
      size *= length
    return size


def is_count(value: object) -> bool:
  """Whether value is an integer that can be a size; bool is not."""
  return type(value) is int and 0 <= value < 2**63


def _rebuild(storage, offset, shape, strides, dtype=None) -> Tensor:
  """Checks a tensor's geometry against its storage."""
  if not isinstance(storage, Storage):
    raise WeightsError('a tensor without a storage')
  if dtype is None:
    dtype = storage.dtype
  elif isinstance(dtype, Global) and dtype.name in _TORCH_DTYPES:
    dtype = _TORCH_DTYPES[dtype.name]
  else:
    raise WeightsError('a tensor without a dtype')
  if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
    raise WeightsError('a tensor whose shape or strides are no tuples')
  if len(shape) != len(strides) or len(shape) > MAX_RANK:
    raise WeightsError(
      f'a tensor with {len(shape)} dimensions and {len(strides)} strides'
    )
  if not all(is_count(number) for number in (offset, *shape, *strides)):
    raise WeightsError(
      'a tensor with a negative or absurd size, stride or offset'
    )
  last = offset + sum(
    (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
  )
  available = storage.numel * storage.dtype.itemsize // dtype.itemsize
  if 0 not in shape and last >= available:
    raise WeightsError(
      f'a tensor of shape {shape} reaches element {last} of a storage '
      f'of {available}'
    )
  return Tensor(storage, dtype, offset, shape, strides)


def _rebuild_tensor(*arguments) -> Tensor:
  """`_rebuild_tensor` and `_rebuild_tensor_v2`; gradients, hooks unused."""
  return _rebuild(*arguments[:4])


def _rebuild_tensor_v3(*arguments) -> Tensor:
  """Tensors of dtypes that have no storage class: untyped storage, dtype."""
  return _rebuild(*arguments[:4], dtype=arguments[6])


def _rebuild_from_type(*arguments) -> Any:
  """A tensor or Parameter with attributes, which are left out."""
  function, kind, given = arguments[:3]
  plain = isinstance(kind, Global) and kind.name in _TENSOR_CLASSES
  if not plain or not isinstance(function, Global):
    return Foreign(getattr(kind, 'name', 'a tensor of another class'))
  if function.name not in CALLS or CALLS[function.name] is _rebuild_from_type:
    return Foreign(function.name)
  return CALLS[function.name](*given)


def _rebuild_parameter(data, *_) -> Tensor:
  if not isinstance(data, Tensor):
    raise WeightsError('a Parameter that holds no tensor')
  return data


def _is_plain_key(key: object) -> bool:
  """Whether a key is hashed quickly: no tuples, no crafted big integers.

  Hashing a tuple nested by memo references takes exponential time, integers
  past 64 bits can be chosen to collide, and no weight has such a name.
  """
  if isinstance(key, int):
    return abs(key) < 2**63
  return key is None or isinstance(key, (str, bytes, Foreign, Global))


def set_items(target: object, values: list) -> None:
  """Sets [key, value, key, value, ...] on a dictionary or a Foreign one."""
  if isinstance(target, Foreign):
    target = target.entries
  if not isinstance(target, dict) or len(values) % 2:
    raise WeightsError('a damaged pickle: items set on no dictionary')
  for key, value in zip(values[::2], values[1::2], strict=True):
    if _is_plain_key(key):
      target[key] = value


def _rebuild_dict(*arguments) -> dict:
  result = {}
  for source in arguments[:1]:
    pairs = source.items() if isinstance(source, dict) else source
    set_items(result, [value for pair in pairs for value in pair])
  return result


def _rebuild_size(*arguments) -> tuple:
  return tuple(arguments[0]) if arguments else ()


CALLS: dict[str, Callable[..., Any]] = {
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v3': _rebuild_tensor_v3,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
  'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
  'torch.Size': _rebuild_size,
  'collections.OrderedDict': _rebuild_dict,
  # Learning-rate schedules keep their milestones in one.
  'collections.Counter': _rebuild_dict,
}
_TENSOR_CLASSES = ('torch.Tensor', 'torch.nn.parameter.Parameter')

STORAGES = {
  f'{module}.{name}': dtype
  for module in ('torch', 'torch.cuda', 'torch.storage')
  for name, dtype in STORAGE_DTYPES.items()
}

_TORCH_DTYPES = {f'torch.{name}': dtype for name, dtype in DTYPES.items()}
NAMES = {*CALLS, *STORAGES, *_TORCH_DTYPES}


def refusal(name: str) -> WeightsError:
  """The error for a name that weights may not need."""
  return WeightsError(
    f'the pickle refers to {name:.200}, which is refused: '
    'only tensors are read, and nothing is run (from a file you trust, '
    'save model.state_dict() alone)'
  )


def refuse_foreign(value: Any) -> None:
  """Raises WeightsError where a value is, or holds, what is not read."""
  for name in foreign_names(value):
    raise refusal(name)


def foreign_names(value: Any, but: Any = None) -> list[str]:
  """What is not read of a value, each name once.

  Args:
    value: as `load` returns it; nested to any depth, or in itself.
    but: a part of it that is left out.
  """
  found: dict[str, None] = {}
  waiting, seen = [value], {id(but)} if but is not None else set()
  while waiting:
    part = waiting.pop()
    if id(part) in seen:
      continue
    seen.add(id(part))
    if isinstance(part, Foreign) or (
      isinstance(part, Global) and part.name not in NAMES
    ):
      found.setdefault(part.name)
    elif isinstance(part, dict):
      waiting += [*part.values(), *part.keys()]
    elif isinstance(part, (list, tuple)):
      waiting += part
  return list(found)


def entries_of(value: Any) -> dict | None:
  """The items of a dictionary, or of one of another class; else None.

  A class whose name ends in 'dict', made without arguments, is taken for one:
  what its instances hold is in the pickle, item by item.
  """
  if isinstance(value, dict):
    return value
  if isinstance(value, Foreign) and value.bare:
    return value.entries if value.name.lower().endswith('dict') else None
  return None
