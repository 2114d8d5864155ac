"""Weather corruptions of ImageNet-C, with procedural frost.

Source: Hendrycks and Dietterich, ICLR 2019; snow and fog as in the
`imagecorruptions` package. Every function here is `(image uint8[H, W, 3],
severity 1..5, key) -> uint8[H, W, 3]` and raises ValueError as
`tables.parameters` does.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions.blur import motion_blur_along
from tlkd_jax.evaluation.corruptions.filters import (
  luma,
  to_uint8,
  zoom_weights,
)
from tlkd_jax.evaluation.corruptions.tables import length_scale, parameters

# Mean RGB and standard deviation within a 224-pixel crop of five kinds of
# frost, measured on the five pictures that ImageNet-C draws from: they fix
# the look of the procedural frost.
_FROST_COLOURS = np.array(
  [
    [78, 149, 166],
    [201, 205, 215],
    [201, 205, 215],
    [138, 153, 165],
    [112, 123, 135],
  ],
  np.float32,
)
_FROST_CONTRASTS = np.array([15, 19, 19, 26, 34], np.float32)
_FROST_BRIGHTNESS_DEVIATION = 9.0
_FROST_FEATHERS = 3


def fog(image: jax.Array, severity: int, key: jax.Array):
  """Adds a fractal of grey and rescales to the image's own maximum."""
  strength, decay = parameters('fog', image, severity)
  height, width = image.shape[:2]
  values = image.astype(jnp.float32)
  brightest = values.max()
  haze = _plasma_fractal(max(height, width), decay, key)[:height, :width]
  scale = brightest / (brightest + 255 * strength)
  return to_uint8((values + 255 * strength * haze[..., None]) * scale)


def _plasma_fractal(side: int, decay: float, key: jax.Array) -> jax.Array:
  """Diamond-square fractal on a torus, scaled to 0..1.

  Args:
    side: the result's side is the next power of two, in pixels.
    decay: factor by which each octave's amplitude falls.
    key: of the random displacements.

  Returns:
    float32[n, n].
  """
  octaves = (side - 1).bit_length()
  # Octave by octave three shifts for each point so far: 3 * 4**octave.
  draws = jax.random.uniform(key, (4**octaves - 1,), minval=-1.0, maxval=1.0)
  grid = jnp.zeros((1, 1))
  wobble = 100.0
  for octave in range(octaves):
    shifts = draws[4**octave - 1 : 4 ** (octave + 1) - 1]
    shifts = wobble**2 * shifts.reshape(3, *grid.shape)
    sums = grid + jnp.roll(grid, -1, 0)
    centre = (sums + jnp.roll(sums, -1, 1)) / 4 + shifts[0]
    across = centre + jnp.roll(centre, 1, 0) + grid + jnp.roll(grid, -1, 1)
    down = centre + jnp.roll(centre, 1, 1) + grid + jnp.roll(grid, -1, 0)
    even = jnp.stack([grid, across / 4 + shifts[1]], axis=2)
    odd = jnp.stack([down / 4 + shifts[2], centre], axis=2)
    size = 2 * len(grid)
    rows = [even.reshape(-1, size), odd.reshape(-1, size)]
    grid = jnp.stack(rows, axis=1).reshape(size, size)
    wobble /= decay
  grid -= grid.min()
  return grid / grid.max()


def snow(image: jax.Array, severity: int, key: jax.Array):
  """Whitens the image and adds smeared flakes twice, the second time turned."""
  mean, deviation, zoom, threshold, radius, sigma, weight = parameters(
    'snow', image, severity
  )
  height, width = image.shape[:2]
  scale = length_scale(height, width)
  noise_key, angle_key = jax.random.split(key)
  flakes = _enlarged_noise(height, width, max(1.0, zoom * scale), noise_key)
  flakes = mean + deviation * flakes
  flakes = jnp.where(flakes < threshold, 0, jnp.clip(flakes, 0, 1))
  angle = jax.random.uniform(angle_key, (), minval=-135.0, maxval=-45.0)
  flakes = motion_blur_along(
    flakes, round(radius * scale), sigma * scale, angle
  )
  flakes = jnp.round(flakes * 255)[:height, :width, None]
  values = image.astype(jnp.float32)
  whitened = jnp.maximum(values, luma(values)[..., None] * 1.5 + 127.5)
  values = weight * values + (1 - weight) * whitened
  return to_uint8(values + flakes + jnp.rot90(flakes, 2))


def _enlarged_noise(
  height: int, width: int, zoom: float, key: jax.Array
) -> jax.Array:
  """Unit normal noise of grains of `zoom` pixels, at least [height, width].

  Interpolation lowers the variance between the grains' centres.
  """
  small = (int(np.ceil(height / zoom)), int(np.ceil(width / zoom)))
  noise = jax.random.normal(key, small)
  for axis, size in enumerate(small):
    first, second, near, far = zoom_weights(size, round(size * zoom))
    column = (-1, 1) if axis == 0 else (1, -1)
    noise = jnp.take(noise, first, axis) * near.reshape(column) + jnp.take(
      noise, second, axis
    ) * far.reshape(column)
  return noise


def frost(image: jax.Array, severity: int, key: jax.Array):
  """Mixes the image with procedural frost of one of five kinds.

  ImageNet-C mixes in crops of photographs, which this project does not ship.
  """
  image_weight, frost_weight = parameters('frost', image, severity)
  height, width = image.shape[:2]
  kind_key, shift_key, texture_key = jax.random.split(key, 3)
  kind = jax.random.randint(kind_key, (), 0, len(_FROST_COLOURS))
  shift = _FROST_BRIGHTNESS_DEVIATION * jax.random.normal(shift_key)
  texture = _frost_texture(height, width, texture_key)
  colour = jnp.asarray(_FROST_COLOURS)[kind] + shift
  contrast = jnp.asarray(_FROST_CONTRASTS)[kind]
  ice = colour[None, None] + contrast * texture[..., None]
  ice = jnp.floor(jnp.clip(ice, 0, 255))
  return to_uint8(image_weight * image + frost_weight * ice)


def _frost_texture(height: int, width: int, key: jax.Array) -> jax.Array:
  """Feathers over a cloudy ground, mean 0 and variance 1, float32[H, W].

  White noise is filtered to amplitudes of frequency^-0.85; a feather keeps
  the frequencies across its own random direction, and the strongest feather
  shows at each pixel.
  """
  noise_key, angle_key = jax.random.split(key)
  spectrum = jnp.fft.rfft2(jax.random.normal(noise_key, (height, width)))
  rows = np.fft.fftfreq(height)[:, None] * height
  columns = np.fft.rfftfreq(width)[None] * width
  radius = np.maximum(np.hypot(rows, columns), 1)
  amplitude = (radius**-0.85 * (np.hypot(rows, columns) > 0)).astype(np.float32)
  direction = np.arctan2(rows, columns).astype(np.float32)
  first = jax.random.uniform(angle_key, (), maxval=np.pi)
  layers = [_unit(jnp.fft.irfft2(spectrum * amplitude, s=(height, width)))]
  for feather in range(_FROST_FEATHERS):
    angle = first + feather * np.pi / _FROST_FEATHERS
    across = jnp.exp(-((jnp.sin(direction - angle) / 0.15) ** 2))
    layers.append(
      _unit(
        jnp.fft.irfft2(
          spectrum * (amplitude * across * np.sqrt(radius)), s=(height, width)
        )
      )
    )
  feathers = jnp.stack(layers[1:]).max(axis=0)
  return _unit(layers[0] + _unit(feathers))


def _unit(layer: jax.Array) -> jax.Array:
  layer = layer - layer.mean()
  return layer / jnp.maximum(jnp.sqrt((layer**2).mean()), 1e-12)
