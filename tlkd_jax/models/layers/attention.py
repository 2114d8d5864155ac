"""Dot-product attention (Vaswani et al. 2017, arXiv 1706.03762)."""

import jax
import jax.numpy as jnp

# More queries than these are taken so many at a time, see `_in_blocks`.
_MOST = 1024
_BLOCK = 512


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None = None,
  scale: float | None = None,
) -> jax.Array:
  """softmax(scale * query key^T + bias) value, for each head.

  On CPU more than 1024 queries are taken in blocks of 512; elsewhere it is
  `jax.nn.dot_product_attention`, which XLA fuses where the device can.

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
  compute = _in_blocks if query.shape[1] > _MOST else _whole
  return compute(query * scale, key, value, bias)


def _whole(query, key, value, bias):
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  # In bfloat16 a softmax over hundreds of tokens loses too many digits.
  scores = scores.astype(jnp.promote_types(query.dtype, jnp.float32))
  scores = scores if bias is None else scores + bias.astype(scores.dtype)
  weights = jax.nn.softmax(scores).astype(query.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def _in_blocks(query, key, value, bias):
  """The same, some queries at a time, each with all keys.

  [heads, N, M] scores are never there at once: memory grows with the tokens
  and not with their square. The backward pass computes those of a block again.
  """
  own = bias is not None and bias.shape[2] > 1

  @jax.checkpoint
  def some(query, rows):
    return _whole(query, key, value, rows if own else bias)

  def split(x, axis):
    """[count, ..., _BLOCK, ...] of whole blocks along an axis, and the rest."""
    whole, rest = jnp.split(x, [x.shape[axis] // _BLOCK * _BLOCK], axis)
    shape = (*x.shape[:axis], -1, _BLOCK, *x.shape[axis + 1 :])
    return jnp.moveaxis(whole.reshape(shape), axis, 0), rest

  queries, last = split(query, 1)
  rows, last_rows = split(bias, 2) if own else (None, None)
  found = jax.lax.map(lambda block: some(*block), (queries, rows))
  found = jnp.moveaxis(found, 0, 1).reshape(
    query.shape[0], -1, *query.shape[2:]
  )
  if not last.shape[1]:
    return found
  return jnp.concatenate([found, some(last, last_rows)], axis=1)
