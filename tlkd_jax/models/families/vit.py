"""The Vision Transformer, of which the ViTs of all libraries are made.

Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv
2012.12877 (DeiT; the distilled variants have a second token and head, whose
logits are averaged); Touvron et al. 2021, arXiv 2103.17239 (layer scale);
Darcet et al. 2023, arXiv 2309.16588 (registers); Zhai et al. 2022, arXiv
2106.04560, section 3 (attention pooling).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.attention import attention
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.layers.positions import resize_position

Array = jax.Array
_token_init = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    width: length of a token.
    heads: attention heads.
    depth: number of blocks.
    hidden: width of the blocks' hidden layer; None is four times `width`.
    patch: side of a patch in pixels.
    image_size: side of the images whose grid the positions have, in pixels.
    activation: of the hidden layers, a key of layers.ACTIVATIONS.
    epsilon: of every LayerNorm.
    layer_scale: whether residual branches are scaled by channel.
    class_token: whether there is one.
    distilled: whether a distillation token and its head are there.
    registers: further tokens behind these, which are never read.
    class_position: whether class and distillation tokens have a position.
    qkv_bias: whether query, key and value of a block have biases.
    patch_bias: whether the patches' projection has a bias.
    pre_norm: whether the tokens are normalised before the first block.
    pool: what the embedding is: 'token' (class and distillation tokens),
      'mean' (of the patches), 'token_mean' (the class token beside that mean)
      or 'attention' (a learned query over all tokens).
    norm_after_pool: of 'mean', whether the last LayerNorm comes after it.
    filter: of the positions at another grid, a key of positions.FILTERS.
    fused: whether query, key and value of a block are one matrix, as timm
      keeps them, and those of attention pooling two. In transformers it is
      three and one.
    mask_token: whether a token for masked patches is kept, which nothing reads.
    crops: whether pixels beyond the last whole patch are left out, where other
      variants refuse such images.
  """

  width: int
  heads: int
  depth: int = 12
  hidden: int | None = None
  patch: int = 16
  image_size: int = 224
  activation: str = 'gelu'
  epsilon: float = 1e-6
  layer_scale: bool = False
  class_token: bool = True
  distilled: bool = False
  registers: int = 0
  class_position: bool = True
  qkv_bias: bool = True
  patch_bias: bool = True
  pre_norm: bool = False
  pool: str = 'token'
  norm_after_pool: bool = False
  filter: str = 'cubic'
  fused: bool = True
  mask_token: bool = False
  crops: bool = False

  @property
  def read_tokens(self) -> int:
    """Class and distillation tokens."""
    return self.class_token + self.distilled

  @property
  def prefix_positions(self) -> int:
    """Positions before those of the patches."""
    return self.read_tokens if self.class_position else 0

  @property
  def hidden_width(self) -> int:
    """Width of the hidden layers."""
    return 4 * self.width if self.hidden is None else self.hidden

  @property
  def embedding(self) -> int:
    """Length of the embedding."""
    return self.width * (2 if self.pool == 'token_mean' else 1)

  @property
  def embeddings(self) -> tuple[str, ...]:
    """Names of the embeddings that there are, see ModelSpec."""
    # Before pooling there is no normalised class token then.
    token = self.class_token and not self.norm_after_pool
    attention = self.pool == 'attention'
    return ('pooled', 'mean', *['class'] * token, *['attention'] * attention)


class Attention(nnx.Module):
  """Multi-head self-attention over tokens [B, N, D]."""

  def __init__(self, design, *, rngs):
    width = design.width
    bias = design.qkv_bias

    def linear(features):
      return layers.Linear(width, features, use_bias=bias, rngs=rngs)

    if design.fused:
      self.qkv = linear(3 * width)
    else:
      self.query, self.key = linear(width), linear(width)
      self.value = linear(width)
    self.project = layers.Linear(width, width, rngs=rngs)
    self.heads = design.heads
    self.fused = design.fused

  def __call__(self, x: Array, bias: Array | None = None) -> Array:
    b, n, d = x.shape
    if self.fused:
      parts = jnp.split(self.qkv(x), 3, axis=-1)
    else:
      parts = [self.query(x), self.key(x), self.value(x)]
    shape = (b, n, self.heads, d // self.heads)
    y = attention(*(part.reshape(shape) for part in parts), bias=bias)
    return self.project(y.reshape(b, n, d))


class AttentionPool(nnx.Module):
  """One learned query over tokens [B, N, D], then an MLP: [B, D]."""

  def __init__(self, design, *, rngs):
    width = design.width
    self.latent = nnx.Param(rngs.draw(_token_init, (1, 1, width)))
    if design.fused:
      self.query = layers.Linear(width, width, rngs=rngs)
      self.key_value = layers.Linear(width, 2 * width, rngs=rngs)
    else:
      self.qkv = layers.Linear(width, 3 * width, rngs=rngs)
    self.attended = layers.Linear(width, width, rngs=rngs)
    self.norm = layers.LayerNorm(width, epsilon=design.epsilon)
    self.expand = layers.Linear(width, design.hidden_width, rngs=rngs)
    self.project = layers.Linear(design.hidden_width, width, rngs=rngs)
    self.activation = design.activation
    self.heads = design.heads
    self.fused = design.fused

  def __call__(self, x: Array) -> Array:
    b, n, d = x.shape
    latent = self.latent[...].astype(x.dtype)
    if self.fused:
      query, pairs = self.query(latent), self.key_value(x)
    else:
      query, pairs = self.qkv(latent)[..., :d], self.qkv(x)[..., d:]
    key, value = jnp.split(pairs, 2, axis=-1)
    y = attention(
      jnp.tile(query, (b, 1, 1)).reshape(b, 1, self.heads, -1),
      key.reshape(b, n, self.heads, -1),
      value.reshape(b, n, self.heads, -1),
    )
    y = self.attended(y.reshape(b, d))
    activation = layers.ACTIVATIONS[self.activation]
    return y + self.project(activation(self.expand(self.norm(y))))


class LayerScale(nnx.Module):
  """Multiplies each channel by a learned factor (arXiv 2103.17239)."""

  def __init__(self, features):
    self.gamma = nnx.Param(1e-6 * jnp.ones(features))

  def __call__(self, x: Array) -> Array:
    return x * layers.expand(self.gamma[...], x)


class Block(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection.

  A bias is added to the attention's scores, see layers.attention.
  """

  def __init__(self, design, *, rate, rngs):
    width = design.width
    self.norm1 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.attention = Attention(design, rngs=rngs)
    self.norm2 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.expand = layers.Linear(width, design.hidden_width, rngs=rngs)
    self.project = layers.Linear(design.hidden_width, width, rngs=rngs)
    self.activation = design.activation
    self.scale1 = LayerScale(width) if design.layer_scale else None
    self.scale2 = LayerScale(width) if design.layer_scale else None
    self.rate = rate

  def __call__(self, x: Array, mode: Mode, bias: Array | None = None) -> Array:
    y = self.attention(self.norm1(x), bias)
    y = y if self.scale1 is None else self.scale1(y)
    x = x + layers.drop_path(y, self.rate, mode)
    y = layers.ACTIVATIONS[self.activation](self.expand(self.norm2(x)))
    y = self.project(y)
    y = y if self.scale2 is None else self.scale2(y)
    return x + layers.drop_path(y, self.rate, mode)


class VisionTransformer(nnx.Module):
  """Patches, tokens, blocks, LayerNorm, pooling and a linear head.

  Takes images whose sides are multiples of the patch size; positions are
  interpolated to a grid that is not the native one. `features` are the patch
  tokens as a grid after each quarter of the blocks. Without classes there is no
  head, and the logits are the embedding.
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
    grid = design.image_size // design.patch

    def tokens(*shape):
      return nnx.Param(rngs.draw(_token_init, (*shape, width)))

    def head(there=True):
      if not there or not num_classes:
        return None
      return layers.Linear(design.embedding, num_classes, rngs=rngs)

    def norm():
      return layers.LayerNorm(width, epsilon=design.epsilon)

    bias = design.patch_bias
    self.patch = layers.patch_conv(
      in_channels, width, design.patch, use_bias=bias, rngs=rngs
    )
    self.class_token = tokens(1, 1) if design.class_token else None
    self.distillation_token = tokens(1, 1) if design.distilled else None
    registers = design.registers
    self.register_tokens = tokens(1, registers) if registers else None
    self.mask_token = tokens(1) if design.mask_token else None
    self.position = tokens(1, grid**2 + design.prefix_positions)
    self.pre_norm = norm() if design.pre_norm else None
    self.blocks = nnx.List(
      [
        Block(design, rate=rate, rngs=rngs)
        for rate in layers.drop_path_rates(drop_path, design.depth)
      ]
    )
    self.norm = norm()
    pool = design.pool == 'attention'
    self.pool = AttentionPool(design, rngs=rngs) if pool else None
    self.head = head()
    self.head_distillation = head(design.distilled)
    self.design = design
    self.dropout = 0.0 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x, (h, w) = self._embed(x)
    prefix = x.shape[1] - h * w
    depth = self.design.depth
    # Rounded up, where four do not divide the blocks.
    ends = {f'stage{k}': -(-depth * k // 4) for k in (1, 2, 3, 4)}
    features = {}
    for count, block in enumerate(self.blocks, 1):
      x = layers.run_block(block, x, mode)
      grid = x[:, prefix:].reshape(x.shape[0], h, w, -1)
      features |= {stage: grid for stage, end in ends.items() if end == count}
    outputs, tokens = self._pool(x, prefix)
    logits = outputs['pre_logits']
    if self.head is not None:
      logits = self.head(layers.dropout(tokens[0], self.dropout, mode))
    if self.head_distillation is not None:
      second = layers.dropout(tokens[1], self.dropout, mode)
      second = self.head_distillation(second)
      outputs |= {'class_logits': logits, 'distillation_logits': second}
      logits = (logits + second) / 2
    return outputs | {'logits': logits, 'features': features}

  def _pool(self, x: Array, prefix: int) -> tuple[dict, tuple[Array, ...]]:
    """Tokens [B, N, D] -> (all embeddings, what each head reads)."""
    design = self.design
    if design.norm_after_pool:
      pooled = self.norm(x[:, prefix:].mean(1))
      return {'pre_logits': pooled, 'patch_mean': pooled}, (pooled,)
    if design.pool == 'token':
      count = design.read_tokens
      tokens = self.norm(x[:, :count])
      outputs = {
        'pre_logits': tokens.mean(1),
        'class_token': tokens[:, 0],
        'patch_mean': self.norm(x[:, prefix:]).mean(1),
      }
      return outputs, tuple(tokens[:, i] for i in range(count))
    x = self.norm(x)
    outputs = {'patch_mean': x[:, prefix:].mean(1)}
    if design.class_token:
      outputs['class_token'] = x[:, 0]
    if self.pool is not None:
      outputs['attention_pool'] = self.pool(x)
      pooled = outputs['attention_pool']
    elif design.pool == 'token_mean':
      pooled = jnp.concatenate([x[:, 0], outputs['patch_mean']], axis=-1)
    else:
      pooled = outputs['patch_mean']
    return outputs | {'pre_logits': pooled}, (pooled,)

  def _embed(self, x: Array) -> tuple[Array, tuple[int, int]]:
    """Images -> tokens [B, N, D] and the grid of patches."""
    design, size = self.design, self.design.patch
    if (x.shape[1] % size or x.shape[2] % size) and not design.crops:
      raise ValueError(
        f'images of {x.shape[1]} x {x.shape[2]} pixels do not split into'
        f' patches of {size}; resize them to multiples of {size}'
      )
    x = self.patch(x)
    b, h, w, d = x.shape
    x = x.reshape(b, h * w, d)
    count = design.prefix_positions
    position = resize_position(
      self.position[...], (h, w), count, design.filter
    ).astype(x.dtype)

    def tokens(params):
      there = [p[...].astype(x.dtype) for p in params if p is not None]
      return [jnp.tile(token, (b, 1, 1)) for token in there]

    read = tokens([self.class_token, self.distillation_token])
    registers = tokens([self.register_tokens])
    if count:
      read = [jnp.concatenate(read, axis=1) + position[:, :count]]
    x = x + position[:, count:]
    x = jnp.concatenate([*read, *registers, x], axis=1)
    return (x if self.pre_norm is None else self.pre_norm(x)), (h, w)
