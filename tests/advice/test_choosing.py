"""Student, teacher, sizes and steps by probes and a budget."""

import dataclasses

import pytest

from tlkd_jax.advice import choosing
from tlkd_jax.advice.choosing import Sizes
from tlkd_jax.advice.probing import Probe
from tlkd_jax.evaluation.sequential import FIRST_LOOK

SIZES = Sizes(train=500, evaluated=200)


def probe(model, size, nll, milliseconds, by_fold=()):
  return Probe(model, size, 1 - nll / 2, nll, by_fold, milliseconds, 300, 1e-4)


SMALL, LARGE = probe('s', 64, 0.8, 1.0), probe('s', 96, 0.6, 2.5)
TEACHER, BETTER = probe('t', 96, 0.5, 4.0), probe('u', 160, 0.4, 16.0)


def chosen(seconds, students=(SMALL, LARGE), teachers=(SMALL, TEACHER, BETTER)):
  return choosing.choose(students, teachers, SIZES, seconds)


@pytest.mark.parametrize(
  ('minutes', 'student', 'teacher', 'steps', 'fits'),
  [
    (0.1, ('s', 64), ('t', 96), 40, False),
    (11, ('s', 64), ('t', 96), 40, True),
    (12, ('s', 64), ('t', 96), 60, True),
    (28, ('s', 96), ('t', 96), 100, True),
    (60, ('s', 96), ('t', 96), 400, True),
    (1000, ('s', 96), ('u', 160), 400, True),
  ],
)
def test_a_larger_budget_takes_more(minutes, student, teacher, steps, fits):
  choice = chosen(60 * minutes)
  assert (choice.student, choice.image_size) == student
  assert (choice.teacher, choice.teacher_size) == teacher
  assert (choice.num_steps, choice.fits) == (steps, fits)
  assert ('No first look fits' in choice.by) != fits
  if fits:
    assert FIRST_LOOK * choice.seconds_a_seed < 60 * minutes


def test_what_fits_by_the_forecast_is_what_it_says():
  for minutes in range(1, 300, 7):
    choice = chosen(60 * minutes)
    student = SMALL if choice.image_size == 64 else LARGE
    (teacher,) = (
      t
      for t in (SMALL, TEACHER, BETTER)
      if (t.model, t.image_size) == (choice.teacher, choice.teacher_size)
    )
    assert choice.seconds_a_seed == choosing.seconds_a_seed(
      student, teacher, SIZES, choice.num_steps
    )
    assert teacher.image_size >= student.image_size
    assert choice.fits == (
      FIRST_LOOK * choice.seconds_a_seed <= 0.9 * 60 * minutes - 90
    )


def test_the_student_is_no_teacher_of_itself_where_there_is_another():
  able = [LARGE, TEACHER]
  assert chosen(1e5, [LARGE], able).teacher == 't'
  # Its features at a larger size are another teacher.
  wide = dataclasses.replace(LARGE, image_size=128, nll=0.3)
  found = chosen(1e5, [LARGE], [LARGE, wide])
  assert (found.teacher, found.teacher_size) == ('s', 128)
  alone = chosen(1e5, [LARGE], [LARGE])
  assert (alone.teacher, alone.fits) == ('s', False)


def test_a_teacher_that_knows_less_is_said():
  worse = dataclasses.replace(TEACHER, nll=0.9)
  assert not chosen(1e5, [LARGE], [worse]).knows_more
  assert chosen(1e5, [LARGE], [TEACHER]).knows_more


@pytest.mark.parametrize(
  ('first', 'second', 'winner', 'said'),
  [
    ((0.3, 0.4, 0.5), (0.4, 0.5, 0.6), 'a', 'in each of 3 folds'),
    ((0.4, 0.5, 0.6), (0.3, 0.4, 0.5), 'b', 'in each of 3 folds'),
    # Whose mean is less does not count where folds disagree.
    ((0.1, 0.1, 0.6), (0.4, 0.5, 0.5), 'b', 'the largest of these'),
    ((0.5, 0.5, 0.5), (0.1, 0.1, 0.6), 'b', 'the largest of these'),
    ((), (), 'a', 'least NLL on validation images'),
  ],
)
def test_with_folds_no_test_image_chooses(first, second, winner, said):
  one = probe('a', 96, 0.4, 4.0, first)
  other = probe('b', 96, 0.5, 9.0, second)
  found, why = choosing.best([one, other])
  assert found.model == winner and said in why


@pytest.mark.parametrize(
  ('train', 'views'),
  [(10, 4), (500, 4), (800, 2), (1200, 1), (2500, 0), (90_000, 0)],
)
def test_views_of_a_teacher_are_fewer_where_images_are_many(train, views):
  assert choosing.views(train) == views


def test_of_many_images_those_that_the_steps_use():
  choice = choosing.choose([SMALL], [TEACHER], Sizes(45_000, 5500), 1e4)
  assert choice.train_fraction == round(
    choosing.BATCH * choice.num_steps / 45_000, 3
  )
  assert chosen(1e4).train_fraction == 1
