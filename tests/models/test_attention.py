import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tlkd_jax.models.layers import attention as layer
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


def many(key_heads=4, tokens=13):
  rng = np.random.default_rng(2)
  shapes = (2, tokens, 4, 8), (2, 7, key_heads, 8), (2, 7, key_heads, 8)
  return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize('tokens', [12, 13])
@pytest.mark.parametrize('bias_rows', [None, 1, 'own'])
@pytest.mark.parametrize('key_heads', [4, 1])
def test_in_blocks_it_is_the_same(key_heads, bias_rows, tokens, monkeypatch):
  """Values and gradients of all that goes in, in double precision."""
  with jax.enable_x64(True):
    inputs = many(key_heads, tokens)
    if bias_rows is not None:
      rows = tokens if bias_rows == 'own' else 1
      draw = np.random.default_rng(3).normal(size=(1, 4, rows, 7))
      inputs.append(jnp.asarray(draw))
    weights = np.random.default_rng(4).normal(size=inputs[0].shape)

    def said(*inputs):
      *others, bias = (*inputs, None)[:4]
      found = attention(*others, bias=bias)
      return (found * weights).sum(), found

    every = tuple(range(len(inputs)))
    # A function of its own for each form: the other's trace is not taken.
    forms = {}
    for most in (tokens, 4):
      monkeypatch.setattr(layer, '_MOST', most)
      monkeypatch.setattr(layer, '_BLOCK', 4)
      forms[most] = jax.grad(lambda *x: said(*x), every, has_aux=True)(*inputs)
    for whole, blocks in zip(
      *map(jax.tree.leaves, forms.values()), strict=True
    ):
      np.testing.assert_allclose(blocks, whole, rtol=1e-12, atol=1e-13)


def sizes(jaxpr) -> list[int]:
  """Of every array that a program makes, those inside of others too."""
  found = []
  for equation in jaxpr.eqns:
    found += [variable.aval.size for variable in equation.outvars]
    for inner in jaxprs_in_params(equation.params):
      found += sizes(inner)
  return found


@pytest.mark.parametrize('tokens', [1025, 2048])
def test_in_blocks_no_array_has_the_size_of_the_square(tokens):
  """Neither forward nor, with what is kept for it, backward."""
  shape = jax.ShapeDtypeStruct((2, tokens, 3, 8), jnp.float32)
  square = 2 * 3 * tokens**2

  def loss(*inputs):
    return attention(*inputs).sum()

  for compute in (loss, jax.grad(loss, (0, 1, 2))):
    made = sizes(jax.make_jaxpr(compute)(shape, shape, shape).jaxpr)
    assert max(made) <= 2 * 3 * 512 * tokens < square
  few = jax.ShapeDtypeStruct((2, 1024, 3, 8), jnp.float32)
  made = sizes(jax.make_jaxpr(loss)(few, few, few).jaxpr)
  assert max(made) == 2 * 3 * 1024**2
