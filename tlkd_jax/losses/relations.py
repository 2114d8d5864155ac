"""Distillation losses on relations: between examples, channels or stages.

Signature and conventions as in `losses/__init__.py`. `sp`, `rkd`, `pkt` and
`cc` couple the examples of the batch, which is the global batch under jit with
a sharded batch.
"""

import math

import jax
import jax.numpy as jnp
import optax.losses

from tlkd_jax.losses import numerics
from tlkd_jax.losses.numerics import as_float32, matmul
from tlkd_jax.losses.projectors import project
from tlkd_jax.losses.stages import average_pool, embeddings, paired_stages


def normalized_gram(rows: jax.Array, eps: float = 1e-12) -> jax.Array:
  """Gram matrix of the rows, each of its rows divided by max(norm, eps).

  Args:
    rows: [..., N, D] float32.
    eps: Lower bound of the divisor.

  Returns:
    [..., N, N] float32. A zero row gives zeros, with a bounded gradient.
  """
  size = jax.lax.stop_gradient(jnp.abs(rows))
  row_peak = jnp.max(size, axis=-1, keepdims=True)
  row_peak = jnp.where(row_peak > 0, jnp.maximum(row_peak, 1e-12), 1.0)
  peak = jnp.max(row_peak, axis=-2, keepdims=True)
  gram = matmul(rows / row_peak, jnp.swapaxes(rows / peak, -1, -2))
  return numerics.l2_normalize(gram, eps=eps / (row_peak * peak))


def sp(student_outputs, teacher_outputs, labels, *, stages=None) -> jax.Array:
  """Similarity preserving: |G_s - G_t|_F^2 / B^2.

  G is the row-normalised Gram matrix of the flattened maps over the batch.
  Tung & Mori, ICCV 2019, arXiv:1907.09682, equation 4.
  """
  loss = jnp.float32(0.0)
  for _, s, t in paired_stages(
    'sp', student_outputs, teacher_outputs, stages, pool=False
  ):
    batch_size = s.shape[0]
    gap = normalized_gram(s.reshape(batch_size, -1)) - normalized_gram(
      t.reshape(batch_size, -1)
    )
    loss += jnp.sum(jnp.square(gap)) / batch_size**2
  return loss


def _channel_rows(x):
  batch_size, _, _, width = x.shape
  return jnp.swapaxes(x.reshape(batch_size, -1, width), 1, 2)


def ickd(
  student_outputs, teacher_outputs, labels, *, projector=None, stages=None
) -> jax.Array:
  """Inter-channel correlation: |G_s - G_t|_F^2 / (C B^2).

  G is the row-normalised Gram matrix of the channels of one example. Liu et
  al., ICCV 2021, arXiv:2202.03680, equation 5; the published code divides by
  the batch size twice, which is followed.
  """
  loss = jnp.float32(0.0)
  for stage, s, t in paired_stages(
    'ickd', student_outputs, teacher_outputs, stages
  ):
    s = project('ickd', projector, stage, s, t)
    gap = normalized_gram(_channel_rows(s)) - normalized_gram(_channel_rows(t))
    batch_size, width = gap.shape[:2]
    loss += jnp.sum(jnp.square(gap)) / (width * batch_size**2)
  return loss


def nst(student_outputs, teacher_outputs, labels, *, stages=None) -> jax.Array:
  """Neuron selectivity: squared MMD of the channels, kernel (x . y)^2.

  Each channel's map is a unit vector; the sets of channels of the two networks
  are compared per example. Huang & Wang, 2017, arXiv:1707.01219, equation 6.
  """

  def kernel_mean(x, y):
    return jnp.mean(jnp.square(matmul(x, jnp.swapaxes(y, -1, -2))))

  loss = jnp.float32(0.0)
  for _, s, t in paired_stages('nst', student_outputs, teacher_outputs, stages):
    s = numerics.l2_normalize(_channel_rows(s))
    t = numerics.l2_normalize(_channel_rows(t))
    loss += kernel_mean(t, t) + kernel_mean(s, s) - 2.0 * kernel_mean(s, t)
  return loss


# The loss has fourth powers of the maps.
_FOURTH_POWER_LIMIT = 1e7


def fsp(
  student_outputs, teacher_outputs, labels, *, projector=None, stages=None
) -> jax.Array:
  """Flow of solution procedure: mean of (G_s - G_t)^2.

  G = mean over positions of f_i g_j for each two consecutive stages, the
  larger map pooled to the smaller; sum over the pairs. Yim et al., CVPR 2017,
  equations 1 and 2, with a mean in place of the paper's norm.

  Raises:
    ValueError: There are fewer than two stages, or widths differ and there is
      no projector.
  """
  pairs = paired_stages(
    'fsp', student_outputs, teacher_outputs, stages, limit=_FOURTH_POWER_LIMIT
  )
  if len(pairs) < 2:
    raise ValueError(f'fsp: needs two stages, got {[p.name for p in pairs]}')
  maps = []
  for stage, s, t in pairs:
    s = project('fsp', projector, stage, s, t)
    maps.append((as_float32(s, _FOURTH_POWER_LIMIT), t))
  loss = jnp.float32(0.0)
  for (s0, t0), (s1, t1) in zip(maps[:-1], maps[1:], strict=True):
    loss += jnp.mean(jnp.square(_flow(s0, s1) - _flow(t0, t1)))
  return loss


def _flow(first, second):
  height = min(first.shape[1], second.shape[1])
  width = min(first.shape[2], second.shape[2])
  first = _channel_rows(average_pool(first, (height, width)))
  second = _channel_rows(average_pool(second, (height, width)))
  return matmul(first, jnp.swapaxes(second, 1, 2)) / (height * width)


def rkd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  distance_weight=25.0,
  angle_weight=50.0,
  eps=1e-12,
  squared=False,
  smooth_l1_beta=1.0,
  embedding='pooled',
) -> jax.Array:
  """Relational KD on embeddings: distances and angles, Huber loss.

  Distances are divided by the mean over the pairs of different examples;
  angles are the cosines at every example. Means over B^2 and B^3. Park et al.,
  CVPR 2019, arXiv:1904.05068, equations 6 and 9; weights of mdistiller.
  Memory: two tensors [B, B, D] and [B, B, B] per network.
  """
  s, t = embeddings('rkd', student_outputs, teacher_outputs, embedding)

  def mean_huber(a, b):
    huber = optax.losses.huber_loss(a, b, delta=smooth_l1_beta)
    return jnp.mean(huber) / smooth_l1_beta

  s_distance, s_angle = _distances_and_angles(s, eps, squared)
  t_distance, t_angle = _distances_and_angles(t, eps, squared)
  distance_term = mean_huber(s_distance, t_distance)
  angle_term = mean_huber(s_angle, t_angle)
  return distance_weight * distance_term + angle_weight * angle_term


def _distances_and_angles(x, eps, squared):
  # Both are free of scale; large embeddings are divided by their peak.
  scale = jnp.maximum(jax.lax.stop_gradient(jnp.max(jnp.abs(x))), 1.0)
  batch_size = x.shape[0]
  difference = (x[:, None, :] - x[None, :, :]) / scale
  square = jnp.sum(jnp.square(difference), axis=-1)
  # At equal examples the floor takes over, and with it a zero gradient.
  square = jnp.maximum(square, jnp.maximum(eps / scale / scale, 1e-30))
  distance = square if squared else jnp.sqrt(square)
  distance = jnp.where(~jnp.eye(batch_size, dtype=bool), distance, 0.0)
  mean = jnp.sum(distance) / max(batch_size * (batch_size - 1), 1)
  distance = distance / jnp.where(mean > 0, mean, 1.0)
  direction = numerics.l2_normalize(difference)
  return distance, matmul(direction, jnp.swapaxes(direction, 1, 2))


def pkt(
  student_outputs, teacher_outputs, labels, *, eps=1e-7, embedding='pooled'
) -> jax.Array:
  """Probabilistic knowledge transfer on embeddings.

  K = (cosine + 1) / 2 with rows summing to one; mean over all B^2 entries of
  K_t log((K_t + eps) / (K_s + eps)). Passalis & Tefas, ECCV 2018,
  arXiv:1803.10837, equations 4 to 7.
  """
  s, t = embeddings('pkt', student_outputs, teacher_outputs, embedding)
  k_s, k_t = _conditional(s, eps), _conditional(t, eps)
  return jnp.mean(k_t * (jnp.log(k_t + eps) - jnp.log(k_s + eps)))


def _conditional(x, eps):
  unit, norm, scale = numerics.scaled_norm(x)
  unit = unit / jnp.where(norm > 0, norm + eps / scale, 1.0)
  # Rounding can push the cosine of opposite vectors below -1.
  kernel = jnp.maximum((matmul(unit, unit.T) + 1.0) / 2.0, 0.0)
  return kernel / jnp.sum(kernel, axis=1, keepdims=True)


CC_KERNELS = ('consecutive', 'bilinear', 'gaussian')


def cc(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  kernel='consecutive',
  gamma=0.4,
  max_p=2,
  embedding='pooled',
  projector=None,
) -> jax.Array:
  """Correlation congruence on embeddings. Peng et al., ICCV 2019.

  arXiv:1904.01802. Two different losses are published under this name:
  'consecutive' (RepDistiller): mean over i of sum_d |delta_i| |delta_i+1| with
  delta = f_s - f_t and i in batch order; 'bilinear' and 'gaussian'
  (torchdistill, nearer to the paper's equation 2): |K_s - K_t|_F / B^2 with
  K = x . y, or the Taylor expansion of degree `max_p` of the Gaussian kernel
  exp(-gamma |x - y|^2) of unit vectors, exp(-2 gamma) sum_p (2 gamma x.y)^p /
  p!. A batch of one gives 0 for 'consecutive'.

  Raises:
    ValueError: Unknown kernel, or widths differ and there is no projector.
  """
  s, t = embeddings('cc', student_outputs, teacher_outputs, embedding)
  s = project('cc', projector, 'pre_logits', s, t)
  if kernel == 'consecutive':
    delta = jnp.abs(s - t)
    return jnp.sum(delta[:-1] * delta[1:]) / max(s.shape[0] - 1, 1)
  if kernel not in CC_KERNELS:
    raise ValueError(
      f'cc: kernel={kernel!r} is not one of {", ".join(CC_KERNELS)}'
    )

  def correlation(x):
    if kernel == 'bilinear':
      return matmul(x, x.T)
    x = as_float32(x, _FOURTH_POWER_LIMIT)
    product = 2.0 * gamma * matmul(x, x.T)
    terms = sum(product**p / math.factorial(p) for p in range(max_p + 1))
    return math.exp(-2.0 * gamma) * terms

  gap = correlation(s) - correlation(t)
  _, norm, scale = numerics.scaled_norm(gap, axis=(0, 1))
  return jnp.sum(norm * scale) / s.shape[0] ** 2
