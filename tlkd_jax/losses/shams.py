"""Targets as sure of the label as a teacher's, that know nothing else.

A control: what a student gains under such targets it did not learn from the
teacher's knowledge of the classes. p(label) is the teacher's own of each image
and view; the rest of the probability is

  'uniform'   spread evenly over the other classes, as by label smoothing that
              differs from image to image
  'permuted'  the teacher's, each part at another class than the teacher's

Both give logits. 'permuted' moves the logits as they are, so that p(label) is
the teacher's at every temperature; with 'uniform' it is so at one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32

Array = jax.Array
# (logits [B, K], labels [B], temperature, what `drawn` gives) -> logits [B, K].
Sham = Callable[..., Array]

SHAMS = ('off', 'uniform', 'permuted')


def make(kind: str, num_classes: int) -> Sham | None:
  """The sham of a run, None where it is off.

  Args:
    kind: one of SHAMS.
    num_classes: K.

  Raises:
    ValueError: two classes, of which the rest is one: a sham of such a teacher
      is the teacher.
  """
  if kind == 'off':
    return None
  if num_classes < 3:
    raise ValueError(
      f'distillation.sham is {kind!r}, and of {num_classes} classes a sham is '
      'the teacher itself, as nothing but p(label) is said; accepted: off, or '
      'data with three classes'
    )
  return {'uniform': uniform, 'permuted': permuted}[kind]


def drawn(kind: str, num_classes: int, seed: int) -> dict[str, np.ndarray]:
  """What a sham is given by name beside the logits, which a seed draws.

  Not a part of the sham, so that runs of other seeds share their program.
  """
  if kind != 'permuted':
    return {}
  return {'following': draw_cycle(num_classes, seed)}


def uniform(logits: Array, labels: Array, temperature: Array | float) -> Array:
  """Logits of the same p(label) at a temperature, the others all equal.

  The label keeps its logit; each other one is
  T (log sum_{c != y} exp(z_c / T) - log(K - 1)).

  Args:
    logits: [B, K] of a teacher.
    labels: int [B] in 0..K-1.
    temperature: T.

  Returns:
    float32 [B, K].
  """
  logits = as_float32(logits, LOGIT_LIMIT)
  own = _is_label(logits, labels)
  others = jnp.where(own, -jnp.inf, logits / temperature)
  rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  rest = temperature * (rest - np.log(logits.shape[-1] - 1))
  return jnp.where(own, logits, rest)


def permuted(
  logits: Array,
  labels: Array,
  temperature: Array | float,
  *,
  following: np.ndarray | Array,
) -> Array:
  """The label keeps its logit; each other class has the one of another.

  Args:
    logits: [B, K] of a teacher.
    labels: int [B] in 0..K-1.
    temperature: not needed.
    following: from `draw_cycle`; a class has the logit of the one that follows
      it in the cycle without the label.

  Returns:
    float32 [B, K].
  """
  logits = as_float32(logits, LOGIT_LIMIT)
  after = jnp.asarray(following)
  source = jnp.broadcast_to(after, logits.shape)
  # Whoever is followed by the label is followed by the next one.
  source = jnp.where(source == labels[:, None], after[labels][:, None], source)
  moved = jnp.take_along_axis(logits, source, axis=-1)
  return jnp.where(_is_label(logits, labels), logits, moved)


def draw_cycle(num_classes: int, seed: int) -> np.ndarray:
  """The class that follows each in one cycle through all; int32 [K].

  Without any one class it is a cycle through the others, so that of three
  classes or more none stays in its place.
  """
  order = np.random.default_rng(seed).permutation(num_classes)
  following = np.empty(num_classes, np.int32)
  following[order] = np.roll(order, -1)
  return following


def _is_label(logits: Array, labels: Array) -> Array:
  return jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
