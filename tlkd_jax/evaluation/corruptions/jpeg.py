"""JPEG compression and decompression as libjpeg-turbo does it, in integers.

Baseline JPEG (ITU-T T.81) loses information in four steps, which are done
here: colour conversion, halving of the chroma in both directions (4:2:0,
Pillow's default), quantisation of the 8x8 DCT, and their inverses. Entropy
coding is lossless and left out. The DCT is the accurate integer one (Loeffler,
Ligtenberg and Moschytz, 1989) in libjpeg's fixed point, because a coefficient
rounded to the other side of a tie changes a whole block.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.evaluation.corruptions.tables import parameters

# T.81 annex K.1 and K.2, rows of increasing vertical frequency.
# fmt: off
_LUMINANCE = np.array([
  [16, 11, 10, 16, 24, 40, 51, 61],
  [12, 12, 14, 19, 26, 58, 60, 55],
  [14, 13, 16, 24, 40, 57, 69, 56],
  [14, 17, 22, 29, 51, 87, 80, 62],
  [18, 22, 37, 56, 68, 109, 103, 77],
  [24, 35, 55, 64, 81, 104, 113, 92],
  [49, 64, 78, 87, 103, 121, 120, 101],
  [72, 92, 95, 98, 112, 100, 103, 99],
])
# fmt: on
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [
  [17, 18, 24, 47],
  [18, 21, 26, 66],
  [24, 26, 56, 99],
  [47, 66, 99, 99],
]
_CONST_BITS = 13
_PASS1_BITS = 2


def jpeg_compression(image: jax.Array, severity: int, key: jax.Array):
  """Compresses and decompresses the image as Pillow does; deterministic.

  Args:
    image: uint8[H, W, 3].
    severity: 1 to 5.
    key: unused.

  Returns:
    uint8[H, W, 3].

  Raises:
    ValueError: as `tables.parameters`.
  """
  del key
  quality = parameters('jpeg_compression', image, severity)
  height, width = image.shape[:2]
  right = -width % 16
  pixels = image.astype(jnp.int32)
  pixels = jnp.pad(pixels, ((0, height % 2), (0, right), (0, 0)), mode='edge')
  luma, blue, red = _to_ycc(pixels)
  luma = _code(luma[:height], quantisation_table(quality, False))
  luma = luma[:height, :width]
  rows, columns = -(-height // 2), -(-width // 2)
  table = quantisation_table(quality, True)

  def code_chroma(plane):
    coded = _code(_halve(plane), table)[:rows, :columns]
    return _double(coded)[:height, :width]

  blue, red = jax.vmap(code_chroma)(jnp.stack([blue, red]))
  return _to_rgb(luma, blue, red)


def quantisation_table(quality: int, chroma: bool) -> np.ndarray:
  """libjpeg's quantisation table for a quality.

  Args:
    quality: 1 to 100.
    chroma: the table of the chroma planes, else that of the luma plane.

  Returns:
    int[8, 8], 1 to 255.
  """
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  base = _CHROMINANCE if chroma else _LUMINANCE
  return np.clip((base * scale + 50) // 100, 1, 255)


def _fixed(value: float, bits: int = 16) -> int:
  return int(value * 2**bits + 0.5)


def _to_ycc(pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
  half, centre = 1 << 15, 128 << 16
  luma = _fixed(0.299) * red + _fixed(0.587) * green + _fixed(0.114) * blue
  to_blue = _fixed(0.5) * blue - _fixed(0.16874) * red - _fixed(0.33126) * green
  to_red = _fixed(0.5) * red - _fixed(0.41869) * green - _fixed(0.08131) * blue
  return (
    (luma + half) >> 16,
    (to_blue + centre + half - 1) >> 16,
    (to_red + centre + half - 1) >> 16,
  )


def _to_rgb(luma: jax.Array, blue: jax.Array, red: jax.Array) -> jax.Array:
  blue, red, half = blue - 128, red - 128, 1 << 15
  channels = (
    luma + ((_fixed(1.402) * red + half) >> 16),
    luma + ((-_fixed(0.34414) * blue - _fixed(0.71414) * red + half) >> 16),
    luma + ((_fixed(1.772) * blue + half) >> 16),
  )
  return jnp.clip(jnp.stack(channels, axis=-1), 0, 255).astype(jnp.uint8)


def _halve(plane: jax.Array) -> jax.Array:
  """Means of 2x2 pixels; ties round down and up in turn along a row."""
  rows = plane[0::2] + plane[1::2]
  total = rows[:, 0::2] + rows[:, 1::2]
  bias = 1 + np.arange(total.shape[1], dtype=np.int32)[None] % 2
  return (total + bias) >> 2


def _double(plane: jax.Array) -> jax.Array:
  """libjpeg's smooth upsampling: weights 9, 3, 3 and 1 of 16."""
  tall = jnp.pad(plane, ((1, 1), (0, 0)), mode='edge')
  above, below = 3 * plane + tall[:-2], 3 * plane + tall[2:]
  rows = jnp.stack([above, below], axis=1).reshape(-1, plane.shape[1])
  wide = jnp.pad(rows, ((0, 0), (1, 1)), mode='edge')
  left = (3 * rows + wide[:, :-2] + 8) >> 4
  right = (3 * rows + wide[:, 2:] + 7) >> 4
  return jnp.stack([left, right], axis=2).reshape(len(rows), -1)


def _code(plane: jax.Array, table: np.ndarray) -> jax.Array:
  """Quantises the DCT of one plane of 0..255; pads to whole blocks."""
  height, width = plane.shape
  down, across = -(-height // 8), -(-width // 8)
  plane = jnp.pad(
    plane, ((0, 8 * down - height), (0, 8 * across - width)), mode='edge'
  )
  blocks = plane.reshape(down, 8, across, 8).transpose(1, 3, 0, 2) - 128
  steps = jnp.asarray(table, jnp.int32)[:, :, None, None]
  # libjpeg's forward DCT is 8 times too large.
  coefficients = _forward_dct(blocks)
  levels = (jnp.abs(coefficients) + 4 * steps) // (8 * steps)
  coefficients = jnp.sign(coefficients) * levels * steps
  pixels = jnp.clip(_inverse_dct(coefficients) + 128, 0, 255)
  return pixels.transpose(2, 0, 3, 1).reshape(8 * down, 8 * across)


def _descale(value: jax.Array, bits: int) -> jax.Array:
  return (value + (1 << (bits - 1))) >> bits


# The DCT's rotations in fixed point of 13 bits.
_C = {
  name: _fixed(value, _CONST_BITS)
  for name, value in (
    ('0.299', 0.298631336),
    ('0.390', 0.390180644),
    ('0.541', 0.541196100),
    ('0.765', 0.765366865),
    ('0.900', 0.899976223),
    ('1.176', 1.175875602),
    ('1.501', 1.501321110),
    ('1.848', 1.847759065),
    ('1.962', 1.961570560),
    ('2.053', 2.053119869),
    ('2.563', 2.562915447),
    ('3.073', 3.072711026),
  )
}


def _forward_dct(blocks: jax.Array) -> jax.Array:
  """Two passes over int32[8, 8, ...]: rows, then columns."""
  rows = _forward_pass(jnp.moveaxis(blocks, 1, 0), first=True)
  return _forward_pass(jnp.moveaxis(rows, 0, 1), first=False)


def _forward_pass(x: jax.Array, first: bool) -> jax.Array:
  """One-dimensional DCT along the first axis."""
  sums = [x[i] + x[7 - i] for i in range(4)]
  differences = [x[i] - x[7 - i] for i in range(4)]
  bits = _CONST_BITS - _PASS1_BITS if first else _CONST_BITS + _PASS1_BITS
  even, odd = sums[0] + sums[3], sums[1] + sums[2]
  low, high = even + odd, even - odd
  if first:
    out0, out4 = low << _PASS1_BITS, high << _PASS1_BITS
  else:
    out0, out4 = _descale(low, _PASS1_BITS), _descale(high, _PASS1_BITS)
  a, b = sums[0] - sums[3], sums[1] - sums[2]
  common = (a + b) * _C['0.541']
  out2 = _descale(common + a * _C['0.765'], bits)
  out6 = _descale(common - b * _C['1.848'], bits)
  out1, out3, out5, out7 = _odd_part(*differences[::-1])
  odds = [_descale(value, bits) for value in (out1, out3, out5, out7)]
  return jnp.stack([out0, odds[0], out2, odds[1], out4, odds[2], out6, odds[3]])


def _odd_part(t0, t1, t2, t3):
  """The rotations that the forward and the inverse DCT share.

  Returns:
    The outputs of t3, t2, t1 and t0, in this order.
  """
  z1, z2, z3, z4 = t0 + t3, t1 + t2, t0 + t2, t1 + t3
  z5 = (z3 + z4) * _C['1.176']
  z1, z2 = z1 * -_C['0.900'], z2 * -_C['2.563']
  z3, z4 = z3 * -_C['1.962'] + z5, z4 * -_C['0.390'] + z5
  return (
    t3 * _C['1.501'] + z1 + z4,
    t2 * _C['3.073'] + z2 + z3,
    t1 * _C['2.053'] + z2 + z4,
    t0 * _C['0.299'] + z1 + z3,
  )


def _inverse_dct(coefficients: jax.Array) -> jax.Array:
  """Two passes over int32[8, 8, ...]: columns, then rows."""
  columns = _inverse_pass(coefficients, _CONST_BITS - _PASS1_BITS)
  rows = _inverse_pass(
    jnp.moveaxis(columns, 1, 0), _CONST_BITS + _PASS1_BITS + 3
  )
  return jnp.moveaxis(rows, 0, 1)


def _inverse_pass(x: jax.Array, bits: int) -> jax.Array:
  """One-dimensional inverse DCT along the first axis."""
  common = (x[2] + x[6]) * _C['0.541']
  low = common - x[6] * _C['1.848']
  high = common + x[2] * _C['0.765']
  plus, minus = (x[0] + x[4]) << _CONST_BITS, (x[0] - x[4]) << _CONST_BITS
  evens = (plus + high, minus + low, minus - low, plus - high)
  odds = _odd_part(x[7], x[5], x[3], x[1])
  head = [even + odd for even, odd in zip(evens, odds, strict=True)]
  tail = [even - odd for even, odd in zip(evens, odds, strict=True)]
  return _descale(jnp.stack(head + tail[::-1]), bits)
