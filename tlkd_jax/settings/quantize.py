"""Section of the configuration: a student that learns as int8 computes it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tlkd_jax import models
from tlkd_jax.models import quantized
from tlkd_jax.settings.guiding import only
from tlkd_jax.settings.rules import key, number, one_of, refuse, settle, whole

MODES = ('none', 'qat')
_RUNS = ('tl', 'kd', 'compare')


@dataclasses.dataclass(frozen=True)
class Quantize:
  """Fine-tuning in which the student rounds as its int8 file will."""

  mode: str = key(
    'none',
    "'qat': the student of the finished run student.checkpoint, its norms "
    'folded, goes on learning with the rounding of int8 in its forward pass; '
    'see configs/qat.py.',
    one_of(MODES),
  )
  calibration_images: int = key(
    256,
    'Training images that the bounds of its tensors are first taken from.',
    whole(1),
  )
  observe_fraction: float = key(
    0.5,
    'Share of the steps in which these bounds follow the batches; then they '
    'stay.',
    number(0, 1),
  )

  def __post_init__(self):
    refuse(settle(self, 'quantize'))


def of_quantize(
  mode: str, arm: str, checkpoint: str | None, name: str, others: Mapping
) -> list[str]:
  """What a student with rounding cannot be combined with.

  Args:
    mode: quantize.mode.
    arm: of the run; a teacher's does not round.
    checkpoint: student.checkpoint.
    name: student.name.
    others: key -> (value, the one that goes with it).
  """
  if mode == 'none' or arm == 'teacher':
    return []
  why = "quantize.mode is 'qat'"
  lines = []
  if arm not in _RUNS:
    lines.append(f'arm is {arm!r}, and {why}; accepted: {", ".join(_RUNS)}')
  if checkpoint is None:
    lines.append(
      f'student.checkpoint is None, and {why}, which starts from a student in '
      'float; accepted: the workdir of a finished run of arm tl or kd'
    )
  wrong = _refusal(name)
  if wrong:
    lines.append(
      f'student.name is {name!r}, and {why}, which needs norms that can be '
      f'folded: {wrong}; accepted: a student such as efficientnet_lite0, '
      'mobilenetv2_100, resnet18'
    )
  return lines + only(others, why)


def values_of(settings: Any) -> dict[str, tuple[Any, Any]]:
  """The keys of a run that have one value with 'qat', for `of_quantize`."""
  guides, transfer = settings.distillation, settings.transfer
  return {
    'compute_dtype': (settings.compute_dtype, 'float32'),
    'remat': (settings.remat, 'none'),
    'cost_matched': (settings.cost_matched, False),
    'student.fit': (settings.student.fit, 'finetuned'),
    'optimizer.train_only': (settings.optimizer.train_only, 'all'),
    'transfer.probe_steps': (transfer.probe_steps, 0),
    'transfer.lwf': (transfer.lwf, 0.0),
    'transfer.co_tuning': (transfer.co_tuning, 0.0),
    'distillation.mutual': (guides.mutual, False),
    'distillation.assistants': (guides.assistants, ()),
    'distillation.generations': (guides.generations, 1),
    'distillation.self_training': (guides.self_training, 'none'),
    'distillation.pretrain_steps': (guides.pretrain_steps, 0),
  }


@functools.cache
def _refusal(name: str) -> str:
  return quantized.refusal(models.MODELS[models.fused_name(name) or name].build)
