"""Filters, resampling and warping that the corruptions share.

Images are float32 in 0..255 here, so that values no corruption touches stay
whole numbers; kernels and weights are made in NumPy when a function is traced.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# A float32 sum that is a whole number in exact arithmetic may end just below
# it; truncation would then lose 1 of 255 on flat areas and ramps. More slack
# would lift values that are truly below: 1e-3 moved a mean by 0.1.
SUM_SLACK = 3e-5
# A Fourier transform's error is larger.
FFT_SLACK = 1e-3
# Slices summed per turn of a loop: 8 gave XLA whole kernels to unroll again.
_UNROLL = 4


def to_uint8(image: jax.Array, slack: float = SUM_SLACK) -> jax.Array:
  """Clips to 0..255 and truncates, as the reference does, not rounds.

  Args:
    image: float32 values.
    slack: how far below a whole number a value still counts as that number.

  Returns:
    uint8 values.
  """
  return (jnp.clip(image, 0, 255) + slack).astype(jnp.uint8)


def luma(image: jax.Array) -> jax.Array:
  """Grey value of float32[H, W, 3] with the weights of ITU-R BT.601."""
  red, green, blue = image[..., 0], image[..., 1], image[..., 2]
  return 0.299 * red + 0.587 * green + 0.114 * blue


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> np.ndarray:
  """A normalised Gaussian of radius int(truncate * sigma + 0.5), as in scipy.

  Args:
    sigma: standard deviation in pixels; 0 gives the identity.
    truncate: radius in standard deviations.

  Returns:
    float64[2 * radius + 1].
  """
  radius = int(truncate * sigma + 0.5)
  if radius == 0:
    return np.ones(1)
  kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  return kernel / kernel.sum()


def filter_separable(
  image: jax.Array, kernel: np.ndarray, mode: str
) -> jax.Array:
  """Correlates both axes of an image with one kernel of odd length.

  Args:
    image: float32[H, W] or float32[H, W, C].
    kernel: float[2 * radius + 1].
    mode: border, a mode of `jnp.pad`.

  Returns:
    The filtered image, of the same shape.
  """
  height, width = image.shape[:2]
  channels = math.prod(image.shape[2:])
  radius = len(kernel) // 2
  if radius == 0:
    return image
  pads = ((radius, radius), (radius, radius)) + ((0, 0),) * (image.ndim - 2)
  # One axis for columns and channels makes every tap a contiguous slice.
  padded = jnp.pad(image, pads, mode=mode).reshape(height + 2 * radius, -1)
  starts = np.arange(len(kernel))
  zeros = np.zeros_like(starts)
  shape = (height, padded.shape[1])
  rows = sum_of_slices(padded, (starts, zeros), kernel, shape)
  shape = (height, width * channels)
  out = sum_of_slices(rows, (zeros, starts * channels), kernel, shape)
  return out.reshape(image.shape)


def sum_of_slices(
  array: jax.Array,
  starts: tuple[jax.Array | np.ndarray, jax.Array | np.ndarray],
  weights: jax.Array | np.ndarray,
  shape: tuple[int, int],
) -> jax.Array:
  """Weighted sum of slices of one array.

  A loop, not one expression: XLA would compute the producers of `array`, or
  this sum, anew for each use of a value.

  Args:
    array: float32[M, N].
    starts: first rows and first columns of the slices, int[K] each.
    weights: float[K].
    shape: of the slices.

  Returns:
    float32 of that shape.
  """
  rows, columns = (jnp.asarray(s, jnp.int32) for s in starts)
  weights = jnp.asarray(weights, jnp.float32)

  def add(i, total):
    moved = jax.lax.dynamic_slice(array, (rows[i], columns[i]), shape)
    return total + weights[i] * moved

  return jax.lax.fori_loop(
    0, len(weights), add, jnp.zeros(shape), unroll=_UNROLL
  )


def gaussian_blur(image: jax.Array, sigma: float) -> jax.Array:
  """Gaussian blur with replicated borders, cut off at 4 sigma."""
  return filter_separable(image, gaussian_kernel(sigma), 'edge')


def gaussian_matrix(size: int, sigma: float, truncate: float) -> np.ndarray:
  """Gaussian blur of a line with mirrored borders (d c b a | a b c d).

  Args:
    size: length of the line.
    sigma: standard deviation in pixels.
    truncate: radius in standard deviations.

  Returns:
    float32[size, size]; `matrix @ line` is the blurred line.
  """
  kernel = gaussian_kernel(sigma, truncate)
  matrix = np.zeros((size, size))
  positions = np.arange(size)
  for offset, weight in enumerate(kernel, start=-(len(kernel) // 2)):
    folded = (positions + offset) % (2 * size)
    source = np.minimum(folded, 2 * size - 1 - folded)
    np.add.at(matrix, (positions, source), weight)
  return matrix.astype(np.float32)


def convolve_fft(image: jax.Array, kernel: np.ndarray) -> jax.Array:
  """Correlates with a symmetric 2-D kernel, borders mirrored (d c b | a b c).

  Args:
    image: float32[H, W, C], H and W larger than half the kernel.
    kernel: float[2 * radius + 1, 2 * radius + 1], symmetric about its centre.

  Returns:
    float32[H, W, C].
  """
  radius = kernel.shape[0] // 2
  height, width = image.shape[:2]
  padded = jnp.pad(
    image, ((radius, radius), (radius, radius), (0, 0)), mode='reflect'
  ).transpose(2, 0, 1)
  sizes = [_fast_fft_size(n + 2 * radius) for n in (height, width)]
  wrapped = np.zeros(sizes)
  wrapped[: kernel.shape[0], : kernel.shape[1]] = kernel
  wrapped = np.roll(wrapped, (-radius, -radius), (0, 1))
  transfer = np.fft.rfft2(wrapped).astype(np.complex64)
  spectrum = jnp.fft.rfft2(padded, s=sizes) * transfer[None]
  out = jnp.fft.irfft2(spectrum, s=sizes)
  out = out[:, radius : radius + height, radius : radius + width]
  return out.transpose(1, 2, 0)


def _fast_fft_size(size: int) -> int:
  """The next even number without prime factors above 5."""
  size += size % 2
  while True:
    rest = size
    for prime in (2, 3, 5):
      while rest % prime == 0:
        rest //= prime
    if rest == 1:
      return size
    size += 2


def zoom_weights(
  size: int, zoomed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Linear interpolation that maps a line's ends onto a longer line's ends.

  A coordinate that rounding puts beyond the last pixel reads zero, as in
  `scipy.ndimage.zoom` with its default border.

  Args:
    size: length of the line.
    zoomed: length of the result.

  Returns:
    (first, second, first weight, second weight), each [zoomed]: the two
    source pixels (int) and their weights (float32).
  """
  step = (size - 1) / (zoomed - 1) if zoomed > 1 else 1.0
  position = step * np.arange(zoomed)
  inside = position <= size - 1
  first = np.minimum(np.floor(position).astype(int), size - 1)
  fraction = position - first
  weights = (
    ((1 - fraction) * inside).astype(np.float32),
    (fraction * inside).astype(np.float32),
  )
  return first, np.minimum(first + 1, size - 1), *weights


def sample_bilinear(
  image: jax.Array, rows: jax.Array, columns: jax.Array, doubled_edge: bool
) -> jax.Array:
  """Reads an image at fractional positions; positions outside are mirrored.

  Args:
    image: float32[H, W, C].
    rows: float32[H, W], row coordinates.
    columns: float32[H, W], column coordinates.
    doubled_edge: mirror as (b a | a b), else as (c b | a b).

  Returns:
    float32[H, W, C].
  """
  height, width, channels = image.shape
  pixels = image.reshape(-1, channels)
  top, left = jnp.floor(rows), jnp.floor(columns)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)
  upper = _mirror(top, height, doubled_edge) * width
  lower = _mirror(top + 1, height, doubled_edge) * width
  near = _mirror(left, width, doubled_edge)
  far = _mirror(left + 1, width, doubled_edge)
  first = pixels[upper + near] * (1 - right) + pixels[upper + far] * right
  second = pixels[lower + near] * (1 - right) + pixels[lower + far] * right
  return first * (1 - down) + second * down


def _mirror(index: jax.Array, size: int, doubled_edge: bool) -> jax.Array:
  last = 2 * size - 1 if doubled_edge else max(2 * size - 2, 1)
  period = last + 1 if doubled_edge else last
  folded = index % period
  return jnp.minimum(folded, last - folded)
