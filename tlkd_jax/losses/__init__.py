"""Distillation and transfer losses: pure functions of model outputs.

Signature: `LOSSES[name].function(student_outputs, teacher_outputs, labels,
**hyperparameters) -> scalar float32`, the mean over the (global) batch.
Outputs are `{'logits': [B, K], 'pre_logits': [B, D], 'features': {'stage1':
[B, h, w, C], ...}}`, of token networks further embeddings beside them, see
stages.EMBEDDINGS, of any floating precision; computation is in float32, the
teacher gets no gradient, labels are int32 [B] (unused by most). Names are
those of the golden fixtures, with short names beside them.

What a loss needs beyond the outputs, its record says and it is given:
learnable parts (`projector`), a state (`memory`), a random mask (`key`), or
the frozen linear head of the teacher (`teacher_head`).

A training step needs to know none of this. It calls

  extras = init_extras(name, key, student_shapes, teacher_shapes,
                       num_examples, labels, **hyperparameters)
  loss, memory = compute(name, student_outputs, teacher_outputs, labels,
                         projector=extras['projector'], memory=memory,
                         index=batch['index'], key=key,
                         teacher_head=teacher_head, **hyperparameters)

where `projector` and `memory` are empty dicts for the losses without them.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

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

Reads = Literal['logits', 'embedding', 'maps', 'params']
Guide = Literal['teacher', 'start', 'labels']
LabelAt = Literal['temperature', 'one', 'none']


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss, and all that the rest of the package has to know of it.

  Attributes:
    function: (student_outputs, teacher_outputs, labels, **hyperparameters) ->
      scalar float32; with a memory -> (scalar, new memory).
    reads: what of both networks' outputs it needs, one of Reads: 'logits'
      alone; 'embedding', `pre_logits` (and logits), unless its `stages` name
      maps or its `embedding` another output of the teacher; 'maps', `features`
      (and any other); 'params', parameters too.
    projector: (key, student_shapes, teacher_shapes, **hyperparameters) ->
      pytree that is trained with the student and passed as `projector`; None
      without one.
    memory: (key, num_examples, labels_of_all_examples, **hyperparameters) ->
      pytree that the training state carries and that is passed as `memory`;
      None without one.
    needs_labels: whether it needs to know the one class, or the identity, of
      each image: not for mixed images, nor for unlabelled ones.
    guide: what the student is compared with, one of Guide: a 'teacher'; its
      own 'start'; nothing but the 'labels'.
    p_label_at: where it reads the teacher's p(label), one of LabelAt: at its
      own 'temperature'; at 'one'; 'none', nowhere or at both. Under 'none'
      there is no sham of a teacher, see shams.py.
    weight: published weight beside a cross-entropy of weight one. Sources are
      in docs/methods.md.
    warmup: published share of the training in which the weight rises from 0.
    same_as: the loss of which this is another name.
  """

  function: Callable[..., Any]
  reads: Reads
  projector: Callable[..., dict] | None = None
  memory: Callable[..., dict] | None = None
  needs_labels: bool = False
  guide: Guide = 'teacher'
  p_label_at: LabelAt = 'none'
  weight: float = 1.0
  warmup: float = 0.0
  same_as: str | None = None

  def reads_of(self, hyperparameters: Mapping) -> Reads:
    """What it reads with these hyper-parameters."""
    if self.reads == 'embedding' and hyperparameters.get('stages') is not None:
      return 'maps'
    return self.reads

  def asks_shapes(self, hyperparameters: Mapping) -> bool:
    """Whether what is made for it, or said of it, depends on both networks."""
    reads = self.reads_of(hyperparameters)
    made = self.projector is not None or self.memory is not None
    return made or reads in ('embedding', 'maps')

  def teacher_outputs(self, hyperparameters: Mapping) -> tuple[str, ...]:
    """Names of the teacher's outputs, beside maps, that it needs."""
    if self.reads_of(hyperparameters) != 'embedding':
      return ('logits',)
    name = hyperparameters.get('embedding', 'pooled')
    return ('logits', stages.EMBEDDINGS[name])


# 20 of 240 epochs in mdistiller.
_RAMP = 20 / 240

LOSSES: dict[str, Loss] = {
  'kd': Loss(logits.kd, reads='logits', p_label_at='temperature'),
  'pseudo_label': Loss(logits.pseudo_label, reads='logits'),
  'kd_logit_std': Loss(logits.kd_logit_std, reads='logits', weight=9.0),
  'dkd': Loss(
    logits.dkd,
    reads='logits',
    needs_labels=True,
    p_label_at='temperature',
    warmup=_RAMP,
  ),
  'dkd_logit_std': Loss(
    logits.dkd_logit_std, reads='logits', needs_labels=True, warmup=_RAMP
  ),
  'dist': Loss(logits.dist, reads='logits', p_label_at='temperature'),
  'nkd': Loss(logits.nkd, reads='logits', needs_labels=True, p_label_at='one'),
  'wsld': Loss(logits.wsld, reads='logits', needs_labels=True),
  'logit_mse': Loss(logits.logit_mse, reads='logits', p_label_at='one'),
  'mlkd': Loss(logits.mlkd, reads='logits', p_label_at='temperature'),
  'function_matching': Loss(
    logits.function_matching, reads='logits', p_label_at='temperature'
  ),
  'ce_label_smoothing': Loss(
    logits.ce_label_smoothing,
    reads='logits',
    needs_labels=True,
    guide='labels',
  ),
  'bv_distances': Loss(logits.bv_distances, reads='logits'),
  'fitnet': Loss(
    features.fitnet_hint,
    reads='maps',
    projector=projectors.hint,
    weight=100.0,
  ),
  'fitnet_convreg': Loss(
    features.fitnet_convreg,
    reads='maps',
    projector=projectors.normalized_hint,
    weight=100.0,
  ),
  'at': Loss(features.at, reads='maps', weight=1000.0),
  'ft': Loss(
    features.ft, reads='maps', projector=projectors.hint, weight=200.0
  ),
  'vid': Loss(features.vid, reads='maps', projector=projectors.variational),
  'mgd': Loss(features.mgd, reads='maps', projector=projectors.generator),
  'cosine': Loss(
    features.cosine, reads='embedding', projector=projectors.embedding_map
  ),
  'smooth_l1': Loss(
    features.smooth_l1, reads='embedding', projector=projectors.embedding_map
  ),
  'srrl': Loss(
    features.srrl, reads='embedding', projector=projectors.representation
  ),
  'simkd': Loss(
    features.simkd, reads='embedding', projector=projectors.bottleneck
  ),
  'srd': Loss(
    features.srd, reads='embedding', projector=projectors.embedding_adapter
  ),
  'sp': Loss(relations.sp, reads='maps', weight=3000.0),
  'ickd': Loss(
    relations.ickd, reads='maps', projector=projectors.width_adapter
  ),
  'nst': Loss(relations.nst, reads='maps', weight=50.0),
  'fsp': Loss(
    relations.fsp,
    reads='maps',
    projector=projectors.width_adapter,
    weight=50.0,
  ),
  'rkd': Loss(relations.rkd, reads='embedding'),
  'pkt': Loss(relations.pkt, reads='embedding', weight=30000.0),
  'cc': Loss(
    relations.cc,
    reads='embedding',
    projector=projectors.embedding_adapter,
    weight=0.02,
  ),
  'crd': Loss(
    contrastive.crd,
    reads='embedding',
    projector=projectors.contrastive,
    memory=contrastive.crd_memory,
    needs_labels=True,
    weight=0.8,
  ),
  'ab': Loss(boundaries.ab, reads='maps', projector=projectors.normalized_hint),
  'ofd': Loss(
    boundaries.ofd,
    reads='maps',
    projector=projectors.normalized_hint,
    weight=1e-3,
  ),
  'reviewkd': Loss(
    review.reviewkd, reads='maps', projector=projectors.fusion, warmup=_RAMP
  ),
  'delta': Loss(transfer.delta, reads='maps', guide='start'),
  'l2sp': Loss(transfer.l2sp, reads='params', guide='start'),
  'bss': Loss(transfer.bss_of_outputs, reads='embedding', guide='start'),
  'lwf': Loss(transfer.lwf_of_outputs, reads='params', guide='start'),
  'co_tuning': Loss(
    transfer.co_tuning_of_outputs,
    reads='params',
    needs_labels=True,
    guide='start',
  ),
}

_SECOND_NAMES = {
  'dkd_binary': 'dkd',
  'mlkd_cc_bc': 'mlkd',
  'function_matching_mixup': 'function_matching',
  'fitnet_hint': 'fitnet',
  'ofd_partial_l2': 'ofd',
  'reviewkd_hcl': 'reviewkd',
  'l2_sp': 'l2sp',
}
LOSSES |= {
  name: dataclasses.replace(LOSSES[first], same_as=first)
  for name, first in _SECOND_NAMES.items()
}

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


def find(name: str) -> Loss:
  """The record of a loss that a user names.

  Raises:
    ValueError: No such loss.
  """
  if name not in LOSSES:
    raise unknown_name('distillation loss', name, LOSSES)
  return LOSSES[name]


def hyperparameters_of(name: str) -> dict[str, Any]:
  """Names and default values of what a user may set for a loss.

  Raises:
    ValueError: No such loss.
  """
  parameters = inspect.signature(find(name).function).parameters.values()
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
    name: Key of LOSSES.
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
  loss = LOSSES[name]
  if loss.projector is not None:
    extras['projector'] = loss.projector(
      projector_key, student_shapes, teacher_shapes, **hyperparameters
    )
  if loss.memory is not None:
    extras['memory'] = loss.memory(
      memory_key, num_examples, labels, **hyperparameters
    )
  return extras


def bridges(
  name: str,
  student_shapes: Mapping,
  teacher_shapes: Mapping,
  **hyperparameters,
) -> list[str]:
  """What a loss does about differing widths and resolutions, a line each.

  Args:
    name: Key of LOSSES.
    student_shapes: Model outputs as jax.ShapeDtypeStruct.
    teacher_shapes: Likewise.
    **hyperparameters: Those of the loss.
  """
  loss = LOSSES[name]
  reads = loss.reads_of(hyperparameters)
  if reads not in ('embedding', 'maps'):
    return []
  return stages.bridges(
    name,
    student_shapes,
    teacher_shapes,
    hyperparameters.get('stages'),
    maps=reads == 'maps',
    projector=loss.projector is not None,
    embedding=hyperparameters.get('embedding', 'pooled'),
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
    name: Key of LOSSES.
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
  loss = LOSSES[name]
  wanted = inspect.signature(loss.function).parameters
  context = {k: v for k, v in context.items() if k in wanted}
  result = loss.function(
    student_outputs, teacher_outputs, labels, **context, **hyperparameters
  )
  return (result, {}) if loss.memory is None else result
