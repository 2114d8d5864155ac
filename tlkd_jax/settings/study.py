"""The section `study`: which runs are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings.rules import (
  Rule,
  key,
  mapping,
  one_of,
  records,
  refuse,
  settle,
  several,
  text,
  whole,
)

KINDS = ('teacher', 'tl', 'kd')
KEEP = ('all', 'best', 'needed')


def _size() -> Rule:
  """Images per class, or a fraction of all."""

  def accept(value):
    if isinstance(value, float) and 0 < value < 1:
      return float(value)
    return whole(0).accept(value)

  return Rule(float, accept, 'a whole number >= 0, or a fraction below 1')


def _flat() -> Rule:
  """Configuration keys with values, nested or dotted; kept dotted."""

  def accept(value):
    return flatten(mapping().accept(value))

  return dataclasses.replace(mapping(), accept=accept)


@dataclasses.dataclass(frozen=True)
class StudyDataset:
  """One data set of a study; the section that holds it checks it."""

  sizes: tuple[float, ...] = key(
    (), 'Train sizes; () is study.sizes.', several(_size())
  )
  changes: Mapping[str, Any] = key(
    {}, "'section.key' -> value, of the run.", _flat()
  )


@dataclasses.dataclass(frozen=True)
class StudyArm:
  """One arm of a study; the section that holds it checks it."""

  kind: str = key('tl', 'What it trains.', one_of(KINDS))
  label: str = key('', 'Its name for people.', text(empty=True))
  teachers: tuple[str, ...] = key((), 'Names of arms.', several(text()))
  changes: Mapping[str, Any] = key(
    {}, "'section.key' -> value, of the run.", _flat()
  )


@dataclasses.dataclass(frozen=True)
class Study:
  """A study: the matrix data sets x train sizes x arms x seeds."""

  datasets: Mapping[str, StudyDataset] = key(
    {},
    'Name -> {sizes (() is study.sizes), changes (keys of this page)}; '
    'configs/study.py fills it in.',
    records(StudyDataset),
  )
  arms: Mapping[str, StudyArm] = key(
    {},
    "Name -> {kind: 'teacher' | 'tl' | 'kd', label, teachers (names of arms), "
    'changes (keys of this page)}; filled in likewise.',
    records(StudyArm),
  )
  run_arms: tuple[str, ...] = key(
    (),
    'Names of the arms to run, their teachers come along; () is all.',
    several(text()),
  )
  sizes: tuple[float, ...] = key(
    (5, 10, 20, 50),
    'Training images per class (0 is all), or fractions below 1.',
    several(_size()),
  )
  seeds: int = key(
    6, 'Runs of each: config.seed, config.seed + 1, ...', whole(1)
  )
  reference: str = key(
    'tl', 'The arm that the others are compared with.', text()
  )
  treatment: str = key('kd', 'The arm that answers the question.', text())
  grid: Mapping[str, Any] = key(
    {'optimizer.learning_rate': (), 'optimizer.weight_decay': ()},
    'Values that every arm tries; each cell keeps the one that is best on its '
    'validation images. () does not search.',
    _flat(),
  )
  metrics: tuple[str, ...] = key(
    ('top1', 'macro_f1', 'nll', 'brier', 'ece', 'aurc'),
    "Test metrics that are compared, and counted in Holm's correction.",
    several(one_of(METRICS)),
  )
  keep: str = key(
    'best',
    "What stays of finished cells: 'all' | 'best' checkpoints | 'needed' ones.",
    one_of(KEEP),
  )

  def __post_init__(self):
    refuse(settle(self, 'study'))
