"""Random views of uint8 batches, on the device, inside the jitted step.

Every random number comes from (seed, example index, view) and from nothing
else: not from the position in the batch, the step or the number of devices. So
a view can be drawn again, and a teacher's output for it can be stored.

Images stay in 0..255 as float32; `normalize` comes last, per model.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tlkd_jax.data import randaugment

# ITU-R BT.601 luma.
_LUMA = (0.299, 0.587, 0.114)
# Sets its key apart from those of RandAugment's operations.
_CUTOUT = 2**30
_GREY = 128.0

# The kernels of `transforms.INTERPOLATIONS`; those that JAX cannot antialias
# are replaced by the next narrow one.
_KERNELS = {
  'nearest': 'linear',
  'box': 'linear',
  'bilinear': 'linear',
  'bicubic': 'cubic',
  'lanczos': 'lanczos3',
}


def example_keys(
  seed: int | jax.Array, index: jax.Array, view: jax.Array
) -> jax.Array:
  """One key per example from (seed, index, view).

  Args:
    seed: of the run.
    index: int[B], the example's number in its split.
    view: int[B], which of the example's views.

  Returns:
    keys[B].
  """
  root = jax.random.key(seed)

  def fold(index: jax.Array, view: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(root, index), view)

  return jax.vmap(fold)(index, view)


def augment(
  images: jax.Array,
  seed: int | jax.Array,
  index: jax.Array,
  view: jax.Array,
  *,
  image_size: int,
  crop: str = 'random_resized',
  scale: tuple[float, float] = (0.35, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  padding: int = 0,
  square: int | None = None,
  interpolation: str = 'bilinear',
  flip: bool = True,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  randaugment_ops: int = 0,
  randaugment_magnitude: float = 9.0,
  cutout: float = 0.0,
) -> jax.Array:
  """Draws one view of each image.

  Args:
    images: uint8[B, S, S, 3] with S >= image_size.
    seed: of the run.
    index: int[B], the example's number in its split.
    view: int[B], which of the example's views; the same triple gives the same
      picture.
    image_size: side of the result.
    crop: a key of `CROPS`.
    scale: for 'random_resized', the range of the crop's share of the area.
    ratio: for 'random_resized', the range of its width / height.
    padding: for 'random', black pixels added on each side before cropping.
    square: for crops that keep the scale, the side that the stored images have
      at the scale of evaluation, to which they are shrunk; None is their own.
    interpolation: of resampling, a key of `transforms.INTERPOLATIONS`.
    flip: mirror left-right with probability 1/2.
    brightness: factor uniform in 1 +- this, likewise the next two.
    contrast: the same, around the image's mean grey.
    saturation: the same, around each pixel's grey.
    randaugment_ops: operations of RandAugment per image, 0 for none.
    randaugment_magnitude: their strength, 0 to 10.
    cutout: largest side of a grey square, as a share of the image's; 0 for
      none.

  Returns:
    float32[B, image_size, image_size, 3] in 0..255.

  Raises:
    ValueError: unknown crop, or images smaller than image_size.
  """
  if crop not in CROPS:
    raise ValueError(f'crop is {crop!r}; accepted: {", ".join(CROPS)}')
  if min(images.shape[1:3]) < image_size:
    raise ValueError(f'images {images.shape} are smaller than {image_size}')
  kernel = _KERNELS[interpolation]
  cut = functools.partial(
    CROPS[crop],
    size=image_size,
    scale=scale,
    ratio=ratio,
    padding=padding,
    kernel=kernel,
  )
  if crop not in _RESCALING:
    images = _shrink(images, square or images.shape[1], kernel)

  def one(image: jax.Array, key: jax.Array) -> jax.Array:
    crop_key, flip_key, colour_key = key
    image = cut(crop_key, image.astype(jnp.float32))
    if flip:
      mirror = jax.random.bernoulli(flip_key)
      image = jnp.where(mirror, image[:, ::-1], image)
    return _jitter(colour_key, image, brightness, contrast, saturation)

  keys = jax.vmap(lambda key: jax.random.split(key, 4))(
    example_keys(seed, index, view)
  )
  images = jax.vmap(one)(images, keys[:, :3])
  if randaugment_ops:
    images = randaugment.randaugment(
      images, keys[:, 3], randaugment_ops, randaugment_magnitude
    )
  if cutout:
    places = jax.vmap(lambda key: jax.random.fold_in(key, _CUTOUT))(keys[:, 3])
    images = jax.vmap(lambda i, k: _cut_out(i, k, cutout))(images, places)
  return images


def _random_resized(
  key: jax.Array,
  image: jax.Array,
  *,
  size: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  padding: int,
  kernel: str,
) -> jax.Array:
  """Inception crop (Szegedy et al. 2015, section 6), resampled.

  A side that would leave the image is shortened, where torchvision draws the
  box again.
  """
  del padding
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  shape = jnp.asarray(image.shape[:2], jnp.float32)
  share = jax.random.uniform(area_key, minval=scale[0], maxval=scale[1])
  log_ratio = jax.random.uniform(
    ratio_key, minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
  )
  skew = jnp.exp(jnp.stack([-log_ratio, log_ratio]) / 2)
  box = jnp.minimum(jnp.sqrt(share * shape.prod()) * skew, shape)
  corner = jax.random.uniform(place_key, (2,)) * (shape - box)
  zoom = size / box
  # Antialiased where it shrinks; a pair of small matrix products.
  image = jax.image.scale_and_translate(
    image, (size, size, 3), (0, 1), zoom, -corner * zoom, kernel
  )
  return _clipped(image, kernel)


def _random(
  key: jax.Array,
  image: jax.Array,
  *,
  size: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  padding: int,
  kernel: str,
) -> jax.Array:
  """A window of the stored pixels, as they are."""
  del scale, ratio, kernel
  image = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  room = jnp.asarray(image.shape[:2]) - size + 1
  # A share of the room, so that it is one place whatever the stored size.
  share = jax.random.uniform(key, (2,))
  top, left = jnp.minimum(jnp.floor(share * room).astype(int), room - 1)
  return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, 3))


def _centre(
  key: jax.Array,
  image: jax.Array,
  *,
  size: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  padding: int,
  kernel: str,
) -> jax.Array:
  """The central pixels, as in evaluation."""
  del key, scale, ratio, padding, kernel
  top = round((image.shape[0] - size) / 2)
  left = round((image.shape[1] - size) / 2)
  return image[top : top + size, left : left + size]


CROPS: dict[str, Callable[..., jax.Array]] = {
  'random_resized': _random_resized,
  'random': _random,
  'centre': _centre,
}
# These bring the stored pixels to a scale of their own.
_RESCALING = frozenset(('random_resized',))


def as_evaluated(
  images: jax.Array, *, image_size: int, square: int, interpolation: str
) -> jax.Array:
  """Training images as they would be evaluated: the centre, nothing random.

  Where they are stored larger than at the scale of evaluation they are shrunk
  once more, and so differ from what was decoded at that scale by a little.

  Args:
    images: uint8[B, S, S, 3].
    image_size: side of the result.
    square: as in `augment`.
    interpolation: likewise.

  Returns:
    float32[B, image_size, image_size, 3] in 0..255.
  """
  images = _shrink(images, square, _KERNELS[interpolation])
  start = round((square - image_size) / 2)
  inner = slice(start, start + image_size)
  return images[:, inner, inner].astype(jnp.float32)


def _shrink(images: jax.Array, side: int, kernel: str) -> jax.Array:
  """[B, S, S, 3] to [B, side, side, 3], the same where S is the side."""
  if images.shape[1] == side:
    return images
  return _clipped(resize_for(images, side, kernel), kernel)


def _clipped(image: jax.Array, kernel: str) -> jax.Array:
  """Without what a kernel with negative weights adds beyond 0..255."""
  return image if kernel == 'linear' else jnp.clip(image, 0, 255)


def _jitter(
  key: jax.Array,
  image: jax.Array,
  brightness: float,
  contrast: float,
  saturation: float,
) -> jax.Array:
  """Brightness, contrast, saturation, in this order, each clipped."""
  if not (brightness or contrast or saturation):
    return image
  strengths = jnp.asarray([brightness, contrast, saturation], jnp.float32)
  factors = 1 + strengths * jax.random.uniform(key, (3,), minval=-1, maxval=1)

  def blend(image: jax.Array, other: jax.Array, factor: jax.Array):
    return jnp.clip(factor * image + (1 - factor) * other, 0, 255)

  image = blend(image, jnp.zeros((1, 1, 1)), factors[0])
  mean = (image @ jnp.asarray(_LUMA)).mean()
  image = blend(image, mean.reshape(1, 1, 1), factors[1])
  grey = (image @ jnp.asarray(_LUMA))[..., None]
  return blend(image, grey, factors[2])


def _cut_out(image: jax.Array, key: jax.Array, most: float) -> jax.Array:
  """Cutout (DeVries and Taylor 2017, arXiv:1708.04552), its side drawn too."""
  side_key, place_key = jax.random.split(key)
  size = image.shape[0]
  half = jax.random.uniform(side_key) * most * size / 2
  centre = jax.random.uniform(place_key, (2,)) * size
  places = jnp.arange(size) + 0.5
  rows, columns = (jnp.abs(places - middle) < half for middle in centre)
  inside = rows[:, None] & columns[None, :]
  return jnp.where(inside[..., None], _GREY, image)


def normalize(
  images: jax.Array, mean: float | Sequence[float], std: float | Sequence[float]
) -> jax.Array:
  """(images - mean) / std, per channel.

  Args:
    images: [B, H, W, 3] in 0..255, any dtype.
    mean: one number or three, on the same scale.
    std: one number or three, on the same scale.

  Returns:
    float32[B, H, W, 3].
  """
  shift = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (1, 1, 1, 3))
  scale = jnp.broadcast_to(jnp.asarray(std, jnp.float32), (1, 1, 1, 3))
  return (images.astype(jnp.float32) - shift) / scale


def resize_for(
  images: jax.Array, size: int, method: str = 'bilinear'
) -> jax.Array:
  """Resizes a batch for a model of another resolution, antialiased.

  Args:
    images: [B, H, W, 3] in 0..255.
    size: side of the result.
    method: as in `jax.image.resize`.

  Returns:
    float32[B, size, size, 3]; in 0..255 for 'bilinear', other methods may
    overshoot.
  """
  images = images.astype(jnp.float32)
  if images.shape[1:3] == (size, size):
    return images
  shape = (images.shape[0], size, size, images.shape[3])
  return jax.image.resize(images, shape, method, antialias=True)
