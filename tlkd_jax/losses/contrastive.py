"""Contrastive representation distillation with a memory bank.

The memory is a dict of arrays that belongs to the training state: rows are
examples of the training set, so that the bank can be sharded over devices
along its first axis, and it must be saved in checkpoints.
"""

import jax
import jax.numpy as jnp

from tlkd_jax.losses import numerics
from tlkd_jax.losses.numerics import matmul
from tlkd_jax.losses.projectors import linear
from tlkd_jax.losses.stages import embeddings


def crd_memory(
  key: jax.Array,
  num_examples: int,
  labels: jax.Array | None = None,
  *,
  feat_dim: int = 128,
  **hyperparameters,
) -> dict:
  """The memory bank before the first step.

  Args:
    key: PRNG key of the random rows.
    num_examples: N, size of the training set.
    labels: [N] class of every example: negatives come from the other classes.
      None: negatives are all other examples.
    feat_dim: Width of the embeddings.
    **hyperparameters: Those of the loss that do not concern the memory.

  Returns:
    Dict: 'student' and 'teacher' [N, feat_dim] float32 in (-a, a) with a =
    1 / sqrt(feat_dim / 3); 'student_z' and 'teacher_z', scalars, -1 until the
    first step sets them; 'order' [N] int32, examples sorted by class; 'start'
    and 'count' [N] int32, where an example's own class lies in that order.
  """
  bound = 1.0 / (feat_dim / 3) ** 0.5
  student_key, teacher_key = jax.random.split(key)
  shape = (num_examples, feat_dim)
  if labels is None:
    labels = jnp.arange(num_examples)
  labels = jnp.asarray(labels)
  order = jnp.argsort(labels)
  start = jnp.searchsorted(labels[order], labels, side='left')
  stop = jnp.searchsorted(labels[order], labels, side='right')
  return {
    'student': bound * jax.random.uniform(student_key, shape, minval=-1),
    'teacher': bound * jax.random.uniform(teacher_key, shape, minval=-1),
    'student_z': jnp.float32(-1.0),
    'teacher_z': jnp.float32(-1.0),
    'order': order.astype(jnp.int32),
    'start': start.astype(jnp.int32),
    'count': (stop - start).astype(jnp.int32),
  }


def draw_negatives(
  key: jax.Array, memory: dict, index: jax.Array, nce_k: int
) -> jax.Array:
  """Draws examples of other classes, uniformly and with replacement.

  Args:
    key: PRNG key.
    memory: As `crd_memory` makes it.
    index: [B] positions of the batch's examples in the training set.
    nce_k: Number of negatives.

  Returns:
    [B, 1 + nce_k] int32, the example itself first.
  """
  index = index.astype(jnp.int32)
  num_examples = memory['order'].shape[0]
  start = memory['start'][index].reshape(-1, 1)
  count = memory['count'][index].reshape(-1, 1)
  others = jnp.maximum(num_examples - count, 1)
  position = jax.random.randint(key, (index.shape[0], nce_k), 0, others)
  position = jnp.where(position < start, position, position + count)
  negatives = memory['order'][position % num_examples]
  return jnp.concatenate([index.reshape(-1, 1), negatives], axis=1)


def crd(
  student_outputs,
  teacher_outputs,
  labels,
  *,
  projector,
  memory,
  index,
  key=None,
  contrast_idx=None,
  nce_k=16384,
  nce_t=0.07,
  nce_m=0.5,
  eps=1e-7,
  n_data=None,
  feat_dim=128,
  embedding='pooled',
) -> tuple[jax.Array, dict]:
  """Contrastive representation distillation on embeddings.

  Both networks' embeddings v (linear map, unit length) are scored against the
  other's memory, P = exp(<m, v> / nce_t) / Z; the loss is the sum over the two
  networks of -log(P / (P + c)) - sum over negatives of log(c / (P + c)), c =
  nce_k / N, mean over the batch. Z is set at the first step to N mean(exp).
  Tian et al., ICLR 2020, arXiv:1910.10699, equations 10 to 19, and
  RepDistiller. There K may exceed N; here it is at most N.

  Args:
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: Unused; classes of the whole set are in the memory.
    projector: `projectors.contrastive(...)`: 'student' and 'teacher', both
      trained.
    memory: `crd_memory(...)`.
    index: [B] positions of the examples in the training set.
    key: PRNG key of the negatives.
    contrast_idx: [B, 1 + K] examples to score against, the positive first, in
      place of drawing them with `key`.
    nce_k: K, number of negatives.
    nce_t: Temperature.
    nce_m: Momentum of the memory.
    eps: Added to P + c.
    n_data: N, if it is not the number of rows of the memory.
    feat_dim: Width of the embeddings; used where parameters are made.
    embedding: Which of the teacher's, a key of `stages.EMBEDDINGS`.

  Returns:
    (loss, new memory), the memory without gradient.

  Raises:
    ValueError: Neither `key` nor `contrast_idx` is given.
  """
  n_data = n_data or memory['student'].shape[0]
  if contrast_idx is None:
    if key is None:
      raise ValueError('crd: negatives are drawn; pass key= or contrast_idx=')
    nce_k = min(nce_k, n_data)
    contrast_idx = draw_negatives(key, memory, index, nce_k)
  student, teacher = embeddings(
    'crd', student_outputs, teacher_outputs, embedding
  )
  new_memory = dict(memory)
  loss = jnp.float32(0.0)
  for own, other, x in (
    ('student', 'teacher', student),
    ('teacher', 'student', teacher),
  ):
    v = numerics.l2_normalize(linear(x, projector[own]))
    # [B, K + 1, d] @ [B, d, 1]
    rows = memory[other][contrast_idx]
    score = matmul(rows, v[:, :, None])[:, :, 0] / nce_t
    term, new_memory[f'{own}_z'] = _nce(
      jnp.exp(score), memory[f'{own}_z'], n_data, eps
    )
    loss += term
    row = jax.lax.stop_gradient(v)
    row = nce_m * memory[own][index] + (1.0 - nce_m) * row
    row = numerics.l2_normalize(row)
    new_memory[own] = memory[own].at[index].set(row)
  return loss, jax.lax.stop_gradient(new_memory)


def _nce(out, z, n_data, eps):
  first = jax.lax.stop_gradient(jnp.mean(out)) * n_data
  z = jnp.where(z > 0, z, first)
  p = out / z
  noise = (out.shape[1] - 1) / n_data
  positive = jnp.log(p[:, 0] / (p[:, 0] + noise + eps))
  negative = jnp.sum(jnp.log(noise / (p[:, 1:] + noise + eps)), axis=1)
  return -jnp.mean(positive + negative), z
