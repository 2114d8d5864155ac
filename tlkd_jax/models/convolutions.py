"""Two-dimensional convolutions whose form is chosen by backend.

XLA's grouped convolution is slow on CPU, forward and backward. There, a
depthwise convolution is a sum of shifted products with its own gradients and
pointwise, patchwise and first convolutions are matrix products, and narrow
groups share a dense kernel; the rest, and every other backend, uses
`lax.conv_general_dilated`. benchmarks/convolutions.py measures each form.

Arrays are NHWC, kernels HWIO. A batch that is sharded over devices stays where
it is; only weight gradients are summed over devices.
"""

import functools
import itertools
import math
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
  if groups > 1:
    return _grouped(x, kernel, stride, padding, groups)
  kernel_hw = kernel.shape[:2]
  padded = any(sum(padding, ()))
  if kernel_hw == (1, 1) and not padded:
    return _pointwise(x, kernel[0, 0], stride)
  if kernel_hw == tuple(stride) and not padded:
    return _patchwise(x, kernel)
  if x.shape[3] <= 4 and math.prod(kernel_hw) <= 9:
    return _thin(x, kernel, stride, padding)
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


def _patchwise(x, kernel):
  """Patches that do not overlap: one matrix product, without copies of x."""
  kh, kw, c, features = kernel.shape
  height, width = x.shape[1] // kh, x.shape[2] // kw
  x = x[:, : height * kh, : width * kw]
  x = x.reshape(-1, height, kh, width, kw * c).swapaxes(2, 3)
  y = x.reshape(-1, kh * kw * c) @ kernel.reshape(-1, features)
  return y.reshape(-1, height, width, features)


def _thin(x, kernel, stride, padding):
  """Few input channels (a first convolution): patches side by side."""
  out_hw = _out_hw(x, kernel.shape[:2], stride, padding)
  taps = _taps(_pad(x, padding), kernel.shape[:2], stride, out_hw)
  patches = jnp.concatenate([tap for _, tap in taps], axis=3)
  features = kernel.shape[3]
  y = patches.reshape(-1, patches.shape[3]) @ kernel.reshape(-1, features)
  return y.reshape(x.shape[0], *out_hw, features)


def _grouped(x, kernel, stride, padding, groups):
  if kernel.shape[2] == 1:
    x = jnp.repeat(x, kernel.shape[3] // groups, axis=3)
    return _depthwise(x, kernel[:, :, 0], stride, padding)
  # Measured at 4 to 24 channels a group: neighbours that share a dense kernel
  # of up to 32 input channels, with zeros between them, beat batched products.
  together = max(
    n
    for n in range(1, groups + 1)
    if groups % n == 0 and n * kernel.shape[2] <= max(32, kernel.shape[2])
  )
  parts = groups // together
  kernels = jnp.split(_block_diagonal(kernel, parts, together), parts, axis=3)
  xs = jnp.split(x, parts, axis=3)
  return jnp.concatenate(
    [_conv_lax(xs[i], kernels[i], stride, padding, 1) for i in range(parts)],
    axis=3,
  )


def _block_diagonal(kernel, parts, together):
  """[kh, kw, c, Cout] -> [kh, kw, together * c, Cout], zero across groups."""
  kh, kw, c, features = kernel.shape
  kernel = kernel.reshape(kh, kw, 1, c, parts, together, -1)
  eye = jnp.eye(together, dtype=kernel.dtype)
  blocks = kernel * eye.reshape(1, 1, together, 1, 1, together, 1)
  return blocks.reshape(kh, kw, together * c, features)


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
  y = jnp.zeros((), dtype)
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


def _meeting_taps(residue, size, stride, low):
  """Kernel positions that meet inputs of this residue, with the output offset.

  Input index residue + n * stride meets kernel position u at the output index
  n + (residue + low - u) / stride, where that is whole.
  """
  shifts = [(u, residue + low - u) for u in range(size)]
  return [(u, shift // stride) for u, shift in shifts if shift % stride == 0]


def _depthwise_dx(dy, kernel, x_shape, stride, padding):
  """A stride-1 convolution of dy for each residue of (row, column) % stride.

  The transposed convolution in one piece would run over a dilated copy of dy
  that is mostly zeros.
  """
  dtype = _accumulator(dy.dtype)
  kernel = kernel.astype(dtype)
  sizes = [-(-x_shape[1 + i] // stride[i]) for i in range(2)]
  row_taps, column_taps = (
    [
      _meeting_taps(r, kernel.shape[i], stride[i], padding[i][0])
      for r in range(stride[i])
    ]
    for i in range(2)
  )
  reach = []
  for i, taps in enumerate((row_taps, column_taps)):
    offsets = [offset for phase in taps for _, offset in phase]
    before = max(0, -min(offsets))
    reach.append((before, max(0, max(offsets) + sizes[i] - dy.shape[1 + i])))
  padded = _pad(dy, reach)

  def phase(rows, columns):
    total = jnp.zeros((dy.shape[0], *sizes, dy.shape[3]), dtype)
    for (u, row), (v, column) in itertools.product(rows, columns):
      top, left = reach[0][0] + row, reach[1][0] + column
      window = padded[:, top : top + sizes[0], left : left + sizes[1]]
      total += window.astype(dtype) * kernel[u, v][None, None, None]
    return total.astype(dy.dtype)

  dx = jnp.stack(
    [
      jnp.stack([phase(rows, columns) for columns in column_taps], axis=3)
      for rows in row_taps
    ],
    axis=2,
  )
  dx = dx.reshape(
    dy.shape[0], sizes[0] * stride[0], sizes[1] * stride[1], dy.shape[3]
  )
  return dx[:, : x_shape[1], : x_shape[2]]


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
  x = _pad(x, padding)
  # XLA unrolls a short channel loop into scalar code; with unit stride columns
  # and channels are one contiguous axis.
  step = 1
  if stride[1] == 1 and c < 64:
    x = x.reshape(*x.shape[:2], -1, 1)
    dy = dy.reshape(*dy.shape[:2], -1, 1)
    step = c
  x = x.reshape(parts, -1, together, *x.shape[1:])
  dy = dy.reshape(parts, -1, together, *dy.shape[1:])

  def window(array, group, image, row, column, span, strides=(1, 1)):
    sizes = [(n - 1) * s + 1 for n, s in zip(span, strides, strict=True)]
    # The bare loop index, and one slice for each operand of a product: any
    # arithmetic on the index in here keeps XLA from vectorising the sum.
    start = [jnp.asarray(i, group.dtype) for i in (0, image, row, column, 0)]
    cut = lax.dynamic_slice(
      array,
      (start[0], group, *start[1:]),
      (parts, 1, 1, *sizes, array.shape[5]),
      allow_negative_indices=False,
    )
    return cut[:, 0, 0, :: strides[0], :: strides[1]].astype(dtype)

  def add_images(group, planes):
    sums = []
    for plane, (u, v) in zip(planes, positions, strict=True):
      for image in range(together):
        tap = window(x, group, image, u, v * step, plane.shape[1:3], stride)
        plane += tap * window(dy, group, image, 0, 0, plane.shape[1:3])
      sums.append(plane)
    return sums

  positions = list(itertools.product(range(kh), range(kw)))
  zeros = [jnp.zeros((parts, *dy.shape[3:]), dtype)] * len(positions)
  planes = lax.fori_loop(0, x.shape[1], add_images, zeros)
  sums = [plane.reshape(-1, c).sum(0) for plane in planes]
  return jnp.stack(sums).reshape(kernel_shape)
