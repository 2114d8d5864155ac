"""Distillation and transfer losses: pure functions of model outputs.

Signature: `DISTILLATION_LOSSES[name](student_outputs, teacher_outputs, labels,
**hyperparameters) -> scalar float32`, the mean over the (global) batch.
Outputs are `{'logits': [B, K], 'pre_logits': [B, D], 'features': {'stage1':
[B, h, w, c], ...}}` of any floating precision; computation is in float32, the
teacher gets no gradient, labels are int32 [B] (unused by most). Names are
those of the golden fixtures, with short names beside them.

What a loss needs beyond the outputs, it is given:

- learnable parts: `PROJECTORS[name](key, student_shapes, teacher_shapes,
  **hyperparameters)` makes a pytree that is trained with the student and
  passed as `projector`;
- state: `MEMORIES[name](key, num_examples, labels_of_all_examples,
  **hyperparameters)` makes a pytree that the training state carries, and
  `MEMORY_LOSSES[name]` is the loss that returns (loss, new memory);
- a random mask (`key`), or the frozen linear head of the teacher
  (`teacher_head`).

A training step needs to know none of this. It calls

  extras = init_extras(name, key, student_shapes, teacher_shapes,
                       num_examples, labels, **hyperparameters)
  loss, memory = compute(name, student_outputs, teacher_outputs, labels,
                         projector=extras['projector'], memory=memory,
                         index=batch['index'], key=key,
                         teacher_head=teacher_head, **hyperparameters)

where `projector` and `memory` are empty dicts for the losses without them.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from tlkd_jax.losses import (
  boundaries,
  contrastive,
  features,
  logits,
  projectors,
  relations,
  review,
  stages,
  transfer,
)
from tlkd_jax.runtime.errors import unknown_name

DISTILLATION_LOSSES: dict[str, Callable[..., jax.Array]] = {
  'kd': logits.kd,
  'kd_logit_std': logits.kd_logit_std,
  'dkd': logits.dkd,
  'dkd_binary': logits.dkd,
  'dkd_logit_std': logits.dkd_logit_std,
  'dist': logits.dist,
  'nkd': logits.nkd,
  'wsld': logits.wsld,
  'logit_mse': logits.logit_mse,
  'mlkd': logits.mlkd,
  'mlkd_cc_bc': logits.mlkd,
  'function_matching': logits.function_matching,
  'function_matching_mixup': logits.function_matching,
  'ce_label_smoothing': logits.ce_label_smoothing,
  'bv_distances': logits.bv_distances,
  'fitnet': features.fitnet_hint,
  'fitnet_hint': features.fitnet_hint,
  'fitnet_convreg': features.fitnet_convreg,
  'at': features.at,
  'ft': features.ft,
  'vid': features.vid,
  'mgd': features.mgd,
  'srrl': features.srrl,
  'simkd': features.simkd,
  'srd': features.srd,
  'sp': relations.sp,
  'ickd': relations.ickd,
  'nst': relations.nst,
  'fsp': relations.fsp,
  'rkd': relations.rkd,
  'pkt': relations.pkt,
  'cc': relations.cc,
  'crd': contrastive.crd,
  'ab': boundaries.ab,
  'ofd': boundaries.ofd,
  'ofd_partial_l2': boundaries.ofd,
  'reviewkd': review.reviewkd,
  'reviewkd_hcl': review.reviewkd,
  'delta': transfer.delta,
  'l2sp': transfer.l2sp,
}

# Terms that compare a learner with its own start.
START_LOSSES: dict[str, Callable[..., jax.Array]] = {
  'l2_sp': transfer.l2sp,
  'delta': transfer.delta,
  'bss': transfer.bss_of_outputs,
  'lwf': transfer.lwf_of_outputs,
  'co_tuning': transfer.co_tuning_of_outputs,
}

PROJECTORS: dict[str, Callable[..., dict]] = {
  'fitnet': projectors.hint,
  'fitnet_hint': projectors.hint,
  'fitnet_convreg': projectors.normalized_hint,
  'ft': projectors.hint,
  'vid': projectors.variational,
  'mgd': projectors.generator,
  'srrl': projectors.representation,
  'simkd': projectors.bottleneck,
  'srd': projectors.embedding_adapter,
  'ickd': projectors.width_adapter,
  'fsp': projectors.width_adapter,
  'cc': projectors.embedding_adapter,
  'crd': projectors.contrastive,
  'ab': projectors.normalized_hint,
  'ofd': projectors.normalized_hint,
  'ofd_partial_l2': projectors.normalized_hint,
  'reviewkd': projectors.fusion,
  'reviewkd_hcl': projectors.fusion,
}

MEMORIES: dict[str, Callable[..., dict]] = {'crd': contrastive.crd_memory}
MEMORY_LOSSES: dict[str, Callable[..., tuple[jax.Array, dict]]] = {
  'crd': contrastive.crd_with_memory
}

# Losses that read nothing but logits.
LOGIT_LOSSES = frozenset(
  name
  for name, loss in DISTILLATION_LOSSES.items()
  if loss.__module__ == logits.__name__
)

# Losses that compare `pre_logits`, not maps; srrl as long as no stage is set.
_EMBEDDING_LOSSES = frozenset(
  ('rkd', 'pkt', 'cc', 'crd', 'srd', 'simkd'),
)

# Weights beside a cross-entropy of weight one, where a method is published
# with one that is not near one. Sources are in docs/methods.md.
PUBLISHED_WEIGHTS: dict[str, float] = {
  'kd_logit_std': 9.0,
  'fitnet': 100.0,
  'fitnet_hint': 100.0,
  'fitnet_convreg': 100.0,
  'at': 1000.0,
  'ft': 200.0,
  'sp': 3000.0,
  'nst': 50.0,
  'fsp': 50.0,
  'pkt': 30000.0,
  'cc': 0.02,
  'crd': 0.8,
  'ofd': 1e-3,
  'ofd_partial_l2': 1e-3,
}

# Share of the training in which a method's weight rises from 0: 20 of 240
# epochs in mdistiller.
PUBLISHED_WARMUPS: dict[str, float] = {
  name: 20 / 240
  for name in ('dkd', 'dkd_binary', 'dkd_logit_std')
  + ('reviewkd', 'reviewkd_hcl')
}

# Losses that need to know the one class, or the identity, of each image: not
# for mixed images, nor for unlabelled ones.
LABEL_LOSSES = frozenset(
  ('dkd', 'dkd_binary', 'dkd_logit_std', 'nkd', 'wsld', 'crd')
  + ('ce_label_smoothing',)
)

# Keywords that no user sets: what the caller of `compute` supplies, ...
_CONTEXT = ('projector', 'memory', 'index', 'key', 'teacher_head')
# ... arrays that replace something drawn or computed, and second names.
_INTERNAL = (
  'channel_attention',
  'contrast_idx',
  'mask_uniform',
  'student_logits_via_teacher_head',
  't',
  'temp',
)


def hyperparameters_of(name: str) -> dict[str, Any]:
  """Names and default values of what a user may set for a loss.

  Raises:
    ValueError: No such loss.
  """
  known = START_LOSSES | DISTILLATION_LOSSES
  if name not in known:
    raise unknown_name('distillation loss', name, DISTILLATION_LOSSES)
  parameters = inspect.signature(known[name]).parameters.values()
  return {
    p.name: p.default
    for p in parameters
    if p.kind is p.KEYWORD_ONLY and p.name not in _CONTEXT + _INTERNAL
  }


def check_hyperparameters(name: str, hyperparameters: Mapping) -> None:
  """Raises ValueError for an unknown loss or a keyword it does not have."""
  accepted = hyperparameters_of(name)
  for keyword in hyperparameters:
    if keyword not in accepted:
      raise unknown_name(f'hyperparameter of {name!r}', keyword, accepted)


def init_extras(
  name: str,
  key: jax.Array,
  student_shapes: Mapping,
  teacher_shapes: Mapping,
  num_examples: int,
  labels: jax.Array | None = None,
  **hyperparameters,
) -> dict[str, dict]:
  """Makes the learnable parts and the state of a loss.

  Args:
    name: Key of DISTILLATION_LOSSES.
    key: PRNG key.
    student_shapes: Model outputs as jax.ShapeDtypeStruct.
    teacher_shapes: Likewise.
    num_examples: Size of the training set.
    labels: [num_examples] classes of the training set, or None.
    **hyperparameters: Those of the loss.

  Returns:
    {'projector': params, 'memory': state}, each {} where there is none.

  Raises:
    ValueError: Unknown loss, hyperparameter or stage.
  """
  check_hyperparameters(name, hyperparameters)
  projector_key, memory_key = jax.random.split(key)
  extras = {'projector': {}, 'memory': {}}
  if name in PROJECTORS:
    extras['projector'] = PROJECTORS[name](
      projector_key, student_shapes, teacher_shapes, **hyperparameters
    )
  if name in MEMORIES:
    extras['memory'] = MEMORIES[name](
      memory_key, num_examples, labels, **hyperparameters
    )
  return extras


def compares_maps(name: str, hyperparameters: Mapping) -> bool:
  """Whether a loss reads feature maps, not just `pre_logits` and logits."""
  if name == 'srrl':
    return hyperparameters.get('stages') is not None
  return name not in LOGIT_LOSSES | _EMBEDDING_LOSSES


def bridges(
  name: str,
  student_shapes: Mapping,
  teacher_shapes: Mapping,
  **hyperparameters,
) -> list[str]:
  """What a loss does about differing widths and resolutions, a line each.

  Args:
    name: Key of DISTILLATION_LOSSES.
    student_shapes: Model outputs as jax.ShapeDtypeStruct.
    teacher_shapes: Likewise.
    **hyperparameters: Those of the loss.
  """
  if name in LOGIT_LOSSES:
    return []
  return stages.bridges(
    name,
    student_shapes,
    teacher_shapes,
    hyperparameters.get('stages'),
    maps=compares_maps(name, hyperparameters),
    projector=name in PROJECTORS,
  )


def compute(
  name: str,
  student_outputs: Mapping,
  teacher_outputs: Mapping,
  labels: jax.Array | None,
  *,
  projector: dict | None = None,
  memory: dict | None = None,
  index: jax.Array | None = None,
  key: jax.Array | None = None,
  teacher_head: dict | None = None,
  **hyperparameters,
) -> tuple[jax.Array, dict]:
  """One call for every loss.

  Args:
    name: Key of DISTILLATION_LOSSES.
    student_outputs: Model outputs.
    teacher_outputs: Model outputs.
    labels: [B] int32, or None.
    projector: As `init_extras` makes it.
    memory: Likewise.
    index: [B] positions of the examples in the training set; for memories.
    key: PRNG key of this step.
    teacher_head: {'kernel': [D, K], 'bias': [K]} of the teacher.
    **hyperparameters: Those of the loss.

  Returns:
    (loss, new memory); the memory is {} for losses without one.

  Raises:
    ValueError: Unknown loss or hyperparameter, or something that the loss
      needs is missing.
  """
  check_hyperparameters(name, hyperparameters)
  context = dict(
    projector=projector,
    memory=memory,
    index=index,
    key=key,
    teacher_head=teacher_head,
  )
  loss_fn: Callable[..., Any] = MEMORY_LOSSES.get(
    name, (START_LOSSES | DISTILLATION_LOSSES)[name]
  )
  wanted = inspect.signature(loss_fn).parameters
  context = {k: v for k, v in context.items() if k in wanted}
  result = loss_fn(
    student_outputs, teacher_outputs, labels, **context, **hyperparameters
  )
  return result if name in MEMORY_LOSSES else (result, {})
