"""Layers that follow PyTorch's conventions on NHWC arrays.

Every layer computes in the dtype of its input: parameters are float32 (or
float64 under x64) and are cast at use, so bfloat16 compute needs nothing but a
bfloat16 image. What differs between training and evaluation comes in as a
`Mode`, never as module state, so that one compiled function serves one mode.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.losses.transfer import stoch_norm
from tlkd_jax.models.layers.activations import ACTIVATIONS
from tlkd_jax.models.layers.convolutions import conv2d, same_padding
from tlkd_jax.models.layers.normalization import batch_norm_train
from tlkd_jax.models.layers.rngs import Rngs
from tlkd_jax.models.layers.scaled import gains, scaled_pointwise

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Mode:
  """How one call of a model behaves.

  Attributes:
    train: dropout and drop-path are on.
    norm_train: BatchNorm normalises by the batch and updates its running
      statistics; otherwise it uses the running statistics unchanged.
    rngs: the source of dropout keys; needed when `train` and a rate is > 0.
    batch_chance: with norm_train, the chance of a channel to be normalised by
      the batch and not by the running statistics; below 1 it needs `rngs`.
    remat: of each block only the input is kept for the backward pass, which
      computes the rest again.
  """

  train: bool = False
  norm_train: bool = False
  rngs: Rngs | None = None
  batch_chance: float = 1.0
  remat: bool = False


EVAL = Mode()


def run_block(block: nnx.Module, x: Array, mode: Mode, *others) -> Array:
  """block(x, mode, *others), rematerialised where the mode says so.

  Args:
    block: of a network.
    x: what goes through the blocks.
    mode: of the call.
    *others: arrays, or lists of them, that every block reads.
  """
  if not mode.remat:
    return block(x, mode, *others)

  @nnx.remat
  def forward(block, x, *others):
    return block(x, mode, *others)

  return forward(block, x, *others)


def run_stages(
  stages: nnx.List, x: Array, mode: Mode
) -> tuple[Array, dict[str, Array]]:
  """Runs blocks one after the other.

  Args:
    stages: lists of blocks.
    x: [B, H, W, C].
    mode: of the call.

  Returns:
    (the last map, {'stage1': the map that the first stage ends with, ...}).
  """
  features = {}
  for number, blocks in enumerate(stages, 1):
    for block in blocks:
      x = run_block(block, x, mode)
    features[f'stage{number}'] = x
  return x, features


_kernel_init = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_linear_init = nnx.initializers.truncated_normal(0.02)


class Conv(nnx.Module):
  """Convolution of [B, H, W, C] with an HWIO kernel.

  `kernel_size` is a side or (height, width). `padding` is 'symmetric' (k // 2
  on every side, torchvision and timm), 'same' (TensorFlow's dynamic SAME,
  timm's `tf_` models) or an int.
  """

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: str | int = 'symmetric',
    groups: int = 1,
    use_bias: bool = False,
    rngs: Rngs,
  ):
    if isinstance(kernel_size, int):
      kernel_size = (kernel_size, kernel_size)
    shape = (*kernel_size, in_channels // groups, out_channels)
    self.kernel = nnx.Param(rngs.draw(_kernel_init, shape))
    self.bias = nnx.Param(jnp.zeros(out_channels)) if use_bias else None
    self.stride = stride
    self.padding = padding
    self.groups = groups

  def __call__(self, x: Array) -> Array:
    bias = None if self.bias is None else self.bias[...]
    return self.convolve(x, self.kernel[...], bias)

  def convolve(self, x: Array, kernel: Array, bias: Array | None) -> Array:
    """What the layer does of x, with other weights of the same shape."""
    y = self._with(x, kernel, self.groups)
    return y if bias is None else add_bias(y, bias)

  def several(self, x: Array, kernel: Array, count: int) -> Array:
    """What `count` such layers do, channels and kernels side by side."""
    groups = self.groups if self.groups == 1 else count * self.groups
    return self._with(x, kernel, groups)

  def _with(self, x: Array, kernel: Array, groups: int) -> Array:
    kernel = kernel.astype(x.dtype)
    stride = (self.stride, self.stride)
    if self.padding == 'same':
      padding = same_padding(x.shape[1:3], kernel.shape[:2], stride)
    elif isinstance(self.padding, int):
      padding = ((self.padding, self.padding),) * 2
    else:
      height, width = (size // 2 for size in kernel.shape[:2])
      padding = ((height, height), (width, width))
    return conv2d(x, kernel, stride=stride, padding=padding, groups=groups)


def patch_conv(
  in_channels: int,
  out_channels: int,
  size: int,
  *,
  use_bias: bool = True,
  rngs: Rngs,
) -> Conv:
  """A convolution over patches that do not overlap."""
  return Conv(
    in_channels,
    out_channels,
    size,
    stride=size,
    padding=0,
    use_bias=use_bias,
    rngs=rngs,
  )


class Linear(nnx.Module):
  """Affine map of the last axis, kernel [in, out]."""

  def __init__(
    self, in_features: int, out_features: int, *, rngs: Rngs, use_bias=True
  ):
    shape = (in_features, out_features)
    self.kernel = nnx.Param(rngs.draw(_linear_init, shape))
    self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None

  def __call__(self, x: Array) -> Array:
    bias = None if self.bias is None else self.bias[...]
    return self.multiply(x, self.kernel[...], bias)

  def multiply(self, x: Array, kernel: Array, bias: Array | None) -> Array:
    """What the layer does of x, with other weights of the same shape."""
    y = _product(x, kernel.astype(x.dtype))
    return y if bias is None else add_bias(y, bias)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
  """x [..., in] @ kernel [in, out]."""
  return x @ kernel


def _product_fwd(x, kernel):
  return x @ kernel, (x, kernel)


def _product_bwd(residuals, dy):
  x, kernel = residuals
  if jax.default_backend() == 'cpu':
    # XLA would compute whatever x and dy come from a second time, column by
    # column: the weight gradient reads them transposed.
    x, dy = jax.lax.optimization_barrier((x, dy))
  rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
  return dy @ kernel.T, rows[0].T @ rows[1]


_product.defvjp(_product_fwd, _product_bwd)


def add_bias(x: Array, bias: Array) -> Array:
  """Adds bias [C] to x [..., C] in x's dtype."""
  return x + expand(bias, x)


def expand(vector: Array, x: Array) -> Array:
  """A vector [C] as [1, ..., C], of the rank and dtype of x [..., C]."""
  return jnp.expand_dims(vector.astype(x.dtype), range(x.ndim - 1))


class BatchNorm(nnx.Module):
  """Batch normalisation with PyTorch's running statistics.

  The batch is normalised by its biased variance while the running variance
  accumulates the unbiased one, as torch does (Flax keeps the biased one).
  `momentum` is torch's, the weight of the new value; Flax's is its complement.
  Over a sharded batch the statistics are those of the global batch.
  """

  def __init__(self, features: int, *, epsilon: float, momentum: float):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.mean = nnx.BatchStat(jnp.zeros(features))
    self.var = nnx.BatchStat(jnp.ones(features))
    self.epsilon = epsilon
    self.momentum = momentum

  def __call__(self, x: Array, mode: Mode) -> Array:
    scale, bias = self.scale[...], self.bias[...]
    if mode.norm_train and mode.batch_chance < 1:
      return self._stochastic(x, mode)
    if mode.norm_train:
      y, mean, var = batch_norm_train(x, scale, bias, self.epsilon)
      self.update(mean, var, x.size // x.shape[-1])
      return y
    scale, bias = self.frozen()
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = x.astype(scale.dtype) * scale.reshape(shape) + bias.reshape(shape)
    return y.astype(x.dtype)

  def frozen(self) -> tuple[Array, Array]:
    """(scale, shift) [C] of a channel by the running statistics."""
    scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
    return scale, self.bias[...] - self.mean[...] * scale

  def _stochastic(self, x: Array, mode: Mode) -> Array:
    y, mean, var = stoch_norm(
      x,
      self.scale[...],
      self.bias[...],
      self.mean[...],
      self.var[...],
      key=None if mode.rngs is None else mode.rngs.next(),
      p=mode.batch_chance,
      momentum=1 - self.momentum,
      eps=self.epsilon,
    )
    self._keep(mean, var)
    return y.astype(x.dtype)

  def update(self, mean: Array, var: Array, count: int) -> None:
    """Counts a batch's biased statistics [C] of `count` values a channel."""
    unbiased = var * (count / max(count - 1, 1))
    self._keep(
      *(
        (1 - self.momentum) * stat[...]
        + self.momentum * jax.lax.stop_gradient(new).astype(stat[...].dtype)
        for stat, new in ((self.mean, mean), (self.var, unbiased))
      )
    )

  def _keep(self, mean: Array, var: Array) -> None:
    # `self.mean[...] = mean` would ask a traced array for its sharding, which
    # it lacks, and JAX looks through all that was traced to say why.
    self.mean.set_value(mean)
    self.var.set_value(var)


class LayerNorm(nnx.Module):
  """Layer normalisation of the last axis (Ba et al. 2016, arXiv 1607.06450)."""

  def __init__(self, features: int, *, epsilon: float):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
    y = y * expand(self.scale[...], y)
    return (y + expand(self.bias[...], y)).astype(x.dtype)


class ConvNorm(nnx.Module):
  """Convolution, BatchNorm and activation."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    epsilon: float,
    momentum: float,
    activation: str = 'identity',
    stride: int = 1,
    padding: str | int = 'symmetric',
    groups: int = 1,
    rngs: Rngs,
  ):
    self.conv = Conv(
      in_channels,
      out_channels,
      kernel_size,
      stride=stride,
      padding=padding,
      groups=groups,
      rngs=rngs,
    )
    self.norm = BatchNorm(out_channels, epsilon=epsilon, momentum=momentum)
    self.activation = activation

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self._is_one(x, mode):
      kernel = self.conv.kernel[...].astype(x.dtype)
      scale, shift = self.norm.frozen()
      stride = self.conv.stride, self.conv.stride
      y = scaled_pointwise(x, kernel, scale, shift, stride)
    else:
      y = self.norm(self.conv(x), mode)
    return ACTIVATIONS[self.activation](y)

  def _is_one(self, x: Array, mode: Mode) -> bool:
    """Whether both are computed together, as only a gradient gains by it."""
    # Not subclasses: int8 networks round between the two.
    plain = type(self.conv) is Conv and type(self.norm) is BatchNorm
    if not (plain and mode.train) or mode.norm_train:
      return False
    kernel = self.conv.kernel[...]
    same = x.dtype == self.norm.scale.dtype == kernel.dtype
    # Zeros around the image are no part of a product.
    bare = self.conv.padding in ('symmetric', 'same', 0)
    return same and bare and gains(x, kernel, self.conv.groups)


class SqueezeExcite(nnx.Module):
  """Channel gate from the global mean (Hu et al. 2018, arXiv 1709.01507)."""

  def __init__(
    self,
    channels: int,
    hidden: int,
    *,
    activation: str,
    gate: str = 'sigmoid',
    rngs: Rngs,
  ):
    self.reduce = Conv(channels, hidden, 1, use_bias=True, rngs=rngs)
    self.expand = Conv(hidden, channels, 1, use_bias=True, rngs=rngs)
    self.activation = activation
    self.gate = gate

  def __call__(self, x: Array) -> Array:
    s = x.mean((1, 2), keepdims=True)
    s = self.expand(ACTIVATIONS[self.activation](self.reduce(s)))
    return x * ACTIVATIONS[self.gate](s)


def dropout(x: Array, rate: float, mode: Mode) -> Array:
  """Zeroes single values with probability `rate` and rescales the rest."""
  return _drop(x, rate, mode, x.shape)


def drop_path(x: Array, rate: float, mode: Mode) -> Array:
  """Zeroes whole examples of x [B, ...] (Huang et al. 2016, 1603.09382)."""
  return _drop(x, rate, mode, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: Array, rate: float, mode: Mode, shape: tuple[int, ...]) -> Array:
  if not mode.train or rate == 0.0:
    return x
  if mode.rngs is None:
    raise ValueError('a model with dropout needs a key in training')
  keep = jax.random.bernoulli(mode.rngs.next(), 1.0 - rate, shape)
  return x * keep.astype(x.dtype) / (1.0 - rate)


def drop_path_rates(highest: float, depth: int) -> list[float]:
  """Stochastic depth's rate of each block, linear from 0 to `highest`."""
  return [highest * i / max(depth - 1, 1) for i in range(depth)]
