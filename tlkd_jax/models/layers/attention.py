"""Dot-product attention (Vaswani et al. 2017, arXiv 1706.03762)."""

import jax
import jax.numpy as jnp


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None = None,
  scale: float | None = None,
) -> jax.Array:
  """softmax(scale * query key^T + bias) value, for each head.

  Args:
    query: float [B, N, heads, d].
    key: [B, M, heads, d] of the same dtype; one head serves all.
    value: of the shape and dtype of key.
    bias: of rank 4, broadcastable to [B, heads, N, M]; None adds nothing.
    scale: of the products; None is 1 / sqrt(d).

  Returns:
    [B, N, heads, d] in the dtype of query.
  """
  if jax.default_backend() != 'cpu':
    return jax.nn.dot_product_attention(
      query, key, value, bias=bias, scale=scale
    )
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  shape = (*key.shape[:2], *query.shape[2:])
  key, value = jnp.broadcast_to(key, shape), jnp.broadcast_to(value, shape)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query * scale, key)
  # In bfloat16 a softmax over hundreds of tokens loses too many digits.
  scores = scores.astype(jnp.promote_types(query.dtype, jnp.float32))
  scores = scores if bias is None else scores + bias.astype(scores.dtype)
  weights = jax.nn.softmax(scores).astype(query.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)
