"""The Vision Transformer whose positions turn queries and keys.

EVA-02 and DINOv3 are made of it. Su et al. 2021, arXiv 2104.09864 (rotary
positions); Shazeer 2020, arXiv 2002.05202 (SwiGLU).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.families.vit_keys import in_blocks, plain_leaf
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import rotary
from tlkd_jax.models.layers.attention import attention
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.layers.positions import resize_position
from tlkd_jax.models.layers.rotary import Rotary
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Array = jax.Array
_token_init = nnx.initializers.truncated_normal(0.02)

# The middle of a block: a GELU between two layers; a SwiGLU whose gate and
# values are one layer, or two; two with a LayerNorm behind.
_MIDDLES = ('gelu', 'packed', 'gated', 'normed')


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    width: length of a token.
    heads: attention heads.
    hidden: width of a block's middle.
    rotary: how positions turn queries and keys.
    depth: number of blocks.
    patch: side of a patch, in pixels.
    native: side of the images that learned positions are for; 0 where none
      are learned.
    middle: 'gelu', 'packed', 'gated' or 'normed'.
    biases: whether queries and values have biases; keys have none.
    split: whether queries, keys and values are layers of their own.
    registers: tokens between the class token's and those of the patches.
    layer_scale: whether residual branches are scaled by channel.
    norm_pooled: whether the last LayerNorm comes after pooling.
    pool: 'patches', their mean, or 'class', its token.
    mask_token: whether a token for masked patches is kept, which nothing reads.
    epsilon: of every LayerNorm.
  """

  width: int
  heads: int
  hidden: int
  rotary: Rotary
  depth: int = 12
  patch: int = 16
  native: int = 0
  middle: str = 'gelu'
  biases: bool = True
  split: bool = False
  registers: int = 0
  layer_scale: bool = False
  norm_pooled: bool = False
  pool: str = 'patches'
  mask_token: bool = False
  epsilon: float = 1e-6

  def __post_init__(self):
    assert self.middle in _MIDDLES and self.pool in ('patches', 'class')


class Fused(nnx.Module):
  """Queries, keys and values by one layer; keys have no bias."""

  def __init__(self, width, biases, *, rngs):
    self.qkv = layers.Linear(width, 3 * width, use_bias=False, rngs=rngs)
    self.query_bias = nnx.Param(jnp.zeros(width)) if biases else None
    self.value_bias = nnx.Param(jnp.zeros(width)) if biases else None

  def __call__(self, x: Array) -> list[Array]:
    query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
    if self.query_bias is not None and self.value_bias is not None:
      query = layers.add_bias(query, self.query_bias[...])
      value = layers.add_bias(value, self.value_bias[...])
    return [query, key, value]


class Split(nnx.Module):
  """Queries, keys and values by layers of their own; keys have no bias."""

  def __init__(self, width, *, rngs):
    self.query = layers.Linear(width, width, rngs=rngs)
    self.key = layers.Linear(width, width, use_bias=False, rngs=rngs)
    self.value = layers.Linear(width, width, rngs=rngs)

  def __call__(self, x: Array) -> list[Array]:
    return [self.query(x), self.key(x), self.value(x)]


class Attention(nnx.Module):
  """Multi-head self-attention over tokens [B, N, D], turned by position."""

  def __init__(self, design, *, rngs):
    width = design.width
    self.inputs = (
      Split(width, rngs=rngs)
      if design.split
      else Fused(width, design.biases, rngs=rngs)
    )
    self.project = layers.Linear(width, width, rngs=rngs)
    self.heads = design.heads
    self.halves = design.rotary.centred

  def __call__(self, x: Array, turns: list[Array]) -> Array:
    b, n, d = x.shape
    query, key, value = (
      y.reshape(b, n, self.heads, d // self.heads) for y in self.inputs(x)
    )
    query = rotary.rotate(query, *turns, halves=self.halves)
    key = rotary.rotate(key, *turns, halves=self.halves)
    return self.project(attention(query, key, value).reshape(b, n, d))


class Middle(nnx.Module):
  """The two layers of a block, or the three of a SwiGLU."""

  def __init__(self, design, *, rngs):
    width, hidden, kind = design.width, design.hidden, design.middle
    first = 2 * hidden if kind == 'packed' else hidden
    gated = kind in ('gated', 'normed')
    self.expand = layers.Linear(width, first, rngs=rngs)
    self.gate = layers.Linear(width, hidden, rngs=rngs) if gated else None
    self.norm = (
      layers.LayerNorm(hidden, epsilon=design.epsilon)
      if kind == 'normed'
      else None
    )
    self.project = layers.Linear(hidden, width, rngs=rngs)
    self.packed = kind == 'packed'

  def __call__(self, x: Array) -> Array:
    y = self.expand(x)
    if self.packed:
      gate, y = jnp.split(y, 2, axis=-1)
      y = jax.nn.silu(gate) * y
    elif self.gate is not None:
      y = jax.nn.silu(self.gate(x)) * y
    else:
      y = layers.ACTIVATIONS['gelu'](y)
    return self.project(y if self.norm is None else self.norm(y))


class Block(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, design, *, rate, rngs):
    width = design.width
    self.norm1 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.attention = Attention(design, rngs=rngs)
    self.norm2 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.middle = Middle(design, rngs=rngs)

    def scale():
      return nnx.Param(1e-5 * jnp.ones(width)) if design.layer_scale else None

    self.gamma1, self.gamma2 = scale(), scale()
    self.rate = rate

  def __call__(self, x: Array, mode: Mode, turns: list[Array]) -> Array:
    y = _scaled(self.gamma1, self.attention(self.norm1(x), turns))
    x = x + layers.drop_path(y, self.rate, mode)
    y = _scaled(self.gamma2, self.middle(self.norm2(x)))
    return x + layers.drop_path(y, self.rate, mode)


def _scaled(gamma: nnx.Param | None, x: Array) -> Array:
  return x if gamma is None else x * layers.expand(gamma[...], x)


class RotaryTransformer(nnx.Module):
  """Patches, tokens, blocks, LayerNorm and pooling, linear head.

  Takes images whose sides are multiples of the patch size. `features` are the
  patch tokens as a grid after each quarter of the blocks. Without classes there
  is no head, and the logits are the embedding.
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

    def tokens(n):
      return nnx.Param(rngs.draw(_token_init, (1, n, width)))

    self.patch = layers.patch_conv(in_channels, width, design.patch, rngs=rngs)
    self.class_token = tokens(1)
    self.registers = tokens(design.registers) if design.registers else None
    self.mask_token = tokens(1) if design.mask_token else None
    count = 1 + (design.native // design.patch) ** 2
    self.position = tokens(count) if design.native else None
    self.blocks = nnx.List(
      [
        Block(design, rate=rate, rngs=rngs)
        for rate in layers.drop_path_rates(drop_path, design.depth)
      ]
    )
    self.norm = layers.LayerNorm(width, epsilon=design.epsilon)
    self.head = (
      layers.Linear(width, num_classes, rngs=rngs) if num_classes else None
    )
    self.design = design
    self.dropout = 0.0 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x, grid = self._embed(x)
    design = self.design
    prefix = 1 + design.registers
    turns = rotary.turns(
      design.rotary, grid, design.width // design.heads, prefix
    )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    turns = [jnp.asarray(values, dtype) for values in turns]
    features = {}
    quarter = design.depth // 4
    for i, block in enumerate(self.blocks):
      x = layers.run_block(block, x, mode, turns)
      if (i + 1) % quarter == 0:
        patches = x[:, prefix:].reshape(x.shape[0], *grid, -1)
        features[f'stage{(i + 1) // quarter}'] = patches
    outputs = self._pool(x)
    logits = outputs['pre_logits']
    if self.head is not None:
      logits = self.head(layers.dropout(logits, self.dropout, mode))
    return outputs | {'logits': logits, 'features': features}

  def _pool(self, x: Array) -> dict[str, Array]:
    """Tokens [B, N, D] -> the embedding, and those of class and patches."""
    prefix = 1 + self.design.registers
    if self.design.norm_pooled:
      pooled = self.norm(x[:, prefix:].mean(1))
      return {'pre_logits': pooled, 'patch_mean': pooled}
    x = self.norm(x)
    token, mean = x[:, 0], x[:, prefix:].mean(1)
    pooled = token if self.design.pool == 'class' else mean
    return {'pre_logits': pooled, 'class_token': token, 'patch_mean': mean}

  def _embed(self, x: Array) -> tuple[Array, tuple[int, int]]:
    """Images -> tokens [B, N, D] and the grid of patches."""
    side = self.design.patch
    if x.shape[1] % side or x.shape[2] % side:
      raise ValueError(
        f'images of {x.shape[1]} x {x.shape[2]} pixels do not split into'
        f' patches of {side}; resize them to multiples of {side}'
      )
    x = self.patch(x)
    b, h, w, d = x.shape
    prefix = [self.class_token[...]]
    if self.registers is not None:
      prefix.append(self.registers[...])
    prefix = [jnp.tile(token.astype(x.dtype), (b, 1, 1)) for token in prefix]
    x = jnp.concatenate([*prefix, x.reshape(b, h * w, d)], axis=1)
    if self.position is None:
      return x, (h, w)
    position = resize_position(self.position[...], (h, w), 1)
    return x + position.astype(x.dtype), (h, w)


def timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's Eva."""
  gated = design.middle in ('gated', 'normed')
  table = {
    'patch': 'patch_embed.proj',
    'norm': 'fc_norm' if design.norm_pooled else 'norm',
    'head': 'head',
  }
  parts = {
    'norm1': 'norm1',
    'attention.inputs.qkv': 'attn.qkv',
    'attention.inputs.query': 'attn.q_proj',
    'attention.inputs.key': 'attn.k_proj',
    'attention.inputs.value': 'attn.v_proj',
    'attention.project': 'attn.proj',
    'norm2': 'norm2',
    'middle.expand': 'mlp.fc1_x' if gated else 'mlp.fc1',
    'middle.gate': 'mlp.fc1_g',
    'middle.norm': 'mlp.norm',
    'middle.project': 'mlp.fc2',
  }
  return table | in_blocks(design, parts, 'blocks.{}')


def timm_leaves(design: Design) -> dict[str, TorchLeaf]:
  """Parameter -> entry of timm's Eva."""
  tokens = {
    'class_token': 'cls_token',
    'registers': 'reg_token',
    'position': 'pos_embed',
  }
  parts = {
    'attention.inputs.query_bias': 'attn.q_bias',
    'attention.inputs.value_bias': 'attn.v_bias',
    'gamma1': 'gamma_1',
    'gamma2': 'gamma_2',
  }
  names = tokens | in_blocks(design, parts, 'blocks.{}')
  return {ours: plain_leaf(theirs) for ours, theirs in names.items()}


def spec(
  design: Design, modules=timm_modules, leaves=timm_leaves, **fields
) -> ModelSpec:
  """A variant of a design, under timm's keys where no others are given."""
  return ModelSpec(
    build=functools.partial(RotaryTransformer, design),
    torch_modules=functools.partial(modules, design),
    torch_leaves=functools.partial(leaves, design),
    stem='patch',
    multiple=design.patch,
    embeddings=('pooled', 'mean', *['class'] * (not design.norm_pooled)),
    **fields,
  )
