"""Convolutions as matrix products over patches, and what slides with a window.

Arrays are NHWC, kernels HWIO.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


def patchwise(x, kernel):
  """Patches that do not overlap: one matrix product, without copies of x."""
  kh, kw, c, features = kernel.shape
  height, width = x.shape[1] // kh, x.shape[2] // kw
  x = x[:, : height * kh, : width * kw]
  x = x.reshape(-1, height, kh, width, kw * c).swapaxes(2, 3)
  y = x.reshape(-1, kh * kw * c) @ kernel.reshape(-1, features)
  return y.reshape(-1, height, width, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_patches(
  x: jax.Array,
  kernel: jax.Array,
  stride: tuple[int, int],
  padding: Padding,
) -> jax.Array:
  """A convolution by patches side by side and one matrix product.

  For few input channels, and for strides: XLA on CPU copies both operands of a
  strided convolution's weight gradient into another order first.

  Args:
    x: [B, H, W, C].
    kernel: [kh, kw, C, F].
    stride: vertical and horizontal.
    padding: ((top, bottom), (left, right)) zeros.

  Returns:
    [B, H', W', F] in the dtype of x.
  """
  patches = _patches(x, kernel.shape[:2], stride, padding)
  features = kernel.shape[3]
  y = patches.reshape(-1, patches.shape[3]) @ kernel.reshape(-1, features)
  return y.reshape(*patches.shape[:3], features)


def _by_patches_fwd(x, kernel, stride, padding):
  return by_patches(x, kernel, stride, padding), (x, kernel)


def _by_patches_bwd(stride, padding, residuals, dy):
  x, kernel = residuals
  rows = dy.reshape(-1, dy.shape[3])
  patches = _patches(x, kernel.shape[:2], stride, padding)
  dw = patches.reshape(-1, patches.shape[3]).T @ rows

  def term(u, v, window):
    return jnp.einsum('bhwf,cf->bhwc', window, kernel[u, v])

  sizes = kernel.shape[:2], stride, padding, x.shape[1:3]
  dx = transposed_windows((dy,), *sizes, term)
  return dx, dw.reshape(kernel.shape)


by_patches.defvjp(_by_patches_fwd, _by_patches_bwd)


def _patches(x, kernel_hw, stride, padding):
  """[B, H', W', kh * kw * C]."""
  sizes = kernel_hw, stride, output_hw(x, kernel_hw, stride, padding)
  return jnp.concatenate([tap for _, tap in taps(pad(x, padding), *sizes)], 3)


def taps(x, kernel_hw, stride, out_hw):
  """Views of the padded x, [B, H', W', C], one for each kernel position."""
  (sh, sw), (oh, ow) = stride, out_hw
  b, _, _, c = x.shape
  for u in range(kernel_hw[0]):
    for v in range(kernel_hw[1]):
      limit = (b, u + (oh - 1) * sh + 1, v + (ow - 1) * sw + 1, c)
      yield (u, v), lax.slice(x, (0, u, v, 0), limit, (1, sh, sw, 1))


def output_hw(
  x: jax.Array,
  kernel_hw: Sequence[int],
  stride: Sequence[int],
  padding: Padding,
) -> tuple[int, ...]:
  """Height and width of what a window leaves of x [B, H, W, C]."""
  return tuple(
    (x.shape[1 + i] + sum(padding[i]) - kernel_hw[i]) // stride[i] + 1
    for i in range(2)
  )


def pad(x: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
  """x [B, H, W, C] with zeros around each image."""
  return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _meeting_taps(residue, size, stride, low):
  """Kernel positions that meet inputs of this residue, with the output offset.

  Input index residue + n * stride meets kernel position u at the output index
  n + (residue + low - u) / stride, where that is whole.
  """
  shifts = [(u, residue + low - u) for u in range(size)]
  return [(u, shift // stride) for u, shift in shifts if shift % stride == 0]


def transposed_windows(
  arrays: Sequence[jax.Array],
  kernel_hw: Sequence[int],
  stride: Sequence[int],
  padding: Padding,
  x_hw: Sequence[int],
  term: Callable[..., jax.Array],
) -> jax.Array:
  """For each input of a sliding window, the sum over the outputs it is part of.

  One sum for each residue of (row, column) % stride: the transposed convolution
  in one piece would run over dilated copies that are mostly zeros.

  Args:
    arrays: [B, H', W', C], of the outputs.
    kernel_hw: height and width of the window.
    stride: of the window.
    padding: of the inputs.
    x_hw: height and width of the inputs.
    term: (row in the window, column, *arrays there) -> [B, h, w, C]; zero where
      the arrays are.

  Returns:
    [B, H, W, C] in the dtype of the terms.
  """
  sizes = [-(-x_hw[i] // stride[i]) for i in range(2)]
  row_taps, column_taps = (
    [
      _meeting_taps(r, kernel_hw[i], stride[i], padding[i][0])
      for r in range(stride[i])
    ]
    for i in range(2)
  )
  out_hw = arrays[0].shape[1:3]
  reach = []
  for i, taps in enumerate((row_taps, column_taps)):
    offsets = [offset for phase in taps for _, offset in phase]
    before = max(0, -min(offsets))
    reach.append((before, max(0, max(offsets) + sizes[i] - out_hw[i])))
  padded = [pad(array, reach) for array in arrays]

  def at(u, v, row, column):
    top, left = reach[0][0] + row, reach[1][0] + column
    here = slice(top, top + sizes[0]), slice(left, left + sizes[1])
    return term(u, v, *(array[:, here[0], here[1]] for array in padded))

  def phase(rows, columns):
    pairs = itertools.product(rows, columns)
    terms = [at(u, v, row, column) for (u, row), (v, column) in pairs]
    # A stride beyond the window leaves inputs out.
    return functools.reduce(operator.add, terms) if terms else None

  phases = [[phase(r, c) for c in column_taps] for r in row_taps]
  some = next(p for row in phases for p in row if p is not None)
  zeros = jnp.zeros_like(some)
  return interleave(
    [[zeros if p is None else p for p in row] for row in phases], x_hw
  )


def interleave(
  phases: Sequence[Sequence[jax.Array]], hw: Sequence[int]
) -> jax.Array:
  """Images put together from their pixels of each (row, column) residue.

  Args:
    phases: phases[r][c] [B, h, w, C] are the pixels (r + i R, c + j S) of R
      times S residues.
    hw: height and width to cut to, at most R h and S w.

  Returns:
    [B, *hw, C].
  """
  b, h, w, c = phases[0][0].shape
  x = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
  x = x.reshape(b, h * len(phases), w * len(phases[0]), c)
  return x[:, : hw[0], : hw[1]]
