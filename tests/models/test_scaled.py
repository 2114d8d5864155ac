"""A convolution and a frozen BatchNorm as one, against the two apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tlkd_jax.models.layers import core
from tlkd_jax.models.layers.convolutions import conv2d, lax_convolutions
from tlkd_jax.models.layers.core import BatchNorm, ConvNorm, Mode
from tlkd_jax.models.layers.scaled import gains, scaled_conv2d

FROZEN = Mode(train=True)
# Kernel, input channels, output channels, groups, stride.
KERNELS = {
  'pointwise': (1, 4, 6, 1, 1),
  'pointwise stride 2': (1, 4, 6, 1, 2),
  'depthwise': (3, 4, 4, 4, 1),
  'depthwise stride 2': (5, 4, 4, 4, 2),
  'depthwise of two': (3, 4, 8, 4, 1),
}


def arrays(size, channels, features, groups):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 5, channels))
  kernel = rng.normal(size=(size, size, channels // groups, features))
  scale, shift = rng.normal(size=(2, features))
  return [v.astype(np.float32) for v in (x, kernel, scale, shift)]


@pytest.mark.parametrize('name', KERNELS)
def test_equals_its_parts(name):
  size, channels, features, groups, stride = KERNELS[name]
  sizes = (stride, stride), ((size // 2, size // 2),) * 2, groups
  given = arrays(size, channels, features, groups)

  def apart(x, kernel, scale, shift):
    y = conv2d(x, kernel, stride=sizes[0], padding=sizes[1], groups=groups)
    return y * scale[None, None, None] + shift[None, None, None]

  def together(*args):
    return scaled_conv2d(*args, *sizes)

  def run(function, args):
    weights = jax.eval_shape(function, *args)
    weights = np.random.default_rng(1).normal(size=weights.shape)

    def loss(*args):
      y = function(*args)
      return (y * weights).sum(), y

    grads, y = jax.grad(loss, range(4), has_aux=True)(*args)
    return y, *grads

  plain, ours = (jax.jit(functools.partial(run, f)) for f in (apart, together))
  np.testing.assert_array_equal(ours(given)[0], plain(given)[0])
  with jax.enable_x64(True):
    wide = [v.astype(np.float64) for v in given]
    for a, b in zip(ours(wide), plain(wide), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  expected = plain(given)
  for a, b in zip(ours(given), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize(
  ('size', 'channels', 'groups', 'dtype', 'expected'),
  [
    (1, 8, 1, 'float32', True),
    (3, 8, 8, 'float32', True),
    (5, 8, 8, 'float64', True),
    (3, 8, 1, 'float32', False),
    (3, 8, 2, 'float32', False),
    (1, 8, 2, 'float32', False),
    (1, 8, 1, 'bfloat16', False),
    (3, 8, 8, 'bfloat16', False),
    (3, 1, 1, 'float32', False),
  ],
)
def test_where_it_has_fewer_passes(size, channels, groups, dtype, expected):
  x = jax.ShapeDtypeStruct((2, 4, 4, channels), dtype)
  kernel = jax.ShapeDtypeStruct((size, size, channels // groups, 8), dtype)
  assert gains(x, kernel, groups) is expected
  with lax_convolutions():
    assert not gains(x, kernel, groups)


def make(kind=BatchNorm, **options):
  module = ConvNorm(
    4, 6, 1, epsilon=1e-3, momentum=0.1, rngs=nnx.Rngs(0), **options
  )
  if kind is not BatchNorm:
    module.norm.__class__ = kind
  return module


class Other(BatchNorm):
  """As an int8 network's, which rounds between convolution and norm."""


@pytest.mark.parametrize(
  ('mode', 'kind', 'expected'),
  [
    (FROZEN, BatchNorm, 'one'),
    (FROZEN, Other, 'apart'),
    (core.EVAL, BatchNorm, 'apart'),
    (Mode(train=True, norm_train=True), BatchNorm, 'apart'),
  ],
)
def test_only_a_frozen_norm_in_training(mode, kind, expected, monkeypatch):
  calls = []

  def noted(*args):
    calls.append(args)
    return scaled_conv2d(*args)

  monkeypatch.setattr(core, 'scaled_conv2d', noted)
  make(kind)(jnp.ones((2, 6, 5, 4)), mode)
  assert bool(calls) == (expected == 'one')


def test_a_module_gives_what_it_gives_in_evaluation():
  module = make(activation='relu6')
  rng = np.random.default_rng(2)
  for leaf in (module.norm.scale, module.norm.bias, module.norm.mean):
    leaf[...] = jnp.asarray(rng.normal(size=6), jnp.float32)
  x = jnp.asarray(rng.normal(size=(2, 6, 5, 4)), jnp.float32)
  np.testing.assert_array_equal(module(x, FROZEN), module(x, core.EVAL))


def test_the_convolution_is_not_kept_for_the_gradient():
  """Only its input is, and what the activation needs."""
  module = make()
  x = jnp.ones((2, 6, 5, 4))
  _, gradient = jax.vjp(lambda x: module(x, FROZEN), x)
  shapes = [v.shape for v in jax.tree.leaves(gradient)]
  assert (2, 6, 5, 6) not in shapes


@pytest.mark.parametrize(('groups', 'expected'), [(4, True), (1, False)])
def test_a_sum_over_taps_is_computed_once(groups, expected):
  """A depthwise convolution is cheap enough for XLA to compute it again."""
  size = 3 if groups > 1 else 1
  given = arrays(size, 4, 4, groups)
  sizes = (1, 1), ((size // 2, size // 2),) * 2, groups

  def loss(*args):
    return core.relu6(scaled_conv2d(*args, *sizes)).sum()

  found = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*given))
  assert ('optimization_barrier' in found) is expected
