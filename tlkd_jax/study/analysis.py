"""What the rows of a study say besides the answer: from rows to numbers.

`rows` are those of results.json. Arms are paired by seed within a place, as in
tlkd_jax.answer. Differences are arm minus reference.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NotRequired

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.effects import per_place
from tlkd_jax.answer.rows import Place, Row
from tlkd_jax.answer.verdicts import Verdict, decide
from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER
from tlkd_jax.evaluation.records import number


class CellRow(Row):
  """A row of results.json: a finished cell, see cells.run and results.collect.

  Attributes:
    trial: hyper-parameter -> the value of this trial.
    trials: how many its cell has.
    changes: configuration keys that the arm changes -> value.
    teachers: arms that taught it.
    model: name of the network.
    image_size: in pixels.
    best_step: chosen on validation.
    best_metric: by which it was chosen.
    validation: metric -> value on validation.
    curve: (step, seconds, validation accuracy) of each evaluation.
    seconds: of training.
    wall_seconds: of the cell.
    train_images: images that it learned from, counted each time.
    teacher_images: images that its teachers saw meanwhile.
    folder: of the run, relative to STUDY.
    hits: which test images it got right, see rows.pack.
    agreed: at which of them it answered as its teacher, likewise.
    temperature: that scales its logits, fitted on validation.
    confusion: counts on test by true and predicted class.
    classes: their names.
    reliability: on test, what diagrams before and after temperature scaling are
      added up from, see reliability.top_label_sums.
    degraded: of the suite `corruptions`: `count` images and `top1` by group.
    prediction_cost: of its network, see models.serving.Figures.
  """

  trial: dict[str, Any]
  trials: int
  changes: dict[str, Any]
  teachers: list[str]
  model: str
  image_size: int
  best_step: int
  best_metric: NotRequired[str]
  validation: dict[str, float | None]
  curve: NotRequired[list[list[float]]]
  seconds: float
  wall_seconds: float
  train_images: int
  teacher_images: int
  folder: str
  hits: NotRequired[dict[str, Any]]
  agreed: NotRequired[dict[str, Any]]
  temperature: NotRequired[float]
  confusion: NotRequired[list[list[int]]]
  classes: NotRequired[list[str]]
  reliability: NotRequired[dict[str, dict[str, list[float]]]]
  degraded: NotRequired[dict[str, Any]]
  prediction_cost: NotRequired[dict[str, Any]]


Rows = Sequence[CellRow]


@dataclasses.dataclass(frozen=True)
class Degraded:
  """The treatment minus the reference on corrupted images of one place.

  Attributes:
    place: where.
    group: of corruptions; 'clean' are the same images as they are.
    count: of images.
    reference: mean accuracy of the reference.
    teacher: of the treatment's best teacher on as many images, NaN where none
      was tested.
    test: statistics.compare_paired of accuracy over seeds.
    verdict: of the exact p, corrected by Holm over the places of a group.
  """

  place: Place
  group: str
  count: int
  reference: float
  teacher: float
  test: dict[str, float]
  verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Edge:
  """What an arm's teacher knew beside what the arm gained by it.

  Attributes:
    place: where.
    arm: with a teacher.
    edge: the best of its teachers minus the reference, mean over seeds.
    gain: the arm minus the reference.
    agreement: of the arm with its teacher on test.
  """

  place: Place
  arm: str
  edge: float
  gain: float
  agreement: float


def friedman(rows: Rows, metric: str, reference: str) -> dict[str, Any] | None:
  """Do the students' arms differ at all? Blocks are the places.

  With one place the seeds are the blocks. Only arms that every block has.

  Returns:
    statistics.friedman_test with `arms` and `blocks`; None below 3 arms or 2
    blocks.
  """
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  students = [r for r in runs.chosen(rows) if r['kind'] != 'teacher']
  one_place = len(runs.places(students)) == 1
  scores: dict[Any, dict[str, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in students:
    block = row['seed'] if one_place else runs.place_of(row)
    value = sign * runs.value(row, metric)
    scores[block][row['arm']].append(value)
  common = [
    arm
    for arm in runs.arms(students, reference)
    if all(arm in block for block in scores.values())
  ]
  if len(common) < 3 or len(scores) < 2:
    return None
  table = [[np.mean(block[arm]) for arm in common] for block in scores.values()]
  found = statistics.friedman_test(table)
  found['mean_ranks'] = found['mean_ranks'].tolist()
  return found | {'arms': common, 'blocks': len(scores)}


def degraded(rows: Rows, treatment: str, reference: str) -> list[Degraded]:
  """The treatment minus the reference on corrupted images, where both ran.

  Over the seeds that have both on equally many images.
  """
  found = []
  for place in runs.places(rows):
    both = {
      seed: (x['degraded'], y['degraded'])
      for seed, (x, y) in runs.pairs(rows, place, treatment, reference).items()
      if 'degraded' in x and 'degraded' in y
    }
    both = {s: xy for s, xy in both.items() if xy[0]['count'] == xy[1]['count']}
    if not both:
      continue
    first, _ = next(iter(both.values()))
    for group in first['top1']:
      x, y = (
        np.array(
          [number(sides[i]['top1'].get(group)) for sides in both.values()]
        )
        for i in (0, 1)
      )
      test = statistics.compare_paired(x, y)
      found.append(
        Degraded(
          place=place,
          group=group,
          count=first['count'],
          reference=float(y.mean()),
          teacher=_degraded_teacher(rows, place, treatment, group, first),
          test=test,
          verdict=decide(test, test['p_sign_flip'], 'top1'),
        )
      )
  return _corrected(found)


def _degraded_teacher(
  rows: Rows, place: Place, arm: str, group: str, like: dict[str, Any]
) -> float:
  """Mean accuracy over seeds of the best of an arm's teachers."""
  names = {
    n for row in runs.at(rows, place, arm).values() for n in row['teachers']
  }
  means = [math.nan]
  for name in names:
    own = [
      row['degraded']
      for row in runs.at(rows, place, name).values()
      if 'degraded' in row
    ]
    values = [
      number(one['top1'].get(group))
      for one in own
      if one['count'] == like['count']
    ]
    means.append(float(np.mean(values)) if values else math.nan)
  return float(np.nanmax(means)) if not np.isnan(means).all() else math.nan


def _corrected(found: list[Degraded]) -> list[Degraded]:
  """With verdicts by Holm's p over the places of each group."""
  corrected: dict[tuple[Place, str], float] = {}
  for group in dict.fromkeys(one.group for one in found):
    own = [one for one in found if one.group == group]
    adjusted = statistics.holm([one.test['p_sign_flip'] for one in own])
    corrected |= {
      (one.place, group): float(p) for one, p in zip(own, adjusted, strict=True)
    }
  return [
    dataclasses.replace(
      one,
      verdict=decide(one.test, corrected[one.place, one.group], 'top1'),
    )
    for one in found
  ]


def cost(rows: Rows, place: Place, arm: str) -> dict[str, float]:
  """What one cell of an arm took on average: all trials, teachers included.

  Returns:
    `seconds`, of which `teacher_seconds` for training teachers;
    `train_images` (forward and backward) and `forward_images` (teachers'
    forward passes while students learn), likewise with the teachers' own. NaN
    where rows of the arm, or of its teachers, are not there.
  """
  own = runs.all_at(rows, place, arm)
  seeds = len({row['seed'] for row in own}) or math.nan
  total = {
    'seconds': sum(number(row['seconds']) for row in own) / seeds,
    'teacher_seconds': 0.0,
    'train_images': sum(row['train_images'] for row in own) / seeds,
    'forward_images': sum(row['teacher_images'] for row in own) / seeds,
  }
  for teacher in own[0]['teachers'] if own else ():
    theirs = cost(rows, place, teacher)
    total['teacher_seconds'] += theirs['seconds']
    for name in ('seconds', 'train_images', 'forward_images'):
      total[name] += theirs[name]
  return total


def edges(rows: Rows, reference: str, metric: str = 'top1') -> list[Edge]:
  """Teacher's edge over the reference beside the gain that it brought.

  One entry for each place and arm with a teacher, means over the seeds that
  arm, reference and teachers have in common.
  """
  found = []
  places, arms = runs.places(rows), runs.arms(rows, reference)
  for place, arm in itertools.product(places, arms):
    both = runs.pairs(rows, place, arm, reference)
    own, base = ({s: pair[side] for s, pair in both.items()} for side in (0, 1))
    names = next(iter(own.values()))['teachers'] if own else []
    theirs = [runs.at(rows, place, name) for name in names]
    seeds = sorted(both.keys() & set.intersection(*map(set, theirs), {*both}))
    if not (names and seeds):
      continue

    def mean(side: dict[int, CellRow], name: str, seeds=seeds) -> float:
      return float(np.mean([runs.value(side[s], name) for s in seeds]))

    plain = mean(base, metric)
    found.append(
      Edge(
        place=place,
        arm=arm,
        edge=max(mean(t, metric) for t in theirs) - plain,
        gain=mean(own, metric) - plain,
        agreement=mean(own, 'teacher_agreement'),
      )
    )
  return found


def sensitivity(
  rows: Rows, reference: str
) -> dict[Place, dict[tuple[float, float], float]]:
  """Place -> (temperature, soft weight) -> mean difference in accuracy.

  Of arms that set both keys, to the reference; {} without any.
  """
  keys = ('distillation.temperature', 'distillation.soft_weight')
  settings = {
    row['arm']: tuple(row['changes'][key] for key in keys)
    for row in rows
    if all(key in row['changes'] for key in keys)
  }
  found: dict[Place, dict] = {}
  for arm, setting in settings.items():
    for effect in per_place(rows, arm, reference, 'top1'):
      (place,) = effect.places
      found.setdefault(place, {})[setting] = effect.test['mean_difference']
  return {place: found[place] for place in runs.places(rows) if place in found}


def mean_curve(rows: Rows, place: Place, arm: str) -> list[tuple[int, float]]:
  """(step, mean validation accuracy) at steps that every seed evaluated."""
  found = [
    {int(step): number(value) for step, _, value in row.get('curve', [])}
    for row in runs.at(rows, place, arm).values()
  ]
  if not found:
    return []
  steps = set.intersection(*(set(curve) for curve in found))
  return [(s, float(np.mean([c[s] for c in found]))) for s in sorted(steps)]
