"""Maps cut into windows, and windows that are shifted.

Liu et al. 2021, arXiv 2103.14030, section 3.2. The libraries differ in maps
that are no multiple of a window: which are not shifted, and whether they are
padded before or after the shift.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Windows:
  """How a block's map is cut into windows.

  Attributes:
    size: height and width of a window.
    shift: rows and columns that the map is rolled up and left by, where it is.
    library: 'timm', 'torchvision' or 'transformers', whose windows these are.
  """

  size: tuple[int, int]
  shift: tuple[int, int]
  library: str

  def shift_of(self, map_hw: tuple[int, int]) -> tuple[int, int]:
    """The shift of a map of a height and width."""
    if self.library == 'transformers':
      return (0, 0) if min(map_hw) <= self.size[0] else self.shift
    if self.library == 'torchvision':
      small = [n <= size for n, size in zip(map_hw, self.size, strict=True)]
      rows, columns = (
        0 if s else n for s, n in zip(small, self.shift, strict=True)
      )
      return rows, columns
    return self.shift

  def padded(self, map_hw: tuple[int, int]) -> tuple[int, int]:
    """The map's height and width as multiples of the window's."""
    height, width = (
      -(-n // size) * size for n, size in zip(map_hw, self.size, strict=True)
    )
    return height, width

  def apart(self, map_hw: tuple[int, int]) -> np.ndarray | None:
    """Which pixels of a window were no neighbours before the map was rolled.

    Args:
      map_hw: height and width of the map before padding.

    Returns:
      bool [windows, N, N] for N pixels a window; None where none are apart.
    """
    shift = self.shift_of(map_hw)
    if not any(shift):
      return None
    # What came round from the other side lies at the end.
    rows, columns = (
      np.arange(n) >= n - by
      for n, by in zip(self.padded(map_hw), shift, strict=True)
    )
    regions = 2 * rows[:, None] + columns[None]
    regions = self.cut(regions[None, :, :, None])[0, :, :, 0]
    return regions[:, :, None] != regions[:, None, :]

  def cut(self, x):
    """[B, H, W, C] -> [B, windows, N, C], a numpy or jax array."""
    b, h, w, c = x.shape
    wh, ww = self.size
    x = x.reshape(b, h // wh, wh, w // ww, ww, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, wh * ww, c)

  def join(self, x: jax.Array, padded: tuple[int, int]) -> jax.Array:
    """The inverse of `cut`."""
    (h, w), (wh, ww) = padded, self.size
    x = x.reshape(x.shape[0], h // wh, w // ww, wh, ww, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], h, w, -1)


def relative_index(size: tuple[int, int]) -> np.ndarray:
  """Row of the position table for each pair of pixels of a window.

  Args:
    size: height and width of the window.

  Returns:
    int64 [N, N], from 0 to (2 height - 1) (2 width - 1) - 1.
  """
  rows, columns = (axis.ravel() for axis in np.indices(size))
  down = rows[:, None] - rows[None] + size[0] - 1
  right = columns[:, None] - columns[None] + size[1] - 1
  return (down * (2 * size[1] - 1) + right).astype(np.int64)


def rolled(x: jax.Array, shift: tuple[int, int], sign: int) -> jax.Array:
  """x [B, H, W, C] moved by a shift, or back by a sign of -1."""
  if not any(shift):
    return x
  return jnp.roll(x, [sign * by for by in shift], axis=(1, 2))
