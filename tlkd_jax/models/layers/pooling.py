"""Largest and mean values of sliding windows, fast on CPU.

`lax.reduce_window` and its gradient are several times slower there.
"""

import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from tlkd_jax.models.layers.patches import output_hw, taps, transposed_windows


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
  x: jax.Array, size: int, stride: int, padding: int = 0
) -> jax.Array:
  """Largest value of each window of x [B, H, W, C]; padding never wins.

  Of tied values the first in row-major order takes the gradient, as in torch.

  Args:
    x: [B, H, W, C], floating.
    size: side of the windows, at most 16.
    stride: between them.
    padding: on all four sides, less than `size`.

  Returns:
    [B, H', W', C] in the dtype of x.

  Raises:
    ValueError: the map is smaller than a window.
  """
  return functools.reduce(
    jnp.maximum, _padded_windows(x, size, stride, padding)
  )


def _fwd(x, size, stride, padding):
  first, *rest = _padded_windows(x, size, stride, padding)
  best, winner = first, jnp.zeros(first.shape, jnp.uint8)
  for number, tap in enumerate(rest, start=1):
    winner = jnp.where(tap > best, jnp.uint8(number), winner)
    best = jnp.maximum(best, tap)
  # Of x only the shape is needed: an empty array carries it.
  return best, (winner, jnp.empty((0, *x.shape[1:3]), jnp.uint8))


def _bwd(size, stride, padding, residuals, dy):
  winner, like = residuals

  def term(u, v, winner, dy):
    return jnp.where(winner == u * size + v, dy, 0)

  sizes = (size, size), (stride, stride), ((padding, padding),) * 2
  dx = transposed_windows((winner, dy), *sizes, like.shape[1:], term)
  return (dx,)


max_pool.defvjp(_fwd, _bwd)


def _padded_windows(x, size, stride, padding):
  pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return windows(jnp.pad(x, pads, constant_values=-jnp.inf), size, stride)


def windows(x: jax.Array, size: int, stride: int) -> Iterator[jax.Array]:
  """For every offset inside a window, the values there: [B, H', W', C]."""
  height, width = x.shape[1:3]
  if min(height, width) < size:
    raise ValueError(
      f'a {height}x{width} map is too small to pool by {size}: '
      'use larger images'
    )
  sizes = (size, size), (stride, stride)
  out_hw = output_hw(x, *sizes, ((0, 0), (0, 0)))
  return (tap for _, tap in taps(x, *sizes, out_hw))


def avg_pool(
  x: jax.Array, size: int, stride: int, *, ceil: bool = False
) -> jax.Array:
  """Mean of each window of x [B, H, W, C], without padding.

  With `ceil`, windows that hang over the bottom or right edge are kept and
  average what they cover, as torch's `ceil_mode` without counted padding.
  """
  ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  if ceil:
    over = [-(n - size) % stride for n in x.shape[1:3]]
    pads = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
    x, ones = jnp.pad(x, pads), jnp.pad(ones, pads)
  total, count = (
    functools.reduce(operator.add, windows(v, size, stride)) for v in (x, ones)
  )
  return total / count
