"""Rounding to int8 and back: onnxruntime's numbers, and their gradients."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.models.layers import convolutions, fake_quant

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'quantization'
# By tests/fixtures/make_onnxruntime.py.
GOLDEN = json.loads((FIXTURES / 'onnxruntime.json').read_text())


@pytest.mark.parametrize('case', GOLDEN['activations'])
def test_activations_are_rounded_as_onnxruntime_does(case):
  """Halves, the ends of the range, beyond them, a tensor of zeros."""
  bounds = jnp.asarray([case['low'], case['high']], jnp.float32)
  scale, zero_point = fake_quant.grid(bounds)
  np.testing.assert_allclose(scale, case['scale'], rtol=2e-7)
  assert zero_point == case['zero_point']
  x = np.asarray(case['x'], np.float32)
  y = fake_quant.fake_quantize(
    x, np.float32(case['scale']), case['zero_point'], 0, 255
  )
  np.testing.assert_array_equal(y, np.asarray(case['y'], np.float32))
  whole = np.rint(np.asarray(y) / np.float32(case['scale']))
  np.testing.assert_array_equal(whole + case['zero_point'], case['q'])


@pytest.mark.parametrize('case', GOLDEN['weights'])
def test_weights_are_rounded_as_onnxruntime_does(case):
  x = np.asarray(case['x'], np.float32).reshape(case['shape'])
  scale = fake_quant.weight_scale(x, None, jnp.float32(1.0))
  np.testing.assert_allclose(scale, case['scale'], rtol=2e-7)
  y, bias = fake_quant.weights(x, None, jnp.float32(1.0))
  assert bias is None
  expected = np.asarray(case['y'], np.float32).reshape(case['shape'])
  np.testing.assert_allclose(y, expected, rtol=3e-7)
  whole = np.rint(np.asarray(y) / np.asarray(case['scale'], np.float32))
  np.testing.assert_array_equal(whole.ravel(), case['q'])


def test_half_goes_to_the_even_neighbour():
  x = np.asarray([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
  y = fake_quant.fake_quantize(x, 1.0, 10.0, 0, 255)
  np.testing.assert_array_equal(y, [0.0, 2.0, 2.0, 0.0, -2.0])


def test_a_number_on_the_grid_stays():
  bounds = jnp.asarray([-1.7, 4.1], jnp.float32)
  once = fake_quant.activation(jnp.linspace(-3.0, 6.0, 1001), bounds)
  np.testing.assert_array_equal(once, fake_quant.activation(once, bounds))
  assert np.unique(once).size == 256


@pytest.mark.parametrize(
  ('x', 'slope'),
  [(-1.1, 0.0), (-0.5, 1.0), (0.0, 1.0), (0.52, 1.0), (1.9, 1.0), (2.3, 0.0)],
)
def test_gradients_go_through_inside_of_the_range(x, slope):
  bounds = jnp.asarray([-1.0, 2.0])

  def value(x, bounds):
    return 3.0 * fake_quant.activation(x, bounds)

  found = jax.grad(value, argnums=(0, 1))(jnp.float32(x), bounds)
  assert found[0] == 3.0 * slope
  np.testing.assert_array_equal(found[1], 0.0)


def test_gradients_of_weights_go_through_all_of_them():
  """The largest of each channel is the end of its range."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
  bias = rng.normal(size=4).astype(np.float32)
  slopes = rng.normal(size=kernel.shape).astype(np.float32)

  def value(kernel, bias):
    whole = fake_quant.weights(kernel, bias, jnp.float32(0.1))
    return jnp.sum(slopes * whole[0]) + whole[1].sum()

  found = jax.grad(value, argnums=(0, 1))(kernel, bias)
  np.testing.assert_array_equal(found[0], slopes)
  np.testing.assert_array_equal(found[1], np.ones(4))


def test_a_bias_has_the_scale_of_input_times_weight():
  kernel = np.asarray([[1.27, -0.254]], np.float32)
  bias = np.asarray([0.12345, -7.7], np.float32)
  _, whole = fake_quant.weights(kernel, bias, jnp.float32(0.5))
  unit = np.asarray([0.005, 0.001])
  np.testing.assert_allclose(whole, np.rint(bias / unit) * unit, rtol=1e-6)


@pytest.mark.parametrize('kernel', [0.0, 1e-12, 1e-30])
def test_a_bias_beside_a_kernel_of_almost_0_fits_int32(kernel):
  """As BatchNorms of dead channels leave them; the kernel gives way."""
  kernel = np.full((1, 1, 4, 1), kernel, np.float32)
  bias, step = np.asarray([2.0], np.float32), jnp.float32(0.02)
  scale = fake_quant.weight_scale(kernel, bias, step)
  assert abs(float(bias[0] / (scale[0] * step))) < 2**31
  whole = fake_quant.weights(kernel, bias, step)
  assert np.isfinite(whole[0]).all()
  np.testing.assert_allclose(whole[1], bias, rtol=1e-2)


@pytest.mark.parametrize('groups', [1, 6])
def test_the_forms_of_a_convolution_agree_on_rounded_numbers(groups):
  """Depthwise ones are shifted sums on CPU, others products or Winograd's."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 7, 7, 6)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 6 // groups, 6)).astype(np.float32)
  bounds = jnp.asarray([-2.0, 2.0], jnp.float32)

  def value(x, kernel):
    whole = fake_quant.activation(x, bounds)
    rounded, _ = fake_quant.weights(kernel, None, fake_quant.grid(bounds)[0])
    y = convolutions.conv2d(
      whole, rounded, padding=((1, 1), (1, 1)), groups=groups
    )
    return jnp.sum(jnp.square(y)), y

  # Compiled separately inside and outside of the context.
  both = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))
  ours = both(x, kernel)
  with convolutions.lax_convolutions():
    plain = both(x, kernel)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    ours,
    plain,
  )
