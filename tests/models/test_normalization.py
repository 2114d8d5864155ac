import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tlkd_jax.models.layers.normalization import batch_norm_train

EPSILON = 1e-3


def _plain(x, scale, bias, epsilon):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  mean4, var4, scale4, bias4 = (
    v[None, None, None] for v in (mean, var, scale, bias)
  )
  y = (x - mean4) * jax.lax.rsqrt(var4 + epsilon) * scale4 + bias4
  return y, mean, var


def _inputs(dtype, mean=0.0):
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(mean, 1.0, (4, 5, 3, 6)))
  weights = np.float32(rng.normal(size=x.shape))
  scale, bias = np.float32(rng.normal(size=(2, 6)))
  return [jnp.asarray(a, dtype) for a in (x, scale, bias, weights)]


@functools.partial(jax.jit, static_argnums=0)
def _run(f, x, scale, bias, weights):
  def loss(x, scale, bias):
    y, mean, var = f(x, scale, bias, EPSILON)
    return (y * weights).sum(), (y, mean, var)

  grads, outputs = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
  return *outputs, *grads


def _assert_close(actual, expected, tolerance):
  for a, e in zip(actual, expected, strict=True):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    atol = tolerance * np.abs(e).max()
    np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def _reference(mean=0.0):
  with jax.enable_x64(True):
    return _run(_plain, *_inputs('float64', mean))


def test_equals_autodiff_in_float64():
  expected = _reference()
  with jax.enable_x64(True):
    _assert_close(_run(batch_norm_train, *_inputs('float64')), expected, 1e-13)


# Centring by a float32 mean of size m leaves errors of about m * 6e-8.
@pytest.mark.parametrize(
  ('mean', 'tolerance'), [(0.0, 1e-6), (10.0, 5e-6), (100.0, 5e-5)]
)
def test_float32_with_a_large_mean(mean, tolerance):
  actual = _run(batch_norm_train, *_inputs('float32', mean))
  _assert_close(actual, _reference(mean), tolerance)


def test_bfloat16_keeps_float32_statistics():
  x, scale, bias, weights = _inputs('bfloat16')
  y, mean, var = batch_norm_train(
    x, scale.astype('float32'), bias.astype('float32'), EPSILON
  )
  assert (y.dtype, mean.dtype, var.dtype) == ('bfloat16', 'float32', 'float32')
  np.testing.assert_allclose(mean, np.float32(x).mean((0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(var, np.float32(x).var((0, 1, 2)), atol=1e-6)
  actual = _run(batch_norm_train, x, scale, bias, weights)
  _assert_close(actual, _reference(), 3e-2)


def test_constant_input_is_finite():
  x = jnp.full((2, 3, 3, 4), 7.0)
  ones = jnp.ones(4)
  outputs = _run(batch_norm_train, x, ones, 2 * ones, x)
  assert all(np.isfinite(o).all() for o in outputs)
  np.testing.assert_array_equal(outputs[0], 2.0)


def test_statistics_carry_no_gradient():
  x, scale, bias, _ = _inputs('float32')
  grad = jax.grad(lambda x: batch_norm_train(x, scale, bias, EPSILON)[2].sum())
  np.testing.assert_array_equal(grad(x), 0.0)


def test_statistics_of_a_sharded_batch_are_global():
  arguments = _inputs('float32')
  expected = _run(batch_norm_train, *arguments)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  specs = [PartitionSpec(*names) for names in (['data'], [], [], ['data'])]
  sharded = [
    jax.device_put(a, NamedSharding(mesh, spec))
    for a, spec in zip(arguments, specs, strict=True)
  ]
  compiled = _run.lower(batch_norm_train, *sharded).compile()
  _assert_close(compiled(*sharded), expected, 1e-6)
  assert 'all-gather' not in compiled.as_text()
