"""Two-dimensional convolutions whose form is chosen by backend.

XLA's grouped convolution is slow on CPU, forward and backward. There, a
depthwise convolution is a sum of shifted products with its own gradients and
pointwise, patchwise and first convolutions are matrix products, 3 x 3 ones of
stride 1 are Winograd's, and narrow groups share a dense kernel; the rest, and
every other backend, uses `lax.conv_general_dilated`. benchmarks/convolutions.py
measures each form.

Arrays are NHWC, kernels HWIO. A batch that is sharded over devices stays where
it is; only weight gradients are summed over devices.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlkd_jax.models.layers.patches import (
  Padding,
  by_patches,
  output_hw,
  pad,
  patchwise,
  taps,
  transposed_windows,
)
from tlkd_jax.models.layers.winograd import winograd

_use_lax = jax.make_user_context(default_value=False)


def lax_convolutions():
  """Returns a context manager in which `conv2d` is always the lax primitive.

  For export to other formats and for comparison in tests. Functions that are
  jitted inside and outside the context are compiled separately.
  """
  return _use_lax(True)


def is_lax() -> bool:
  """Whether `conv2d` is the lax primitive here."""
  return _use_lax.value or jax.default_backend() != 'cpu'


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
  if is_lax():
    return _conv_lax(x, kernel, stride, padding, groups)
  if groups > 1:
    return _grouped(x, kernel, stride, padding, groups)
  return _ungrouped(x, kernel, stride, padding)


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


def _ungrouped(x, kernel, stride, padding):
  kernel_hw = kernel.shape[:2]
  padded = any(sum(padding, ()))
  if kernel_hw == (1, 1) and not padded:
    return _pointwise(x, kernel[0, 0], stride)
  if kernel_hw == tuple(stride) and not padded:
    return patchwise(x, kernel)
  return _dense(x, kernel, stride, padding)


def _dense(x, kernel, stride, padding):
  small = math.prod(kernel.shape[:2]) <= 9
  if small and (x.shape[3] <= 4 or max(stride) > 1):
    return by_patches(x, kernel, stride, padding)
  fits = kernel.shape[:2] == (3, 3) and max(stride) == 1
  # An output of one row or column would waste half of every tile; in less than
  # float32 the transformed inputs would be rounded.
  fits &= min(output_hw(x, (3, 3), stride, padding)) > 1
  fits &= max(max(p) for p in padding) <= 2
  if fits and x.dtype.itemsize >= 4:
    return winograd(x, kernel, padding)
  return _conv_lax(x, kernel, stride, padding, 1)


def _pointwise(x, weight, stride):
  x = x[:, :: stride[0], :: stride[1]]
  # Over a flat batch the weight gradient contracts one axis, not three: 2 to 7
  # times faster on CPU.
  y = x.reshape(-1, x.shape[3]) @ weight
  return y.reshape(*x.shape[:3], weight.shape[1])


def _grouped(x, kernel, stride, padding, groups):
  if kernel.shape[2] == 1:
    x = jnp.repeat(x, kernel.shape[3] // groups, axis=3)
    return _depthwise(x, kernel[:, :, 0], stride, padding)
  # Measured at 4 to 32 channels a group: neighbours that share a dense kernel
  # of up to 32 input channels, with zeros between them and for groups that are
  # missing, beat batched products; a loop over such kernels runs as fast as
  # they do side by side and compiles 5 to 30 times faster.
  channels, features = kernel.shape[2], kernel.shape[3] // groups
  parts = -(-groups // max(1, 32 // channels))
  together = -(-groups // parts)
  missing = parts * together - groups
  if missing:
    x = _pad_channels(x, missing * channels)
    kernel = _pad_channels(kernel, missing * features)
  kernel = _block_diagonal(kernel, parts, together)
  y = _unstacked(
    jax.lax.map(
      lambda part: _ungrouped(part[0], part[1], stride, padding),
      (_stacked(x, parts), _stacked(kernel, parts)),
    )
  )
  return y[..., : groups * features]


def _pad_channels(array, count):
  return jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, count)))


def _stacked(array, parts):
  """[..., parts * c] -> [parts, ..., c]."""
  return jnp.moveaxis(array.reshape(*array.shape[:3], parts, -1), 3, 0)


def _unstacked(array):
  """[parts, ..., c] -> [..., parts * c]."""
  array = jnp.moveaxis(array, 0, 3)
  return array.reshape(*array.shape[:3], -1)


def _block_diagonal(kernel, parts, together):
  """[kh, kw, c, Cout] -> [kh, kw, together * c, Cout], zero across groups."""
  kh, kw, c, features = kernel.shape
  kernel = kernel.reshape(kh, kw, 1, c, parts, together, -1)
  eye = jnp.eye(together, dtype=kernel.dtype)
  blocks = kernel * eye.reshape(1, 1, together, 1, 1, together, 1)
  return blocks.reshape(kh, kw, together * c, features)


def _accumulator(dtype):
  return jnp.promote_types(dtype, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
  """x [B, H, W, C], kernel [kh, kw, C] -> [B, H', W', C]."""
  kernel_hw = kernel.shape[:2]
  dtype = _accumulator(x.dtype)
  out_hw = output_hw(x, kernel_hw, stride, padding)
  kernel = kernel.astype(dtype)
  y = jnp.zeros((), dtype)
  for (u, v), tap in taps(pad(x, padding), kernel_hw, stride, out_hw):
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
  dtype = _accumulator(dy.dtype)
  kernel = kernel.astype(dtype)

  def term(u, v, window):
    return window.astype(dtype) * kernel[u, v][None, None, None]

  sizes = kernel.shape[:2], stride, padding
  return transposed_windows((dy,), *sizes, x_shape[1:3], term).astype(dy.dtype)


# Compiled with its caller; layers of one shape are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _depthwise_dw(x, dy, kernel_shape, stride, padding):
  """Adds products of whole images into [H', W', C], then over H' and W'.

  XLA turns the direct reduction over batch, height and width into a scalar
  loop; whole planes are added with vector instructions, four images at a time
  for less traffic through the planes. The batch is first split by the number
  of devices, so that each device steps through its own part of it.
  """
  kh, kw, c = kernel_shape
  dtype = _accumulator(x.dtype)
  batch, oh, ow, _ = dy.shape
  parts = math.gcd(batch, jax.device_count())
  together = math.gcd(batch // parts, 4)
  x = pad(x, padding)
  # XLA unrolls a short channel loop into scalar code; with unit stride columns
  # and channels are one contiguous axis.
  step = 1
  if stride[1] == 1 and c < 64:
    x = x.reshape(*x.shape[:2], -1, 1)
    dy = dy.reshape(*dy.shape[:2], -1, 1)
    step = c
  x = x.reshape(parts, -1, together, *x.shape[1:])
  dy = dy.reshape(parts, -1, together, *dy.shape[1:])

  def window(array, group, image, row, column, strides=(1, 1)):
    sizes = [(n - 1) * s + 1 for n, s in zip(span, strides, strict=True)]
    # The bare loop index, and one slice for each operand of a product: any
    # arithmetic on the index in here keeps XLA from vectorising the sum.
    start = [np.asarray(i, group.dtype) for i in (0, image, row, column, 0)]
    cut = lax.dynamic_slice(
      array,
      (start[0], group, *start[1:]),
      (parts, 1, 1, *sizes, array.shape[5]),
      allow_negative_indices=False,
    )
    if strides != (1, 1):
      cut = lax.slice(cut, (0,) * 6, cut.shape, (1, 1, 1, *strides, 1))
    return lax.convert_element_type(lax.squeeze(cut, (1, 2)), dtype)

  # Operators of jnp take several times as long to trace as those of lax, and
  # there are up to 100 products.
  def add_images(group, planes):
    sums = []
    for plane, (u, v) in zip(planes, positions, strict=True):
      for image in range(together):
        tap = window(x, group, image, u, v * step, stride)
        output = window(dy, group, image, 0, 0)
        plane = lax.add(plane, lax.mul(tap, output))
      sums.append(plane)
    return sums

  span = dy.shape[3:5]
  positions = list(itertools.product(range(kh), range(kw)))
  zeros = [jnp.zeros((parts, *dy.shape[3:]), dtype)] * len(positions)
  planes = lax.fori_loop(0, x.shape[1], add_images, zeros)
  sums = [plane.reshape(-1, c).sum(0) for plane in planes]
  return jnp.stack(sums).reshape(kernel_shape)
