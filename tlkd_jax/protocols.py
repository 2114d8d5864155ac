"""Which runs an arm consists of: teachers, chains, generations, probes.

Every part is a run of its own in the workdir, resumed or skipped by itself:

  WORKDIR/teacher       fine-tuned where config.teacher.checkpoint is not set;
                        with distillation.mutual it is no run of its own
  WORKDIR/probe         the head alone, where config.transfer.probe_steps > 0
                        (LP-FT); student runs start from it
  WORKDIR/assistantN    distillation.assistants, taught by the one before
  WORKDIR/generationN   students before the last of distillation.generations
                        (born again), each taught by the one before
  WORKDIR/tl, WORKDIR/kd   of 'compare'; of 'tl' and 'kd' it is WORKDIR itself
"""

import dataclasses
import pathlib
import re
from typing import Any

from tlkd_jax.answer.labels import LABELS


@dataclasses.dataclass(frozen=True)
class Part:
  """One run of a plan.

  Attributes:
    key: of its summary: 'teacher', 'probe', 'assistant1', 'generation1', 'tl',
      'kd'.
    workdir: of the run.
    config: of the run.
  """

  key: str
  workdir: pathlib.Path
  config: Any


def label(key: str) -> str:
  """A part's name for people."""
  return LABELS.get(key, re.sub(r'(\d+)$', r' \1', key))


def plan(config: Any, workdir: pathlib.Path) -> list[Part]:
  """The runs of config.arm, each after those that it reads.

  Args:
    config: locked configuration; config.arm is 'teacher', 'tl', 'kd'
      or 'compare'.
    workdir: of the command.

  Raises:
    ValueError: protocols that exclude each other, or numbers out of range.
  """
  _check(config)
  if config.arm == 'teacher':
    return [Part('teacher', workdir, config)]
  probe, config = _probe(config, workdir)
  if config.arm == 'tl':
    return [*probe, Part('tl', workdir, config)]
  teacher, guided = _teacher(config, workdir)
  before, guided = _before_the_last(guided, config, workdir)
  if config.arm == 'kd':
    return [*teacher, *probe, *before, Part('kd', workdir, guided)]
  tl = Part('tl', workdir / 'tl', as_arm(config, 'tl'))
  last = Part('kd', workdir / 'kd', guided)
  return [*teacher, *probe, tl, *before, last]


def as_arm(config: Any, arm: str) -> Any:
  """A copy of a configuration for another arm."""
  config = config.copy_and_resolve_references()
  config.arm = arm
  return config


def _check(config: Any) -> None:
  section = config.distillation
  if section.generations < 1:
    raise ValueError(
      f'distillation.generations is {section.generations}; least is 1'
    )
  if config.transfer.probe_steps < 0:
    raise ValueError(
      f'transfer.probe_steps is {config.transfer.probe_steps}; least is 0'
    )
  chained = section.generations > 1 or len(section.assistants) > 0
  if chained and section.more_teachers:
    raise ValueError(
      'distillation.more_teachers cannot be combined with '
      'distillation.assistants or distillation.generations: each of their runs '
      'has the one teacher before it'
    )


def _probe(config: Any, workdir: pathlib.Path) -> tuple[list[Part], Any]:
  """LP-FT: the probe, and the configuration that starts from it."""
  if not config.transfer.probe_steps:
    return [], config
  probe = as_arm(config, 'tl')
  probe.optimizer.train_only = 'head'
  probe.optimizer.freeze_until_step = 0
  probe.num_steps = config.transfer.probe_steps
  for name in ('l2_sp', 'l2_sp_head', 'delta', 'bss', 'lwf', 'co_tuning'):
    probe.transfer[name] = 0.0
  folder = workdir / 'probe'
  tuned = config.copy_and_resolve_references()
  tuned.student.checkpoint = str(folder)
  return [Part('probe', folder, probe)], tuned


def _teacher(config: Any, workdir: pathlib.Path) -> tuple[list[Part], Any]:
  guided = as_arm(config, 'kd')
  if config.teacher.checkpoint or config.distillation.mutual:
    return [], guided
  folder = workdir / 'teacher'
  guided.teacher.checkpoint = str(folder)
  return [Part('teacher', folder, as_arm(config, 'teacher'))], guided


def _before_the_last(
  guided: Any, config: Any, workdir: pathlib.Path
) -> tuple[list[Part], Any]:
  """Assistants, then generations; and the last student's configuration."""
  parts = []
  for number, name in enumerate(config.distillation.assistants, 1):
    assistant = guided.copy_and_resolve_references()
    assistant.student.name = name
    # A probe, or a student's own start, is of another network.
    assistant.student.checkpoint = None
    key = f'assistant{number}'
    parts.append(Part(key, workdir / key, assistant))
    guided = _taught_by(guided, name, workdir / key)
  for number in range(1, config.distillation.generations):
    key = f'generation{number}'
    parts.append(Part(key, workdir / key, guided))
    guided = _taught_by(guided, config.student.name, workdir / key)
  return parts, guided


def _taught_by(guided: Any, name: str, workdir: pathlib.Path) -> Any:
  guided = guided.copy_and_resolve_references()
  guided.teacher.name = name
  guided.teacher.checkpoint = str(workdir)
  # It was a student: it sees the student's size.
  guided.teacher.image_size = 0
  return guided
