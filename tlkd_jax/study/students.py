"""Several students of one teacher in one study: `--students a,b,c`.

Every arm of a student is there once for each of them; arms of teachers are not,
so that one teacher, and one set of its stored targets for students that see the
same images, is for all. On the pages each student is a recipe of its own at a
place: it is paired with itself, and the answer is over all of them.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from tlkd_jax import settings
from tlkd_jax.models import MODELS
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.settings import Settings, StudyArm
from tlkd_jax.study import matrix

# Weights that whatever variant may have.
_OF_ANY = ('pretrained', 'scratch')
_NAME = 'student.name'

R = TypeVar('R', bound=Mapping[str, Any])


def parse(text: str) -> tuple[str, ...]:
  """The names in 'a,b,c'.

  Raises:
    ValueError: one is empty, unknown or there twice.
  """
  names = tuple(name.strip() for name in text.split(','))
  for name in names:
    if name not in MODELS:
      error = unknown_name('model', name, MODELS)
      raise ValueError(f'--students {text}: {error}')
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f'--students {text}: {", ".join(twice)} is there twice')
  return names


def with_students(config: Settings, names: Sequence[str]) -> Settings:
  """A study with the arms of several students.

  Args:
    config: of a study of one student.
    names: keys of MODELS; the first takes the place of config.student.name, and
      its arms keep their names and folders.

  Raises:
    ValueError: the settings are of one student alone.
  """
  study, (first, *others) = matrix.section_of(config), names
  _check(config, others)
  config = settings.with_values(config, {_NAME: first})
  arms = {
    name: arm if arm.kind == 'teacher' else _of(arm, first)
    for name, arm in study.arms.items()
  }
  own = [name for name, arm in study.arms.items() if arm.kind != 'teacher']
  for other in others:
    for name in own:
      arm = study.arms[name]
      arms[arm_of(name, other)] = dataclasses.replace(
        _of(arm, other),
        teachers=tuple(
          arm_of(one, other) if one in own else one for one in arm.teachers
        ),
        changes={**arm.changes, _NAME: other},
      )
  more = [
    arm_of(name, other)
    for other in others
    for name in study.run_arms
    if name in own
  ]
  values = {'study.arms': arms, 'study.run_arms': (*study.run_arms, *more)}
  return settings.with_values(config, values)


def arm_of(arm: str, student: str) -> str:
  """What an arm of another student than the first is called; a folder too."""
  return f'{arm}_of_{re.sub(r"[^A-Za-z0-9._-]", "_", student)}'


def base_of(name: str, arm: StudyArm) -> tuple[str, str]:
  """(name, label) of an arm, whatever its student."""
  suffix = arm_of('', arm.student)
  return name.removesuffix(suffix), arm.label.removesuffix(f', {arm.student}')


def names_of(arms: Mapping[str, StudyArm]) -> list[str]:
  """The students of a study that has several; [] of another."""
  found = dict.fromkeys(arm.student for arm in arms.values() if arm.student)
  return list(found)


def as_recipes(rows: Sequence[R], arms: Mapping[str, StudyArm]) -> list[R]:
  """Rows in which an arm has one name, and each student is a recipe.

  What is of no student, such as a teacher's row, stands beside each of them.

  Args:
    rows: of results.json, or others with `arm`.
    arms: of the study; without several students the rows are as they were.
  """
  names = names_of(arms)
  if not names:
    return list(rows)
  found: list[dict[str, Any]] = []
  for row in rows:
    arm = arms.get(row['arm'])
    if arm is None or not arm.student:
      found += [{**row, 'recipe': name} for name in names]
      continue
    base, label = base_of(row['arm'], arm)
    own: dict[str, Any] = {'arm': base, 'recipe': arm.student}
    if 'label' in row:
      own['label'] = label
    if 'teachers' in row:
      own['teachers'] = [_base(arms, name) for name in row['teachers']]
    found.append({**row, **own})
  return cast(list[R], found)


def _base(arms: Mapping[str, StudyArm], name: str) -> str:
  arm = arms.get(name)
  return base_of(name, arm)[0] if arm is not None and arm.student else name


def _of(arm: StudyArm, student: str) -> StudyArm:
  label = f'{arm.label}, {student}'
  return dataclasses.replace(arm, student=student, label=label)


def _check(config: Settings, others: Sequence[str]) -> None:
  """Fails on what is of one student alone."""
  study, student = matrix.section_of(config), config.student
  lines = [
    f'study.arms.{name} sets {_NAME}'
    for name, arm in study.arms.items()
    if _NAME in {**arm.changes, **arm.grid}
  ]
  if _NAME in study.grid:
    lines.append(f'study.grid sets {_NAME}')
  if others and student.weights not in _OF_ANY:
    lines.append(f'student.weights is {student.weights!r}, of one variant')
  if others and student.checkpoint:
    lines.append(
      f'student.checkpoint is {student.checkpoint!r}, of one student'
    )
  if lines:
    raise ValueError(
      f'--students: {"; ".join(lines)}; accepted: student.weights '
      f'{" or ".join(map(repr, _OF_ANY))} and arms that leave the student open'
    )
