"""Position embeddings of one grid of patches for another.

What the library resamples with whose keys the weights have is part of the
network: a grid that is not the stored one gives other logits by another filter.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np


def resize_position(
  position, grid_hw: tuple[int, int], prefix: int, filter: str = 'cubic'
):
  """Interpolates position embeddings to another grid of patches.

  The old grid is taken to be square. Pixel centres are aligned, not corners.

  Args:
    position: [1, prefix + n * n, D], a numpy or jax array.
    grid_hw: rows and columns of the new grid.
    prefix: leading positions that belong to no patch; kept unchanged.
    filter: a key of FILTERS.

  Returns:
    [1, prefix + h * w, D] of the same kind and dtype.

  Raises:
    ValueError: the old grid is not square.
  """
  count = position.shape[1] - prefix
  side = int(round(count**0.5))
  if side * side != count:
    raise ValueError(
      f'{position.shape[1]} position embeddings are not {prefix} and a square'
    )
  if grid_hw == (side, side):
    return position
  xp = np if isinstance(position, np.ndarray) else jnp
  dtype = jnp.promote_types(position.dtype, jnp.float32)
  rows, columns = (FILTERS[filter](side, n).astype(dtype) for n in grid_hw)
  grid = position[0, prefix:].astype(dtype).reshape(side, side, -1)
  grid = xp.einsum('yh,hwd->ywd', rows, grid)
  grid = xp.einsum('xw,ywd->yxd', columns, grid)
  grid = grid.reshape(1, -1, position.shape[2]).astype(position.dtype)
  return xp.concatenate([position[:, :prefix], grid], axis=1)


def _keys(t: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic (1981, IEEE Trans. ASSP 29) at distances t, with slope a."""
  near = ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
  far = ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a
  return np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))


def _triangle(t: np.ndarray) -> np.ndarray:
  return np.maximum(1.0 - t, 0.0)


def _antialiased(kernel: Callable, old: int, new: int) -> np.ndarray:
  """A filter that is stretched where the grid shrinks, cut off at the border.

  As Pillow's, and torch's with `antialias`.
  """
  scale = old / new
  centre = (np.arange(new)[:, None] + 0.5) * scale
  distance = np.abs(np.arange(old)[None] + 0.5 - centre)
  weights = kernel(distance / max(scale, 1.0))
  return weights / weights.sum(1, keepdims=True)


def _plain_cubic(old: int, new: int) -> np.ndarray:
  """Four neighbours, the border repeated; torch's cubic has a slope of -3/4."""
  centre = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5
  taps = np.floor(centre) + np.arange(-1, 3)
  weights = np.zeros((new, old))
  place = np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)
  np.add.at(weights, place, _keys(np.abs(taps - centre), -0.75))
  return weights


# Name -> (old, new) -> float64 weights [new, old].
FILTERS: dict[str, Callable[[int, int], np.ndarray]] = {
  'cubic': functools.partial(_antialiased, functools.partial(_keys, a=-0.5)),
  'linear': functools.partial(_antialiased, _triangle),
  'plain_cubic': _plain_cubic,
}
