"""Which values of the configuration each arm of a study tries."""

import collections
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.settings import Study, StudyArm

# ((key, value), ...), in the order of the grid.
Trial = tuple[tuple[str, Any], ...]

OF_TEACHER = 'teacher.'
# Section -> kinds of arms whose runs read it; other keys concern every arm.
_READERS = {
  'teacher': ('teacher',),
  'distillation': ('kd',),
  'targets': ('kd',),
  'student': ('tl', 'kd'),
}
# Keys of a section of teachers that FixMatch, an arm of kind tl, reads.
_BY_FIXMATCH = frozenset(
  {
    'distillation.labelled_fraction',
    'distillation.finish_fraction',
    'distillation.fixmatch_weight',
    'distillation.fixmatch_threshold',
  }
)


def of_arms(study: Study, names: list[str]) -> dict[str, list[Trial]]:
  """Arm -> its trials; one empty trial where its grid says nothing.

  An arm tries every combination of the values of `study.grid` and of its own
  grid that its runs read. A student also tries every teacher: its trials hold
  the keys `teacher.*` of its teachers, and a trial is taught by the teacher
  with the same values. Of more than `study.trials` combinations of a student,
  that many are drawn, the same at every place and seed.

  Args:
    study: the section.
    names: of the arms to run.

  Raises:
    ValueError: students have different numbers of trials, so that the one that
      tries more would be the better one by luck.
  """
  found = {name: _of_arm(study, name) for name in names}
  _check_counts(study, {n: len(found[n]) for n in names})
  return found


def combinations(grid: Mapping[str, tuple]) -> list[Trial]:
  """Every combination of a grid's values; one empty trial without any."""
  axes = [
    [(key, value) for value in values] for key, values in grid.items() if values
  ]
  return [tuple(combination) for combination in itertools.product(*axes)]


def is_of_teacher(key: str) -> bool:
  """Whether a key is one that teachers' own runs read."""
  return key.startswith(OF_TEACHER)


def agree(teacher: Trial, student: Trial) -> bool:
  """Whether a teacher's trial is the one that a student's trial asks for."""
  asked = dict(student)
  return all(
    asked.get(key, value) == value
    for key, value in teacher
    if is_of_teacher(key)
  )


def _of_arm(study: Study, name: str) -> list[Trial]:
  arm = study.arms[name]
  found = combinations(_own_grid(study, name) | _grid_of_teachers(study, name))
  if arm.kind == 'teacher' or not 0 < study.trials < len(found):
    return found
  draw = np.random.default_rng(0).permutation(len(found))[: study.trials]
  return [found[index] for index in sorted(draw)]


def _own_grid(study: Study, name: str) -> dict[str, tuple]:
  arm = study.arms[name]
  grid = {**study.grid, **arm.grid}
  return {key: values for key, values in grid.items() if _reads(arm, key)}


def _reads(arm: StudyArm, key: str) -> bool:
  if arm.changes.get('student.fit') == 'fixmatch' and key in _BY_FIXMATCH:
    return True
  of_others = key.startswith('distillation.fixmatch_')
  readers = _READERS.get(key.split('.')[0], (arm.kind,))
  return arm.kind in readers and not of_others


def _grid_of_teachers(study: Study, name: str) -> dict[str, tuple]:
  found = {}
  for teacher in study.arms[name].teachers:
    if study.arms[teacher].kind == 'teacher':
      grid = _own_grid(study, teacher)
      found |= {k: v for k, v in grid.items() if is_of_teacher(k)}
  return found


def _check_counts(study: Study, counts: dict[str, int]) -> None:
  tuned = {
    name: count
    for name, count in counts.items()
    if study.arms[name].kind != 'teacher'
    # An arm with one trial is shown as it was published; not so the two that
    # the question is about.
    and (count > 1 or name in (study.reference, study.treatment))
  }
  by_count = collections.defaultdict(list)
  for name, count in tuned.items():
    by_count[count].append(name)
  if len(by_count) > 1:
    said = '; '.join(
      f'{count}: {", ".join(names)}' for count, names in by_count.items()
    )
    raise ValueError(
      f'arms have different numbers of trials ({said}), and more trials are '
      'more luck; give each as many by study.grid.KEY and '
      'study.arms.ARM.grid.KEY, or draw as many of each by study.trials='
      f'{min(by_count)}'
    )
