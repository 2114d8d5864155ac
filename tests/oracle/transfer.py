"""Transfer baselines of a run: what is kept of where the student started.

Each is a weighted term beside the cross-entropy, alone or with teachers. The
start (its weights, the pretrained head, Co-Tuning's table) is a constant of
the step: an argument, not donated, not in the checkpoint; a resumed run makes
it again from the same files by the same computation, so bit for bit.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tlkd_jax import losses
from tlkd_jax.losses import transfer as formulas
from tlkd_jax.models.functional import Model, Tree

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Weights of the terms, 0 for off; config.transfer says what they are."""

  l2_sp: float = 0.0
  l2_sp_head: float = 0.0
  delta: float = 0.0
  delta_stages: tuple[str, ...] | None = None
  bss: float = 0.0
  bss_k: int = 1
  lwf: float = 0.0
  lwf_temperature: float = 2.0
  co_tuning: float = 0.0

  @property
  def runs_start(self) -> bool:
    """Whether the step needs a forward pass of the start."""
    return self.delta > 0 or self.lwf > 0

  @property
  def has_source_head(self) -> bool:
    """Whether the pretrained head goes on learning beside the new one."""
    return self.lwf > 0 or self.co_tuning > 0


def make_transfer(config: Any) -> Transfer | None:
  """The terms of a student's run, None where all are off.

  Raises:
    ValueError: a negative weight, or a term that cannot be computed.
  """
  section = config.transfer
  weights = ('l2_sp', 'l2_sp_head', 'delta', 'bss', 'lwf', 'co_tuning')
  for name in weights:
    if getattr(section, name) < 0:
      raise ValueError(
        f'transfer.{name} is {getattr(section, name)}; least is 0'
      )
  if not any(getattr(section, name) > 0 for name in weights):
    return None
  mixed = config.augment.mixup_alpha > 0 or config.augment.cutmix_alpha > 0
  if section.co_tuning > 0 and (mixed or config.distillation.unlabelled):
    raise ValueError(
      'transfer.co_tuning needs the one class of each image: not with '
      'augment.mixup_alpha, augment.cutmix_alpha or distillation.unlabelled'
    )
  if not 1 <= section.bss_k <= config.batch_size:
    raise ValueError(
      f'transfer.bss_k is {section.bss_k}; it must be in 1..batch_size'
    )
  if section.lwf_temperature <= 0:
    raise ValueError(
      f'transfer.lwf_temperature is {section.lwf_temperature}; it must be '
      'above 0'
    )
  given = {name: getattr(section, name) for name in weights}
  return Transfer(
    **given,
    delta_stages=tuple(section.delta_stages) or None,
    bss_k=section.bss_k,
    lwf_temperature=section.lwf_temperature,
  )


def penalty(
  transfer: Transfer,
  model: Model,
  params: Tree,
  outputs: dict[str, Any],
  start: Tree,
  start_outputs: dict[str, Any] | None,
  labels: Array,
) -> tuple[Array, dict[str, Array]]:
  """The weighted sum of the terms on one batch.

  Args:
    transfer: the weights.
    model: the student.
    params: of the state: 'student', and 'source_head' where it learns.
    outputs: the student's.
    start: {'params', 'model_state', 'head', 'relationship'}, the last two {}
      where no term needs them.
    start_outputs: of the start for the same images; None where unneeded.
    labels: int32[B].

  Returns:
    (scalar, {'l2_sp_loss': ..., ...} unweighted but for l2_sp, whose two
    weights are inside).
  """
  total, metrics = jnp.float32(0.0), {}

  def add(name, weight, value):
    nonlocal total
    metrics[f'{name}_loss'] = value
    total = total + weight * value

  if transfer.l2_sp or transfer.l2_sp_head:
    distance = formulas.l2_sp(
      params['student'],
      start['params'],
      alpha=transfer.l2_sp,
      beta=transfer.l2_sp_head,
      head=','.join(f'{name}.*' for name in model.spec.head),
    )
    add('l2_sp', 1.0, distance)
  if transfer.delta:
    value, _ = losses.compute(
      'delta', outputs, start_outputs or {}, None, stages=transfer.delta_stages
    )
    add('delta', transfer.delta, value)
  if transfer.bss:
    value = formulas.bss(outputs['pre_logits'], k=transfer.bss_k)
    add('bss', transfer.bss, value)
  if transfer.lwf:
    logits = head_logits(outputs, params['source_head'])
    initial = head_logits(start_outputs or {}, start['head'])
    value = formulas.lwf(logits, initial, temperature=transfer.lwf_temperature)
    add('lwf', transfer.lwf, value)
  if transfer.co_tuning:
    logits = head_logits(outputs, params['source_head'])
    value = formulas.co_tuning(logits, labels, start['relationship'])
    add('co_tuning', transfer.co_tuning, value)
  return total, metrics


def head_logits(outputs: dict[str, Any], head: Tree) -> Array:
  """[B, K] float32 of a linear head {'kernel', 'bias'} on `pre_logits`."""
  features = outputs['pre_logits'].astype(jnp.float32)
  return features @ head['kernel'] + head['bias'][None, :]
