"""Which of a training checkpoint's entries are the weights.

A checkpoint that a training script wrote has its weights under one of the
names of `WRAPPERS`, beside an optimizer, options and counters.
"""

import dataclasses
from typing import Any

from tlkd_jax.models.weights.torch_records import (
  Foreign,
  Tensor,
  WeightsError,
  entries_of,
  foreign_names,
  refusal,
  refuse_foreign,
)

# Looked up in this order, and again inside what was found.
WRAPPERS = (
  'state_dict_ema',
  'model_ema',
  'ema_state_dict',
  'model_ema_state_dict',
  'ema_model',
  'ema',
  'params_ema',
  'state_dict',
  'model_state_dict',
  'model_state',
  'model',
  'module',
  'net',
  'params',
  'weights',
  'checkpoint',
  'state',
)
_DEPTH = 4
# In front of all names: DistributedDataParallel, torch.compile.
_PREFIXES = ('module.', '_orig_mod.')
# Between names too: FSDP, activation checkpointing, regional compilation.
_SEGMENTS = ('_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod')
# The update count of torch.optim.swa_utils.AveragedModel.
_AVERAGED_MODEL_COUNT = 'n_averaged'
_FLATTENED = ('_flat_param', 'flat_param')


@dataclasses.dataclass(frozen=True)
class Selected:
  """The weights of a file, and what is beside them.

  Attributes:
    tensors: name -> tensor, of whichever kind the file has.
    entry: the names that lead to them, '' where they are the file.
    beside: classes and functions that the rest refers to; none was called.
    told: names of the network, as the training script wrote them; such as
      ('timm/resnet50',), () where nothing is said.
  """

  tensors: dict[str, Any]
  entry: str = ''
  beside: tuple[str, ...] = ()
  told: tuple[str, ...] = ()


def select(content: object) -> Selected:
  """Unwraps a checkpoint's state dict and keeps its tensors.

  Args:
    content: what `torch_pickle.load` returned.

  Raises:
    WeightsError: There is no state dict, or it refers to anything but tensors.
  """
  if isinstance(content, Tensor):
    raise WeightsError('a single tensor')
  entries = entries_of(content)
  if entries is None:
    refuse_foreign(content)
    raise WeightsError(f'a {type(content).__name__}, no dictionary')
  found = _unwrap(entries, ())
  if found is None:
    raise _nothing_in(entries)
  path, state_dict = found
  refuse_foreign(state_dict)
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
  return Selected(
    tensors,
    '.'.join(path),
    tuple(foreign_names(content, but=state_dict)) if path else (),
    _told(entries),
  )


def _holds_tensors(value: object) -> bool:
  entries = entries_of(value)
  return entries is not None and any(
    isinstance(entry, Tensor) for entry in entries.values()
  )


def _unwrap(
  entries: dict, path: tuple[str, ...]
) -> tuple[tuple[str, ...], dict] | None:
  """(names that lead to it, state dict); None where there is none."""
  for wrapper in WRAPPERS:
    inner = entries_of(entries.get(wrapper))
    if inner is not None and len(path) < _DEPTH:
      found = _unwrap(inner, (*path, wrapper))
      if found is not None:
        return found
  return (path, entries) if _holds_tensors(entries) else None


def _nothing_in(entries: dict) -> WeightsError:
  for wrapper in WRAPPERS:
    value = entries.get(wrapper)
    if isinstance(value, Foreign):
      return WeightsError(
        f'its entry {wrapper!r} is no state dict but a whole object: '
        f'{refusal(value.name)}'
      )
  names = ', '.join(repr(key)[:40] for key in list(entries)[:10])
  message = (
    f'no state dict in it: its entries are {names or "none"}, and weights '
    f'are looked for there and under {", ".join(WRAPPERS)}'
  )
  for name in foreign_names(entries):
    return WeightsError(f'{message}; {refusal(name)}')
  return WeightsError(message)


def _told(entries: dict) -> tuple[str, ...]:
  """What the training script calls its network, with its library if known."""
  arguments = entries.get('args')
  options = arguments.attributes if isinstance(arguments, Foreign) else {}
  name = entries.get('arch', options.get('model'))
  if not isinstance(name, str) or len(name) > 200:
    return ()
  if '/' in name or ':' in name:
    # timm takes hf-hub:ORGANISATION/NAME too.
    return ()
  name = name.partition('.')[0]
  # timm's train.py numbers its format; torchvision's writes no 'arch'.
  if 'version' in entries and 'arch' in entries:
    return (f'timm/{name}',)
  if 'arch' not in entries and 'data_path' in options:
    return (f'torchvision/{name}',)
  return (f'torchvision/{name}', f'timm/{name}')


def plain_names(tensors: dict[str, Any]) -> dict[str, Any]:
  """Removes what wrappers of PyTorch put in front of names and between them.

  Raises:
    WeightsError: Two names become one, or the tensors are FSDP's flat ones.
  """
  for name in tensors:
    if name.rpartition('.')[2] in _FLATTENED:
      raise WeightsError(
        f'{name} is a flat parameter of FSDP: save the full state dict'
      )
  plain = {}
  for name, value in tensors.items():
    parts = name.split('.')
    short = '.'.join(part for part in parts if part not in _SEGMENTS)
    if short in plain:
      raise WeightsError(f'two of its names mean {short}, one is {name}')
    plain[short] = value
  while True:
    names = [name for name in plain if name != _AVERAGED_MODEL_COUNT]
    for prefix in _PREFIXES:
      if names and all(name.startswith(prefix) for name in names):
        plain = {name[len(prefix) :]: plain[name] for name in names}
        break
    else:
      return plain
