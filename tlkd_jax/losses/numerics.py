"""Float32 building blocks whose values and gradients are always finite.

Three causes of infinities recur in distillation losses: a norm at zero, a
square that leaves the range of float32, and the logarithm of a probability
that rounded to zero. Each has one remedy here; the losses use nothing else.
"""

import math

import jax
import jax.numpy as jnp

# Squares of saturated features, summed over a batch, stay below 3.4e38.
FEATURE_LIMIT = 1e14
# Logits enter losses linearly (after a log-softmax), so they may be larger.
LOGIT_LIMIT = 1e30

# Below this, reciprocals leave the range of float32.
_TINY = 1e-30

_HIGHEST = jax.lax.Precision.HIGHEST


def as_float32(x: jax.Array, limit: float = FEATURE_LIMIT) -> jax.Array:
  """Casts to float32 and saturates at +-limit.

  Beyond the limit the loss itself is not representable in float32; the
  gradient there is zero.

  Args:
    x: Floating array of any shape and precision.
    limit: Largest magnitude kept.

  Returns:
    float32 array of the same shape.
  """
  return jnp.clip(jnp.asarray(x, jnp.float32), -limit, limit)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """Matrix product in full float32 precision on every backend."""
  return jnp.matmul(a, b, precision=_HIGHEST)


def scaled_norm(
  x: jax.Array, axis: int | tuple[int, ...] = -1
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Splits x so that its Euclidean norm neither overflows nor loses its slope.

  Args:
    x: float32 array.
    axis: Axes of the vectors.

  Returns:
    (unit, norm, scale) with `x == unit * scale` and `|x| == norm * scale`;
    the last two keep `axis` with size one. A zero vector (no entry above
    1e-30) has norm 0 with a zero gradient, and scale 1. `scale` carries no
    gradient.
  """
  peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
  nonzero = peak > _TINY
  scale = jnp.where(nonzero, peak, 1.0)
  unit = x / scale
  square = jnp.sum(jnp.square(unit), axis=axis, keepdims=True)
  norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)
  return unit, norm, scale


def l2_normalize(
  x: jax.Array, axis: int | tuple[int, ...] = -1, eps: float = 1e-12
) -> jax.Array:
  """x / max(|x|, eps); a zero vector stays zero and has the gradient of x.

  The usual form divides a zero vector by `eps`: its value is zero too, but
  its gradient is 1/eps.

  Args:
    x: float32 array.
    axis: Axes of the vectors.
    eps: Lower bound of the divisor.

  Returns:
    Array of the shape of x.
  """
  unit, norm, scale = scaled_norm(x, axis)
  return unit / jnp.where(norm > 0, jnp.maximum(norm, eps / scale), 1.0)


def pearson(a: jax.Array, b: jax.Array, axis: int, eps: float) -> jax.Array:
  """Pearson correlation <a-mean, b-mean> / (|a-mean| |b-mean| + eps).

  A vector that is constant up to the rounding of float32 has no direction:
  its correlation is zero, with the gradient of the undivided product.

  Args:
    a: float32 array.
    b: float32 array of the shape of a.
    axis: Axis of the vectors.
    eps: Added to the product of the norms.

  Returns:
    Array without `axis`.
  """

  def center(x):
    centered = x - jnp.mean(x, axis=axis, keepdims=True)
    _, norm, scale = scaled_norm(centered, axis)
    return centered, varying_or_one(norm * scale, x, axis)

  a, a_norm = center(a)
  b, b_norm = center(b)
  product = jnp.sum(a * b, axis=axis, keepdims=True)
  return jnp.squeeze(product / (a_norm * b_norm + eps), axis)


def varying_or_one(spread: jax.Array, x: jax.Array, axis: int) -> jax.Array:
  """Replaces a spread that is only rounding error of x by one.

  Args:
    spread: Norm or standard deviation of x along axis, axis kept.
    x: The vectors themselves.
    axis: Axis of the vectors.

  Returns:
    Array of the shape of spread, positive.
  """
  peak = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
  floor = 4.0 * jnp.finfo(jnp.float32).eps * jax.lax.stop_gradient(peak)
  return jnp.where(spread > floor, spread, 1.0)


def exp_minus_line(x: jax.Array) -> jax.Array:
  """exp(x) - 1 - x for |x| <= 1 without cancellation."""
  near = jnp.abs(x) < 0.25
  small = jnp.where(near, x, 0.0)
  series = 1.0
  for n in (7, 6, 5, 4, 3):
    series = 1.0 + small / n * series
  return jnp.where(near, 0.5 * small**2 * series, jnp.expm1(x) - x)


def _log_softmax_parts(
  logits: jax.Array, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  masked = logits if where is None else jnp.where(where, logits, -jnp.inf)
  peak = jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True))
  shifted = logits - peak
  if where is None:
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)
  else:
    shifted = jnp.where(where, shifted, 0.0)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True, where=where)
  return shifted, jnp.log(total)


def log_softmax(logits: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """Log-softmax over the classes chosen by `where`.

  Args:
    logits: [..., K] float32.
    where: [..., K] bool, at least one true per row; None means all.

  Returns:
    [..., K]; entries outside `where` hold minus the log-normaliser and are to
    be masked by the caller.
  """
  shifted, log_total = _log_softmax_parts(logits, where)
  return shifted - log_total


def kl_divergence(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  where: jax.Array | None = None,
) -> jax.Array:
  """KL(softmax(teacher) || softmax(student)), summed over classes.

  With d = log p_student - log p_teacher the sum over q * (exp(d) - 1 - d) is
  the same number as the sum over -q * d, but every term is nonnegative, it is
  zero for equal logits, and it keeps its digits when the distributions are
  close, as at a high temperature.

  Args:
    student_logits: [..., K] float32, already divided by the temperature.
    teacher_logits: [..., K] float32, likewise.
    where: [..., K] bool, classes that take part; None means all.

  Returns:
    [...] float32, nonnegative.
  """
  s, s_log_total = _log_softmax_parts(student_logits, where)
  t, t_log_total = _log_softmax_parts(teacher_logits, where)
  d = (s - t) - (s_log_total - t_log_total)
  q = jnp.exp(t - t_log_total)
  p = jnp.exp(s - s_log_total)
  near = jnp.abs(d) < 1.0
  terms = jnp.where(
    near, q * exp_minus_line(jnp.where(near, d, 0.0)), p - q - q * d
  )
  return jnp.sum(terms, axis=-1, where=where)


def mean_logits(logits: list[jax.Array], temperature) -> jax.Array:
  """Logits whose softmax at T is the mean of the given ones' at T.

  T log(mean_i softmax(z_i / T)), in log space.

  Args:
    logits: [B, K] of each teacher.
    temperature: T.

  Returns:
    [B, K] float32.
  """
  logs = jnp.stack(
    [log_softmax(as_float32(z, LOGIT_LIMIT) / temperature) for z in logits]
  )
  return temperature * (jax.nn.logsumexp(logs, axis=0) - math.log(len(logits)))
