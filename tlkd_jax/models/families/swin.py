"""Swin Transformer: attention in windows that are shifted every other block.

Liu et al. 2021, arXiv 2103.14030. A map that is no multiple of the window is
padded with zeros, which take part in the attention; timm, torchvision and
transformers do so in different ways, of which nothing is seen at the native
size. Maps of odd sides are padded before four pixels become one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.attention import attention
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.layers.windows import Windows, relative_index, rolled

Array = jax.Array
_PATCH = 4
_EPSILON = 1e-5
_table_init = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    width: channels of the first stage; each next one has twice as many.
    depths: blocks of each stage.
    heads: of each stage.
    window: side of a window.
    native: side of the images, in pixels, or height and width; timm makes
      windows as small as the maps of such images and does not shift those that
      cover a map.
    library: 'timm', 'torchvision' or 'transformers', whose windows these are;
      the last has layers of their own for queries, keys and values.
  """

  width: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window: int = 7
  native: int | tuple[int, int] = 224
  library: str = 'timm'

  def widths(self) -> list[int]:
    """Channels of each stage."""
    return [self.width * 2**stage for stage in range(len(self.depths))]

  def native_map(self, stage: int) -> tuple[int, int]:
    """Height and width of a stage's maps at the native size."""
    height, width = (
      (self.native, self.native)
      if isinstance(self.native, int)
      else self.native
    )
    # A map of an odd side is padded before it is halved.
    rows, columns = (-(-(n // _PATCH) // 2**stage) for n in (height, width))
    return rows, columns


class WindowAttention(nnx.Module):
  """Self-attention in each window of a map [B, H, W, C]."""

  def __init__(self, channels, heads, windows, *, rngs):
    rows = np.prod([2 * n - 1 for n in windows.size])
    linear = functools.partial(layers.Linear, channels, rngs=rngs)
    self.fused = windows.library != 'transformers'
    if self.fused:
      self.qkv = linear(3 * channels)
    else:
      self.query = linear(channels)
      self.key = linear(channels)
      self.value = linear(channels)
    self.project = linear(channels)
    self.table = nnx.Param(rngs.draw(_table_init, (int(rows), heads)))
    self.heads = heads
    self.windows = windows

  def __call__(self, x: Array) -> Array:
    map_hw = x.shape[1:3]
    shift, padded = self.windows.shift_of(map_hw), self.windows.padded(map_hw)
    early = self.windows.library == 'timm'
    x = rolled(x, shift, -1) if early else x
    gaps = [(0, after - n) for n, after in zip(map_hw, padded, strict=True)]
    x = jnp.pad(x, ((0, 0), *gaps, (0, 0)))
    x = x if early else rolled(x, shift, -1)
    x = self._within(self.windows.cut(x), self.windows.apart(map_hw))
    x = self.windows.join(x, padded)
    x = x if early else rolled(x, shift, 1)
    x = x[:, : map_hw[0], : map_hw[1]]
    return rolled(x, shift, 1) if early else x

  def _within(self, x: Array, apart: np.ndarray | None) -> Array:
    """x [B, windows, N, C]."""
    b, count, n, c = x.shape
    if self.fused:
      parts = jnp.split(self.qkv(x), 3, axis=-1)
    else:
      parts = [self.query(x), self.key(x), self.value(x)]
    shape = (b, count, n, self.heads, c // self.heads)
    query, key, value = (part.reshape(shape) for part in parts)
    bias = self.table[...][relative_index(self.windows.size)]
    bias = bias.transpose(2, 0, 1)[None]
    if apart is not None:
      bias = bias[None] + jnp.where(apart[:, None, None], -100.0, 0.0)
    each = jax.vmap(
      lambda q, k, v, bias: attention(q, k, v, bias=bias),
      in_axes=(1, 1, 1, None if apart is None else 0),
      out_axes=1,
    )
    return self.project(each(query, key, value, bias).reshape(b, count, n, c))


class Block(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, channels, heads, windows, *, rate, rngs):
    self.norm1 = layers.LayerNorm(channels, epsilon=_EPSILON)
    self.attention = WindowAttention(channels, heads, windows, rngs=rngs)
    self.norm2 = layers.LayerNorm(channels, epsilon=_EPSILON)
    self.expand = layers.Linear(channels, 4 * channels, rngs=rngs)
    self.project = layers.Linear(4 * channels, channels, rngs=rngs)
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.attention(self.norm1(x))
    x = x + layers.drop_path(y, self.rate, mode)
    y = layers.ACTIVATIONS['gelu'](self.expand(self.norm2(x)))
    return x + layers.drop_path(self.project(y), self.rate, mode)


class Merge(nnx.Module):
  """Four pixels become one of twice the channels."""

  def __init__(self, channels, *, rngs):
    self.norm = layers.LayerNorm(4 * channels, epsilon=_EPSILON)
    self.reduction = layers.Linear(
      4 * channels, 2 * channels, use_bias=False, rngs=rngs
    )

  def __call__(self, x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    return self.reduction(self.norm(x.reshape(b, h // 2, w // 2, 4 * c)))


class SwinTransformer(nnx.Module):
  """4x4 patches, four stages, LayerNorm, pooling, linear head.

  Without classes there is no head, and the logits are the pooled features.
  """

  def __init__(
    self,
    design: Design,
    num_classes: int,
    *,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rngs: layers.Rngs,
  ):
    widths = design.widths()
    self.patch = layers.patch_conv(in_channels, widths[0], _PATCH, rngs=rngs)
    self.patch_norm = layers.LayerNorm(widths[0], epsilon=_EPSILON)
    self.merges = nnx.List([Merge(width, rngs=rngs) for width in widths[:-1]])
    rates = iter(layers.drop_path_rates(drop_path, sum(design.depths)))
    self.stages = nnx.List(
      [
        nnx.List(
          [
            Block(
              widths[s],
              design.heads[s],
              _windows(design, s, b),
              rate=next(rates),
              rngs=rngs,
            )
            for b in range(depth)
          ]
        )
        for s, depth in enumerate(design.depths)
      ]
    )
    self.norm = layers.LayerNorm(widths[-1], epsilon=_EPSILON)
    self.head = (
      layers.Linear(widths[-1], num_classes, rngs=rngs) if num_classes else None
    )
    self.dropout = 0.0 if dropout is None else dropout
    self.pads = design.library == 'transformers'

  def __call__(self, x: Array, mode: Mode) -> dict:
    if self.pads:
      x = jnp.pad(
        x, ((0, 0), *((0, -n % _PATCH) for n in x.shape[1:3]), (0, 0))
      )
    x = self.patch_norm(self.patch(x))
    features = {}
    for i, stage in enumerate(self.stages):
      x = x if i == 0 else self.merges[i - 1](x)
      for block in stage:
        x = layers.run_block(block, x, mode)
      features[f'stage{i + 1}'] = x
    pooled = self.norm(x).mean((1, 2))
    logits = pooled
    if self.head is not None:
      logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _windows(design: Design, stage: int, block: int) -> Windows:
  size = (design.window, design.window)
  half = design.window // 2 if block % 2 else 0
  shift = (half, half)
  if design.library == 'timm':
    rows, columns = design.native_map(stage)
    size = (min(rows, design.window), min(columns, design.window))
    shift = tuple(0 if n <= design.window else half for n in (rows, columns))
  return Windows(size, shift, design.library)
