"""Interprets the pickles inside PyTorch files as data: nothing is executed.

A pickle is a program for a small stack machine whose GLOBAL and REDUCE
opcodes may import and call anything. `load` runs that machine itself, with
only the opcodes that `torch.save` writes. Globals become inert `Global`
records, calls are looked up in `_CALLS`, and every other name is an error, so
a hostile file cannot reach Python's own unpickler. The opcodes are those of
the standard library's `pickletools`; the persistent ids and the rebuild
functions are those of `torch/serialization.py` and `torch/_utils.py`.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

# A large training checkpoint has some hundred thousand opcodes.
MAX_OPCODES = 2_000_000
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
}

_STORAGE_DTYPES = {
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


def _is_count(value: object) -> bool:
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
  if not all(_is_count(number) for number in (offset, *shape, *strides)):
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


def _rebuild_parameter(data, *_) -> Tensor:
  if not isinstance(data, Tensor):
    raise WeightsError('a Parameter that holds no tensor')
  return data


def _rebuild_dict(*arguments) -> dict:
  result = {}
  for source in arguments[:1]:
    pairs = source.items() if isinstance(source, dict) else source
    _set_items(result, [value for pair in pairs for value in pair])
  return result


def _rebuild_size(*arguments) -> tuple:
  return tuple(arguments[0]) if arguments else ()


_CALLS: dict[str, Callable[..., Any]] = {
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v3': _rebuild_tensor_v3,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
  'torch.Size': _rebuild_size,
  'collections.OrderedDict': _rebuild_dict,
  # Learning-rate schedules keep their milestones in one.
  'collections.Counter': _rebuild_dict,
}

_STORAGES = {
  f'{module}.{name}': dtype
  for module in ('torch', 'torch.cuda', 'torch.storage')
  for name, dtype in _STORAGE_DTYPES.items()
}

_TORCH_DTYPES = {f'torch.{name}': dtype for name, dtype in DTYPES.items()}
_NAMES = {*_CALLS, *_STORAGES, *_TORCH_DTYPES}


def _find_global(module: str, name: str) -> Global:
  if f'{module}.{name}' not in _NAMES:
    raise WeightsError(
      f'the pickle refers to {module:.100}.{name:.100}, which is refused: '
      'only tensors are read, and nothing is run (from a file you trust, '
      'save model.state_dict() alone)'
    )
  return Global(f'{module}.{name}')


def _read_persistent_id(persistent_id: object) -> Storage:
  """Turns a persistent id of either torch format into a `Storage`.

  It is ('storage', storage class, key, location, element count) and, in the
  legacy format, None or (view key, offset, element count).
  """
  if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
    raise WeightsError('a persistent id that is no storage')
  kind, storage_class, key, _, size = persistent_id[:5]
  view = persistent_id[5] if len(persistent_id) == 6 else None
  if (
    kind != 'storage'
    or not isinstance(storage_class, Global)
    or storage_class.name not in _STORAGES
    or type(key) not in (str, int)
    or len(str(key)) > 100
    or not _is_count(size)
  ):
    raise WeightsError('a persistent id that is no storage of a known type')
  offset, numel = 0, size
  if view is not None:
    if not (isinstance(view, tuple) and len(view) == 3):
      raise WeightsError('a storage view that is no tuple of three')
    _, offset, numel = view
    if not (_is_count(offset) and _is_count(numel) and offset + numel <= size):
      raise WeightsError('a storage view that is longer than its storage')
  return Storage(str(key), _STORAGES[storage_class.name], size, offset, numel)


def _is_plain_key(key: object) -> bool:
  """Whether a key is hashed quickly: no tuples, no crafted big integers.

  Hashing a tuple nested by memo references takes exponential time, integers
  past 64 bits can be chosen to collide, and no weight has such a name.
  """
  if isinstance(key, int):
    return abs(key) < 2**63
  return key is None or isinstance(key, (str, bytes))


def _set_items(target: object, values: list) -> None:
  if not isinstance(target, dict) or len(values) % 2:
    raise WeightsError('a damaged pickle: items set on no dictionary')
  for key, value in zip(values[::2], values[1::2], strict=True):
    if _is_plain_key(key):
      target[key] = value


_PUSH_ARGUMENT = frozenset(
  'BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING '
  'BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES '
  'BINBYTES8'.split()
)
_PUSH_NEW: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_TUPLE': tuple,
  'EMPTY_LIST': list,
  'EMPTY_DICT': dict,
}
_TUPLE_LENGTHS = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class _Machine:
  """The stack, the marks and the memo of one pickle."""

  def __init__(self):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.storages: dict[str, Storage] = {}

  def pop_result(self) -> Any:
    """What the pickle has built."""
    return self._pop(1)[0]

  def _pop(self, count: int) -> list[Any]:
    if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
      raise WeightsError('a damaged pickle: its stack is empty')
    start = len(self.stack) - count
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def _pop_mark(self) -> list[Any]:
    if not self.marks:
      raise WeightsError('a damaged pickle: a mark is missing')
    start = self.marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def _peek(self) -> Any:
    value = self._pop(1)[0]
    self.stack.append(value)
    return value

  def _append(self, values: list[Any]) -> None:
    target = self._peek()
    if type(target) is not list:
      raise WeightsError('a damaged pickle: values appended to no list')
    target.extend(values)

  def _reduce(self) -> Any:
    function, arguments = self._pop(2)
    if not isinstance(function, Global) or function.name not in _CALLS:
      raise WeightsError('the pickle calls something that is no function')
    try:
      return _CALLS[function.name](*arguments)
    except (TypeError, IndexError) as error:
      message = f'the pickle calls {function.name} with wrong arguments'
      raise WeightsError(message) from error

  def _load_storage(self, persistent_id: Any) -> Storage:
    storage = _read_persistent_id(persistent_id)
    whole = dataclasses.replace(storage, offset=0, numel=storage.size)
    if self.storages.setdefault(storage.key, whole) != whole:
      raise WeightsError(f'storage {storage.key} has two types or sizes')
    return storage

  def _get(self, index: int) -> Any:
    if index not in self.memo:
      raise WeightsError('a damaged pickle: a reference to nothing')
    return self.memo[index]

  def run(self, opcode: str, argument: Any) -> None:
    """Applies one opcode; those `torch.save` does not write are errors."""
    push = self.stack.append
    if opcode in _PUSH_ARGUMENT:
      push(argument)
    elif opcode in _PUSH_NEW:
      push(_PUSH_NEW[opcode]())
    elif opcode in ('BINPUT', 'LONG_BINPUT'):
      self.memo[argument] = self._peek()
    elif opcode == 'MEMOIZE':
      self.memo[len(self.memo)] = self._peek()
    elif opcode in ('BINGET', 'LONG_BINGET'):
      push(self._get(argument))
    elif opcode == 'MARK':
      self.marks.append(len(self.stack))
    elif opcode == 'TUPLE':
      push(tuple(self._pop_mark()))
    elif opcode in _TUPLE_LENGTHS:
      push(tuple(self._pop(_TUPLE_LENGTHS[opcode])))
    elif opcode in ('APPEND', 'APPENDS'):
      self._append(self._pop_mark() if opcode == 'APPENDS' else self._pop(1))
    elif opcode in ('SETITEM', 'SETITEMS'):
      values = self._pop_mark() if opcode == 'SETITEMS' else self._pop(2)
      _set_items(self._peek(), values)
    elif opcode == 'GLOBAL':
      push(_find_global(*argument.split(' ', 1)))
    elif opcode == 'STACK_GLOBAL':
      module, name = self._pop(2)
      if not (isinstance(module, str) and isinstance(name, str)):
        raise WeightsError('a damaged pickle: a global without a name')
      push(_find_global(module, name))
    elif opcode == 'BINPERSID':
      push(self._load_storage(self._pop(1)[0]))
    elif opcode == 'REDUCE':
      push(self._reduce())
    elif opcode == 'BUILD':
      # The attributes of an OrderedDict (state dicts carry `_metadata`).
      self._pop(1)
      if not isinstance(self._peek(), dict):
        raise WeightsError('the pickle sets attributes of no dictionary')
    elif opcode not in ('PROTO', 'FRAME'):
      raise WeightsError(f'the pickle has the opcode {opcode}, refused')


def load(stream) -> tuple[Any, dict[str, Storage]]:
  """Reads one pickle from a seekable binary stream, up to its STOP opcode.

  Args:
    stream: A file object, `io.BytesIO` or `mmap`; left behind the pickle.

  Returns:
    The object (plain Python containers and scalars, with `Tensor`, `Storage`
    and `Global` records in the places of torch objects), and every storage it
    names, by key.

  Raises:
    WeightsError: The pickle is damaged, or refers to anything but tensors.
  """
  machine = _Machine()
  try:
    for count, item in enumerate(pickletools.genops(stream)):
      opcode, argument, _ = item
      if opcode.name == 'STOP':
        return machine.pop_result(), machine.storages
      if count > MAX_OPCODES:
        raise WeightsError(f'a pickle of more than {MAX_OPCODES:,} opcodes')
      machine.run(opcode.name, argument)
  except WeightsError:
    raise
  except (ValueError, OverflowError) as error:
    message = f'a damaged or truncated pickle ({error})'
    raise WeightsError(message) from error
  raise WeightsError('a truncated pickle')
