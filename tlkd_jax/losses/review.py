"""ReviewKD: fused student stages against the teacher's, at several scales."""

import jax
import jax.numpy as jnp

from tlkd_jax.losses.projectors import linear, require_equal_width
from tlkd_jax.losses.stages import (
  average_pool,
  paired_stages,
  resize_nearest,
)


def reviewkd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  levels=(4, 2, 1),
  projector=None,
  stages=None,
) -> jax.Array:
  """Hierarchical context loss on the stages, fused from deep to shallow.

  Chen et al., CVPR 2021, arXiv:2104.09044, section 3.3; fusion and constants
  of mdistiller, which ramps the weight over 20 epochs. Without a projector the
  stages are compared as they are.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: Unused.
    levels: Sides of the pooled maps, or a string '4,2,1'.
    projector: `projectors.fusion(...)`.
    stages: See `losses/stages.py`; from shallow to deep.

  Returns:
    Scalar float32.
  """
  if isinstance(levels, str):
    levels = tuple(int(level) for level in levels.split(','))
  sides = student_outputs, teacher_outputs
  pairs = paired_stages('reviewkd', *sides, stages, pool=not projector)
  if projector:
    pairs = _fuse(pairs, projector)
  loss = jnp.float32(0.0)
  for stage, s, t in pairs:
    require_equal_width('reviewkd', stage, s, t)
    loss += hierarchical_context_loss(s, t, levels)
  return loss


def _fuse(pairs, projector):
  fused = []
  residual = None
  for stage, s, t in reversed(pairs):
    params = projector[stage]
    x = linear(s, params['reduce'])
    if residual is not None:
      y = resize_nearest(residual, x.shape[1:3])
      both = jnp.concatenate([x, y], axis=-1)
      gate = jax.nn.sigmoid(linear(both, params['attention']))
      x = x * gate[..., :1] + y * gate[..., 1:]
    x = resize_nearest(x, t.shape[1:3])
    residual = x
    fused.append((stage, linear(x, params['expand']), t))
  return fused[::-1]


def hierarchical_context_loss(
  student: jax.Array, teacher: jax.Array, levels: tuple[int, ...]
) -> jax.Array:
  """Weighted mean of the mean squared errors of pooled maps.

  The whole map counts 1; each level that is smaller than the map's height is
  the side of a pooled map and counts half of the one before.

  Args:
    student: [B, h, w, C] float32.
    teacher: [B, h, w, C] float32.
    levels: Sides.

  Returns:
    Scalar float32.
  """
  gap = student - teacher
  loss = jnp.mean(jnp.square(gap))
  weight, total = 1.0, 1.0
  for level in levels:
    if level < gap.shape[1]:
      weight /= 2
      total += weight
      pooled = average_pool(gap, (level, min(level, gap.shape[2])))
      loss += weight * jnp.mean(jnp.square(pooled))
  return loss / total
