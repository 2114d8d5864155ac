"""Spatter of ImageNet-C: drops of water or of mud on the lens.

Source: Hendrycks and Dietterich, ICLR 2019. The water's rim is shaded from
the distance to the drops' edges (Canny, IEEE PAMI 1986; chamfer distance of
Borgefors, CVGIP 1986, with the 5x5 weights of OpenCV).
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions.filters import (
  gaussian_blur,
  to_uint8,
)
from tlkd_jax.evaluation.corruptions.tables import length_scale, parameters

_WATER = np.array([175, 238, 238], np.float32).reshape(1, 1, 3)
_MUD = np.array([63, 42, 20], np.float32).reshape(1, 1, 3)
_CANNY_LOW, _CANNY_HIGH = 50, 150
_FARTHEST = 20
_CHAMFER_STEPS = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}
# tan(22.5 degrees) and tan(67.5 degrees).
_SHALLOW, _STEEP = 0.41421356, 2.41421356


def spatter(image: jax.Array, severity: int, key: jax.Array):
  """Adds water (severity 1 to 3) or covers with mud (4 and 5).

  Args:
    image: uint8[H, W, 3].
    severity: 1 to 5.
    key: of the drops' places.

  Returns:
    uint8[H, W, 3].

  Raises:
    ValueError: as `tables.parameters`.
  """
  mean, deviation, sigma, threshold, intensity, mud = parameters(
    'spatter', image, severity
  )
  scale = length_scale(*image.shape[:2])
  # Blurred noise keeps its deviation when both lengths and noise are scaled.
  noise = jax.random.normal(key, image.shape[:2])
  liquid = gaussian_blur(mean + deviation * scale * noise, sigma * scale)
  liquid = jnp.where(liquid < threshold, 0, liquid)
  values = image.astype(jnp.float32)
  if mud:
    cover = (liquid > threshold).astype(jnp.float32)
    cover = gaussian_blur(cover, intensity * scale)
    cover = jnp.where(cover < 0.8, 0, cover)[..., None]
    return to_uint8(values * (1 - cover) + _MUD * cover)
  drops = jnp.floor(jnp.clip(liquid * 255, 0, 255))
  sheen = drops * _shading(drops)
  sheen *= intensity / jnp.maximum(sheen.max(), 1e-6)
  return to_uint8(values + _WATER * sheen[..., None])


def _shading(drops: jax.Array) -> jax.Array:
  """Embosses the equalised distance to the drops' edges, float32[H, W]."""
  distance = _chamfer_distance(_canny(drops))
  distance = jnp.floor(_box_blur(distance) + 1e-4)
  height = _equalise(distance)
  emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
  shaded = jnp.clip(_correlate3(height, emboss), 0, 255)
  return jnp.round(_box_blur(shaded))


def _neighbours(image: jax.Array, mode: str) -> dict:
  """The eight neighbours and the image itself by (row, column) offset."""
  height, width = image.shape
  padded = jnp.pad(image, 1, mode=mode)
  return {
    (i, j): padded[1 + i : 1 + i + height, 1 + j : 1 + j + width]
    for i in (-1, 0, 1)
    for j in (-1, 0, 1)
  }


def _correlate3(image: jax.Array, kernel: np.ndarray) -> jax.Array:
  near = _neighbours(image, 'reflect')
  weighted = [kernel[1 + i, 1 + j] * near[i, j] for i, j in near]
  return functools.reduce(operator.add, weighted)


def _box_blur(image: jax.Array) -> jax.Array:
  near = _neighbours(image, 'reflect').values()
  return functools.reduce(operator.add, near) / 9


def _canny(image: jax.Array) -> jax.Array:
  """Canny edges with a 3x3 Sobel filter and the L1 norm, bool[H, W]."""
  near = _neighbours(image, 'edge')
  down = sum(i * (2 - abs(j)) * near[i, j] for i in (-1, 1) for j in (-1, 0, 1))
  across = sum(
    j * (2 - abs(i)) * near[i, j] for i in (-1, 0, 1) for j in (-1, 1)
  )
  size = jnp.abs(across) + jnp.abs(down)
  around = _neighbours(size, 'constant')
  level = (size > around[0, -1]) & (size >= around[0, 1])
  upright = (size > around[-1, 0]) & (size >= around[1, 0])
  falling = (size > around[-1, -1]) & (size > around[1, 1])
  rising = (size > around[-1, 1]) & (size > around[1, -1])
  slope, base = jnp.abs(down), jnp.abs(across)
  diagonal = jnp.where((across < 0) == (down < 0), falling, rising)
  ridge = jnp.where(
    slope < _SHALLOW * base,
    level,
    jnp.where(slope > _STEEP * base, upright, diagonal),
  )
  weak = ridge & (size > _CANNY_LOW)
  return _hysteresis(weak, weak & (size > _CANNY_HIGH))


def _hysteresis(weak: jax.Array, strong: jax.Array) -> jax.Array:
  """The weak pixels that touch a strong one through weak ones."""

  def grow(state):
    strong, _ = state
    near = _neighbours(strong, 'constant').values()
    grown = weak & jnp.stack(list(near)).any(axis=0)
    return grown, (grown != strong).any()

  return jax.lax.while_loop(
    lambda state: state[1], grow, (strong, jnp.asarray(True))
  )[0]


def _chamfer_distance(edges: jax.Array) -> jax.Array:
  """Distance to the nearest edge, at most 20, by relaxing 5x5 steps."""
  height, width = edges.shape
  steps = {}
  for (i, j), cost in _CHAMFER_STEPS.items():
    for a, b in ((i, j), (i, -j), (-i, j), (-i, -j)):
      steps[a, b] = steps[b, a] = cost

  def relax(_, distance):
    padded = jnp.pad(distance, 2, constant_values=_FARTHEST)
    for (i, j), cost in steps.items():
      moved = padded[2 + i : 2 + i + height, 2 + j : 2 + j + width]
      distance = jnp.minimum(distance, moved + cost)
    return distance

  start = jnp.where(edges, 0.0, float(_FARTHEST))
  return jax.lax.fori_loop(0, _FARTHEST, relax, start)


def _equalise(image: jax.Array) -> jax.Array:
  """Histogram equalisation to 0..255 of whole numbers from 0 to 20."""
  levels = jnp.arange(_FARTHEST + 1.0)
  total = jnp.cumsum(jnp.stack([(image == v).sum() for v in levels]))
  lowest = total[jnp.argmax(total > 0)]
  pixels = image.size
  scaled = (total - lowest) * (255 / jnp.maximum(pixels - lowest, 1))
  table = jnp.where(pixels > lowest, jnp.round(scaled), levels)
  return table[image.astype(jnp.int32)]
