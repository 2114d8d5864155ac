"""Image corruptions in JAX: ImageNet-C-like, and those of a small camera.

Contract: `CORRUPTIONS[name](image, severity, key)` takes uint8[H, W, 3], a
severity from 1 to 5 (a Python int, static under jit) and a PRNG key, and
returns uint8[H, W, 3]. It can be jitted and vmapped and depends on nothing
else. `corrupt_batch` is its compiled form for a batch, `corruption_keys` the
keys with which two runs see identical images.

To add a corruption: one function, its severities in `tables`, one line here.
"""

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tlkd_jax.evaluation.corruptions import (
  blur,
  camera,
  digital,
  jpeg,
  noise,
  spatter,
  weather,
)
from tlkd_jax.evaluation.corruptions.tables import (
  SEVERITIES,
  check_name,
  describe_table,
  length_scale,
  severity_table,
)

__all__ = [
  'CORRUPTIONS',
  'CORRUPTION_GROUPS',
  'CORRUPTION_SETS',
  'SEVERITIES',
  'corrupt_batch',
  'corruption_key',
  'corruption_keys',
  'describe_table',
  'length_scale',
  'severity_table',
]

CORRUPTIONS = {
  'gaussian_noise': noise.gaussian_noise,
  'shot_noise': noise.shot_noise,
  'impulse_noise': noise.impulse_noise,
  'defocus_blur': blur.defocus_blur,
  'glass_blur': blur.glass_blur,
  'motion_blur': blur.motion_blur,
  'zoom_blur': blur.zoom_blur,
  'snow': weather.snow,
  'frost': weather.frost,
  'fog': weather.fog,
  'brightness': digital.brightness,
  'contrast': digital.contrast,
  'elastic_transform': digital.elastic_transform,
  'pixelate': digital.pixelate,
  'jpeg_compression': jpeg.jpeg_compression,
  'speckle_noise': noise.speckle_noise,
  'gaussian_blur': blur.gaussian_blur,
  'spatter': spatter.spatter,
  'saturate': digital.saturate,
  'elastic_transform_original': digital.elastic_transform_original,
  'down_sampling': camera.down_sampling,
  'occlusion': camera.occlusion,
  'grey_scale': camera.grey_scale,
  'rotation': camera.rotation,
  'colour_cast': camera.colour_cast,
  'low_light': camera.low_light,
}

# ImageNet-C's mean corruption error is over its first four groups; 'extra'
# are its four further corruptions.
CORRUPTION_GROUPS = {
  'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
  'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
  'weather': ('snow', 'frost', 'fog', 'brightness'),
  'digital': (
    'contrast',
    'elastic_transform',
    'pixelate',
    'jpeg_compression',
  ),
  'extra': ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),
  'camera': (
    'down_sampling',
    'occlusion',
    'grey_scale',
    'rotation',
    'colour_cast',
    'low_light',
  ),
}

CORRUPTION_SETS = {
  'imagenet-c-like': tuple(
    name
    for group in ('noise', 'blur', 'weather', 'digital', 'extra')
    for name in CORRUPTION_GROUPS[group]
  ),
  'camera': CORRUPTION_GROUPS['camera'],
}

# On CPU a batch is corrupted in pieces of about this many pixels, which stay
# in the processor's cache.
_CPU_PIXELS = 2**16


def corruption_key(
  seed: int, index: int | jax.Array, name: str, severity: int
) -> jax.Array:
  """The key of one image under one corruption and severity.

  Args:
    seed: of the evaluation; the same for all runs that are compared.
    index: the image's index in its split.
    name: a key of `CORRUPTIONS`.
    severity: 1 to 5.

  Returns:
    A PRNG key, the same in every process and on every backend.

  Raises:
    ValueError: an unknown name.
  """
  check_name(name)
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  return jax.random.fold_in(jax.random.fold_in(key, severity), index)


def corruption_keys(
  seed: int, indices: Sequence[int] | jax.Array, name: str, severity: int
) -> jax.Array:
  """`corruption_key` for a batch of indices [B]; returns keys [B]."""
  indices = jnp.asarray(indices, jnp.uint32)
  return jax.vmap(lambda index: corruption_key(seed, index, name, severity))(
    indices
  )


@functools.partial(jax.jit, static_argnames=('name', 'severity'))
def corrupt_batch(
  name: str, images: jax.Array, severity: int, keys: jax.Array
) -> jax.Array:
  """Corrupts a batch of images; compiled once per name, severity and shape.

  Args:
    name: a key of `CORRUPTIONS`.
    images: uint8[B, H, W, 3].
    severity: 1 to 5.
    keys: PRNG keys [B], as from `corruption_keys`.

  Returns:
    uint8[B, H, W, 3].

  Raises:
    ValueError: an unknown name, a severity outside 1..5, or images of another
      shape or dtype.
  """
  check_name(name)
  corrupt = functools.partial(_corrupt, name, severity)
  if jax.default_backend() != 'cpu':
    return jax.vmap(corrupt)(images, keys)
  count, height, width = images.shape[:3]
  largest = max(1, _CPU_PIXELS // (height * width))
  piece = max(n for n in range(1, largest + 1) if count % n == 0)
  if piece == 1:
    return jax.lax.map(lambda pair: corrupt(*pair), (images, keys))
  pieces = (count // piece, piece)
  out = jax.lax.map(
    lambda pair: jax.vmap(corrupt)(*pair),
    (images.reshape(*pieces, *images.shape[1:]), keys.reshape(pieces)),
  )
  return out.reshape(images.shape)


def _corrupt(
  name: str, severity: int, image: jax.Array, key: jax.Array
) -> jax.Array:
  return CORRUPTIONS[name](image, severity, key)
