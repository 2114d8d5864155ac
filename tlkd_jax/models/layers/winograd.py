"""Dense 3 x 3 convolutions of stride 1 with 4 products where 9 are usual.

Winograd's minimal filtering F(2 x 2, 3 x 3), Lavin and Gray 2015, arXiv
1509.09308, section 4.1: a tile of 4 x 4 inputs and the kernel are transformed,
multiplied position by position (16 matrix products over all tiles), and
transformed back to 2 x 2 outputs. All constants are 0, 1 and 1/2, so the
rounding error stays that of the direct sum. On CPU, where XLA's own convolution
is bound by multiplications, it takes about half the time.

Arrays are NHWC, kernels HWIO, float32 or float64.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tlkd_jax.models.layers.patches import Padding, interleave, pad


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Convolves with a 3 x 3 kernel and stride 1.

  Args:
    x: [B, H, W, C].
    kernel: [3, 3, C, F].
    padding: ((top, bottom), (left, right)) zeros, each at most 2.

  Returns:
    [B, H', W', F].
  """
  kernels = _both_ways(_kernel_taps, kernel)
  return _convolve(x, kernels, padding, contract=0)


def _fwd(x, kernel, padding):
  return winograd(x, kernel, padding), (x, kernel)


def _bwd(padding, residuals, dy):
  x, kernel = residuals
  # The transform of a kernel turned by 180 degrees is that of the kernel with
  # first and last exchanged; not transposing spares a slow copy.
  kernels = _both_ways(_kernel_taps, kernel)
  turned = [[kernels[i][j] for j in _TURNED] for i in _TURNED]
  opposite = tuple((2 - low, 2 - high) for low, high in padding)
  dx = _convolve(dy, turned, opposite, contract=1)
  return dx, _kernel_gradient(x, dy, padding)


winograd.defvjp(_fwd, _bwd)

_TURNED = 3, 1, 2, 0


def _convolve(x, kernels, padding, contract):
  """`kernels` are transformed; their axis `contract` meets x's channels."""
  height, width = (x.shape[1 + i] + sum(padding[i]) - 2 for i in range(2))
  tiles = x.shape[0], -(-height // 2), -(-width // 2)
  inputs = _input_tiles(x, padding, tiles[1:])
  dims = (((1,), (contract,)), ((), ()))
  products = [
    [lax.dot_general(_rows(v), g, dims) for v, g in zip(*pair, strict=True)]
    for pair in zip(inputs, kernels, strict=True)
  ]
  outputs = _both_ways(_output_sums, products)
  cells = [[cell.reshape(*tiles, -1) for cell in row] for row in outputs]
  return interleave(cells, (height, width))


def _kernel_gradient(x, dy, padding):
  """The adjoint of `_convolve` in the kernel, by the same 16 products."""
  rows, columns = (-(-n // 2) for n in dy.shape[1:3])
  inputs = _input_tiles(x, padding, (rows, columns))
  over = (0, 2 * rows - dy.shape[1]), (0, 2 * columns - dy.shape[2])
  dy = pad(dy, over)
  cells = [[dy[:, u::2, v::2] for v in range(2)] for u in range(2)]
  slopes = _both_ways(_output_slopes, cells)
  products = [
    [_rows(v).T @ _rows(g) for v, g in zip(*pair, strict=True)]
    for pair in zip(inputs, slopes, strict=True)
  ]
  taps = _both_ways(_kernel_slopes, products)
  return jnp.stack([jnp.stack(row) for row in taps])


def _input_tiles(x, padding, tiles_hw):
  """Transformed inputs, 4 x 4 arrays [B, tiles, tiles, C]."""
  over = [
    (low, 2 * n + 2 - size - low)
    for n, size, (low, _) in zip(tiles_hw, x.shape[1:3], padding, strict=True)
  ]
  x = pad(x, over)
  spans = [2 * n - 1 for n in tiles_hw]
  cells = [
    [x[:, u : u + spans[0] : 2, v : v + spans[1] : 2] for v in range(4)]
    for u in range(4)
  ]
  return _both_ways(_input_differences, cells)


def _both_ways(transform, cells):
  """Applies a transform of a list to the rows of a grid, then its columns."""
  columns = [transform(list(column)) for column in zip(*cells, strict=True)]
  return [transform(list(row)) for row in zip(*columns, strict=True)]


def _input_differences(d):
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel_taps(g):
  even, odd = 0.5 * (g[0] + g[2]), 0.5 * g[1]
  return [g[0], even + odd, even - odd, g[2]]


def _output_sums(m):
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_slopes(y):
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _kernel_slopes(m):
  even, odd = 0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2])
  return [m[0] + even, odd, even + m[3]]


def _rows(x):
  return x.reshape(-1, x.shape[-1])
