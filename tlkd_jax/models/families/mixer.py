"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601)."""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_NATIVE = 224
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers: side of a patch, length of a token, blocks."""

  patch: int
  width: int
  depth: int

  @property
  def tokens(self) -> int:
    """Patches of an image."""
    return (_NATIVE // self.patch) ** 2


class Mlp(nnx.Module):
  """Two linear layers on the last axis with a GELU between."""

  def __init__(self, width, hidden, *, rngs):
    self.expand = layers.Linear(width, hidden, rngs=rngs)
    self.project = layers.Linear(hidden, width, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return self.project(layers.ACTIVATIONS['gelu'](self.expand(x)))


class Block(nnx.Module):
  """An MLP over the tokens of a channel, one over the channels of a token."""

  def __init__(self, design, *, rate, rngs):
    width = design.width
    self.norm1 = layers.LayerNorm(width, epsilon=_EPSILON)
    self.mix_tokens = Mlp(design.tokens, width // 2, rngs=rngs)
    self.norm2 = layers.LayerNorm(width, epsilon=_EPSILON)
    self.mix_channels = Mlp(width, 4 * width, rngs=rngs)
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.mix_tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
    x = x + layers.drop_path(y, self.rate, mode)
    y = self.mix_channels(self.norm2(x))
    return x + layers.drop_path(y, self.rate, mode)


class Mixer(nnx.Module):
  """Patches, blocks, LayerNorm, mean of the tokens, linear head.

  Its layers over tokens fit one image size alone. `features` are the tokens as
  a grid after each quarter of the blocks.
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
    width = design.width
    self.patch = layers.patch_conv(in_channels, width, design.patch, rngs=rngs)
    self.blocks = nnx.List(
      [
        Block(design, rate=rate, rngs=rngs)
        for rate in layers.drop_path_rates(drop_path, design.depth)
      ]
    )
    self.norm = layers.LayerNorm(width, epsilon=_EPSILON)
    self.head = layers.Linear(width, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    if x.shape[1:3] != (_NATIVE, _NATIVE):
      raise ValueError(
        f'MLP-Mixer takes images of {_NATIVE} x {_NATIVE} pixels, not of '
        f'{x.shape[1]} x {x.shape[2]}: its layers over patches have one size'
      )
    x = self.patch(x)
    grid = x.shape
    x = x.reshape(grid[0], -1, grid[3])
    features = {}
    quarter = len(self.blocks) // 4
    for i, block in enumerate(self.blocks, start=1):
      x = layers.run_block(block, x, mode)
      if i % quarter == 0:
        features[f'stage{i // quarter}'] = x.reshape(grid)
    pooled = self.norm(x).mean(1)
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {'patch': 'stem.proj', 'norm': 'norm', 'head': 'head'}
  parts = {
    'norm1': 'norm1',
    'mix_tokens.expand': 'mlp_tokens.fc1',
    'mix_tokens.project': 'mlp_tokens.fc2',
    'norm2': 'norm2',
    'mix_channels.expand': 'mlp_channels.fc1',
    'mix_channels.project': 'mlp_channels.fc2',
  }
  for i in range(design.depth):
    for ours, theirs in parts.items():
      table[f'blocks.{i}.{ours}'] = f'blocks.{i}.{theirs}'
  return table


# Design, default weights (None: timm has none; timm 1.0).
_TIMM = {
  'mixer_s32_224': (Design(32, 512, 8), None),
  'mixer_s16_224': (Design(16, 512, 8), None),
  'mixer_b32_224': (Design(32, 768, 12), None),
  'mixer_b16_224': (Design(16, 768, 12), 'goog_in21k_ft_in1k'),
  'mixer_l32_224': (Design(32, 1024, 24), None),
  'mixer_l16_224': (Design(16, 1024, 24), 'goog_in21k_ft_in1k'),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': ModelSpec(
    build=functools.partial(Mixer, design),
    torch_modules=functools.partial(_modules, design),
    stem='patch',
    image_size=_NATIVE,
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
    fixed_size=True,
    weights=f'timm:{name}.{tag}' if tag else None,
  )
  for name, (design, tag) in _TIMM.items()
}
