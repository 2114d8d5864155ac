"""Distillation losses on logits.

Every function has the signature `(student_outputs, teacher_outputs, labels,
**hyperparameters) -> scalar float32`; it reads `outputs['logits']`, [B, K] of
any floating precision, computes in float32, stops the teacher's gradient and
averages over the (global) batch. Labels are int32 [B]; losses that do not need
them accept None.
"""

import jax
import jax.numpy as jnp

from tlkd_jax.losses import numerics
from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32
from tlkd_jax.losses.supervised import cross_entropy


def _logits(student_outputs, teacher_outputs):
  student = as_float32(student_outputs['logits'], LOGIT_LIMIT)
  teacher = as_float32(teacher_outputs['logits'], LOGIT_LIMIT)
  return student, jax.lax.stop_gradient(teacher)


def _mean_kl(student, teacher, temperature):
  kl = numerics.kl_divergence(student / temperature, teacher / temperature)
  return temperature**2 * jnp.mean(kl)


def kd(
  student_outputs, teacher_outputs, labels, *, temperature=4.0
) -> jax.Array:
  """T^2 KL(softmax(z_t/T) || softmax(z_s/T)).

  Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2. Labels are unused;
  the weights of this term and of the cross-entropy belong to the caller.
  """
  return _mean_kl(*_logits(student_outputs, teacher_outputs), temperature)


def pseudo_label(
  student_outputs, teacher_outputs, labels, *, threshold=0.0
) -> jax.Array:
  """Mean over the batch of 1(max q >= threshold) * -log p_s(argmax q).

  q = softmax(z_t). Lee, ICML workshop 2013, equation 15, without threshold;
  Sohn et al., FixMatch, NeurIPS 2020, arXiv:2001.07685, equation 4, where q is
  the student's own of a weak view and p_s that of a strong one. An image below
  the threshold counts in the mean with a loss of 0.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  sure = jnp.max(jax.nn.softmax(teacher), axis=-1) >= threshold
  chosen = jnp.argmax(teacher, axis=-1)
  nll = -jnp.take_along_axis(
    numerics.log_softmax(student), chosen[:, None], axis=-1
  )
  return jnp.mean(jnp.where(sure, nll[:, 0], 0.0))


def kd_logit_std(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  temperature=2.0,
  eps=1e-7,
  ddof=1,
) -> jax.Array:
  """KD on logits standardised per example over the classes.

  Sun et al., CVPR 2024, arXiv:2403.01427, algorithm 1. A row that is constant
  (a zero-initialised head) is only centred: its gradient is that of plain KD.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  return _mean_kl(
    standardize(student, eps, ddof),
    standardize(teacher, eps, ddof),
    temperature,
  )


def standardize(logits: jax.Array, eps: float, ddof: int) -> jax.Array:
  """(z - mean) / (eps + std) over the last axis; constant rows give zeros."""
  centered = logits - jnp.mean(logits, axis=-1, keepdims=True)
  unit, norm, scale = numerics.scaled_norm(centered)
  count = max(logits.shape[-1] - ddof, 1)
  std = numerics.varying_or_one(norm / count**0.5 * scale, logits, -1)
  return unit / (std / scale + eps / scale)


def dkd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  alpha=1.0,
  beta=8.0,
  temperature=4.0,
) -> jax.Array:
  """Decoupled KD: T^2 (alpha TCKD + beta NCKD).

  Zhao et al., CVPR 2022, arXiv:2203.08679, equation 7. TCKD is the KL of
  [p_label, 1 - p_label], NCKD the KL among the other classes (identically zero
  for two classes). The published training multiplies the term by
  min(epoch / 20, 1): a weight schedule of the caller.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  return _decoupled(student, teacher, labels, alpha, beta, temperature)


def dkd_logit_std(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  alpha=1.0,
  beta=2.0,
  temperature=2.0,
  eps=1e-7,
  ddof=1,
) -> jax.Array:
  """DKD on standardised logits; Sun et al., CVPR 2024, arXiv:2403.01427."""
  student, teacher = _logits(student_outputs, teacher_outputs)
  return _decoupled(
    standardize(student, eps, ddof),
    standardize(teacher, eps, ddof),
    labels,
    alpha,
    beta,
    temperature,
  )


def _decoupled(student, teacher, labels, alpha, beta, temperature):
  other = _non_target(labels, student.shape[-1])

  def binary(logits):
    target = jnp.sum(logits, axis=-1, where=~other)
    rest = jnp.where(other, logits, -jnp.inf)
    return jnp.stack([target, jax.nn.logsumexp(rest, axis=-1)], axis=-1)

  student, teacher = student / temperature, teacher / temperature
  target_term = numerics.kl_divergence(binary(student), binary(teacher))
  other_term = numerics.kl_divergence(student, teacher, where=other)
  return temperature**2 * jnp.mean(alpha * target_term + beta * other_term)


def _non_target(labels, num_classes):
  return ~jax.nn.one_hot(labels, num_classes, dtype=bool)


def dist(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  beta=1.0,
  gamma=1.0,
  temperature=1.0,
  eps=1e-8,
) -> jax.Array:
  """T^2 (beta (1 - inter-class corr.) + gamma (1 - intra-class corr.)).

  Huang et al., NeurIPS 2022, arXiv:2205.10536, equations 7 to 10. The
  intra-class term correlates over the whole (global) batch.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  student = jax.nn.softmax(student / temperature)
  teacher = jax.nn.softmax(teacher / temperature)
  inter = 1.0 - jnp.mean(numerics.pearson(student, teacher, -1, eps))
  intra = 1.0 - jnp.mean(numerics.pearson(student, teacher, 0, eps))
  return temperature**2 * (beta * inter + gamma * intra)


def nkd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  gamma=1.5,
  temperature=1.0,
  temp=None,
) -> jax.Array:
  """Normalised KD, in the published cross-entropy form (minimum above zero).

  -q_y log p_y - gamma T^2 sum_{c != y} Q_c log P_c, with Q and P the softmax
  over the non-target logits at temperature T and q, p at 1. Yang et al., ICCV
  2023, arXiv:2303.13005, equation 7. `temp` is another name of `temperature`.
  """
  temperature = temperature if temp is None else temp
  student, teacher = _logits(student_outputs, teacher_outputs)
  other = _non_target(labels, student.shape[-1])
  terms = jax.nn.softmax(teacher) * numerics.log_softmax(student)
  target_term = jnp.sum(terms, axis=-1, where=~other)
  log_s = numerics.log_softmax(student / temperature, where=other)
  log_t = numerics.log_softmax(teacher / temperature, where=other)
  other_term = jnp.sum(jnp.exp(log_t) * log_s, axis=-1, where=other)
  return -jnp.mean(target_term + gamma * temperature**2 * other_term)


def wsld(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  alpha=2.25,
  temperature=4.0,
  temp=None,
) -> jax.Array:
  """Weighted soft labels: alpha T^2 w_i CE(softmax(z_t/T), softmax(z_s/T)).

  w = 1 - exp(-CE_student / CE_teacher) at temperature 1, without a gradient.
  Zhou et al., ICLR 2021, arXiv:2102.00650, equation 8. Cross-entropy form, as
  published: the minimum is above zero. `temp` is another name of
  `temperature`.
  """
  temperature = temperature if temp is None else temp
  student, teacher = _logits(student_outputs, teacher_outputs)
  other = _non_target(labels, student.shape[-1])

  def label_loss(logits):
    return -jnp.sum(numerics.log_softmax(logits), axis=-1, where=~other)

  ratio = label_loss(student) / (label_loss(teacher) + 1e-7)
  weight = jax.lax.stop_gradient(-jnp.expm1(-jnp.maximum(ratio, 0.0)))
  log_p = numerics.log_softmax(student / temperature)
  soft = -jnp.sum(jax.nn.softmax(teacher / temperature) * log_p, axis=-1)
  return alpha * temperature**2 * jnp.mean(weight * soft)


def logit_mse(student_outputs, teacher_outputs, labels) -> jax.Array:
  """Mean over examples and classes of (z_s - z_t)^2.

  Ba & Caruana, NeurIPS 2014, arXiv:1312.6184, equation 1 (without its 1/2);
  Kim et al., IJCAI 2021, arXiv:2105.08919.
  """
  student = as_float32(student_outputs['logits'])
  teacher = jax.lax.stop_gradient(as_float32(teacher_outputs['logits']))
  return jnp.mean(jnp.square(student - teacher))


def mlkd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  temperature=4.0,
  cc_weight=1.0,
  bc_weight=1.0,
) -> jax.Array:
  """Class- and batch-level terms of multi-level logit distillation.

  |P_t' P_t - P_s' P_s|_F^2 / K and |P_t P_t' - P_s P_s'|_F^2 / B. Jin et al.,
  CVPR 2023, equations 5 to 8. No T^2, as published. The instance level is
  `kd`. Couples the whole (global) batch.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  student = jax.nn.softmax(student / temperature)
  teacher = jax.nn.softmax(teacher / temperature)
  batch_size, num_classes = student.shape

  def distance(a, b):
    return jnp.sum(
      jnp.square(numerics.matmul(a, a.T) - numerics.matmul(b, b.T))
    )

  class_term = distance(student.T, teacher.T) / num_classes
  batch_term = distance(student, teacher) / batch_size
  return cc_weight * class_term + bc_weight * batch_term


def function_matching(
  student_outputs, teacher_outputs, labels, *, temperature=1.0, t=None
) -> jax.Array:
  """KD alone, on views mixed before both networks saw them; labels unused.

  Beyer et al., CVPR 2022, arXiv:2106.05237, section 3. The same mixed images
  go to the student and the teacher, so targets cached for clean images are not
  valid. `t` is another name of `temperature`.
  """
  temperature = temperature if t is None else t
  return _mean_kl(*_logits(student_outputs, teacher_outputs), temperature)


def ce_label_smoothing(
  student_outputs, teacher_outputs, labels, *, smoothing=0.1
) -> jax.Array:
  """The teacher-free baseline: cross-entropy with smoothed labels.

  `teacher_outputs` is unused and may be None. Szegedy et al., CVPR 2016,
  arXiv:1512.00567.
  """
  return cross_entropy(student_outputs['logits'], labels, smoothing)


BV_KINDS = ('kl', 'hard', 'euclidean', 'l2', 'logsoftmax_euclidean')


def bv_distances(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  kind='kl',
  temperature=1.0,
  t=None,
  label_smoothing=0.0,
) -> jax.Array:
  """The distances that Beyer et al. compare, chosen by `kind`.

  'kl': T^2 KL. 'hard': KL from the teacher's argmax as a label, the smoothed
  mass spread over the other K-1 classes. 'euclidean': |z_s - z_t|. 'l2': its
  square. 'logsoftmax_euclidean': |log p_s - log p_t|. CVPR 2022,
  arXiv:2106.05237. `t` is another name of `temperature`; it and
  `label_smoothing` matter to 'kl' and 'hard' only.

  Raises:
    ValueError: `kind` is none of these.
  """
  student, teacher = _logits(student_outputs, teacher_outputs)
  if kind == 'kl':
    return _mean_kl(student, teacher, temperature if t is None else t)
  if kind == 'hard':
    num_classes = student.shape[-1]
    other = _non_target(jnp.argmax(teacher, axis=-1), num_classes)
    spread = label_smoothing / max(num_classes - 1, 1)
    targets = jnp.where(other, spread, 1.0 - label_smoothing)
    negative_entropy = jax.scipy.special.xlogy(targets, targets)
    terms = negative_entropy - targets * numerics.log_softmax(student)
    return jnp.mean(jnp.sum(terms, axis=-1))
  if kind == 'logsoftmax_euclidean':
    student = numerics.log_softmax(student)
    teacher = numerics.log_softmax(teacher)
  elif kind not in ('euclidean', 'l2'):
    raise ValueError(
      f'bv_distances: kind={kind!r} is not one of {", ".join(BV_KINDS)}'
    )
  gap = as_float32(student) - as_float32(teacher)
  square = jnp.sum(jnp.square(gap), axis=-1)
  return jnp.mean(square if kind == 'l2' else jnp.sqrt(square + 1e-12))
