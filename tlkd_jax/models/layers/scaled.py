"""A pointwise convolution and the constant scale and shift of its channels.

A frozen BatchNorm is y = z s + b of the convolution's z = x w. Derived apart,
the gradient reads dy and z for the sum of dy z, and writes dy s for the two
products that follow. Both are passes over whole maps that need not be: z is
linear in w, so the sum of dy z over a channel is that of w dw', where dw' is
the gradient of the kernel by dy itself, which is computed anyway; and s goes
into the kernel, which is small. What is left of the pair is the sum of dy.

The numbers are those of the plain form but for the order of sums and products.
Not for depthwise kernels: where nothing but the activation's gradient reads z
again, XLA computes the sum over the taps a second time.
"""

import functools

import jax

from tlkd_jax.models.layers.convolutions import conv2d, is_lax


def gains(x: jax.Array, kernel: jax.Array, groups: int) -> bool:
  """Whether `scaled_pointwise` has fewer passes over memory than its parts.

  On CPU, in float32 and more: in bfloat16 a kernel's gradient is rounded before
  the sum.

  Args:
    x: [B, H, W, Cin].
    kernel: [kh, kw, Cin / groups, Cout].
    groups: of channels.
  """
  pointwise = kernel.shape[:2] == (1, 1) and groups == 1
  return pointwise and x.dtype.itemsize >= 4 and not is_lax()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def scaled_pointwise(
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  shift: jax.Array,
  stride: tuple[int, int],
) -> jax.Array:
  """conv2d(x, kernel) * scale + shift.

  Args:
    x: [B, H, W, Cin], floating.
    kernel: [1, 1, Cin, Cout], of the same dtype.
    scale: [Cout], likewise.
    shift: [Cout], likewise.
    stride: see conv2d.

  Returns:
    [B, H', W', Cout].
  """
  z = conv2d(x, kernel, stride=stride)
  return z * _wide(scale) + _wide(shift)


def _forward(x, kernel, scale, shift, stride):
  return scaled_pointwise(x, kernel, scale, shift, stride), (x, kernel, scale)


def _backward(stride, residuals, dy):
  x, kernel, scale = residuals
  convolve = functools.partial(conv2d, stride=stride)
  _, gradient = jax.vjp(convolve, x, kernel * _wide(scale))
  dx, dkernel = gradient(dy)
  dscale = (kernel * dkernel).sum((0, 1, 2))
  return dx, dkernel * _wide(scale), dscale, dy.sum((0, 1, 2))


scaled_pointwise.defvjp(_forward, _backward)


def _wide(vector):
  return vector[None, None, None]
