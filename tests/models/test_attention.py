import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.models.layers.attention import attention


def arrays(key_heads=4, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = (2, 5, 4, 8), (2, 7, key_heads, 8), (2, 7, key_heads, 8)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize('scale', [None, 0.3])
@pytest.mark.parametrize('bias_shape', [None, (1, 4, 5, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize('key_heads', [4, 1])
def test_it_is_the_attention_of_jax(key_heads, bias_shape, scale):
  inputs = arrays(key_heads)
  bias = None
  if bias_shape is not None:
    bias = jnp.asarray(np.random.default_rng(1).normal(size=bias_shape))
  full = None if bias is None else jnp.broadcast_to(bias, (2, 4, 5, 7))
  np.testing.assert_allclose(
    attention(*inputs, bias=bias, scale=scale),
    jax.nn.dot_product_attention(*inputs, bias=full, scale=scale),
    rtol=1e-5,
    atol=1e-6,
  )


def test_where_it_is_no_cpu_the_attention_of_jax_is_called(monkeypatch):
  def recorded(*arrays, **options):
    return arrays, options

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', recorded)
  expected = (1, 2, 3), {'bias': 4, 'scale': 5}
  assert attention(1, 2, 3, bias=4, scale=5) == expected


def test_bfloat16_is_kept_and_its_softmax_is_of_float32():
  inputs = arrays(dtype=jnp.bfloat16)
  assert attention(*inputs).dtype == jnp.bfloat16
  jaxpr = str(jax.make_jaxpr(attention)(*inputs))
  exponentials = [line for line in jaxpr.splitlines() if ' exp ' in line]
  assert exponentials
  assert all('f32' in line for line in exponentials)
