"""Layers against their formulas, and what a `Mode` switches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tlkd_jax import models
from tlkd_jax.losses.stages import average_pool
from tlkd_jax.models import create_model
from tlkd_jax.models.families import densenet, inverted, regnet, resnet, vgg
from tlkd_jax.models.families.inverted import Row
from tlkd_jax.models.functional import to_functional
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import EVAL, BatchNorm, Mode
from tlkd_jax.models.spec import ModelSpec

RNG = np.random.default_rng(0)
TRAIN = Mode(norm_train=True)


def rngs(seed=0):
  return layers.Rngs(jax.random.key(seed))


def batch_norm(channels=3, *, momentum=0.1):
  norm = BatchNorm(channels, epsilon=1e-2, momentum=momentum)
  for variable, value in (
    (norm.scale, RNG.normal(1, 0.1, channels)),
    (norm.bias, RNG.normal(0, 1, channels)),
    (norm.mean, RNG.normal(0, 1, channels)),
    (norm.var, RNG.uniform(1, 2, channels)),
  ):
    variable[...] = jnp.asarray(value, jnp.float32)
  return norm


def normalized(norm, x, mean, var):
  scale = np.asarray(norm.scale[...]) / np.sqrt(var + norm.epsilon)
  return (x - mean) * scale + np.asarray(norm.bias[...])


# --- BatchNorm ---


@pytest.mark.parametrize('shape', [(4, 5, 2, 3), (7, 3)])
def test_batch_norm_in_training_uses_and_accumulates_the_batch(shape):
  norm = batch_norm(momentum=0.3)
  old_mean, old_var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
  x = RNG.normal(5, 2, shape).astype(np.float32)
  y = norm(jnp.asarray(x), TRAIN)
  flat = x.reshape(-1, shape[-1]).astype(np.float64)
  mean, var = flat.mean(0), flat.var(0)
  np.testing.assert_allclose(y, normalized(norm, x, mean, var), atol=1e-5)
  # The running variance takes the unbiased variance, as torch's.
  expected = 0.7 * old_var + 0.3 * flat.var(0, ddof=1)
  np.testing.assert_allclose(norm.mean[...], 0.7 * old_mean + 0.3 * mean, 1e-5)
  np.testing.assert_allclose(norm.var[...], expected, 1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics_unchanged():
  norm = batch_norm()
  mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
  x = RNG.normal(5, 2, (4, 5, 2, 3)).astype(np.float32)
  y = norm(jnp.asarray(x), Mode(train=True))
  np.testing.assert_allclose(y, normalized(norm, x, mean, var), atol=1e-5)
  np.testing.assert_array_equal(norm.mean[...], mean)
  np.testing.assert_array_equal(norm.var[...], var)


def test_batch_norm_of_a_single_value_keeps_finite_statistics():
  norm = batch_norm()
  norm(jnp.ones((1, 3)), TRAIN)
  assert np.isfinite(norm.var[...]).all()


def test_no_gradient_flows_through_the_running_statistics():
  norm = batch_norm()

  def running(x):
    graphdef, state = nnx.split(norm)
    copy = nnx.merge(graphdef, state, copy=True)
    copy(x, TRAIN)
    return copy.mean[...].sum() + copy.var[...].sum()

  grad = jax.grad(running)(jnp.ones((4, 3)) * jnp.arange(4.0)[:, None])
  np.testing.assert_array_equal(grad, 0)


def test_statistics_of_a_bfloat16_batch_are_those_of_float32():
  x = jnp.asarray(RNG.normal(20, 1, (64, 8, 3)), jnp.bfloat16)
  half = batch_norm()
  state = nnx.state(half)
  single = nnx.merge(nnx.graphdef(half), jax.tree.map(jnp.copy, state))
  y = half(x, TRAIN)
  single(x.astype(jnp.float32), TRAIN)
  assert y.dtype == jnp.bfloat16
  assert half.mean[...].dtype == half.var[...].dtype == jnp.float32
  np.testing.assert_array_equal(half.mean[...], single.mean[...])
  np.testing.assert_array_equal(half.var[...], single.var[...])


# --- Activations ---


def test_relu6_and_its_gradient_at_and_between_the_bends():
  x = jnp.asarray([-jnp.inf, -1.0, 0.0, 2.5, 6.0, 7.0, jnp.nan])
  y, tangent = jax.jvp(layers.ACTIVATIONS['relu6'], (x,), (2 * jnp.ones(7),))
  np.testing.assert_array_equal(y, [0, 0, 0, 2.5, 6, 6, np.nan])
  np.testing.assert_array_equal(tangent, [0, 0, 0, 2, 0, 0, 0])
  half = x.astype(jnp.bfloat16)
  grad = jax.grad(
    lambda x: layers.ACTIVATIONS['relu6'](x).astype(jnp.float32).sum()
  )(half)
  assert grad.dtype == jnp.bfloat16
  np.testing.assert_array_equal(grad, [0, 0, 0, 1, 0, 0, 0])


# --- Dropout and drop-path ---


@pytest.mark.parametrize('drop', [layers.dropout, layers.drop_path])
@pytest.mark.parametrize('mode', [EVAL, TRAIN, Mode(train=True)])
def test_dropping_is_the_identity_in_evaluation_and_at_rate_zero(drop, mode):
  x = jnp.ones((4, 3))
  # No mode here has a key: the random path would raise.
  rate = 0.0 if mode.train else 0.5
  assert drop(x, rate, mode) is x


@pytest.mark.parametrize('drop', [layers.dropout, layers.drop_path])
def test_dropping_without_a_key_is_an_error(drop):
  with pytest.raises(ValueError, match='key'):
    drop(jnp.ones((4, 3)), 0.5, Mode(train=True))


def test_dropout_keeps_the_expectation_and_zeroes_single_values():
  x = jnp.full((1000, 50), 3.0)
  y = np.asarray(layers.dropout(x, 0.2, Mode(train=True, rngs=rngs())))
  assert set(np.unique(y)) == {0.0, np.float32(3.0) / np.float32(0.8)}
  # Five standard errors of a share of 0.2 among 50,000.
  assert abs((y == 0).mean() - 0.2) < 5 * (0.2 * 0.8 / y.size) ** 0.5
  assert abs(y.mean() - 3.0) < 5 * 3.75 * (0.2 * 0.8 / y.size) ** 0.5
  assert 0 < (y[0] == 0).sum() < 50


def test_drop_path_keeps_the_expectation_and_zeroes_whole_examples():
  x = jnp.full((4000, 2, 3), 3.0)
  y = np.asarray(layers.drop_path(x, 0.2, Mode(train=True, rngs=rngs())))
  dropped = (y == 0).all((1, 2))
  np.testing.assert_allclose(y[~dropped], 3.0 / 0.8, rtol=1e-6)
  assert abs(dropped.mean() - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5


def test_consecutive_calls_drop_different_values():
  x, mode = jnp.ones((8, 64)), Mode(train=True, rngs=rngs())
  first = layers.dropout(x, 0.5, mode)
  assert (first != layers.dropout(x, 0.5, mode)).any()
  again = Mode(train=True, rngs=rngs())
  np.testing.assert_array_equal(first, layers.dropout(x, 0.5, again))


# --- Pooling ---


def windows(x, size, stride):
  """Every window of x [H, W], as rows of rows."""
  rows = range(0, x.shape[0] - size + 1, stride)
  columns = range(0, x.shape[1] - size + 1, stride)
  return [[x[i : i + size, j : j + size] for j in columns] for i in rows]


@pytest.mark.parametrize('hw', [(6, 7), (7, 6)])
def test_max_pool_never_takes_padding(hw):
  x = -1 - RNG.random(hw).astype(np.float32)
  padded = np.pad(x, 1, constant_values=-np.inf)
  expected = [[w.max() for w in row] for row in windows(padded, 3, 2)]
  got = pooling.max_pool(jnp.asarray(x)[None, :, :, None], 3, 2, 1)
  np.testing.assert_array_equal(got[0, :, :, 0], expected)


@pytest.mark.parametrize('hw', [(6, 7), (7, 8)])
@pytest.mark.parametrize('sizes', [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0)])
def test_gradient_of_max_pool_goes_to_the_largest(hw, sizes):
  size, stride, padding = sizes
  x = jnp.asarray(RNG.normal(size=(2, *hw, 3)), jnp.float32)

  def by_lax(x):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, window, strides, pads
    )

  shape = jax.eval_shape(by_lax, x).shape
  dy = jnp.asarray(RNG.normal(size=shape), jnp.float32)

  @jax.jit
  def both(x, dy):
    y, pullback = jax.vjp(lambda x: pooling.max_pool(x, *sizes), x)
    expected, reference = jax.vjp(by_lax, x)
    return (y, *pullback(dy)), (expected, *reference(dy))

  (y, dx), (expected, reference) = both(x, dy)
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_allclose(dx, reference, atol=1e-6)


def test_first_of_tied_maxima_takes_the_gradient():
  x = jnp.ones((1, 4, 4, 1))
  dx = jax.jit(jax.grad(lambda x: pooling.max_pool(x, 3, 2, 1).sum()))(x)
  expected = np.zeros((4, 4))
  # First pixels of the windows: rows and columns 0 (of two windows) and 1.
  expected[0, 0] = expected[0, 1] = expected[1, 0] = expected[1, 1] = 1
  np.testing.assert_array_equal(dx[0, :, :, 0], expected)


def test_max_pool_keeps_nan():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1].set(jnp.nan)
  assert np.isnan(pooling.max_pool(x, 2, 2)).sum() == 1


def test_avg_pool_leaves_out_what_fills_no_window():
  x = RNG.random((5, 7)).astype(np.float32)
  expected = [[w.mean() for w in row] for row in windows(x, 2, 2)]
  got = pooling.avg_pool(jnp.asarray(x)[None, :, :, None], 2, 2)
  np.testing.assert_allclose(got[0, :, :, 0], expected, rtol=1e-6)


def test_avg_pool_with_ceil_averages_what_the_last_window_covers():
  x = RNG.random((5, 4)).astype(np.float32)
  padded = np.pad(x, ((0, 1), (0, 0)), constant_values=np.nan)
  expected = [[np.nanmean(w) for w in row] for row in windows(padded, 2, 2)]
  got = pooling.avg_pool(jnp.asarray(x)[None, :, :, None], 2, 2, ceil=True)
  np.testing.assert_allclose(got[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('hw', [(7, 7), (14, 7), (10, 3), (1, 16)])
def test_adaptive_pool_averages_overlapping_cells(hw):
  x = RNG.random(hw).astype(np.float32)
  expected = np.empty((7, 7))
  for i, j in itertools.product(range(7), range(7)):
    top, bottom = i * hw[0] // 7, -(-(i + 1) * hw[0] // 7)
    left, right = j * hw[1] // 7, -(-(j + 1) * hw[1] // 7)
    expected[i, j] = x[top:bottom, left:right].mean()
  got = average_pool(jnp.asarray(x)[None, :, :, None], (7, 7))
  np.testing.assert_allclose(got[0, :, :, 0], expected, rtol=1e-5)
  half = jnp.asarray(x, jnp.bfloat16)[None, :, :, None]
  assert average_pool(half, (7, 7)).dtype == jnp.bfloat16


def test_random_numbers_are_those_of_nnx():
  ours, theirs = rngs(3), nnx.Rngs(params=3)
  for _ in range(3):
    data = (jax.random.key_data(k) for k in (ours.next(), theirs.params()))
    np.testing.assert_array_equal(*data)


def test_a_structure_draws_nothing():
  structure = layers.Rngs(None)
  drawn = structure.draw(nnx.initializers.normal(), (2, 3))
  np.testing.assert_array_equal(drawn, np.zeros((2, 3)))
  with pytest.raises(ValueError, match='no random numbers'):
    structure.next()


@pytest.mark.parametrize(
  'name', ['timm/mobileone_s0', 'timm/vit_tiny_patch16_224']
)
def test_a_structure_has_the_shapes_of_what_is_drawn(name):
  model = create_model(name, num_classes=3)
  drawn = jax.eval_shape(model.init, jax.random.key(0))
  assert drawn == (model.params_shape, model.model_state_shape)


def test_a_map_below_the_window_is_an_error():
  with pytest.raises(ValueError, match='1x4 map is too small'):
    pooling.avg_pool(jnp.ones((1, 1, 4, 2)), 2, 2)


# --- Mode and dtype of whole models ---

_ROWS = ((Row(3, 2, 1, 8, 2, 0.5),), (Row(3, 1, 2, 8, 2, fused=True),))
_INVERTED = inverted.Design(inverted.scale(_ROWS, 8), 8, 16, 0.5, 'relu6', 8)
# The smallest network of every family.
BUILDERS = {
  'densenet': (densenet.DenseNet, densenet.Design((1, 1, 1, 1), 4, 8)),
  'inverted': (inverted.InvertedResidualNet, _INVERTED),
  'regnet': (regnet.RegNet, regnet.Design((8, 8, 8, 8), (1, 1, 1, 1), 4, 0.5)),
  'resnet': (resnet.ResNet, resnet.Design((1, 1, 1, 1), deep=True)),
  'vgg': (vgg.VGG, vgg.Design(((4,), (4,)), norm=True)),
}


def smallest(family, **options):
  network, design = BUILDERS[family]
  spec = ModelSpec(functools.partial(network, design), 32, dict)
  return to_functional(family, spec, 5, **options)


@pytest.fixture(scope='module')
def small():
  """A model with BatchNorm, dropout, drop-path and squeeze-excite."""
  model = smallest('inverted', drop_path=0.5)
  # Drawn by numpy: compiling an initialiser for every shape takes longer.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype),
    model.params_shape,
  )
  model_state = jax.tree.map(
    lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype),
    model.model_state_shape,
  )
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))

  @jax.jit
  def apply(images, key):
    keywords = {
      'eval': {},
      'norm': {'norm_train': True},
      'train': {'train': True, 'key': key},
    }
    return {
      name: model.apply(params, model_state, images, **mode)
      for name, mode in keywords.items()
    }

  return apply, images, model_state


def assert_trees(equal, a, b):
  same = jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
  assert all(jax.tree.leaves(same)) == equal


def test_train_and_norm_train_are_independent(small):
  apply, images, model_state = small
  outputs = apply(images, jax.random.key(0))
  assert_trees(True, outputs['eval'][1], model_state)
  assert_trees(True, outputs['train'][1], model_state)
  updated = outputs['norm'][1]
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), updated, model_state
  )
  assert all(jax.tree.leaves(changed))
  logits = {name: out['logits'] for name, (out, _) in outputs.items()}
  assert (logits['eval'] != logits['norm']).any()
  assert (logits['eval'] != logits['train']).any()


def test_only_training_depends_on_the_key(small):
  apply, images, _ = small
  first, second = (apply(images, jax.random.key(i)) for i in (0, 1))
  for name in ('eval', 'norm'):
    assert_trees(True, first[name], second[name])
  logits = [out['train'][0]['logits'] for out in (first, second)]
  assert (logits[0] != logits[1]).any()


def test_evaluation_does_not_mix_examples(small):
  apply, images, _ = small
  changed = images.at[0].set(0.0)
  first, second = (apply(x, jax.random.key(0)) for x in (images, changed))
  logits = [out['eval'][0]['logits'] for out in (first, second)]
  np.testing.assert_allclose(logits[0][1:], logits[1][1:], atol=1e-6)
  assert (logits[0][0] != logits[1][0]).any()
  logits = [out['norm'][0]['logits'] for out in (first, second)]
  assert np.abs(logits[0][1:] - logits[1][1:]).max() > 1e-5


@pytest.mark.parametrize('family', BUILDERS)
def test_bfloat16_stays_until_the_logits(family):
  model = smallest(family)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.bfloat16)
  for norm_train in (False, True):
    outputs, model_state = jax.eval_shape(
      functools.partial(model.apply, norm_train=norm_train),
      model.params_shape,
      model.model_state_shape,
      images,
    )
    assert outputs['logits'].dtype == jnp.float32
    assert outputs['pre_logits'].dtype == jnp.bfloat16
    for feature in outputs['features'].values():
      assert feature.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(model_state):
      assert leaf.dtype == jnp.float32


@pytest.mark.parametrize('family', ['densenet', 'vgg'])
def test_drop_path_without_residual_branches_is_an_error(family):
  with pytest.raises(ValueError, match='no residual branch'):
    smallest(family, drop_path=0.1)


# --- Parameters ---


@pytest.mark.parametrize(
  'name',
  ['convnext_atto', 'deit3_small_patch16_224', 'mobilenet_v3_small', 'resnet18']
  + ['densenet121', 'vgg11_bn', 'regnet_y_400mf', 'efficientnet_lite0'],
)
def test_no_parameter_is_weakly_typed(name):
  # The update would make it a strong one, and the step compile again.
  model = models.create_model(name, num_classes=3)
  start = jax.eval_shape(model.init, jax.random.key(0))
  assert not [leaf for leaf in jax.tree.leaves(start) if leaf.weak_type]
