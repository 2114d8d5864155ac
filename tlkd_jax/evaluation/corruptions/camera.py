"""Degradations that the user of a small camera meets.

This project's own set. Every function here is `(image uint8[H, W, 3],
severity 1..5, key) -> uint8[H, W, 3]` and raises ValueError as
`tables.parameters` does.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions.filters import (
  luma,
  sample_bilinear,
  to_uint8,
)
from tlkd_jax.evaluation.corruptions.tables import parameters

# Display gamma, electrons at full exposure, and noise of the read-out in
# electrons: a phone-sized sensor at a moderate gain.
_GAMMA = 2.2
_FULL_WELL = 1000.0
_READ_NOISE = 5.0


def down_sampling(image: jax.Array, severity: int, key: jax.Array):
  """Shrinks and enlarges with anti-aliased linear filters; deterministic."""
  del key
  factor = parameters('down_sampling', image, severity)
  height, width = image.shape[:2]
  small = (max(1, round(height * factor)), max(1, round(width * factor)), 3)
  shrunk = jax.image.resize(image.astype(jnp.float32), small, 'linear')
  return to_uint8(jax.image.resize(shrunk, image.shape, 'linear'))


def occlusion(image: jax.Array, severity: int, key: jax.Array):
  """Covers a grey rectangle of the image's proportions at a random place."""
  share = parameters('occlusion', image, severity)
  height, width = image.shape[:2]
  tall, wide = round(height * share**0.5), round(width * share**0.5)
  row_key, column_key = jax.random.split(key)
  top = jax.random.randint(row_key, (), 0, height - tall + 1)
  left = jax.random.randint(column_key, (), 0, width - wide + 1)
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
  covered = (rows >= top) & (rows < top + tall)
  covered = covered & (columns >= left) & (columns < left + wide)
  return jnp.where(covered[..., None], 128, image).astype(jnp.uint8)


def grey_scale(image: jax.Array, severity: int, key: jax.Array):
  """Mixes the image with its grey version; deterministic."""
  del key
  weight = parameters('grey_scale', image, severity)
  values = image.astype(jnp.float32)
  grey = luma(values)[..., None]
  return to_uint8((1 - weight) * values + weight * grey)


def rotation(image: jax.Array, severity: int, key: jax.Array):
  """Turns to the left or the right; what comes into view is mirrored."""
  degrees = parameters('rotation', image, severity)
  height, width = image.shape[:2]
  angle = np.deg2rad(degrees) * jax.random.rademacher(key, (), jnp.float32)
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
  rows, columns = np.mgrid[:height, :width].astype(np.float32)
  rows, columns = rows - middle_row, columns - middle_column
  turned = sample_bilinear(
    image.astype(jnp.float32),
    cosine * rows - sine * columns + middle_row,
    sine * rows + cosine * columns + middle_column,
    doubled_edge=True,
  )
  return to_uint8(turned)


def colour_cast(image: jax.Array, severity: int, key: jax.Array):
  """Multiplies the channels by gains whose product is 1, of a random hue."""
  length = parameters('colour_cast', image, severity)
  hue = jax.random.uniform(key, (), maxval=2 * np.pi)
  # Three cosines a third of a turn apart sum to 0 and have length sqrt(1.5).
  phases = np.arange(3, dtype=np.float32) * np.float32(2 * np.pi / 3)
  gains = jnp.exp(length * jnp.sqrt(2 / 3) * jnp.cos(hue + phases))
  return to_uint8(image * gains[None, None])


def low_light(image: jax.Array, severity: int, key: jax.Array):
  """Darkens in linear light and adds the sensor's shot and read noise.

  Shot noise is normal here, with the variance of the electron count.
  """
  exposure = parameters('low_light', image, severity)
  light = (image.astype(jnp.float32) / 255) ** _GAMMA
  electrons = light * (exposure * _FULL_WELL)
  deviation = jnp.sqrt(electrons + _READ_NOISE**2)
  electrons += deviation * jax.random.normal(key, image.shape)
  light = jnp.clip(electrons / _FULL_WELL, 0, 1)
  return to_uint8(255 * light ** (1 / _GAMMA))
