"""Vision Transformer and DeiT.

Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv
2012.12877 (DeiT; the distilled variants have a second token and head, whose
logits are averaged) and 2022, arXiv 2204.07118 (DeiT III: layer scale, no
position for the class token).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Array = jax.Array
_PATCH = 16
_NATIVE = 224
_position_init = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    width: length of a token.
    heads: attention heads.
    depth: number of blocks.
    layer_scale: whether residual branches are scaled by channel.
    distilled: whether a distillation token and its head are there.
    class_position: whether class and distillation tokens have a position.
    epsilon: of every LayerNorm.
  """

  width: int
  heads: int
  depth: int = 12
  layer_scale: bool = False
  distilled: bool = False
  class_position: bool = True
  epsilon: float = 1e-6

  @property
  def prefix_positions(self) -> int:
    """Positions before those of the patches."""
    return (1 + self.distilled) if self.class_position else 0


class Attention(nnx.Module):
  """Multi-head self-attention over tokens [B, N, D]."""

  def __init__(self, design, *, rngs):
    self.qkv = layers.Linear(design.width, 3 * design.width, rngs=rngs)
    self.project = layers.Linear(design.width, design.width, rngs=rngs)
    self.heads = design.heads

  def __call__(self, x: Array) -> Array:
    b, n, d = x.shape
    qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum('bhqd,bhkd->bhqk', query * key.shape[-1] ** -0.5, key)
    # In bfloat16 a softmax over hundreds of tokens loses too many digits.
    scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
    weights = jax.nn.softmax(scores).astype(x.dtype)
    y = jnp.einsum('bhqk,bhkd->bqhd', weights, value)
    return self.project(y.reshape(b, n, d))


class LayerScale(nnx.Module):
  """Multiplies each channel by a learned factor (arXiv 2103.17239)."""

  def __init__(self, features):
    self.gamma = nnx.Param(1e-6 * jnp.ones(features))

  def __call__(self, x: Array) -> Array:
    return x * layers.expand(self.gamma[...], x)


class Block(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, design, *, rate, rngs):
    width = design.width
    self.norm1 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.attention = Attention(design, rngs=rngs)
    self.norm2 = layers.LayerNorm(width, epsilon=design.epsilon)
    self.expand = layers.Linear(width, 4 * width, rngs=rngs)
    self.project = layers.Linear(4 * width, width, rngs=rngs)
    self.scale1 = LayerScale(width) if design.layer_scale else None
    self.scale2 = LayerScale(width) if design.layer_scale else None
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.attention(self.norm1(x))
    y = y if self.scale1 is None else self.scale1(y)
    x = x + layers.drop_path(y, self.rate, mode)
    y = layers.ACTIVATIONS['gelu'](self.expand(self.norm2(x)))
    y = self.project(y)
    y = y if self.scale2 is None else self.scale2(y)
    return x + layers.drop_path(y, self.rate, mode)


class VisionTransformer(nnx.Module):
  """Patches, tokens, blocks, LayerNorm, linear head on the class token.

  Takes images whose sides are multiples of the patch size; positions are
  interpolated to a grid that is not the native one. `features` are the patch
  tokens as a grid after each quarter of the blocks.
  """

  def __init__(
    self,
    design: Design,
    num_classes: int,
    *,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rngs: nnx.Rngs,
  ):
    width = design.width
    count = (_NATIVE // _PATCH) ** 2 + design.prefix_positions

    def tokens(n):
      return nnx.Param(_position_init(rngs.params(), (1, n, width)))

    self.patch = layers.patch_conv(in_channels, width, _PATCH, rngs=rngs)
    self.class_token = tokens(1)
    self.distillation_token = tokens(1) if design.distilled else None
    self.position = tokens(count)
    self.blocks = nnx.List(
      [
        Block(design, rate=rate, rngs=rngs)
        for rate in layers.drop_path_rates(drop_path, design.depth)
      ]
    )
    self.norm = layers.LayerNorm(width, epsilon=design.epsilon)
    self.head = layers.Linear(width, num_classes, rngs=rngs)
    self.head_distillation = (
      layers.Linear(width, num_classes, rngs=rngs) if design.distilled else None
    )
    self.design = design
    self.dropout = 0.0 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x, (h, w) = self._embed(x)
    prefix = 1 + self.design.distilled
    features = {}
    quarter = self.design.depth // 4
    for i, block in enumerate(self.blocks):
      x = layers.run_block(block, x, mode)
      if (i + 1) % quarter == 0:
        grid = x[:, prefix:].reshape(x.shape[0], h, w, -1)
        features[f'stage{(i + 1) // quarter}'] = grid
    x = self.norm(x[:, :prefix])
    pooled = x.mean(1)
    logits = self.head(layers.dropout(x[:, 0], self.dropout, mode))
    if self.head_distillation is not None:
      second = layers.dropout(x[:, 1], self.dropout, mode)
      logits = (logits + self.head_distillation(second)) / 2
    return {'logits': logits, 'pre_logits': pooled, 'features': features}

  def _embed(self, x: Array) -> tuple[Array, tuple[int, int]]:
    """Images -> tokens [B, N, D] and the grid of patches."""
    if x.shape[1] % _PATCH or x.shape[2] % _PATCH:
      raise ValueError(
        f'images of {x.shape[1]} x {x.shape[2]} pixels do not split into'
        f' patches of {_PATCH}; resize them to multiples of {_PATCH}'
      )
    x = self.patch(x)
    b, h, w, d = x.shape
    x = x.reshape(b, h * w, d)
    prefix = [self.class_token[...]]
    if self.distillation_token is not None:
      prefix.append(self.distillation_token[...])
    prefix = [jnp.tile(token.astype(x.dtype), (b, 1, 1)) for token in prefix]
    position = resize_position(
      self.position[...], (h, w), self.design.prefix_positions
    ).astype(x.dtype)
    if self.design.class_position:
      return jnp.concatenate([*prefix, x], axis=1) + position, (h, w)
    return jnp.concatenate([*prefix, x + position], axis=1), (h, w)


def resize_position(position, grid_hw: tuple[int, int], prefix: int):
  """Interpolates position embeddings to another grid of patches.

  Bicubic with antialiasing, as timm's `resample_abs_pos_embed`. The old grid
  is taken to be square.

  Args:
    position: [1, prefix + n * n, D], a numpy or jax array.
    grid_hw: rows and columns of the new grid.
    prefix: leading positions that belong to no patch; kept unchanged.

  Returns:
    [1, prefix + h * w, D] of the same kind and dtype.

  Raises:
    ValueError: the old grid is not square.
  """
  count = position.shape[1] - prefix
  side = int(round(count**0.5))
  if side * side != count:
    raise ValueError(
      f'{position.shape[1]} position embeddings are not {prefix} and a square'
    )
  if grid_hw == (side, side):
    return position
  xp = np if isinstance(position, np.ndarray) else jnp
  dtype = jnp.promote_types(position.dtype, jnp.float32)
  rows, columns = (_cubic_weights(side, n).astype(dtype) for n in grid_hw)
  grid = position[0, prefix:].astype(dtype).reshape(side, side, -1)
  grid = xp.einsum('yh,hwd->ywd', rows, grid)
  grid = xp.einsum('xw,ywd->yxd', columns, grid)
  grid = grid.reshape(1, -1, position.shape[2]).astype(position.dtype)
  return xp.concatenate([position[:, :prefix], grid], axis=1)


def _cubic_weights(old: int, new: int) -> np.ndarray:
  """[new, old] float64 weights of Keys' cubic (a = -1/2), antialiased."""
  scale = old / new
  stretch = max(scale, 1.0)
  centre = (np.arange(new)[:, None] + 0.5) * scale
  t = np.abs(np.arange(old)[None] + 0.5 - centre) / stretch
  near = (1.5 * t - 2.5) * t * t + 1.0
  far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
  weights = np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))
  return weights / weights.sum(1, keepdims=True)


def _plain_leaf(key: str) -> TorchLeaf:
  return TorchLeaf(key, lambda x: x, lambda x: x)


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's VisionTransformer."""
  table = {'patch': 'patch_embed.proj', 'norm': 'norm', 'head': 'head'}
  if design.distilled:
    table['head_distillation'] = 'head_dist'
  parts = {
    'norm1': 'norm1',
    'attention.qkv': 'attn.qkv',
    'attention.project': 'attn.proj',
    'norm2': 'norm2',
    'expand': 'mlp.fc1',
    'project': 'mlp.fc2',
    'scale1': 'ls1',
    'scale2': 'ls2',
  }
  for i in range(design.depth):
    for ours, theirs in parts.items():
      table[f'blocks.{i}.{ours}'] = f'blocks.{i}.{theirs}'
  return table


def _timm_leaves(design: Design) -> dict[str, TorchLeaf]:
  return {
    'class_token': _plain_leaf('cls_token'),
    'distillation_token': _plain_leaf('dist_token'),
    'position': _plain_leaf('pos_embed'),
  }


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision's VisionTransformer."""
  table = {'patch': 'conv_proj', 'norm': 'encoder.ln', 'head': 'heads.head'}
  parts = {
    'norm1': 'ln_1',
    'attention.project': 'self_attention.out_proj',
    'norm2': 'ln_2',
    'expand': 'mlp.0',
    'project': 'mlp.3',
  }
  for i in range(design.depth):
    for ours, theirs in parts.items():
      prefix = f'encoder.layers.encoder_layer_{i}'
      table[f'blocks.{i}.{ours}'] = f'{prefix}.{theirs}'
  return table


def _torchvision_leaves(design: Design) -> dict[str, TorchLeaf]:
  table = {
    'class_token': _plain_leaf('class_token'),
    'position': _plain_leaf('encoder.pos_embedding'),
  }
  for i in range(design.depth):
    ours = f'blocks.{i}.attention.qkv'
    theirs = f'encoder.layers.encoder_layer_{i}.self_attention.in_proj'
    weight = TorchLeaf(f'{theirs}_weight', np.transpose, np.transpose)
    table[f'{ours}.kernel'] = weight
    table[f'{ours}.bias'] = _plain_leaf(f'{theirs}_bias')
  return table


def _spec(design: Design, **fields) -> ModelSpec:
  heads = ('head', 'head_distillation') if design.distilled else ('head',)
  tables = {'torch_modules': _timm_modules, 'torch_leaves': _timm_leaves}
  tables = {k: functools.partial(v, design) for k, v in tables.items()}
  defaults = {'image_size': _NATIVE, 'crop': 0.9, 'head': heads}
  return ModelSpec(
    build=functools.partial(VisionTransformer, design),
    stem='patch',
    **{**tables, **defaults, **fields},
  )


_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}
_VIT = {
  'tiny': (Design(192, 3), 'augreg_in21k_ft_in1k'),
  'small': (Design(384, 6), 'augreg_in21k_ft_in1k'),
  'base': (Design(768, 12), 'augreg2_in21k_ft_in1k'),
}


def _timm_variants() -> dict[str, ModelSpec]:
  variants = {}

  def add(name, tag, design, **fields):
    weights = f'timm:{name}.{tag}'
    variants[f'timm/{name}'] = _spec(design, weights=weights, **fields)

  for size, (design, tag) in _VIT.items():
    add(f'vit_{size}_patch16_224', tag, design, **_HALF)
    add(f'deit_{size}_patch16_224', 'fb_in1k', design)
    distilled = dataclasses.replace(design, distilled=True)
    add(f'deit_{size}_distilled_patch16_224', 'fb_in1k', distilled)
  large = Design(1024, 16, depth=24)
  add('vit_large_patch16_224', 'augreg_in21k_ft_in1k', large, **_HALF)
  for size, width, heads in (
    ('small', 384, 6),
    ('medium', 512, 8),
    ('base', 768, 12),
  ):
    design = Design(width, heads, layer_scale=True, class_position=False)
    # The authors' files name the layer scales so.
    old_keys = ((r'\.gamma_([12])$', r'.ls\1.gamma'),)
    add(f'deit3_{size}_patch16_224', 'fb_in1k', design, old_keys=old_keys)
  return variants


def _torchvision_variants() -> dict[str, ModelSpec]:
  design = _VIT['base'][0]
  spec = _spec(
    design,
    torch_modules=functools.partial(_torchvision_modules, design),
    torch_leaves=functools.partial(_torchvision_leaves, design),
    old_keys=(
      (r'\.mlp\.linear_1\.', '.mlp.0.'),
      (r'\.mlp\.linear_2\.', '.mlp.3.'),
    ),
    interpolation='bilinear',
    crop=224 / 256,
  )
  return {'torchvision/vit_b_16': spec}


def _transformers_variants() -> dict[str, ModelSpec]:
  """Hugging Face's implementation: as timm's but for the LayerNorm epsilon."""
  variants = {}
  for size, (design, _) in _VIT.items():
    plain = dataclasses.replace(design, epsilon=1e-12)
    distilled = dataclasses.replace(plain, distilled=True)
    variants |= {
      f'transformers/vit_{size}_patch16_224': _spec(
        plain, interpolation='bilinear', **{**_HALF, 'crop': 1.0}
      ),
      f'transformers/deit_{size}_distilled_patch16_224': _spec(
        distilled, crop=224 / 256
      ),
    }
  return variants


VARIANTS: dict[str, ModelSpec] = {
  **_timm_variants(),
  **_torchvision_variants(),
  **_transformers_variants(),
}
