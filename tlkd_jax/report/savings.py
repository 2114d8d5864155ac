"""What a student saves against serving its teacher, in words."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from tlkd_jax.models.serving import JAX, Serving

# Ratios nearer to 1 are none.
_ALIKE = 1.05


@dataclasses.dataclass(frozen=True)
class Point:
  """An arm, with what it reaches and what an answer of it costs.

  Attributes:
    label: its name for people.
    style: a key of plots.COLOURS.
    accuracy: on test, a share; a mean where there are several runs.
    cost: of its network; None where that is not known.
  """

  label: str
  style: str
  accuracy: float
  cost: Serving | None


def is_timed(points: Iterable[Point]) -> bool:
  """Whether all networks were timed, each in JAX and with one image."""
  costs = [point.cost for point in points]
  return all(cost is not None and cost.find(JAX, 1) for cost in costs)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
  """Which of (cost, accuracy) no other is better than.

  Better is one that is in neither worse, and in one of both better.
  """
  return [
    not any(
      cost <= own and right >= accuracy and (cost < own or right > accuracy)
      for cost, right in points
    )
    for own, accuracy in points
  ]


def sentence(student: Point, teacher: Point) -> str:
  """What a student saves against its teacher; '' where a cost is not known."""
  ours, theirs = student.cost, teacher.cost
  if ours is None or theirs is None:
    return ''
  mine, its = ours.find(JAX, 1), theirs.find(JAX, 1)
  smaller = _ratio(
    theirs.figures.bytes / ours.figures.bytes,
    ('smaller', 'larger', 'as large as it'),
  )
  right = _points(student.accuracy - teacher.accuracy)
  name = f'the {student.label} student'
  if mine is None or its is None:
    own, other = (one.figures.all_macs / 1e6 for one in (ours, theirs))
    fewer = _ratio(other / own, ('fewer', 'more', 'as many'))
    return (
      f'An image takes {name} {own:,.0f} million multiply-adds, its teacher '
      f'{other:,.0f}: {", ".join([fewer, smaller, *right])}.'
    )
  faster = _ratio(its.ms / mine.ms, ('as fast', 'as slow', 'as fast as it'))
  text = (
    f'To answer one image {name} takes {mine.ms:.3g} ms, its teacher '
    f'{its.ms:.3g} ms: {", ".join([faster, smaller, *right])} (JAX on '
    f'{mine.device}, {mine.cores} core{"s" * (mine.cores != 1)}).'
  )
  busy = [one.beside for one in (mine, its) if one.disturbed and one.beside]
  if busy:
    text += (
      f' Other processes kept up to {max(busy):.1f} cores busy meanwhile: '
      'these are not the times of an idle machine.'
    )
  if (mine.device, mine.cores) != (its.device, its.cores):
    text += (
      f' The teacher was timed on {its.device}, {its.cores} '
      f'core{"s" * (its.cores != 1)}: the times are not to be compared.'
    )
  return text


def _ratio(times: float, words: tuple[str, str, str]) -> str:
  more, less, alike = words
  if 1 / _ALIKE < times < _ALIKE:
    return alike
  return f'{max(times, 1 / times):.1f} times {more if times > 1 else less}'


def _points(difference: float) -> list[str]:
  """How accurate a student is beside its teacher."""
  if math.isnan(difference):
    return []
  points = 100 * difference
  if abs(points) < 0.05:
    return ['as accurate as it']
  side = 'above' if points > 0 else 'below'
  return [f'{abs(points):.1f} points {side} it']
