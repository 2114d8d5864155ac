"""Blur corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019).

Every public function is `(image uint8[H, W, 3], severity 1..5, key) ->
uint8[H, W, 3]`, save `motion_blur_along`, and raises ValueError as
`tables.parameters` does.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions import filters
from tlkd_jax.evaluation.corruptions.filters import to_uint8
from tlkd_jax.evaluation.corruptions.tables import length_scale, parameters

# Doublings of the chains of copies in glass blur: 2**6 links. A pixel has a
# next link with a probability below 1/2, so a longer chain is not met.
_CHAIN_DOUBLINGS = 6


def gaussian_blur(image: jax.Array, severity: int, key: jax.Array):
  """Gaussian blur; deterministic."""
  del key
  sigma = parameters('gaussian_blur', image, severity)
  sigma *= length_scale(*image.shape[:2])
  return to_uint8(filters.gaussian_blur(image.astype(jnp.float32), sigma))


def defocus_blur(image: jax.Array, severity: int, key: jax.Array):
  """Convolution with an anti-aliased disk; deterministic."""
  del key
  radius, alias_sigma = parameters('defocus_blur', image, severity)
  scale = length_scale(*image.shape[:2])
  kernel = disk_kernel(radius * scale, alias_sigma * scale)
  blurred = filters.convolve_fft(image.astype(jnp.float32), kernel)
  return to_uint8(blurred, filters.FFT_SLACK)


def disk_kernel(radius: float, alias_sigma: float) -> np.ndarray:
  """The kernel of defocus blur: a disk, smoothed by 3 or 5 pixels.

  Args:
    radius: of the disk, in pixels.
    alias_sigma: of the smoothing, in pixels.

  Returns:
    float64[n, n] with sum 1, n = 17 up to radius 8.
  """
  half = max(8, math.ceil(radius))
  line = np.arange(-half, half + 1)
  disk = (line[:, None] ** 2 + line[None] ** 2 <= radius**2).astype(float)
  disk /= disk.sum()
  reach = 1 if radius <= 8 else 2
  weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias_sigma) ** 2)
  weights /= weights.sum()
  padded = np.pad(disk, reach, mode='reflect')
  size = len(line)
  rows = np.zeros((size, padded.shape[1]))
  result = np.zeros((size, size))
  for i, w in enumerate(weights):
    rows += w * padded[i : i + size]
  for i, w in enumerate(weights):
    result += w * rows[:, i : i + size]
  return result


def motion_blur(image: jax.Array, severity: int, key: jax.Array):
  """One-sided Gaussian smear at an angle from -45 to 45 degrees."""
  radius, sigma = parameters('motion_blur', image, severity)
  scale = length_scale(*image.shape[:2])
  angle = jax.random.uniform(key, (), minval=-45.0, maxval=45.0)
  return to_uint8(
    motion_blur_along(
      image.astype(jnp.float32), round(radius * scale), sigma * scale, angle
    )
  )


def motion_blur_along(
  image: jax.Array, radius: int, sigma: float, angle: jax.Array
) -> jax.Array:
  """Averages copies of the image moved in whole pixels along a line.

  Args:
    image: float32[H, W] or float32[H, W, C]; borders are replicated.
    radius: 2 * radius + 1 copies are averaged.
    sigma: of the one-sided Gaussian weights, in pixels.
    angle: float32 scalar, degrees.

  Returns:
    float32, of the image's shape.
  """
  height, width = image.shape[:2]
  channels = math.prod(image.shape[2:])
  taps = np.arange(2 * radius + 1)
  weights = np.exp(-0.5 * (taps / sigma) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  # The reference stops where a copy would leave the image altogether.
  reach = min(2 * radius, height - 1, width - 1)
  pads = ((reach, reach), (reach, reach)) + ((0, 0),) * (image.ndim - 2)
  padded = jnp.pad(image, pads, mode='edge').reshape(height + 2 * reach, -1)
  radians = jnp.deg2rad(angle)
  # Halves round down; a float32 sine of exactly 1/2 may fall on either side.
  half = 0.5 - 1e-5
  down = jnp.ceil(taps * jnp.sin(radians) - half).astype(jnp.int32)
  right = jnp.ceil(taps * jnp.cos(radians) - half).astype(jnp.int32)
  inside = (abs(down) <= reach) & (abs(right) <= reach)
  total = filters.sum_of_slices(
    padded,
    (reach + down, (reach + right) * channels),
    jnp.where(inside, weights, 0),
    (height, width * channels),
  )
  return total.reshape(image.shape)


def zoom_blur(image: jax.Array, severity: int, key: jax.Array):
  """Mean of the image and its zoomed-in copies; deterministic."""
  del key
  end, step = parameters('zoom_blur', image, severity)
  values = image.astype(jnp.float32)
  factors = np.arange(1, end, step)
  total = values
  for factor in factors:
    total += clipped_zoom(values, float(factor))
  return to_uint8(total / (len(factors) + 1))


def clipped_zoom(image: jax.Array, factor: float) -> jax.Array:
  """Zooms into the centre of an image, which keeps its size.

  Args:
    image: float32[H, W] or float32[H, W, C].
    factor: at least 1.

  Returns:
    float32, of the image's shape.
  """
  height, width = image.shape[:2]
  shape = (1,) * (image.ndim - 2)
  for axis, size in enumerate((height, width)):
    cropped = math.ceil(size / factor)
    start = (size - cropped) // 2
    zoomed = round(cropped * factor)
    first, second, weight, rest = filters.zoom_weights(cropped, zoomed)
    trim = slice((zoomed - size) // 2, (zoomed - size) // 2 + size)
    column = (size, 1) if axis == 0 else (1, size)
    near = jnp.take(image, first[trim] + start, axis)
    far = jnp.take(image, second[trim] + start, axis)
    weight, rest = (w[trim].reshape(column + shape) for w in (weight, rest))
    image = near * weight + far * rest
  return image


def glass_blur(image: jax.Array, severity: int, key: jax.Array):
  """Blurs, copies every pixel from a random neighbour, and blurs again.

  The reference visits the pixels in raster order from the bottom right, and
  what is meant as a swap copies the neighbour, which may have been copied to
  before. `_copy_source` resolves these chains at once.
  """
  sigma, reach, passes = parameters('glass_blur', image, severity)
  height, width = image.shape[:2]
  scale = length_scale(height, width)
  sigma, reach = sigma * scale, max(1, round(reach * scale))
  values = filters.gaussian_blur(image.astype(jnp.float32), sigma)
  values = to_uint8(values).astype(jnp.float32).reshape(-1, 3)
  for pass_key in jax.random.split(key, passes):
    values = values[_copy_source(height, width, reach, pass_key)]
  return to_uint8(filters.gaussian_blur(values.reshape(image.shape), sigma))


def _copy_source(
  height: int, width: int, reach: int, key: jax.Array
) -> jax.Array:
  """Where each pixel's value comes from after one pass, int32[H * W]."""
  count = height * width
  index = np.arange(count).reshape(height, width)
  rows, columns = np.arange(height)[:, None], np.arange(width)[None]
  visited = (rows > reach) & (rows <= height - reach)
  visited = visited & (columns > reach) & (columns <= width - reach)
  bits = jax.random.bits(key, (height, width))
  draw = (bits % (2 * reach) ** 2).astype(jnp.int32)
  down, right = draw // (2 * reach) - reach, draw % (2 * reach) - reach
  source = jnp.where(visited, index + down * width + right, index).ravel()
  later = (down > 0) | ((down == 0) & (right > 0))
  chained = (visited & later).ravel() & jnp.asarray(visited.ravel())[source]
  # A pointer of at least `count` is an end: that pixel's value before the pass.
  pointer = jnp.where(chained, source, source + count)
  if reach > 1:

    def double(_, pointer):
      follow = pointer[jnp.minimum(pointer, count - 1)]
      return jnp.where(pointer < count, follow, pointer)

    pointer = jax.lax.fori_loop(0, _CHAIN_DOUBLINGS, double, pointer)
  return pointer - count
