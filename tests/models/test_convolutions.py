import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tlkd_jax.models.layers.convolutions import (
  conv2d,
  lax_convolutions,
  same_padding,
)

# name: x shape, kernel shape, stride, groups, padding (None: dynamic SAME)
CASES = {
  'depthwise3': ((2, 9, 6, 5), (3, 3, 1, 5), (1, 1), 5, None),
  'depthwise3_stride2_odd': ((2, 9, 7, 5), (3, 3, 1, 5), (2, 2), 5, None),
  'depthwise3_stride2_even': ((2, 8, 6, 5), (3, 3, 1, 5), (2, 2), 5, None),
  'depthwise5': ((1, 7, 8, 4), (5, 5, 1, 4), (1, 1), 4, None),
  'depthwise5_stride2': ((1, 8, 11, 4), (5, 5, 1, 4), (2, 2), 4, None),
  'depthwise5_small': ((2, 2, 1, 4), (5, 5, 1, 4), (2, 2), 4, None),
  'depthwise7': ((8, 8, 9, 4), (7, 7, 1, 4), (1, 1), 4, ((3, 3), (3, 3))),
  'depthwise_unpadded': (
    (2, 8, 9, 3),
    (3, 3, 1, 3),
    (2, 2),
    3,
    ((0, 0), (0, 0)),
  ),
  'depthwise_lopsided': (
    (2, 8, 9, 3),
    (3, 5, 1, 3),
    (1, 2),
    3,
    ((4, 0), (1, 3)),
  ),
  'depthwise_stride3': ((2, 10, 8, 3), (2, 4, 1, 3), (3, 3), 3, None),
  'depthwise_wide': ((2, 5, 6, 70), (3, 3, 1, 70), (1, 1), 70, None),
  'depthwise_multiplier': ((2, 6, 7, 3), (3, 3, 1, 6), (2, 2), 3, None),
  'pointwise': ((2, 5, 4, 6), (1, 1, 6, 7), (1, 1), 1, None),
  'pointwise_stride2': ((2, 5, 4, 6), (1, 1, 6, 7), (2, 2), 1, None),
  'pointwise_padded': ((2, 5, 4, 6), (1, 1, 6, 7), (2, 2), 1, ((1, 0), (0, 1))),
  'stem': ((2, 9, 8, 3), (3, 3, 3, 8), (2, 2), 1, None),
  'patches': ((2, 9, 8, 3), (4, 2, 3, 5), (4, 2), 1, ((0, 0), (0, 0))),
  'thin_stride1': ((2, 5, 6, 4), (3, 2, 4, 5), (1, 1), 1, None),
  'grouped_many': ((2, 4, 5, 96), (3, 3, 8, 24), (1, 1), 12, None),
  'grouped_uneven': ((2, 4, 3, 40), (3, 3, 8, 10), (1, 1), 5, None),
  'grouped_wide': ((2, 4, 3, 80), (3, 3, 40, 4), (1, 1), 2, None),
  'grouped_pointwise': ((2, 4, 5, 96), (1, 1, 8, 24), (1, 1), 12, None),
  'dense3': ((1, 6, 7, 4), (3, 3, 4, 5), (1, 1), 1, ((1, 1), (1, 1))),
  'dense3_wide': ((2, 8, 7, 6), (3, 3, 6, 5), (1, 1), 1, ((1, 1), (1, 1))),
  'dense3_unpadded': ((4, 7, 6, 5), (3, 3, 5, 3), (1, 1), 1, ((0, 0), (0, 0))),
  'dense3_lopsided': ((2, 5, 8, 6), (3, 3, 6, 4), (1, 1), 1, ((2, 0), (0, 1))),
  'dense3_far': ((2, 5, 8, 6), (3, 3, 6, 4), (1, 1), 1, ((3, 0), (0, 1))),
  'dense3_one_row': ((2, 1, 6, 6), (3, 3, 6, 4), (1, 1), 1, ((1, 1), (1, 1))),
  'dense3_stride2': ((2, 7, 6, 4), (3, 3, 4, 5), (2, 2), 1, ((1, 1), (1, 1))),
  'dense2_stride3': ((2, 8, 9, 6), (2, 2, 6, 4), (3, 3), 1, ((0, 0), (1, 0))),
  'dense3_stride2_wide': ((4, 8, 9, 6), (3, 3, 6, 5), (2, 2), 1, None),
  'grouped': ((2, 6, 5, 8), (3, 3, 4, 6), (1, 1), 2, ((1, 1), (1, 1))),
  'grouped_stride2': ((2, 6, 5, 8), (3, 3, 4, 6), (2, 2), 2, ((1, 1), (1, 1))),
}
RTOL = {'float64': 1e-12, 'float32': 1e-5, 'bfloat16': 3e-2}


def _inputs(case, dtype):
  x_shape, k_shape, stride, groups, padding = CASES[case]
  if padding is None:
    padding = same_padding(x_shape[1:3], k_shape[:2], stride)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=x_shape), dtype)
  kernel = jnp.asarray(rng.normal(size=k_shape), dtype)
  f = functools.partial(conv2d, stride=stride, padding=padding, groups=groups)
  return f, x, kernel


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(f, x, kernel):
  y, pullback = jax.vjp(f, x, kernel)
  # Halves: exact in every dtype.
  weights = (jnp.arange(y.size) % 5 / 2 - 1).reshape(y.shape)
  return y, *pullback(weights.astype(y.dtype))


def _assert_close(actual, expected, rtol):
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=rtol * np.abs(expected).max()
  )


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_lax_in_float64(case):
  with jax.enable_x64(True), lax_convolutions():
    expected = _value_and_gradients(*_inputs(case, 'float64'))
  for dtype in ('float64', 'float32'):
    with jax.enable_x64(dtype == 'float64'):
      actual = _value_and_gradients(*_inputs(case, dtype))
    for a, e in zip(actual, expected, strict=True):
      assert a.dtype == dtype
      _assert_close(a, e, RTOL[dtype])


@pytest.mark.parametrize(
  'case', ['depthwise5', 'pointwise', 'stem', 'grouped', 'patches']
)
def test_bfloat16_is_close_to_float32(case):
  f, x, kernel = _inputs(case, 'bfloat16')
  actual = _value_and_gradients(f, x, kernel)
  with lax_convolutions():
    expected = _value_and_gradients(
      f, x.astype('float32'), kernel.astype('float32')
    )
  for a, e in zip(actual, expected, strict=True):
    assert a.dtype == 'bfloat16'
    _assert_close(a, e, RTOL['bfloat16'])


def test_lax_context_selects_the_primitive():
  f, x, kernel = _inputs('depthwise3', 'float32')
  assert 'conv_general_dilated' not in str(jax.make_jaxpr(f)(x, kernel))
  with lax_convolutions():
    assert 'conv_general_dilated' in str(jax.make_jaxpr(f)(x, kernel))


@pytest.mark.parametrize(
  'case',
  [
    'depthwise3',
    'depthwise3_stride2_odd',
    'pointwise',
    'stem',
    'dense3',
    'dense3_wide',
    'dense3_stride2_wide',
    'patches',
    'grouped',
    'grouped_many',
  ],
)
def test_sharded_batch_stays_on_its_device(case):
  f, x, kernel = _inputs(case, 'float32')
  x = jnp.concatenate([x, 2 * x, 3 * x, 4 * x])
  expected = _value_and_gradients(f, x, kernel)
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
  compiled = _value_and_gradients.lower(f, sharded, kernel).compile()
  actual = compiled(sharded, kernel)
  for a, e in zip(actual, expected, strict=True):
    _assert_close(a, e, 1e-6)
  assert actual[0].sharding.spec[0] == 'data'
  text = compiled.as_text()
  assert 'all-reduce' in text
  for collective in ('all-gather', 'all-to-all', 'collective-permute'):
    assert collective not in text


@pytest.mark.parametrize('size', range(1, 9))
@pytest.mark.parametrize('kernel', [1, 3, 5])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_same_padding_is_that_of_lax(size, kernel, stride):
  expected = jax.lax.padtype_to_pads(
    (size, 2 * size), (kernel, kernel), (stride, stride), 'SAME'
  )
  pads = same_padding((size, 2 * size), (kernel, kernel), (stride, stride))
  assert pads == tuple(tuple(p) for p in expected)


@pytest.mark.parametrize(
  ('x_shape', 'kernel_shape', 'groups', 'message'),
  [
    ((4, 4, 3), (3, 3, 3, 8), 1, 'needs x'),
    ((1, 4, 4, 3), (3, 3, 4, 8), 1, '3 input channels'),
    ((1, 4, 4, 4), (3, 3, 2, 7), 2, '2 groups'),
  ],
)
def test_shapes_that_do_not_fit(x_shape, kernel_shape, groups, message):
  with pytest.raises(ValueError, match=message):
    conv2d(jnp.zeros(x_shape), jnp.zeros(kernel_shape), groups=groups)


def test_dtypes_that_differ():
  with pytest.raises(ValueError, match='bfloat16'):
    conv2d(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 3, 8), jnp.bfloat16))
