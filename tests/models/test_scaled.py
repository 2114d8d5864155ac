"""A convolution and a frozen BatchNorm as one, against the two apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.models.layers import core
from tlkd_jax.models.layers.convolutions import conv2d, lax_convolutions
from tlkd_jax.models.layers.core import BatchNorm, ConvNorm, Mode
from tlkd_jax.models.layers.rngs import Rngs
from tlkd_jax.models.layers.scaled import gains, scaled_pointwise

FROZEN = Mode(train=True)


def arrays():
  rng = np.random.default_rng(0)
  shapes = (2, 6, 5, 4), (1, 1, 4, 6), (6,), (6,)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize('stride', [(1, 1), (2, 2)])
def test_equals_its_parts(stride):
  given = arrays()

  def apart(x, kernel, scale, shift):
    y = conv2d(x, kernel, stride=stride)
    return y * scale[None, None, None] + shift[None, None, None]

  def together(*args):
    return scaled_pointwise(*args, stride)

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
  for a, b in zip(ours(given), plain(given), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize(
  ('size', 'channels', 'groups', 'dtype', 'expected'),
  [
    (1, 8, 1, 'float32', True),
    (1, 8, 1, 'float64', True),
    (3, 8, 8, 'float32', False),
    (1, 8, 8, 'float32', False),
    (3, 8, 1, 'float32', False),
    (1, 8, 2, 'float32', False),
    (1, 8, 1, 'bfloat16', False),
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
    4,
    6,
    1,
    epsilon=1e-3,
    momentum=0.1,
    rngs=Rngs(jax.random.key(0)),
    **options,
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
    (Mode(train=True, norm_train=True), Other, 'apart'),
  ],
)
def test_only_a_frozen_norm_in_training(mode, kind, expected, monkeypatch):
  calls = []

  def noted(*args):
    calls.append(args)
    return scaled_pointwise(*args)

  monkeypatch.setattr(core, 'scaled_pointwise', noted)
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


@pytest.mark.parametrize(
  ('padding', 'expected'),
  [
    ('symmetric', (2, 6, 5, 6)),
    ('same', (2, 6, 5, 6)),
    (0, (2, 6, 5, 6)),
    (1, (2, 8, 7, 6)),
  ],
)
def test_padding_of_a_module_is_kept(padding, expected):
  module = make(padding=padding)
  for mode in (FROZEN, core.EVAL):
    assert module(jnp.ones((2, 6, 5, 4)), mode).shape == expected
