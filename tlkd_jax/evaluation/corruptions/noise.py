"""Noise corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019).

Every function here is `(image uint8[H, W, 3], severity 1..5, key) ->
uint8[H, W, 3]` and raises ValueError as `tables.parameters` does.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions.filters import to_uint8
from tlkd_jax.evaluation.corruptions.tables import parameters


def gaussian_noise(image: jax.Array, severity: int, key: jax.Array):
  """Adds independent normal noise to every value."""
  deviation = parameters('gaussian_noise', image, severity)
  noise = jax.random.normal(key, image.shape)
  return to_uint8(image + 255 * deviation * noise)


def speckle_noise(image: jax.Array, severity: int, key: jax.Array):
  """Adds normal noise proportional to the value."""
  deviation = parameters('speckle_noise', image, severity)
  noise = jax.random.normal(key, image.shape)
  return to_uint8(image * (1 + deviation * noise))


def shot_noise(image: jax.Array, severity: int, key: jax.Array):
  """Replaces every value by a Poisson count of photons."""
  photons = parameters('shot_noise', image, severity)
  counts = _clipped_poisson(image, photons, key)
  values = (np.arange(photons + 1) / photons * 255).astype(np.uint8)
  return jnp.asarray(values)[counts]


def impulse_noise(image: jax.Array, severity: int, key: jax.Array):
  """Sets a share of the values to 0 or 255, as likely the one as the other."""
  share = parameters('impulse_noise', image, severity)
  draw = jax.random.uniform(key, image.shape)
  noisy = jnp.where(draw < share / 2, 0, jnp.where(draw < share, 255, image))
  return noisy.astype(jnp.uint8)


def _clipped_poisson(
  image: jax.Array, photons: int, key: jax.Array
) -> jax.Array:
  """Draws min(Poisson(value / 255 * photons), photons) for every value.

  There are only 256 rates and counts above `photons` are white anyway, so a
  table of distribution functions and a binary search replace rejection.
  """
  rates = np.arange(256)[:, None] * (photons / 255)
  counts = np.arange(photons)[None]
  log_factorial = np.array([math.lgamma(k + 1) for k in range(photons)])
  with np.errstate(divide='ignore', invalid='ignore'):
    log_pmf = counts * np.log(rates) - rates - log_factorial[None]
  log_pmf[0] = np.where(counts[0] == 0, 0, -np.inf)
  levels = photons.bit_length()
  table = np.full((256, 2**levels), 2, np.float32)
  table[:, :photons] = np.cumsum(np.exp(log_pmf), axis=1)
  table = jnp.asarray(table.ravel())
  row = image.astype(jnp.int32) * 2**levels
  draw = jax.random.uniform(key, image.shape)
  count = jnp.zeros(image.shape, jnp.int32)
  for level in reversed(range(levels)):
    step = 2**level
    count += jnp.where(table[row + count + (step - 1)] <= draw, step, 0)
  return count
