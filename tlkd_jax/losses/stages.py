"""Feature maps of two networks: which to compare, and in what shape.

`outputs['features']` is `{'stage1': [B, h, w, C], ...}` from the input to the
output. A `stages` argument is None (all stages that both networks have), or a
sequence of names; `'stage2:stage3'` pairs the student's stage2 with the
teacher's stage3. Maps of different resolution are average-pooled to the
smaller height and the smaller width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.losses.numerics import FEATURE_LIMIT, as_float32

# Name of an embedding -> the output that is it.
EMBEDDINGS = {
  'pooled': 'pre_logits',
  'class': 'class_token',
  'mean': 'patch_mean',
  'attention': 'attention_pool',
}


class StagePair(NamedTuple):
  """One stage of the student, float32, and the teacher's, without gradient."""

  name: str
  student: jax.Array
  teacher: jax.Array


def stage_names(
  loss_name: str,
  student_features: Mapping,
  teacher_features: Mapping,
  stages: Sequence[str] | None,
) -> list[tuple[str, str]]:
  """Resolves `stages` to pairs (student's stage, teacher's stage).

  Args:
    loss_name: For the error message.
    student_features: Stage name to array or shape.
    teacher_features: Likewise.
    stages: See the top of this file.

  Returns:
    Pairs of names, in the order given (default: from the input on).

  Raises:
    ValueError: A stage is missing, or the networks share none.
  """
  available = (
    f'the student has {_in_order(student_features)}, '
    f'the teacher {_in_order(teacher_features)}'
  )
  if stages is None:
    common = _in_order(set(student_features) & set(teacher_features))
    if not common:
      raise ValueError(f'{loss_name}: no common stage; {available}')
    return [(name, name) for name in common]
  if isinstance(stages, str):
    stages = [stage for stage in re.split(r'[,\s]+', stages) if stage]
  pairs = [(s, t or s) for s, _, t in (name.partition(':') for name in stages)]
  for student_name, teacher_name in pairs:
    if (
      student_name not in student_features
      or teacher_name not in teacher_features
    ):
      raise ValueError(
        f'{loss_name}: stages={list(stages)} cannot be paired; {available}'
      )
  if not pairs:
    raise ValueError(f'{loss_name}: stages is empty; {available}')
  return pairs


def _in_order(names) -> list[str]:
  # stage10 comes after stage2.
  return sorted(
    names, key=lambda name: [int(s) if s.isdigit() else 0 for s in
                             re.split(r'(\d+)', name)] + [0]
  )  # fmt: skip


def paired_stages(
  loss_name: str,
  student_outputs: Mapping,
  teacher_outputs: Mapping,
  stages: Sequence[str] | None,
  *,
  pool: bool = True,
  limit: float = FEATURE_LIMIT,
) -> list[StagePair]:
  """The chosen feature maps, float32, at the same resolution.

  Args:
    loss_name: For error messages.
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    stages: See the top of this file.
    pool: Whether to pool the larger map to the smaller.
    limit: Largest magnitude kept.

  Returns:
    One StagePair per stage.

  Raises:
    ValueError: A stage is missing.
  """
  student = student_outputs.get('features', {})
  teacher = teacher_outputs.get('features', {})
  pairs = []
  for s_name, t_name in stage_names(loss_name, student, teacher, stages):
    s = as_float32(student[s_name], limit)
    t = jax.lax.stop_gradient(as_float32(teacher[t_name], limit))
    if pool:
      size = tuple(
        min(a, b) for a, b in zip(s.shape[1:3], t.shape[1:3], strict=True)
      )
      s, t = average_pool(s, size), average_pool(t, size)
    pairs.append(StagePair(s_name, s, t))
  return pairs


def embedding_outputs(
  loss_name: str,
  student_outputs: Mapping,
  teacher_outputs: Mapping,
  embedding: str,
) -> tuple[Any, Any]:
  """The two outputs that are compared, arrays or shapes as they are given.

  Args:
    loss_name: For error messages.
    student_outputs: Model outputs, of which `pre_logits` is taken.
    teacher_outputs: Model outputs.
    embedding: Which of the teacher's, a key of EMBEDDINGS.

  Raises:
    ValueError: A network does not give its one.
  """
  name = EMBEDDINGS[embedding]
  if 'pre_logits' not in student_outputs:
    raise ValueError(
      f"{loss_name}: the student's outputs have no 'pre_logits', only "
      f'{sorted(student_outputs)}'
    )
  if name not in teacher_outputs:
    there = [key for key, out in EMBEDDINGS.items() if out in teacher_outputs]
    raise ValueError(
      f"{loss_name}: the teacher's outputs have no {name!r}, which is its "
      f'embedding {embedding!r}; accepted: {", ".join(there) or "none"}'
    )
  return student_outputs['pre_logits'], teacher_outputs[name]


def embeddings(
  loss_name: str,
  student_outputs: Mapping,
  teacher_outputs: Mapping,
  embedding: str = 'pooled',
) -> tuple[jax.Array, jax.Array]:
  """The student's `pre_logits` and an embedding of the teacher.

  Both are float32, [B, D] and [B, E]; the teacher's has no gradient.

  Raises:
    ValueError: As `embedding_outputs`.
  """
  student, teacher = embedding_outputs(
    loss_name, student_outputs, teacher_outputs, embedding
  )
  return as_float32(student), jax.lax.stop_gradient(as_float32(teacher))


def bridges(
  loss_name: str,
  student_shapes: Mapping,
  teacher_shapes: Mapping,
  stages: Sequence[str] | None,
  *,
  maps: bool,
  projector: bool,
  embedding: str = 'pooled',
) -> list[str]:
  """Says what is compared with what, and how it is made to fit.

  Args:
    loss_name: Of the loss.
    student_shapes: Model outputs as jax.ShapeDtypeStruct.
    teacher_shapes: Likewise.
    stages: See the top of this file.
    maps: Whether the loss compares feature maps; else embeddings.
    projector: Whether the loss learns a map from the student's width.
    embedding: Which of the teacher's is compared, where not maps are.

  Returns:
    One line for each pair.
  """
  if maps:
    student = student_shapes.get('features', {})
    teacher = teacher_shapes.get('features', {})
    pairs = stage_names(loss_name, student, teacher, stages)
  else:
    student, teacher, pairs = (
      student_shapes,
      teacher_shapes,
      [('pre_logits', EMBEDDINGS[embedding])],
    )
  lines = []
  for s_name, t_name in pairs:
    s, t = student[s_name].shape[1:], teacher[t_name].shape[1:]
    line = f'{loss_name}: {s_name} {_by(s)} of the student'
    line += f' with {t_name} {_by(t)} of the teacher'
    if maps and s[:2] != t[:2]:
      line += f', pooled to {_by(map(min, s[:2], t[:2]))}'
    if projector:
      line += ', through a learned projector'
    elif s[-1] != t[-1]:
      line += ', whose widths need not agree'
    lines.append(line)
  return lines


def _by(shape) -> str:
  return 'x'.join(str(size) for size in shape)


def average_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Adaptive average pooling of [B, h, w, C] to [B, *size, C] of x's dtype.

  Bin i of n covers the input from floor(i h / n) to ceil((i + 1) h / n), as in
  torch: bins overlap where n does not divide h and repeat pixels where n
  exceeds h.
  """
  for axis, bins in ((1, size[0]), (2, size[1])):
    if x.shape[axis] != bins:
      weights = _pooling_matrix(x.shape[axis], bins).astype(x.dtype)
      pooled = jnp.tensordot(
        weights, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST
      )
      x = jnp.moveaxis(pooled, 0, axis)
  return x


def _pooling_matrix(length: int, bins: int) -> np.ndarray:
  weights = np.zeros((bins, length))
  for i in range(bins):
    start, stop = i * length // bins, -(-(i + 1) * length // bins)
    weights[i, start:stop] = 1.0 / (stop - start)
  return weights


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """[B, h, w, C] to [B, *size, C]; output i takes input floor(i h / n)."""
  for axis, length in ((1, size[0]), (2, size[1])):
    if x.shape[axis] != length:
      index = np.arange(length) * x.shape[axis] // length
      x = jnp.take(x, index, axis=axis)
  return x
