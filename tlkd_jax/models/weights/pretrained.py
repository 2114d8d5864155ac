"""PyTorch weights in, PyTorch weights out.

A variant's `torch_modules` table says which torch prefix a submodule has; the
layout of its entries follows from our leaf names, in both directions:

  kernel [kh, kw, in, out] <-> weight [out, in, kh, kw]
  kernel [in, out]         <-> weight [out, in]
  scale, bias, mean, var   <-> weight, bias, running_mean, running_var

torch's num_batches_tracked has no meaning here: it is read past, and written
as zero. A variant's `torch_constants` are compared, and written. Every other
entry of a file is used exactly once, but for those that the variant's spec
names as being beside it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.spec import TorchLeaf
from tlkd_jax.runtime.trees import flatten, nest

_NORM_LEAVES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_COUNTER = 'num_batches_tracked'


def from_torch(
  model: Model, state_dict: dict[str, np.ndarray], *, reset_head: bool = False
) -> tuple[Tree, Tree]:
  """Ports a torch state dict, checking every key, shape and dtype.

  Position embeddings may be of another square grid of patches than the
  variant's native one, and stay so.

  Args:
    model: the target; with `reset_head` its class count may differ from the
      file's.
    state_dict: torch names and arrays.
    reset_head: leave the head at zero instead of reading it. A zero head
      starts from uniform predictions and keeps the first gradients out of the
      backbone.

  Returns:
    (params, model_state) as nested dicts of numpy arrays.

  Raises:
    ValueError: a key is missing or left over, or a shape or dtype differs.
  """
  table = leaf_table(model)
  state_dict = _present_keys(model, state_dict)
  aside = set(beside(model, state_dict))
  remaining = {
    k: v for k, v in state_dict.items() if not _is_counter(k) and k not in aside
  }
  missing, wrong, flat = [], [], {}
  for key, expected in model.spec.torch_constants().items():
    value = remaining.pop(key, expected)
    if not np.array_equal(value, expected):
      wrong.append(f'{key}: values that are not those of {model.name}')
  for path, (shape, leaf) in table.items():
    value = remaining.pop(leaf.key, None)
    absent = value is None and leaf.zero_if_absent
    if absent or (reset_head and in_head(model, path)):
      flat[path] = np.zeros(shape, np.float32)
    elif value is None:
      missing.append(leaf.key)
    else:
      if path == 'position':
        shape = _own_grid(model, table, value)
      problem = _problem(leaf, value, shape)
      if problem:
        wrong.append(problem)
      else:
        flat[path] = np.asarray(leaf.to_flax(value), order='C')
  _raise_on_mismatch(model.name, missing, sorted(remaining), wrong)
  return _split(model, flat)


def to_torch(
  model: Model, params: Tree, model_state: Tree
) -> dict[str, np.ndarray]:
  """The inverse of `from_torch`: torch names, torch layouts, numpy arrays."""
  flat = {**flatten(params), **flatten(model_state)}
  result = {}
  for path, (_, leaf) in leaf_table(model).items():
    value = leaf.to_torch(np.asarray(flat[path]))
    if leaf.zero_if_absent and not np.any(value):
      continue
    result[leaf.key] = np.asarray(value, order='C')
    if leaf.key.endswith('.running_var'):
      prefix = leaf.key.removesuffix('running_var')
      result[prefix + _COUNTER] = np.zeros((), np.int64)
  return result | model.spec.torch_constants()


def beside(model: Model, state_dict: Mapping[str, Any]) -> list[str]:
  """Entries of a file that are known not to be of this network."""
  patterns = [re.compile(pattern) for pattern in model.spec.beside]
  return [key for key in state_dict if any(p.search(key) for p in patterns)]


def prefix_positions(model: Model, table: dict) -> int:
  """Position embeddings that belong to no patch.

  Args:
    model: has `position`.
    table: its leaf_table.
  """
  side = model.spec.image_size // table[f'{model.spec.stem}.kernel'][0][0]
  return table['position'][0][1] - side**2


def _own_grid(model: Model, table: dict, value: np.ndarray) -> tuple[int, ...]:
  """The shape of `position` with a file's grid, where that is a square."""
  shape, leaf = table['position']
  if value.ndim != leaf.to_torch(np.empty(shape, np.bool_)).ndim:
    return shape
  count = leaf.to_flax(value).shape[1]
  patches = count - prefix_positions(model, table)
  square = patches > 0 and math.isqrt(patches) ** 2 == patches
  return (shape[0], count, shape[2]) if square else shape


def head_classes(model: Model, state_dict: dict[str, np.ndarray]) -> int | None:
  """The class count of a state dict's head; None where it has no head."""
  for path, (_, leaf) in leaf_table(model).items():
    if in_head(model, path) and leaf.key in state_dict:
      return int(leaf.to_flax(state_dict[leaf.key]).shape[-1])
  return None


def leaf_table(model: Model) -> dict[str, tuple[tuple[int, ...], TorchLeaf]]:
  """Path of every array of the model -> (its shape, its torch entry).

  Raises:
    ValueError: the variant's table lacks a submodule or names a key twice.
  """
  modules = model.spec.torch_modules()
  exceptions = model.spec.torch_leaves()
  shapes = {**flatten(model.params_shape), **flatten(model.model_state_shape)}
  table = {}
  for path, value in shapes.items():
    module, _, name = path.rpartition('.')
    if path in exceptions:
      leaf = exceptions[path]
    elif module in modules:
      leaf = _regular_leaf(modules[module], name, len(value.shape))
    else:
      raise ValueError(f'{model.name}: no torch key is known for {path}')
    table[path] = (tuple(value.shape), leaf)
  keys = [leaf.key for _, leaf in table.values()]
  twice = sorted({k for k in keys if keys.count(k) > 1})
  if twice:
    raise ValueError(f'{model.name}: torch keys are used twice: {twice}')
  return table


def _regular_leaf(prefix: str, name: str, ndim: int) -> TorchLeaf:
  def same(x):
    return x

  prefix = f'{prefix}.' if prefix else ''
  if name == 'kernel' and ndim == 4:
    return TorchLeaf(
      f'{prefix}weight',
      lambda x: x.transpose(2, 3, 1, 0),
      lambda x: x.transpose(3, 2, 0, 1),
    )
  if name == 'kernel':
    return TorchLeaf(f'{prefix}weight', np.transpose, np.transpose)
  return TorchLeaf(f'{prefix}{_NORM_LEAVES.get(name, name)}', same, same)


def _problem(leaf: TorchLeaf, value: np.ndarray, shape: tuple) -> str | None:
  plain = value.dtype.kind == 'f'
  if not plain and not value.dtype.name.startswith(('bfloat16', 'float8')):
    return f'{leaf.key}: dtype {value.dtype}, expected a float'
  expected = leaf.to_torch(np.empty(shape, np.bool_)).shape
  if value.shape != expected:
    return f'{leaf.key}: shape {value.shape}, expected {expected}'
  return None


def _raise_on_mismatch(name, missing, unexpected, wrong) -> None:
  lines = []
  for title, entries in (
    ('missing', missing),
    ('unexpected', unexpected),
    ('wrong', wrong),
  ):
    if entries:
      shown = ', '.join(entries[:8]) + (' ...' if len(entries) > 8 else '')
      lines.append(f'{len(entries)} {title}: {shown}')
  if lines:
    raise ValueError(
      f'these weights are not those of {name}: ' + '; '.join(lines)
    )


def in_head(model: Model, path: str) -> bool:
  """Whether the array at a path is of the last layer(s)."""
  return any(path.startswith(f'{head}.') for head in model.spec.head)


def _present_keys(
  model: Model, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  for pattern, replacement in model.spec.old_keys:
    state_dict = {
      re.sub(pattern, replacement, k): v for k, v in state_dict.items()
    }
  return state_dict


def _is_counter(key: str) -> bool:
  return key.rpartition('.')[2] == _COUNTER


def _split(model: Model, flat: dict[str, np.ndarray]) -> tuple[Tree, Tree]:
  params = nest({k: flat[k] for k in flatten(model.params_shape)})
  state_paths = flatten(model.model_state_shape)
  return params, nest({k: flat[k] for k in state_paths})


def count_params(params: Tree) -> int:
  """Number of scalar parameters."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
