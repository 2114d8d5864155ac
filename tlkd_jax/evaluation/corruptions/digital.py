"""Brightness, contrast and the digital corruptions of ImageNet-C.

Source: Hendrycks and Dietterich, ICLR 2019. Every public function is `(image
uint8[H, W, 3], severity 1..5, key) -> uint8[H, W, 3]` and raises ValueError
as `tables.parameters` does.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions import filters
from tlkd_jax.evaluation.corruptions.filters import to_uint8
from tlkd_jax.evaluation.corruptions.tables import parameters


def brightness(image: jax.Array, severity: int, key: jax.Array):
  """Raises the value of HSV; deterministic.

  Hue and saturation fix the ratios of the channels, so the channels scale
  with the value.
  """
  del key
  added = 255 * parameters('brightness', image, severity)
  values = image.astype(jnp.float32)
  value = values.max(axis=-1, keepdims=True)
  raised = jnp.minimum(value + added, 255)
  scaled = values * (raised / jnp.maximum(value, 1))
  return to_uint8(jnp.where(value > 0, scaled, raised))


def saturate(image: jax.Array, severity: int, key: jax.Array):
  """Scales and shifts the saturation of HSV; deterministic.

  A channel lies `value * saturation * k` below the value, with k fixed by the
  hue. Grey has hue 0, that is red.
  """
  del key
  factor, offset = parameters('saturate', image, severity)
  values = image.astype(jnp.float32)
  value = values.max(axis=-1, keepdims=True)
  chroma = value - values.min(axis=-1, keepdims=True)
  saturation = jnp.clip(chroma / jnp.maximum(value, 1) * factor + offset, 0, 1)
  red = np.array([0, 1, 1], np.float32).reshape(1, 1, 3)
  depth = (value - values) / jnp.maximum(chroma, 1)
  depth = jnp.where(chroma > 0, depth, red)
  return to_uint8(value - value * saturation * depth)


def contrast(image: jax.Array, severity: int, key: jax.Array):
  """Shrinks the distance from each channel's mean; deterministic."""
  del key
  factor = parameters('contrast', image, severity)
  values = image.astype(jnp.float32)
  mean = values.mean(axis=(0, 1), keepdims=True)
  return to_uint8((values - mean) * factor + mean)


def pixelate(image: jax.Array, severity: int, key: jax.Array):
  """Shrinks and enlarges with Pillow's box filter; deterministic."""
  del key
  factor = parameters('pixelate', image, severity)
  height, width = image.shape[:2]
  small = (max(1, int(height * factor)), max(1, int(width * factor)))
  shrunk = _box_resize(image.astype(jnp.float32), small)
  return _box_resize(shrunk, (height, width)).astype(jnp.uint8)


def _box_resize(image: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Means over boxes of whole pixels, rounded after each axis as in Pillow.

  A source pixel counts where its centre lies within half a scaled pixel of
  the target's centre.
  """
  for axis in (1, 0):
    size, target = image.shape[axis], shape[axis]
    scale = size / target
    support = 0.5 * max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    last = np.minimum((centres + support + 0.5).astype(int), size)
    total = 0.0
    count = np.zeros(target, np.float32)
    column = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    for offset in range(int(np.max(last - first))):
      position = first + offset
      distance = (position + 0.5 - centres) / max(scale, 1.0)
      used = (position < last) & (distance > -0.5) & (distance <= 0.5)
      used = used.astype(np.float32)
      pixels = jnp.take(image, np.minimum(position, size - 1), axis)
      total += pixels * used.reshape(column)
      count += used
    # Sums of at most 255 values: the slack settles ties upwards and is far
    # below the distance to any other rounding threshold.
    image = jnp.floor(total / count.reshape(column) + (0.5 + 1e-3))
  return image


def elastic_transform(image: jax.Array, severity: int, key: jax.Array):
  """Moves pixels along a smooth random field.

  At 224 pixels this is the form of the `imagecorruptions` package, which
  rises with severity; `elastic_transform_original` has the original figures.
  """
  return _elastic(image, parameters('elastic_transform', image, severity), key)


def elastic_transform_original(image: jax.Array, severity: int, key: jax.Array):
  """Elastic transform with ImageNet-C's figures: not monotone in severity."""
  name = 'elastic_transform_original'
  return _elastic(image, parameters(name, image, severity), key)


def _elastic(
  image: jax.Array, figures: tuple[float, float, float], key: jax.Array
) -> jax.Array:
  height, width = image.shape[:2]
  side = min(height, width)
  amplitude, sigma, jitter = (figure * side for figure in figures)
  affine_key, field_key = jax.random.split(key)
  values = image.astype(jnp.float32)
  if jitter:
    values = _random_affine(values, jitter, affine_key)
  rows, columns = np.mgrid[:height, :width].astype(np.float32)
  if amplitude:
    noise = jax.random.uniform(
      field_key, (2, height, width), minval=-1.0, maxval=1.0
    )
    down = filters.gaussian_matrix(height, sigma, 3.0)
    right = filters.gaussian_matrix(width, sigma, 3.0)
    precision = jax.lax.Precision.HIGHEST
    field = jnp.einsum('ij,cjk->cik', down, noise, precision=precision)
    field = jnp.einsum('cik,lk->cil', field, right, precision=precision)
    values = filters.sample_bilinear(
      values,
      rows + amplitude * field[0],
      columns + amplitude * field[1],
      doubled_edge=True,
    )
  return to_uint8(values)


def _random_affine(
  image: jax.Array, jitter: float, key: jax.Array
) -> jax.Array:
  """Warps by the affine map that moves three points by up to `jitter`."""
  height, width = image.shape[:2]
  centre = np.array([width // 2, height // 2], np.float32)
  reach = min(height, width) // 3
  corners = np.array([[1, 1], [1, -1], [-1, -1]], np.float32) * reach
  corners = corners + centre[None]
  moved = corners + jax.random.uniform(
    key, (3, 2), minval=-jitter, maxval=jitter
  )
  rows, columns = np.mgrid[:height, :width].astype(np.float32)
  # Coordinates of each target pixel along the moved triangle's two sides are
  # those of its source along the corners' sides.
  along, across = moved[1] - moved[0], moved[2] - moved[0]
  x, y = columns - moved[0, 0], rows - moved[0, 1]
  area = along[0] * across[1] - along[1] * across[0]
  u = (x * across[1] - y * across[0]) / area
  v = (along[0] * y - along[1] * x) / area
  sides = corners[1:] - corners[:1]
  source_x = corners[0, 0] + u * sides[0, 0] + v * sides[1, 0]
  source_y = corners[0, 1] + u * sides[0, 1] + v * sides[1, 1]
  return filters.sample_bilinear(image, source_y, source_x, doubled_edge=False)
