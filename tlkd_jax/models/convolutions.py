"""Two-dimensional convolutions whose form is chosen by backend.

XLA's grouped convolution is slow on CPU, forward and backward. There, a
depthwise convolution is a sum of shifted products with its own gradients and
a pointwise one is a matrix product; everything else, and every other backend,
uses `lax.conv_general_dilated`.

Arrays are NHWC, kernels HWIO. Reductions keep the batch axis until the end,
so that a batch sharded over devices never leaves its device.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_use_lax = jax.make_user_context(default_value=False)


def lax_convolutions():
  """Returns a context manager in which `conv2d` is always the lax primitive.

  For export to other formats and for comparison in tests. Functions that are
  jitted inside and outside the context are compiled separately.
  """
  return _use_lax(True)


def same_padding(
  size_hw: Sequence[int],
  kernel_hw: Sequence[int],
  stride_hw: Sequence[int] = (1, 1),
) -> Padding:
  """Padding that gives ceil(size / stride) outputs, as TensorFlow's SAME.

  Args:
    size_hw: height and width of the input, in pixels.
    kernel_hw: height and width of the kernel.
    stride_hw: vertical and horizontal stride.

  Returns:
    ((top, bottom), (left, right)); an odd pixel goes to the bottom or right.
  """
  pads = []
  for size, kernel, stride in zip(size_hw, kernel_hw, stride_hw, strict=True):
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    pads.append((total // 2, total - total // 2))
  return pads[0], pads[1]


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: tuple[int, int] = (1, 1),
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """Convolves images with a kernel (cross-correlation, no bias).

  Args:
    x: [B, H, W, Cin], floating.
    kernel: [kh, kw, Cin / groups, Cout], of the same dtype.
    stride: vertical and horizontal stride.
    padding: ((top, bottom), (left, right)) zeros around the image.
    groups: number of channel groups; Cin for a depthwise convolution.

  Returns:
    [B, H', W', Cout] in the dtype of `x`.

  Raises:
    ValueError: if the shapes, dtypes and groups do not fit together.
  """
  _check(x, kernel, groups)
  if _use_lax.value or jax.default_backend() != 'cpu':
    return _conv_lax(x, kernel, stride, padding, groups)
  if groups > 1 and kernel.shape[2] == 1:
    multiplier = kernel.shape[3] // x.shape[3]
    if multiplier > 1:
      x = jnp.repeat(x, multiplier, axis=3)
    return _depthwise(x, kernel[:, :, 0], stride, padding)
  if groups == 1 and kernel.shape[:2] == (1, 1) and not any(sum(padding, ())):
    return _pointwise(x, kernel[0, 0], stride)
  return _conv_lax(x, kernel, stride, padding, groups)


def _check(x: jax.Array, kernel: jax.Array, groups: int) -> None:
  if x.ndim != 4 or kernel.ndim != 4:
    raise ValueError(
      'conv2d needs x [B, H, W, Cin] and kernel [kh, kw, Cin / groups, Cout];'
      f' got {x.shape} and {kernel.shape}'
    )
  if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
    raise ValueError(
      f'conv2d: {x.shape[3]} input channels and a kernel of shape'
      f' {kernel.shape} do not fit {groups} groups'
    )
  if x.dtype != kernel.dtype:
    raise ValueError(
      f'conv2d: x is {x.dtype} and the kernel {kernel.dtype}; cast one of them'
    )


def _conv_lax(x, kernel, stride, padding, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    stride,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _pointwise(x, weight, stride):
  x = x[:, :: stride[0], :: stride[1]]
  # Over a flat batch the weight gradient contracts one axis, not three: 2 to 7
  # times faster on CPU.
  y = x.reshape(-1, x.shape[3]) @ weight
  return y.reshape(*x.shape[:3], weight.shape[1])


def _accumulator(dtype):
  return jnp.promote_types(dtype, jnp.float32)


def _taps(x, kernel_hw, stride, out_hw):
  """Views of the padded x, [B, H', W', C], one for each kernel position."""
  (sh, sw), (oh, ow) = stride, out_hw
  b, _, _, c = x.shape
  for u in range(kernel_hw[0]):
    for v in range(kernel_hw[1]):
      limit = (b, u + (oh - 1) * sh + 1, v + (ow - 1) * sw + 1, c)
      yield (u, v), lax.slice(x, (0, u, v, 0), limit, (1, sh, sw, 1))


def _out_hw(x, kernel_hw, stride, padding):
  return tuple(
    (x.shape[1 + i] + sum(padding[i]) - kernel_hw[i]) // stride[i] + 1
    for i in range(2)
  )


def _pad(x, padding):
  return jnp.pad(x, ((0, 0), *padding, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
  """x [B, H, W, C], kernel [kh, kw, C] -> [B, H', W', C]."""
  kernel_hw = kernel.shape[:2]
  dtype = _accumulator(x.dtype)
  out_hw = _out_hw(x, kernel_hw, stride, padding)
  kernel = kernel.astype(dtype)
  y = 0
  for (u, v), tap in _taps(_pad(x, padding), kernel_hw, stride, out_hw):
    y += tap.astype(dtype) * kernel[u, v][None, None, None]
  return y.astype(x.dtype)


def _depthwise_fwd(x, kernel, stride, padding):
  return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, residuals, dy):
  x, kernel = residuals
  return (
    _depthwise_dx(dy, kernel, x.shape, stride, padding),
    _depthwise_dw(x, dy, kernel.shape, stride, padding).astype(kernel.dtype),
  )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _depthwise_dx(dy, kernel, x_shape, stride, padding):
  """A stride-1 convolution of the dilated dy with the flipped kernel."""
  config = [(0, 0, 0)]
  for i in range(2):
    size, k, out = x_shape[1 + i], kernel.shape[i], dy.shape[1 + i]
    low = k - 1 - padding[i][0]
    dilated = (out - 1) * stride[i] + 1
    config.append((low, size + k - 1 - low - dilated, stride[i] - 1))
  config.append((0, 0, 0))
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), config)
  return _depthwise(dy, kernel[::-1, ::-1], (1, 1), ((0, 0), (0, 0)))


def _depthwise_dw(x, dy, kernel_shape, stride, padding):
  """Sums products row by row into [kh, kw, B, W', C], then over B and W'.

  XLA turns the direct reduction over batch, height and width into a scalar
  loop; whole planes are added with vector instructions.
  """
  kh, kw, c = kernel_shape
  dtype = _accumulator(x.dtype)
  batch, oh, ow, _ = dy.shape
  x = _pad(x, padding)

  def add_row(i, planes):
    row = lax.dynamic_slice_in_dim(dy, i, 1, axis=1).astype(dtype)
    band = lax.dynamic_slice_in_dim(x, i * stride[0], kh, axis=1)
    return [
      plane + (tap.astype(dtype) * row)[:, 0]
      for plane, (_, tap) in zip(
        planes, _taps(band, (kh, kw), stride, (1, ow)), strict=True
      )
    ]

  zeros = [jnp.zeros((batch, ow, c), dtype)] * (kh * kw)
  planes = lax.fori_loop(0, oh, add_row, zeros)
  return jnp.stack([p.sum((0, 1)) for p in planes]).reshape(kernel_shape)
