"""Transfer baselines: keep what the pretrained network knows.

Usable alone or beside a distillation loss. All return scalar float32.
"""

import fnmatch

import jax
import jax.numpy as jnp

from tlkd_jax.losses import numerics
from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32, matmul
from tlkd_jax.losses.stages import paired_stages
from tlkd_jax.runtime.trees import flatten


def l2_sp(params, initial_params, *, alpha=0.1, beta=0.01, head='head.*'):
  """alpha/2 sum |w - w0|^2 over the backbone + beta/2 sum |w|^2 over the head.

  Li, Grandvalet, Davoine, ICML 2018, arXiv:1802.01483, equation 3. All
  trainable leaves count, biases and normalisation included, as in tllib.

  Args:
    params: Pytree of dicts with the trainable parameters.
    initial_params: Pytree with the parameters at the start of fine-tuning;
      leaves of the head may be missing.
    alpha: Weight of the distance to the start.
    beta: Weight of the size of the head.
    head: Pattern (fnmatch) of the head's leaves, on paths like 'head.kernel';
      several are separated by commas.

  Returns:
    Scalar float32.

  Raises:
    ValueError: A leaf outside the head has no counterpart of its shape, or no
      leaf is in the head.
  """
  initial = flatten(initial_params)
  patterns = head.split(',')
  backbone = jnp.float32(0.0)
  size = jnp.float32(0.0)
  num_head_leaves = 0
  for name, leaf in flatten(params).items():
    leaf = as_float32(leaf)
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
      size += jnp.sum(jnp.square(leaf))
      num_head_leaves += 1
      continue
    if name not in initial or initial[name].shape != leaf.shape:
      raise ValueError(
        f'l2_sp: {name} {leaf.shape} has no initial value of its shape and is '
        f'not in the head ({head!r})'
      )
    start = jax.lax.stop_gradient(as_float32(initial[name]))
    backbone += jnp.sum(jnp.square(leaf - start))
  if not num_head_leaves:
    raise ValueError(f'l2_sp: no parameter matches head={head!r}')
  return alpha / 2 * backbone + beta / 2 * size


def l2sp(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  alpha=0.1,
  beta=0.01,
  head='head.*',
):
  """`l2_sp` in the signature of the losses; the teacher is the start.

  Both sides hold 'params': the start's weights, and of a learner all that it
  learns, its weights under 'weights'.
  """
  return l2_sp(
    student_outputs['params']['weights'],
    teacher_outputs['params'],
    alpha=alpha,
    beta=beta,
    head=head,
  )


def bss_of_outputs(student_outputs, teacher_outputs, labels, *, k=1):
  """`bss` of the learner's `pre_logits`, in the signature of the losses."""
  return bss(student_outputs['pre_logits'], k=k)


def lwf_of_outputs(
  student_outputs, teacher_outputs, labels, *, temperature=2.0
):
  """`lwf` of the source head's logits, the learner's and the start's."""
  return lwf(
    head_logits(student_outputs, student_outputs['params']['source_head']),
    head_logits(teacher_outputs, teacher_outputs['source_head']),
    temperature=temperature,
  )


def co_tuning_of_outputs(
  student_outputs, teacher_outputs, labels, *, temperature=1.0
):
  """`co_tuning` of the learner's source head, by the start's table.

  Its logits are divided by `temperature`, as those of the table were: the
  paper calibrates the pretrained network (section 3.2), which is far too sure
  of images smaller than it was trained on.
  """
  head = student_outputs['params']['source_head']
  logits = head_logits(student_outputs, head) / temperature
  return co_tuning(logits, labels, teacher_outputs['relationship'])


def head_logits(outputs, head) -> jax.Array:
  """[B, K] float32 of a linear head {'kernel', 'bias'} on `pre_logits`."""
  features = outputs['pre_logits'].astype(jnp.float32)
  return features @ head['kernel'] + head['bias'][None, :]


def delta(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  channel_attention=None,
  mean_over_positions=False,
  stages=None,
):
  """Behaviour regularisation: |f_s - f_t|^2 / 2, summed over everything.

  The teacher is the pretrained network itself. With `channel_attention` a, the
  sum over examples and channels of C a_c |f_s - f_t|^2 / (2 h w). Li et al.,
  ICLR 2019, arXiv:1901.09229, equation 4; no mean over the batch, as in tllib.
  `mean_over_positions` is that with every channel alike, a_c = 1 / C: the
  published results are of means, whose weight outlasts a change of image size.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Outputs of the network at the start of fine-tuning.
    labels: Unused.
    channel_attention: None, [C] (one stage) or {stage: [C]}, summing to one.
    mean_over_positions: Whether to divide by h w without attention too.
    stages: See `losses/stages.py`.

  Returns:
    Scalar float32.

  Raises:
    ValueError: The maps of a stage differ in shape.
  """
  loss = jnp.float32(0.0)
  for stage, s, t in paired_stages(
    'delta', student_outputs, teacher_outputs, stages, pool=False
  ):
    if s.shape != t.shape:
      raise ValueError(
        f'delta: {stage} is {s.shape} in the student and {t.shape} in the '
        'teacher; delta compares a network with its own pretrained state'
      )
    square = jnp.square(s - t)
    attention = channel_attention
    if isinstance(attention, dict):
      attention = attention[stage]
    _, height, width, channels = s.shape
    if attention is None:
      count = height * width if mean_over_positions else 1
      loss += 0.5 * jnp.sum(square) / count
    else:
      weight = channels * jnp.asarray(attention, jnp.float32)
      weight = weight.reshape(1, 1, 1, -1) / (height * width)
      loss += 0.5 * jnp.sum(weight * square)
  return loss


def bss(features: jax.Array, *, k: int = 1):
  """Batch spectral shrinkage: sum of the k smallest squared singular values.

  Chen et al., NeurIPS 2019, equation 6. The singular vectors are eigenvectors
  of the smaller Gram matrix; with them held fixed the sum |F v|^2 has the
  exact gradient of the squared singular values, and stays finite where
  singular values are equal or zero.

  Args:
    features: [B, D], the representation before the head (global batch).
    k: How many singular values, at most min(B, D).

  Returns:
    Scalar float32.

  Raises:
    ValueError: k is not in 1..min(B, D).
  """
  features = as_float32(features)
  if not 1 <= k <= min(features.shape):
    raise ValueError(
      f'bss: k={k} is not between 1 and min{features.shape} of the features'
    )
  wide = features if features.shape[0] >= features.shape[1] else features.T
  fixed = jax.lax.stop_gradient(wide)
  peak = jnp.max(jnp.abs(fixed))
  fixed = fixed / jnp.where(peak > 0, peak, 1.0)
  _, vectors = jnp.linalg.eigh(matmul(fixed.T, fixed))
  return jnp.sum(jnp.square(matmul(wide, vectors[:, :k])))


def category_relationship(
  source_probabilities: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
  """p(source class | target class): the mean source prediction of each class.

  You et al., NeurIPS 2020 (Co-Tuning), section 3.2, direct approach.

  Args:
    source_probabilities: [N, K_source], the pretrained head's softmax.
    labels: [N] target classes.
    num_classes: Number of target classes.

  Returns:
    [num_classes, K_source] float32; a class without examples is uniform.
  """
  source = jnp.asarray(source_probabilities, jnp.float32)
  members = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  count = jnp.sum(members, axis=0).reshape(-1, 1)
  mean = matmul(members.T, source) / jnp.maximum(count, 1.0)
  return jnp.where(count > 0, mean, 1.0 / source.shape[1])


def co_tuning(
  source_logits: jax.Array, labels: jax.Array, relationship: jax.Array
):
  """Cross-entropy of the source head with the labels' source categories.

  You et al., NeurIPS 2020 (Co-Tuning), equation 3, second term.

  Args:
    source_logits: [B, K_source] of the fine-tuned network's source head.
    labels: [B] target classes.
    relationship: [K_target, K_source], as `category_relationship` gives.

  Returns:
    Scalar float32.
  """
  log_p = numerics.log_softmax(as_float32(source_logits, LOGIT_LIMIT))
  target = jnp.asarray(relationship, jnp.float32)[labels]
  return -jnp.mean(jnp.sum(target * log_p, axis=-1))


def lwf(source_logits, initial_source_logits, *, temperature=2.0):
  """Learning without forgetting: T^2 KL to the pretrained source head.

  Li & Hoiem, TPAMI 2018, arXiv:1606.09282, equation 3; T^2 as everywhere here
  (the paper and tllib leave it out).

  Args:
    source_logits: [B, K_source] of the network in training.
    initial_source_logits: [B, K_source] of the network at the start.
    temperature: T.

  Returns:
    Scalar float32.
  """
  student = as_float32(source_logits, LOGIT_LIMIT) / temperature
  initial = as_float32(initial_source_logits, LOGIT_LIMIT) / temperature
  kl = numerics.kl_divergence(student, jax.lax.stop_gradient(initial))
  return temperature**2 * jnp.mean(kl)


def stoch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  running_mean: jax.Array,
  running_var: jax.Array,
  *,
  key: jax.Array | None = None,
  select: jax.Array | None = None,
  p: float = 0.5,
  momentum: float = 0.9,
  eps: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Stochastic normalisation in training.

  A channel is normalised with the running statistics or, with probability p,
  with those of the batch. Kou et al., NeurIPS 2020, algorithm 1. In
  evaluation it is batch normalisation with the running statistics.

  Args:
    x: [..., C].
    scale: [C].
    bias: [C].
    running_mean: [C], before this batch; used as it is.
    running_var: [C].
    key: PRNG key of the choice.
    select: [C], 1 for the batch's statistics, in place of `key`.
    p: Probability of the batch's statistics.
    momentum: Share of the old running statistics (Flax's convention).
    eps: Added to the variance.

  Returns:
    (y [..., C] float32, new running mean, new running variance); the running
    variance takes the unbiased one, as PyTorch does.

  Raises:
    ValueError: Neither `key` nor `select` is given.
  """
  if select is None:
    if key is None:
      raise ValueError('stoch_norm: the choice is random; pass key=')
    select = jax.random.bernoulli(key, p, running_mean.shape)
  rows = as_float32(x).reshape(-1, x.shape[-1])
  batch_mean = jnp.mean(rows, axis=0)
  batch_var = jnp.mean(jnp.square(rows - batch_mean.reshape(1, -1)), axis=0)
  chosen = jnp.asarray(select, bool)
  mean = jnp.where(chosen, batch_mean, running_mean).reshape(1, -1)
  var = jnp.where(chosen, batch_var, running_var).reshape(1, -1)
  y = (rows - mean) * jax.lax.rsqrt(var + eps)
  y = y * scale.reshape(1, -1) + bias.reshape(1, -1)
  unbiased = batch_var * rows.shape[0] / max(rows.shape[0] - 1, 1)
  new_mean = momentum * running_mean + (1.0 - momentum) * batch_mean
  new_var = momentum * running_var + (1.0 - momentum) * unbiased
  new_mean, new_var = jax.lax.stop_gradient((new_mean, new_var))
  return y.reshape(x.shape), new_mean, new_var
