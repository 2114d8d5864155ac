"""What is changed of pretrained weights before they fit a new task.

A head for another number of classes, a first convolution for other channels.
Shapes come from the model; a model's `params_shape` says what it wants.
Positions for another grid of patches stay: the network resamples them.
"""

from typing import Any

import jax
import numpy as np

from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.weights import pretrained
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.runtime.trees import flatten, nest

Array = jax.Array

HEAD_INITS = ('zero', 'small_random')


def new_head(
  model: Model, params: Tree, key: Array, init: str = 'zero'
) -> Tree:
  """Replaces the last linear layer(s) by fresh ones of the model's shape.

  Args:
    model: has the new class count.
    params: a parameter tree of the same variant; its head may be of any class
      count or absent. Not changed.
    key: typed PRNG key; unused by 'zero'.
    init: 'zero' (uniform predictions at the start, and no gradient into the
      backbone in the first step) or 'small_random' (kernels are normal with
      standard deviation 0.01, so that features receive gradients at once).
      Biases are zero.

  Returns:
    A new tree; arrays outside the head are shared with `params`.

  Raises:
    ValueError: `init` is unknown.
  """
  if init not in HEAD_INITS:
    raise unknown_name('head_init', init, HEAD_INITS)
  shapes = flatten(model.params_shape)
  paths = [
    path
    for path in shapes
    if any(path.startswith(f'{head}.') for head in model.spec.head)
  ]
  kept = {
    path: value for path, value in flatten(params).items() if path not in paths
  }
  head: Tree = {p: np.zeros(shapes[p].shape, shapes[p].dtype) for p in paths}
  if init == 'small_random':
    keys = jax.random.split(key, len(paths))
    for path, subkey in zip(paths, keys, strict=True):
      if not path.endswith('.bias'):
        head[path] = 0.01 * jax.random.normal(subkey, shapes[path].shape)
  return nest({**kept, **head})


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
  """A first kernel for RGB images, for images of another channel count.

  timm's rule: for one channel the sum over RGB, so that a grey image gives
  what its RGB copy gave; otherwise R, G, B, R, ... scaled by 3 / channels, so
  that the response to equal channels is kept.

  Args:
    kernel: [kh, kw, 3, out].
    channels: of the new images, at least 1.

  Returns:
    [kh, kw, channels, out] of the same dtype.

  Raises:
    ValueError: the kernel is not for three channels, or channels < 1.
  """
  if kernel.ndim != 4 or kernel.shape[2] != 3 or channels < 1:
    raise ValueError(
      f'a kernel [kh, kw, 3, out] is adapted to 1 or more channels, not one of'
      f' shape {kernel.shape} to {channels}'
    )
  if channels == 3:
    return kernel
  wide = kernel.astype(np.promote_types(kernel.dtype, np.float32))
  if channels == 1:
    return wide.sum(2, keepdims=True).astype(kernel.dtype)
  wide = wide[:, :, np.arange(channels) % 3] * (3 / channels)
  return wide.astype(kernel.dtype)


def _with_second_head(
  model: Model, table: dict, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """A network of two heads that was fine-tuned with the first alone.

  The model's logits are the mean over two heads, so twice the one and a second
  of zeros give the same, to the last bit. A norm HEAD_norm before the second
  is then any.
  """
  result = dict(state_dict)
  if len(model.spec.head) != 2:
    return result
  pairs = [
    tuple(table[f'{head}.{leaf}'][1].key for head in model.spec.head)
    for leaf in ('kernel', 'bias')
  ]
  if any(second in result for _, second in pairs):
    return result
  for first, second in pairs:
    if first in result:
      value = np.asarray(result[first], np.float32)
      result[first], result[second] = 2 * value, np.zeros_like(value)
  first, second = (f'{head}_norm.' for head in model.spec.head)
  for path, (_, leaf) in table.items():
    if path.startswith(second):
      norm = table[path.replace(second, first)][1].key
      if norm in result:
        result.setdefault(leaf.key, result[norm])
  return result


def adapt_state_dict(
  model: Model, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Fits a file's stem and single head to the model.

  Args:
    model: says which channel count is wanted.
    state_dict: torch names and arrays under the variant's own keys. Entries
      that fit already, or are absent, stay as they are.

  Returns:
    A new dict; `pretrained.from_torch` judges what else may not fit.
  """
  table = pretrained.leaf_table(model)
  result: dict[str, Any] = _with_second_head(model, table, state_dict)
  for stem in (model.spec.stem, *model.spec.more_stems):
    shape, leaf = table[f'{stem}.kernel']
    if leaf.key in result:
      kernel = leaf.to_flax(result[leaf.key])
      if kernel.shape[2] == 3 != shape[2]:
        result[leaf.key] = leaf.to_torch(adapt_stem(kernel, shape[2]))
  return result
