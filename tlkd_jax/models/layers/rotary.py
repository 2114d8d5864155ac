"""Rotary position embeddings on a grid (Su et al. 2021, arXiv 2104.09864).

Half of each head's pairs turn with a token's row, half with its column. Angles
depend on the size of the grid alone, so that every size is a native one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Rotary:
  """How far positions turn queries and keys.

  Attributes:
    base: of the periods.
    centred: of DINOv3 (Simeoni et al. 2025, arXiv 2508.10104): coordinates run
      from -1 to 1 over the grid, whole turns are counted, and a pair is channel
      i with i + d / 2. Else of EVA-02 (Fang et al. 2023, arXiv 2303.11331):
      coordinates are those of the grid of pretraining, and a pair is channel 2i
      with 2i + 1.
    reference: side of the grid of pretraining, where not centred.
  """

  base: float
  centred: bool
  reference: int = 16


def turns(
  rotary: Rotary, grid_hw: tuple[int, int], width: int, prefix: int
) -> tuple[np.ndarray, np.ndarray]:
  """By how much each channel of a head is turned at each token.

  Args:
    rotary: the kind.
    grid_hw: rows and columns of patches.
    width: channels of a head, a multiple of 4.
    prefix: tokens before those of the patches, which are not turned.

  Returns:
    Cosines and sines of the angles, float64 [prefix + rows * columns, width].
  """
  bands = rotary.base ** (-np.arange(width // 4) / (width // 4))
  axes = []
  for count in grid_hw:
    if rotary.centred:
      at = 2 * np.pi * (2 * (np.arange(count) + 0.5) / count - 1)
    else:
      at = np.arange(count) / count * rotary.reference
    axes.append(at[:, None] * bands)
  rows = np.repeat(axes[0], grid_hw[1], axis=0)
  columns = np.tile(axes[1], (grid_hw[0], 1))
  angles = np.concatenate([rows, columns], axis=1)
  if rotary.centred:
    angles = np.tile(angles, (1, 2))
  else:
    angles = np.repeat(angles, 2, axis=1)
  angles = np.concatenate([np.zeros((prefix, width)), angles])
  return np.cos(angles), np.sin(angles)


def rotate(x: Array, cosine: Array, sine: Array, *, halves: bool) -> Array:
  """Turns pairs of channels of every head.

  Args:
    x: queries or keys, float [B, N, heads, d].
    cosine: [N, d], from `turns`.
    sine: likewise.
    halves: a pair is channel i with i + d / 2, else 2i with 2i + 1.

  Returns:
    [B, N, heads, d] in the dtype of x; computed in that of the cosine.
  """
  wide = x.astype(cosine.dtype)
  if halves:
    first, second = jnp.split(wide, 2, axis=-1)
    crossed = jnp.concatenate([-second, first], axis=-1)
  else:
    pairs = wide.reshape(*wide.shape[:-1], -1, 2)
    crossed = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1)
    crossed = crossed.reshape(wide.shape)
  cosine, sine = cosine[None, :, None], sine[None, :, None]
  return (wide * cosine + crossed * sine).astype(x.dtype)
