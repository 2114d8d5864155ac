"""Numbers as an int8 network has them, in float arithmetic with gradients.

The scheme is that of ONNX's QuantizeLinear and DequantizeLinear: q = saturate(
round(x / scale) + zero point), rounded half to even, and x = (q - zero point)
scale. Activations are uint8, asymmetric, one scale a tensor; weights int8 in
-127..127, symmetric, one scale an output channel; a bias is int32 with the
scale of input times weight. A gradient goes straight through the rounding, and
is 0 where a number was saturated (Jacob et al. 2018, arXiv 1712.05877, section
3; Krishnamoorthi 2018, 1806.08342, section 2.4).
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# Of an activation, uint8.
LOWEST, HIGHEST = 0, 255
# Of a weight: -128 is left out, so that 0 is in the middle.
LARGEST = 127
# Of a bias: what int32 holds, with room for the sum that it is added to.
_LARGEST_BIAS = 2.0**30


def grid(bounds: Array) -> tuple[Array, Array]:
  """The numbers that an activation can have.

  Args:
    bounds: [2], the least and the greatest that it shall have; 0 is always
      among them, so that padding is exact.

  Returns:
    (scale, zero point): float scalars, the latter a whole number in 0..255.
  """
  low, high = jnp.minimum(bounds[0], 0.0), jnp.maximum(bounds[1], 0.0)
  levels, width = HIGHEST - LOWEST, high - low
  # Of a tensor that was 0 throughout, as ONNX Runtime has it.
  empty = width / levels < jnp.finfo(width.dtype).tiny
  width = jnp.where(empty, levels, width)
  # Not by the scale, whose last digit would decide where this is a half.
  zero_point = jnp.round(LOWEST - low * levels / width)
  return width / levels, jnp.clip(zero_point, LOWEST, HIGHEST)


def weight_scale(kernel: Array, bias: Array | None, input_scale: Array):
  """The scale of each output channel of a weight.

  Args:
    kernel: [..., C].
    bias: [C] or None. Where it is large beside a kernel that is almost 0, the
      scale is such that int32 holds it.
    input_scale: of what the kernel is multiplied with, a scalar.

  Returns:
    [C].
  """
  largest = jnp.abs(kernel).max(range(kernel.ndim - 1))
  scale = largest / LARGEST
  if bias is not None:
    least = jnp.abs(bias) / (input_scale * _LARGEST_BIAS)
    scale = jnp.maximum(scale, least)
  return jnp.where(scale < jnp.finfo(scale.dtype).tiny, 1.0, scale)


@jax.custom_jvp
def fake_quantize(
  x: Array, scale: Array, zero_point: Array, lowest: Array, highest: Array
) -> Array:
  """Quantised and back.

  Args:
    x: any numbers.
    scale: a scalar, or of x's rank.
    zero_point: a whole number in lowest..highest.
    lowest: that is represented.
    highest: likewise.

  Returns:
    Of x's shape.
  """
  q = jnp.clip(jnp.round(x / scale) + zero_point, lowest, highest)
  return (q - zero_point) * scale


@fake_quantize.defjvp
def _fake_quantize_jvp(primals, tangents):
  x, scale, zero_point, lowest, highest = primals
  q = jnp.round(x / scale) + zero_point
  inside = (q >= lowest) & (q <= highest)
  y = (jnp.clip(q, lowest, highest) - zero_point) * scale
  return y, jnp.where(inside, tangents[0], jnp.zeros_like(y))


def activation(x: Array, bounds: Array) -> Array:
  """x on the grid of its bounds [2], in its own dtype."""
  scale, zero_point = jax.lax.stop_gradient(grid(bounds.astype(x.dtype)))
  return fake_quantize(x, scale, zero_point, LOWEST, HIGHEST)


def weights(
  kernel: Array, bias: Array | None, input_scale: Array
) -> tuple[Array, Array | None]:
  """A kernel [..., C] and its bias [C] as int8 and int32 have them."""
  scale = jax.lax.stop_gradient(weight_scale(kernel, bias, input_scale))
  wide = jnp.expand_dims(scale, range(kernel.ndim - 1))
  whole = fake_quantize(kernel, wide, 0.0, -LARGEST, LARGEST)
  if bias is None:
    return whole, None
  limit = 2.0 * _LARGEST_BIAS
  return whole, fake_quantize(bias, scale * input_scale, 0.0, -limit, limit)
