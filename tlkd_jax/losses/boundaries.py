"""Losses on activation boundaries, for maps taken before the activation."""

import jax
import jax.numpy as jnp

from tlkd_jax.losses.projectors import project
from tlkd_jax.losses.stages import paired_stages


def ab(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  margin=1.0,
  projector=None,
  stages=None,
) -> jax.Array:
  """Activation boundaries: squared hinge on the sign of the teacher's map.

  sum_l 2^(l-L+1) 3/1000 / B sum of (s+m)^2 where s > -m, t <= 0 and (s-m)^2
  where s <= m, t > 0; l = 0 .. L-1 from the input on. Heo et al., AAAI 2019,
  arXiv:1811.03233, equation 5, with the constants of RepDistiller.
  """
  loss = jnp.float32(0.0)
  pairs = paired_stages('ab', student_outputs, teacher_outputs, stages)
  for i, (stage, s, t) in enumerate(pairs):
    s = project('ab', projector, stage, s, t)
    off = jnp.where((s > -margin) & (t <= 0), s + margin, 0.0)
    on = jnp.where((s <= margin) & (t > 0), s - margin, 0.0)
    total = jnp.sum(jnp.square(off) + jnp.square(on)) / s.shape[0]
    loss += 2.0 ** (i + 1 - len(pairs)) * 3 / 1000 * total
  return loss


def ofd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  margin=None,
  projector=None,
  stages=None,
) -> jax.Array:
  """Overhaul of feature distillation: partial L2 behind a margin ReLU.

  Mean over the batch, sum over the map, of (s - t')^2 with t' = max(t, m),
  left out where s <= t' <= 0; stage i of L counts 2^(i+1-L). Heo et al., ICCV
  2019, arXiv:1904.01866, equations 2 to 4; reduction of mdistiller. The
  published weight of the term is 1e-3.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs, maps before the activation.
    labels: Unused.
    margin: [C] (one stage) or {stage: [C]}, negative, as `ofd_margin` gives.
      None: per channel the mean of the teacher's negative responses in this
      batch (zero where there is none).
    projector: `projectors.normalized_hint(...)`.
    stages: See `losses/stages.py`.

  Returns:
    Scalar float32.
  """
  loss = jnp.float32(0.0)
  pairs = paired_stages('ofd', student_outputs, teacher_outputs, stages)
  for i, (stage, s, t) in enumerate(pairs):
    s = project('ofd', projector, stage, s, t)
    m = margin[stage] if isinstance(margin, dict) else margin
    m = _batch_margin(t) if m is None else jnp.asarray(m, jnp.float32)
    target = jnp.maximum(t, m.reshape(1, 1, 1, -1))
    active = (s > target) | (target > 0)
    total = jnp.sum(jnp.where(active, jnp.square(s - target), 0.0))
    loss += 2.0 ** (i + 1 - len(pairs)) * total / s.shape[0]
  return loss


def _batch_margin(teacher):
  negative = teacher < 0
  count = jnp.sum(negative, axis=(0, 1, 2))
  total = jnp.sum(jnp.where(negative, teacher, 0.0), axis=(0, 1, 2))
  return total / jnp.maximum(count, 1)


def ofd_margin(bn_scale: jax.Array, bn_bias: jax.Array) -> jax.Array:
  """Expected negative response behind a batch normalisation.

  E[x | x < 0] = b - s phi(b/s) / Phi(-b/s) of N(b, s^2), s = |scale|; -3 s
  where Phi(-b/s) <= 0.001. Heo et al., ICCV 2019, section 3.1 and their code.

  Args:
    bn_scale: [C] scale of the teacher's last normalisation.
    bn_bias: [C] bias of it.

  Returns:
    [C] float32 margins.
  """
  std = jnp.abs(jnp.asarray(bn_scale, jnp.float32))
  mean = jnp.asarray(bn_bias, jnp.float32)
  ratio = mean / jnp.where(std > 0, std, 1.0)
  below = jax.scipy.stats.norm.cdf(-ratio)
  density = jax.scipy.stats.norm.pdf(ratio)
  usual = mean - std * density / jnp.maximum(below, 1e-3)
  margin = jnp.where(below > 1e-3, usual, -3.0 * std)
  return jnp.where(std > 0, margin, jnp.minimum(mean, 0.0))
