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
  number,
  one_of,
  problem,
  records,
  refuse,
  settle,
  several,
  text,
  whole,
)

KINDS = ('teacher', 'tl', 'kd')
KEEP = ('all', 'best', 'needed')
TUNE_OVER = ('all', 'dataset', 'place')


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


def _grid() -> Rule:
  """Configuration keys with the values to try, nested or dotted."""
  values = several(Rule(object, lambda value: value))

  def accept(value):
    flat = {k: values.accept(v) for k, v in _flat().accept(value).items()}
    return {k: v for k, v in flat.items() if v}

  return dataclasses.replace(
    mapping(), accept=accept, words='keys with tuples of values'
  )


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
  grid: Mapping[str, Any] = key(
    {}, 'As study.grid, in its place for this arm.', _grid()
  )
  student: str = key(
    '',
    'Of several students (--students) the one whose arm it is.',
    text(empty=True),
  )


@dataclasses.dataclass(frozen=True)
class Study:
  """A study: the matrix data sets x train sizes x arms x seeds."""

  datasets: Mapping[str, StudyDataset] = key(
    {},
    'Name -> {sizes (() is study.sizes), changes (keys of this page)}; '
    'tlkd_jax/study/designs.py fills it in.',
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
    6,
    'Runs of each: config.seed, config.seed + 1, ...; 0, which needs '
    'tuning_seeds, only tunes.',
    whole(0),
  )
  reference: str = key(
    'tl', 'The arm that the others are compared with.', text()
  )
  treatment: str = key('kd', 'The arm that answers the question.', text())
  grid: Mapping[str, Any] = key(
    {},
    'study.grid.KEY: values of KEY that every arm tries whose runs read it; '
    'keys `teacher.*` by teachers, and by their students with the teacher of '
    'that value. study.arms.ARM.grid.KEY is for one arm.',
    _grid(),
  )
  trials: int = key(
    0,
    'Trials of a student: that many drawn of all combinations, 0 all of them. '
    'Students must have as many each.',
    whole(0),
  )
  criterion: str = key(
    '',
    'Validation metric that chooses trials; "" is best_metric, with '
    'tuning_seeds nll.',
    one_of(('', *METRICS)),
  )
  tuning_seeds: tuple[int, ...] = key(
    (),
    'Seeds of runs that choose a trial for each arm, apart from the seeds that '
    'confirm it; () lets each cell keep the trial that is best on its own '
    'validation images.',
    several(whole(0)),
  )
  tune_over: str = key(
    'all',
    "With tuning_seeds, an arm's trial is one for 'all' places, for each "
    "'dataset', or for each 'place'.",
    one_of(TUNE_OVER),
  )
  metrics: tuple[str, ...] = key(
    ('top1', 'macro_f1', 'nll', 'brier', 'ece', 'aurc'),
    'Test metrics that are compared; accuracy is always one.',
    several(one_of(METRICS)),
  )
  margin: float = key(
    0.005,
    'Accuracies that differ by less, a share, are equal: the margin of the '
    'test of equality. Stated before the runs, and fixed by the first.',
    number(0.0, 0.5, above=True),
  )
  max_seeds: int = key(
    20,
    'The answer may be looked at after every seed from 5 up to this one; more '
    'seeds do not count. Fixed likewise; `--until=sure` adds at most so many.',
    whole(5, 1000),
  )
  cores: int = key(
    1,
    'Cores of the processor that a cell runs on, whatever --jobs: on others '
    'its sums differ in their last digit, and a run of few images by points. '
    'Not read where there is an accelerator; there workers share the cores.',
    whole(1, 1024),
  )
  repeats: int = key(
    3,
    'With --noise: how often one cell of each place is run again on each of '
    'study.noise_cores. Such runs count in no mean.',
    whole(2, 1000),
  )
  noise_cores: tuple[int, ...] = key(
    (1, 2),
    'Numbers of cores on which --noise runs it; where there is an accelerator '
    'one, whatever it is.',
    several(whole(1, 1024)),
  )
  keep: str = key(
    'best',
    'Checkpoints that stay of finished cells.',
    one_of(KEEP),
  )

  def __post_init__(self):
    refuse(settle(self, 'study') or self._wrong())

  def _wrong(self) -> list[str]:
    if not self.arms:
      # Before a design has filled it in.
      return []
    rule = one_of(self.arms)
    named = {'reference': self.reference, 'treatment': self.treatment}
    lines = [
      problem(f'study.{key}', name, rule)
      for key, name in named.items()
      if name not in self.arms
    ]
    if not (self.seeds or self.tuning_seeds):
      lines.append(
        'study.seeds is 0 without study.tuning_seeds: nothing would run; '
        'accepted: at least 1, or seeds that tune'
      )
    if not self.arms.keys() >= set(self.run_arms):
      lines.append(problem('study.run_arms', self.run_arms, rule))
    for name, arm in self.arms.items():
      lines += self._wrong_grid(f'study.arms.{name}', arm)
      lines += self._wrong_teachers(f'study.arms.{name}', name, arm)
    return lines

  def _wrong_grid(self, place: str, arm: StudyArm) -> list[str]:
    foreign = [key for key in arm.grid if key.startswith('teacher.')]
    if not foreign or arm.kind == 'teacher':
      return []
    return [
      f'{place}.grid has {", ".join(foreign)}, which teachers read; accepted '
      'in study.grid, or in the grid of the arm that is its teacher'
    ]

  def _wrong_teachers(self, place: str, name: str, arm: StudyArm) -> list[str]:
    if not self.arms.keys() >= set(arm.teachers):
      return [problem(f'{place}.teachers', arm.teachers, one_of(self.arms))]
    if (arm.kind == 'kd') != bool(arm.teachers):
      return [
        f'{place}.teachers is {arm.teachers}, of kind {arm.kind!r}; accepted: '
        'at least one with "kd", () with others'
      ]
    circle = self._circle((name,))
    if circle:
      path = ' -> '.join(circle)
      return [f'{place}.teachers: {path} is a circle of teachers']
    return []

  def _circle(self, path: tuple[str, ...]) -> tuple[str, ...]:
    """The way along teachers from path[-1] to where it has been, or ()."""
    for teacher in self.arms[path[-1]].teachers:
      if teacher in path:
        return (*path, teacher)
      longer = teacher in self.arms and self._circle((*path, teacher))
      if longer:
        return longer
    return ()
