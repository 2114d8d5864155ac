"""Severity tables of the corruptions and the choice between them.

The figures for 224, 64 and 32 pixels are those of ImageNet-C, Tiny ImageNet-C
and CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019). The camera
corruptions are this project's own and hold for every size.

An image takes the table whose size is nearest to its shorter side in ratio,
and lengths in pixels are multiplied by (shorter side) / (table size).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax.runtime.errors import unknown_name

TABLE_SIZES = (224, 64, 32)
SEVERITIES = (1, 2, 3, 4, 5)

# fmt: off
_TABLES = {
  # Standard deviation, image in [0, 1].
  'gaussian_noise': {
    224: (0.08, 0.12, 0.18, 0.26, 0.38),
    64: (0.04, 0.08, 0.12, 0.15, 0.18),
    32: (0.04, 0.06, 0.08, 0.09, 0.10),
  },
  # Photons at full brightness.
  'shot_noise': {
    224: (60, 25, 12, 5, 3),
    64: (250, 100, 50, 30, 15),
    32: (500, 250, 100, 75, 50),
  },
  # Share of values replaced.
  'impulse_noise': {
    224: (0.03, 0.06, 0.09, 0.17, 0.27),
    64: (0.01, 0.02, 0.05, 0.08, 0.14),
    32: (0.01, 0.02, 0.03, 0.05, 0.07),
  },
  # Standard deviation relative to the value.
  'speckle_noise': {
    224: (0.15, 0.2, 0.35, 0.45, 0.6),
    64: (0.15, 0.2, 0.25, 0.3, 0.35),
    32: (0.06, 0.1, 0.12, 0.16, 0.2),
  },
  # Sigma in pixels.
  'gaussian_blur': {
    224: (1, 2, 3, 4, 6),
    64: (0.5, 0.75, 1, 1.25, 1.5),
    32: (0.4, 0.6, 0.7, 0.8, 1),
  },
  # Sigma, largest displacement, passes.
  'glass_blur': {
    224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
  },
  # Radius, sigma of the anti-aliasing.
  'defocus_blur': {
    224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
  },
  # Radius, sigma.
  'motion_blur': {
    224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
  },
  # End (exclusive) and step of the zoom factors, which start at 1.
  'zoom_blur': {
    224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02),
          (1.31, 0.03)),
    64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01),
         (1.26, 0.01)),
    32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01),
         (1.26, 0.01)),
  },
  # Mean, deviation, zoom, threshold, blur radius, blur sigma, image weight.
  'snow': {
    224: ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
          (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
          (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
    64: ((0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
         (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
         (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
         (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6)),
    32: ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
         (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
         (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
         (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
  },
  # Weight of the image, weight of the frost.
  'frost': {
    224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
  },
  # Strength, decay of the fractal's amplitude per octave.
  'fog': {
    224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
  },
  # Mean, deviation, sigma, threshold, intensity, 0 for water or 1 for mud.
  'spatter': {
    224: ((0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0),
          (0.65, 0.3, 2, 0.68, 0.5, 0), (0.65, 0.3, 1, 0.65, 1.5, 1),
          (0.67, 0.4, 1, 0.65, 1.5, 1)),
    64: ((0.62, 0.1, 0.7, 0.7, 0.6, 0), (0.65, 0.1, 0.8, 0.7, 0.6, 0),
         (0.65, 0.3, 1, 0.69, 0.6, 0), (0.65, 0.1, 0.7, 0.68, 0.6, 1),
         (0.65, 0.1, 0.5, 0.67, 0.6, 1)),
    32: ((0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0),
         (0.65, 0.3, 1, 0.69, 0.5, 0), (0.65, 0.1, 0.7, 0.69, 0.6, 1),
         (0.65, 0.1, 0.5, 0.68, 0.6, 1)),
  },
  # Factor on the distance from the mean.
  'contrast': {
    224: (0.4, 0.3, 0.2, 0.1, 0.05),
    64: (0.4, 0.3, 0.2, 0.1, 0.05),
    32: (0.75, 0.5, 0.4, 0.3, 0.15),
  },
  # Added to the value of HSV.
  'brightness': {
    224: (0.1, 0.2, 0.3, 0.4, 0.5),
    64: (0.1, 0.2, 0.3, 0.4, 0.5),
    32: (0.05, 0.1, 0.15, 0.2, 0.3),
  },
  # Factor and offset of the saturation of HSV.
  'saturate': {
    224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
  },
  # libjpeg quality.
  'jpeg_compression': {
    224: (25, 18, 15, 10, 7),
    64: (65, 58, 50, 40, 25),
    32: (80, 65, 58, 50, 40),
  },
  # Factor on the side.
  'pixelate': {
    224: (0.6, 0.5, 0.4, 0.3, 0.25),
    64: (0.9, 0.8, 0.7, 0.6, 0.5),
    32: (0.95, 0.9, 0.85, 0.75, 0.65),
  },
  # Amplitude, sigma, affine jitter, each a multiple of the side. The 224 row
  # is that of the `imagecorruptions` package (no affine part; amplitude =
  # 250 * a * 0.005), which rises with severity; the original's does not.
  'elastic_transform': {
    224: ((0.0625, 0.01, 0), (0.08125, 0.01, 0), (0.10625, 0.01, 0),
          (0.125, 0.01, 0), (0.15, 0.01, 0)),
    64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06),
         (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
         (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
  },
  # The original's 224 row is in multiples of 244 pixels.
  'elastic_transform_original': {
    224: tuple((a * 244 / 224, s * 244 / 224, j * 244 / 224)
               for a, s, j in ((2, 0.7, 0.1), (2, 0.08, 0.2),
                               (0.05, 0.01, 0.02), (0.07, 0.01, 0.02),
                               (0.12, 0.01, 0.02))),
    64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06),
         (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
         (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
  },
  # Factor on the side.
  'down_sampling': (0.7, 0.5, 0.35, 0.25, 0.15),
  # Covered share of the area.
  'occlusion': (0.05, 0.1, 0.2, 0.3, 0.45),
  # Weight of the grey image.
  'grey_scale': (0.2, 0.4, 0.6, 0.8, 1.0),
  # Degrees.
  'rotation': (5, 10, 15, 30, 45),
  # Length of the vector of the three channels' log gains.
  'colour_cast': (0.1, 0.2, 0.3, 0.45, 0.6),
  # Factor on the light.
  'low_light': (0.5, 0.3, 0.15, 0.08, 0.04),
}
# fmt: on


def severity_table(height: int, width: int) -> int:
  """Returns the size in pixels of the table that images of this size use.

  Args:
    height: image height in pixels.
    width: image width in pixels.

  Returns:
    224, 64 or 32: the nearest to the shorter side in ratio.
  """
  side = min(height, width)
  return min(TABLE_SIZES, key=lambda size: abs(math.log(side / size)))


def length_scale(height: int, width: int) -> float:
  """Returns the factor on lengths in pixels: shorter side / table size."""
  return min(height, width) / severity_table(height, width)


def describe_table(height: int, width: int) -> str:
  """Says in one line which severities images of this size get."""
  return (
    f'ImageNet-C-like, severities for {severity_table(height, width)} pixels, '
    f'lengths x {length_scale(height, width):.3g} for {height}x{width}'
  )


def check_name(name: str) -> None:
  """Raises ValueError, with the nearest names, for an unknown corruption."""
  if name not in _TABLES:
    raise unknown_name('corruption', name, _TABLES)


def parameters(name: str, image: jax.Array, severity: int) -> Any:
  """Looks up the parameters of a corruption for one image.

  Args:
    name: a key of `CORRUPTIONS`.
    image: uint8[H, W, 3].
    severity: 1 to 5.

  Returns:
    The table's entry, a number or a tuple of numbers.

  Raises:
    ValueError: an unknown name, a severity outside 1..5, or an image of
      another shape or dtype.
  """
  check_name(name)
  if severity not in SEVERITIES:
    raise ValueError(f'{name}: severity must be 1 to 5, got {severity!r}')
  if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
    raise ValueError(
      f'{name}: image must be uint8[H, W, 3], got '
      f'{image.dtype}{list(image.shape)}'
    )
  table = _TABLES[name]
  if isinstance(table, dict):
    table = table[severity_table(*image.shape[:2])]
  return table[severity - 1]
