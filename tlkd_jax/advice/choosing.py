"""Which student, teacher, sizes and steps the arms have: by probes and budget.

The student and its size are those with the least validation NLL of a probe,
among all with which a first look at the answer fits the budget; the teacher
likewise. Test images choose nothing: with folds, the choice is that which each
fold makes without its own test images, and where the folds disagree, the
largest of what they chose.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from tlkd_jax.advice.probing import Probe
from tlkd_jax.evaluation.sequential import FIRST_LOOK

BATCH = 32
# Steps that are tried, the most that fit; fewer than the first alone where
# nothing else does.
STEPS = (400, 200, 100)
_FEWER_STEPS = (60, 40)
# Of a cell: loading, tracing, reading what was compiled, writing.
_SECONDS_A_CELL = 12.0
# Once: compiling the programs of all arms.
_SECONDS_ONCE = 90.0
# Of a forward pass, where a network learns.
_LEARN = 3.5
# Kept of the budget for the page and for what a forecast may miss.
_SHARE = 0.9
# How many times as long the package's regression of a teacher takes as that of
# a probe: more strengths, on all images, to the end.
_FITS = 10.0
# Rows of features that a teacher is fitted to, of images and their views; and
# of its folds.
MOST_PROBED = 2500
PROBE_FOLDS = 3
_CHEAPEST = (
  'No first look fits the budget: these are the cheapest student, and the '
  'cheapest teacher that knows more.'
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What the arms have.

  Attributes:
    student: as Candidate is written.
    image_size: side of its images in pixels.
    teacher: likewise.
    teacher_size: of its images.
    num_steps: of TL and of TL+KD.
    train_fraction: of the training images; 1 is all.
    seconds_a_seed: of all arms, about.
    fits: whether a first look fits the budget.
    by: how the teacher was chosen, a sentence.
    knows_more: whether the teacher's probe has less validation NLL than the
      student's.
  """

  student: str
  image_size: int
  teacher: str
  teacher_size: int
  num_steps: int
  train_fraction: float
  seconds_a_seed: float
  fits: bool
  by: str
  knows_more: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Images that a run has.

  Attributes:
    train: images.
    evaluated: of validation and test together.
  """

  train: int
  evaluated: int


def choose(
  students: Sequence[Probe],
  teachers: Sequence[Probe],
  sizes: Sizes,
  seconds: float,
) -> Choice:
  """What fits a budget.

  Args:
    students: at all sizes.
    teachers: likewise; one that sees as much as the student does is there.
    sizes: of the data.
    seconds: of the budget that are left.
  """
  usable = _SHARE * seconds - _SECONDS_ONCE
  ranked = sorted(students, key=lambda probe: probe.nll)
  for steps in (STEPS[-1], *_FEWER_STEPS):
    for student in ranked:
      able = _able(student, teachers, sizes, steps, usable)
      if able:
        steps = next(
          more
          for more in (*STEPS, steps)
          if _able(student, able, sizes, more, usable) or more == steps
        )
        able = _able(student, able, sizes, steps, usable)
        return _with_teacher(student, able, sizes, steps, fits=True)
  student = min(students, key=lambda probe: probe.milliseconds)
  steps = _FEWER_STEPS[-1]
  others = _able(student, teachers, sizes, steps, math.inf)
  # The cheapest of those that know more; with nobody else, it teaches itself.
  able = [t for t in others if t.nll < student.nll] or others or [student]
  teacher = min(able, key=lambda probe: probe.milliseconds)
  made = _with_teacher(student, [teacher], sizes, steps, fits=False)
  return dataclasses.replace(made, by=_CHEAPEST)


def seconds_a_seed(
  student: Probe, teacher: Probe, sizes: Sizes, steps: int
) -> float:
  """About what TL, TL+KD, TL at its cost and the teacher take together."""
  train = min(sizes.train, BATCH * steps)
  own, theirs = student.milliseconds / 1000, teacher.milliseconds / 1000
  tl = _LEARN * own * BATCH * steps + own * 2 * sizes.evaluated
  rows = train * (1 + views(train))
  says = theirs * (BATCH * steps + sizes.evaluated)
  # TL at TL+KD's cost takes as long as the teacher, but for its regression.
  asked = 2 * (rows * theirs + says)
  regression = _FITS * rows * teacher.fit_seconds
  return 3 * tl + asked + regression + 4 * _SECONDS_A_CELL


def views(num_train: int) -> int:
  """Random views of each image that a probed teacher is fitted to."""
  return max(0, min(4, MOST_PROBED // max(num_train, 1) - 1))


def as_json(choice: Choice) -> dict[str, Any]:
  """The choice, as it is stored."""
  return dataclasses.asdict(choice)


def _able(
  student: Probe,
  teachers: Sequence[Probe],
  sizes: Sizes,
  steps: int,
  usable: float,
) -> list[Probe]:
  """Teachers that see as much as a student, and fit the budget with it."""
  return [
    teacher
    for teacher in teachers
    if teacher.image_size >= student.image_size
    and (teacher.model, teacher.image_size)
    != (student.model, student.image_size)
    and FIRST_LOOK * seconds_a_seed(student, teacher, sizes, steps) <= usable
  ]


def _with_teacher(
  student: Probe,
  able: Sequence[Probe],
  sizes: Sizes,
  steps: int,
  *,
  fits: bool,
) -> Choice:
  teacher, by = best(able)
  train = min(sizes.train, BATCH * steps)
  return Choice(
    student=student.model,
    image_size=student.image_size,
    teacher=teacher.model,
    teacher_size=teacher.image_size,
    num_steps=steps,
    train_fraction=round(min(1.0, train / sizes.train), 3),
    seconds_a_seed=seconds_a_seed(student, teacher, sizes, steps),
    fits=fits,
    by=by,
    knows_more=teacher.nll < student.nll,
  )


def best(able: Sequence[Probe]) -> tuple[Probe, str]:
  """The best of several probes, and how it was found, a sentence."""
  by_all = min(able, key=lambda probe: probe.nll)
  if len(able) == 1:
    return by_all, 'It is the only one that the budget leaves.'
  folds = len(by_all.by_fold)
  if not folds:
    return by_all, 'Its probe has the least NLL on validation images.'
  picked = [min(able, key=_of_fold(number)) for number in range(folds)]
  if len({(one.model, one.image_size) for one in picked}) == 1:
    return picked[0], (
      f'Its probe has the least NLL in each of {folds} folds without the '
      "fold's test images."
    )
  largest = max(picked, key=lambda probe: (probe.milliseconds, -probe.nll))
  return largest, (
    'The folds, each without its test images, chose several; it is the largest '
    'of these, so that no test image decides.'
  )


def _of_fold(number: int) -> Callable[[Probe], float]:
  return lambda probe: probe.by_fold[number]
