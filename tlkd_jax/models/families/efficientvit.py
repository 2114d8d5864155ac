"""EfficientViT (Cai et al. 2023, arXiv 2205.14756), MIT's of this name.

Inverted bottlenecks; in the last two stages linear attention at two scales
before each of them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import Conv, ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_ACTIVATION = 'hard_swish'
_conv = functools.partial(ConvNorm, epsilon=1e-5, momentum=0.1)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    widths: channels of the stem and of the four stages.
    repeats: blocks of the four stages; in the last two after a strided one.
    head_width: of attention.
    neck: channels of the 1x1 convolution before pooling.
    hidden: width of the linear layer after it.
  """

  widths: tuple[int, int, int, int, int]
  repeats: tuple[int, int, int, int]
  head_width: int
  neck: int
  hidden: int


class BiasConv(nnx.Module):
  """Convolution with a bias, activated."""

  def __init__(self, *sizes, **options):
    self.conv = Conv(*sizes, use_bias=True, **options)

  def __call__(self, x: Array, mode: Mode) -> Array:
    return layers.ACTIVATIONS[_ACTIVATION](self.conv(x))


class Separable(nnx.Module):
  """3x3 depthwise and 1x1 convolution, residual."""

  def __init__(self, channels, *, rngs):
    conv = functools.partial(_conv, channels, channels, rngs=rngs)
    self.depthwise = conv(3, groups=channels, activation=_ACTIVATION)
    self.project = conv(1)

  def __call__(self, x: Array, mode: Mode) -> Array:
    return x + self.project(self.depthwise(x, mode), mode)


class Bottleneck(nnx.Module):
  """1x1 expansion, 3x3 depthwise, 1x1 projection; residual with stride 1.

  Of the late stages' convolutions only the last is normalised, the others have
  biases.
  """

  def __init__(self, in_channels, channels, *, stride, late, rate, rngs):
    hidden = 4 * in_channels
    if late:
      conv = functools.partial(BiasConv, rngs=rngs)
    else:
      conv = functools.partial(_conv, activation=_ACTIVATION, rngs=rngs)
    self.expand = conv(in_channels, hidden, 1)
    self.depthwise = conv(hidden, hidden, 3, stride=stride, groups=hidden)
    self.project = _conv(hidden, channels, 1, rngs=rngs)
    self.residual = stride == 1
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.depthwise(self.expand(x, mode), mode)
    y = self.project(y, mode)
    return x + layers.drop_path(y, self.rate, mode) if self.residual else y


class LinearAttention(nnx.Module):
  """ReLU attention over pixels and over means of 5x5 around them.

  Products with all keys are sums that do not depend on the query (section
  3.1), so that the cost grows with the number of pixels, not its square.
  """

  def __init__(self, channels, head_width, *, rngs):
    wide = 3 * channels
    conv = functools.partial(Conv, rngs=rngs)
    self.qkv = conv(channels, wide, 1)
    self.gather = conv(wide, wide, 5, groups=wide)
    self.mix = conv(wide, wide, 1, groups=wide // head_width)
    self.project = _conv(2 * channels, channels, 1, rngs=rngs)
    self.head_width = head_width

  def __call__(self, x: Array, mode: Mode) -> Array:
    b, h, w, _ = x.shape
    qkv = self.qkv(x)
    qkv = jnp.concatenate([qkv, self.mix(self.gather(qkv))], axis=-1)
    # Query, key and value lie together for each head.
    qkv = qkv.reshape(b, h * w, -1, 3, self.head_width)
    qkv = qkv.astype(jnp.promote_types(x.dtype, jnp.float32))
    query, key, value = (qkv[:, :, :, i] for i in range(3))
    query, key = jax.nn.relu(query), jax.nn.relu(key)
    products = jnp.einsum('bnhk,bnhv->bhkv', key, value)
    y = jnp.einsum('bnhk,bhkv->bnhv', query, products)
    weights = jnp.einsum('bnhk,bhk->bnh', query, key.sum(1))
    y = y / (weights[..., None] + 1e-5)
    return self.project(y.astype(x.dtype).reshape(b, h, w, -1), mode)


class AttentionBlock(nnx.Module):
  """Linear attention, then an inverted bottleneck, both residual."""

  def __init__(self, channels, head_width, *, rate, rngs):
    self.attention = LinearAttention(channels, head_width, rngs=rngs)
    self.local = Bottleneck(
      channels, channels, stride=1, late=True, rate=rate, rngs=rngs
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.attention(x, mode)
    return self.local(x + layers.drop_path(y, self.rate, mode), mode)


class EfficientViT(nnx.Module):
  """Stem, four stages, 1x1 convolution, pooling, hidden layer, linear head."""

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
    first, *widths = design.widths
    conv = functools.partial(_conv, activation=_ACTIVATION, rngs=rngs)
    self.stem = conv(in_channels, first, 3, stride=2)
    self.start = Separable(first, rngs=rngs)
    total = sum(design.repeats) + 2
    rates = iter(layers.drop_path_rates(drop_path, total))
    channels, stages = first, []
    for s, (width, repeats) in enumerate(
      zip(widths, design.repeats, strict=True)
    ):
      late = s >= 2
      bottleneck = functools.partial(Bottleneck, late=late, rngs=rngs)
      blocks: list[nnx.Module] = [
        bottleneck(channels, width, stride=2, rate=next(rates))
      ]
      if late:
        blocks += [
          AttentionBlock(width, design.head_width, rate=next(rates), rngs=rngs)
          for _ in range(repeats)
        ]
      else:
        blocks += [
          bottleneck(width, width, stride=1, rate=next(rates))
          for _ in range(repeats - 1)
        ]
      channels = width
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.neck = conv(channels, design.neck, 1)
    self.hidden = layers.Linear(
      design.neck, design.hidden, use_bias=False, rngs=rngs
    )
    self.norm = layers.LayerNorm(design.hidden, epsilon=1e-5)
    self.head = layers.Linear(design.hidden, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.start(self.stem(x, mode), mode)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = self.norm(self.hidden(self.neck(x, mode).mean((1, 2))))
    pooled = layers.ACTIVATIONS[_ACTIVATION](pooled)
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {
    'hidden': 'head.classifier.0',
    'norm': 'head.classifier.1',
    'head': 'head.classifier.4',
  }
  normed = {
    'stem': 'stem.in_conv',
    'start.depthwise': 'stem.res0.main.depth_conv',
    'start.project': 'stem.res0.main.point_conv',
    'neck': 'head.in_conv',
  }
  parts = {
    'expand': 'inverted_conv',
    'depthwise': 'depth_conv',
    'project': 'point_conv',
  }
  for s, repeats in enumerate(design.repeats):
    for b in range(repeats + (s >= 2)):
      ours, theirs = f'stages.{s}.{b}', f'stages.{s}.blocks.{b}'
      local, main = ours, f'{theirs}.main'
      if s >= 2 and b > 0:
        context = f'{theirs}.context_module.main'
        table[f'{ours}.attention.qkv'] = f'{context}.qkv.conv'
        table[f'{ours}.attention.gather'] = f'{context}.aggreg.0.0'
        table[f'{ours}.attention.mix'] = f'{context}.aggreg.0.1'
        normed[f'{ours}.attention.project'] = f'{context}.proj'
        local, main = f'{ours}.local', f'{theirs}.local_module.main'
      for part, name in parts.items():
        normed[f'{local}.{part}'] = f'{main}.{name}'
  for ours, theirs in normed.items():
    table[f'{ours}.conv'] = f'{theirs}.conv'
    table[f'{ours}.norm'] = f'{theirs}.norm'
  return table


_TIMM = {
  'b0': Design((8, 16, 32, 64, 128), (2, 2, 2, 2), 16, 1024, 1280),
  'b1': Design((16, 32, 64, 128, 256), (2, 3, 3, 4), 16, 1536, 1600),
  'b2': Design((24, 48, 96, 192, 384), (3, 4, 4, 6), 32, 2304, 2560),
  'b3': Design((32, 64, 128, 256, 512), (4, 6, 6, 9), 32, 2304, 2560),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/efficientvit_{size}': ModelSpec(
    build=functools.partial(EfficientViT, design),
    torch_modules=functools.partial(_modules, design),
    image_size=224,
    crop=0.95,
    weights=f'timm:efficientvit_{size}.r224_in1k',
  )
  for size, design in _TIMM.items()
}
