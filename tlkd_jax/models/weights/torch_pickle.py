"""Interprets the pickles inside PyTorch files as data: nothing is executed.

A pickle is a program for a small stack machine whose GLOBAL and REDUCE
opcodes may import and call anything. `load` runs that machine itself, with
only the opcodes that `torch.save` writes. Globals become inert `Global`
records, calls of tensors and dictionaries are looked up in `CALLS`, and the
result of any other call is an inert `Foreign` record, so a hostile file cannot
reach Python's own unpickler. Training checkpoints have such records beside the
weights (options, NumPy scalars, paths, dates, sets); `refuse_foreign` is for
the weights themselves. The opcodes are those of the standard library's
`pickletools`; the persistent ids and the rebuild functions are those of
`torch/serialization.py` and `torch/_utils.py`.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from tlkd_jax.models.weights.torch_records import (
  CALLS,
  NAMES,
  STORAGE_DTYPES,
  STORAGES,
  Foreign,
  Global,
  Storage,
  WeightsError,
  entries_of,
  is_count,
  refuse_foreign,
  set_items,
)

# A large training checkpoint has some hundred thousand opcodes.
MAX_OPCODES = 2_000_000


def _read_persistent_id(persistent_id: object) -> Storage:
  """Turns a persistent id of either torch format into a `Storage`.

  It is ('storage', storage class, key, location, element count) and, in the
  legacy format, None or (view key, offset, element count).
  """
  if isinstance(persistent_id, tuple) and persistent_id[:1] == ('module',):
    # Legacy files of whole models have the source of each class.
    for part in persistent_id[1:2]:
      refuse_foreign(part)
  if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
    raise WeightsError('a persistent id that is no storage')
  kind, storage_class, key, _, size = persistent_id[:5]
  if isinstance(storage_class, Global) and storage_class.name not in STORAGES:
    raise WeightsError(
      f'a persistent id of the type {storage_class.name:.200}, which is not '
      f'read; accepted: {", ".join(STORAGE_DTYPES)}'
    )
  view = persistent_id[5] if len(persistent_id) == 6 else None
  if (
    kind != 'storage'
    or not isinstance(storage_class, Global)
    or storage_class.name not in STORAGES
    or type(key) not in (str, int)
    or len(str(key)) > 100
    or not is_count(size)
  ):
    raise WeightsError('a persistent id that is no storage of a known type')
  offset, numel = 0, size
  if view is not None:
    if not (isinstance(view, tuple) and len(view) == 3):
      raise WeightsError('a storage view that is no tuple of three')
    _, offset, numel = view
    if not (is_count(offset) and is_count(numel) and offset + numel <= size):
      raise WeightsError('a storage view that is longer than its storage')
  return Storage(str(key), STORAGES[storage_class.name], size, offset, numel)


_PUSH_ARGUMENT = frozenset(
  'BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING '
  'BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES '
  'BINBYTES8 BYTEARRAY8'.split()
)
_PUSH_NEW: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_TUPLE': tuple,
  'EMPTY_LIST': list,
  'EMPTY_DICT': dict,
  'EMPTY_SET': lambda: Foreign('the opcode EMPTY_SET'),
}
_TUPLE_LENGTHS = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def _make_foreign(function: Global, arguments: Any) -> Foreign:
  constructor = function.name == 'copyreg._reconstructor'
  if constructor and type(arguments) is tuple and arguments:
    function = arguments[0]
  name = getattr(function, 'name', 'an object')
  return Foreign(name, bare=arguments == ())


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
    if isinstance(target, Foreign):
      return
    if type(target) is not list:
      raise WeightsError('a damaged pickle: values appended to no list')
    target.extend(values)

  def _reduce(self) -> Any:
    function, arguments = self._pop(2)
    if isinstance(function, Foreign):
      return function
    if isinstance(function, Global) and function.name not in NAMES:
      return _make_foreign(function, arguments)
    if not isinstance(function, Global) or function.name not in CALLS:
      raise WeightsError('the pickle calls something that is no function')
    first = arguments[0] if type(arguments) is tuple and arguments else None
    if isinstance(first, Foreign) and entries_of(first) is None:
      return first
    try:
      return CALLS[function.name](*arguments)
    except (TypeError, IndexError, ValueError) as error:
      if isinstance(error, WeightsError):
        raise
      message = f'the pickle calls {function.name} with wrong arguments'
      raise WeightsError(message) from error

  def _new(self, opcode: str) -> Any:
    kind, arguments = self._pop(3 if opcode == 'NEWOBJ_EX' else 2)[:2]
    if isinstance(kind, Foreign):
      return kind
    if not isinstance(kind, Global) or kind.name in NAMES:
      raise WeightsError(f'the pickle has the opcode {opcode}, refused')
    return _make_foreign(kind, arguments)

  def _build(self) -> None:
    """Attributes: of an OrderedDict (state dicts carry `_metadata`), unused."""
    state = self._pop(1)[0]
    target = self._peek()
    if isinstance(target, Foreign):
      if isinstance(state, dict):
        target.attributes.update(state)
    elif not isinstance(target, dict):
      raise WeightsError('the pickle sets attributes of no dictionary')

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
      set_items(self._peek(), values)
    elif opcode == 'GLOBAL':
      push(Global('.'.join(argument.split(' ', 1))))
    elif opcode == 'STACK_GLOBAL':
      module, name = self._pop(2)
      if not (isinstance(module, str) and isinstance(name, str)):
        raise WeightsError('a damaged pickle: a global without a name')
      push(Global(f'{module}.{name}'))
    elif opcode == 'BINPERSID':
      push(self._load_storage(self._pop(1)[0]))
    elif opcode == 'REDUCE':
      push(self._reduce())
    elif opcode in ('NEWOBJ', 'NEWOBJ_EX'):
      push(self._new(opcode))
    elif opcode == 'BUILD':
      self._build()
    elif opcode == 'ADDITEMS':
      values = self._pop_mark()
      if not isinstance(self._peek(), Foreign):
        raise WeightsError(f'{len(values)} values added to no set')
    elif opcode == 'FROZENSET':
      self._pop_mark()
      push(Foreign('the opcode FROZENSET'))
    elif opcode == 'POP':
      self._pop(1)
    elif opcode == 'POP_MARK':
      self._pop_mark()
    elif opcode not in ('PROTO', 'FRAME'):
      raise WeightsError(f'the pickle has the opcode {opcode}, refused')


def load(stream) -> tuple[Any, dict[str, Storage]]:
  """Reads one pickle from a seekable binary stream, up to its STOP opcode.

  Args:
    stream: A file object, `io.BytesIO` or `mmap`; left behind the pickle.

  Returns:
    The object (plain Python containers and scalars, with `Tensor`, `Storage`
    and `Global` records in the places of torch objects and `Foreign` ones in
    those of all others), and every storage it names, by key.

  Raises:
    WeightsError: The pickle is damaged, or does what `torch.save` never does.
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
