"""Random numbers of a network: its first weights, and what dropout keeps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


class Rngs:
  """The keys of one stream of `nnx.Rngs`, counted by Python.

  In tracing nnx counts in an array: more of a trace than the keys themselves,
  and for every key a walk through all that was traced before it.
  """

  def __init__(self, key: Array | None):
    """From a typed PRNG key; without one there are shapes alone."""
    self._key = key
    self._count = 0

  def next(self) -> Array:
    """A key that was not given before.

    Raises:
      ValueError: there are shapes alone.
    """
    if self._key is None:
      raise ValueError('a structure without a key has no random numbers')
    key = jax.random.fold_in(self._key, self._count)
    self._count += 1
    return key

  def draw(
    self,
    initializer: Callable[[Array, tuple[int, ...]], Array],
    shape: tuple[int, ...],
  ) -> Array:
    """Values of that shape; zeros where shapes alone are asked for."""
    if self._key is None:
      return jnp.zeros(shape)
    return initializer(self.next(), shape)
