"""RandAugment (Cubuk et al. 2020) in JAX, one choice of operations per image.

Each image gets `num_ops` operations drawn with replacement, all at one
magnitude from 0 to 10. Geometric operations sample bilinearly and fill with
grey 128. Ranges are those of the paper's ImageNet code at magnitude 10, with a
random sign where an operation has two directions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_FILL = 128.0
_LUMA = (0.299, 0.587, 0.114)
_MAX_MAGNITUDE = 10.0


def randaugment(
  images: jax.Array, keys: jax.Array, num_ops: int, magnitude: float
) -> jax.Array:
  """Applies random operations to each image.

  Args:
    images: float32[B, H, W, 3] in 0..255.
    keys: keys[B], one per image.
    num_ops: operations per image.
    magnitude: 0 (weakest) to 10.

  Returns:
    float32[B, H, W, 3] in 0..255.

  Raises:
    ValueError: magnitude out of range.
  """
  if not 0 <= magnitude <= _MAX_MAGNITUDE:
    raise ValueError(f'magnitude is {magnitude}; it must be in 0..10')
  strength = magnitude / _MAX_MAGNITUDE

  def one(args: tuple[jax.Array, jax.Array]) -> jax.Array:
    image, key = args
    for number in range(num_ops):
      op_key, sign_key = jax.random.split(jax.random.fold_in(key, number))
      choice = jax.random.randint(op_key, (), 0, len(OPERATIONS))
      sign = jax.random.rademacher(sign_key, (), jnp.float32)
      image = jax.lax.switch(
        choice, list(OPERATIONS.values()), image, jnp.float32(strength), sign
      )
    return jnp.clip(image, 0, 255)

  # A loop rather than vmap, which would run every operation on every image.
  return jax.lax.map(one, (images, keys))


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
  return jnp.clip(factor * image + (1 - factor) * other, 0, 255)


def _grey(image: jax.Array) -> jax.Array:
  return (image @ jnp.asarray(_LUMA))[..., None]


def _warp(image: jax.Array, matrix: list[list]) -> jax.Array:
  """Samples at matrix @ (y, x, 1), coordinates relative to the centre."""
  height, width, channels = image.shape
  middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
  y = jnp.arange(height)[:, None] - middle_y + jnp.zeros((1, width))
  x = jnp.arange(width)[None, :] - middle_x + jnp.zeros((height, 1))
  (yy, yx, dy), (xy, xx, dx) = matrix
  source = [yy * y + yx * x + dy + middle_y, xy * y + xx * x + dx + middle_x]
  planes = [
    jax.scipy.ndimage.map_coordinates(image[..., c], source, 1, cval=_FILL)
    for c in range(channels)
  ]
  return jnp.stack(planes, axis=-1)


def _identity(image, strength, sign):
  del strength, sign
  return image


def _autocontrast(image, strength, sign):
  del strength, sign
  low = image.min((0, 1), keepdims=True)
  high = image.max((0, 1), keepdims=True)
  stretched = (image - low) * (255 / jnp.maximum(high - low, 1e-3))
  return jnp.where(high > low, stretched, image)


def _equalize(image, strength, sign):
  """Histogram equalisation per channel, as Pillow's `ImageOps.equalize`."""
  del strength, sign
  height, width, _ = image.shape
  pixels = jnp.round(image).astype(jnp.int32)

  def channel(plane: jax.Array) -> jax.Array:
    counts = jnp.bincount(plane.ravel(), length=256)
    last = counts[plane.max()]
    step = (height * width - last) // 255
    before = jnp.cumsum(counts) - counts
    table = (step // 2 + before) // jnp.maximum(step, 1)
    table = jnp.clip(table, 0, 255).astype(jnp.float32)
    return jnp.where(step > 0, table[plane], plane.astype(jnp.float32))

  return jax.vmap(channel, in_axes=2, out_axes=2)(pixels)


def _rotate(image, strength, sign):
  angle = sign * strength * (jnp.pi / 6)
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  return _warp(image, [[cosine, sine, 0.0], [-sine, cosine, 0.0]])


def _posterize(image, strength, sign):
  del sign
  step = 2.0 ** jnp.round(4 * strength)
  return jnp.floor(image / step) * step


def _solarize(image, strength, sign):
  del sign
  return jnp.where(image < 256 * (1 - strength), image, 255 - image)


def _colour(image, strength, sign):
  return _blend(image, _grey(image), 1 + sign * 0.9 * strength)


def _contrast(image, strength, sign):
  mean = _grey(image).mean(keepdims=True)
  return _blend(image, mean, 1 + sign * 0.9 * strength)


def _brightness(image, strength, sign):
  return _blend(image, jnp.zeros((1, 1, 1)), 1 + sign * 0.9 * strength)


def _sharpness(image, strength, sign):
  height, width, _ = image.shape
  around = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  smooth = 4 / 13 * image
  for i in range(3):
    for j in range(3):
      smooth = smooth + around[i : i + height, j : j + width] / 13
  return _blend(image, smooth, 1 + sign * 0.9 * strength)


def _shear_x(image, strength, sign):
  return _warp(image, [[1, 0, 0], [sign * 0.3 * strength, 1, 0]])


def _shear_y(image, strength, sign):
  return _warp(image, [[1, sign * 0.3 * strength, 0], [0, 1, 0]])


def _translate_x(image, strength, sign):
  shift = sign * strength * 0.3 * image.shape[1]
  return _warp(image, [[1, 0, 0], [0, 1, shift]])


def _translate_y(image, strength, sign):
  shift = sign * strength * 0.3 * image.shape[0]
  return _warp(image, [[1, 0, shift], [0, 1, 0]])


OPERATIONS: dict[str, Callable[..., jax.Array]] = {
  'identity': _identity,
  'autocontrast': _autocontrast,
  'equalize': _equalize,
  'rotate': _rotate,
  'posterize': _posterize,
  'solarize': _solarize,
  'colour': _colour,
  'contrast': _contrast,
  'brightness': _brightness,
  'sharpness': _sharpness,
  'shear_x': _shear_x,
  'shear_y': _shear_y,
  'translate_x': _translate_x,
  'translate_y': _translate_y,
}
