"""What predictions of a study cost: STUDY/serving.json, and the page's part.

Measured when its cells are finished, in one process and once for each network,
so that no cell is beside; never in a cell.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place
from tlkd_jax.evaluation import records
from tlkd_jax.models import serving as costs
from tlkd_jax.models.serving import Figures, Serving
from tlkd_jax.report import serving
from tlkd_jax.report.blocks import Section
from tlkd_jax.report.savings import Point
from tlkd_jax.runtime import sealed
from tlkd_jax.study.analysis import CellRow, Rows
from tlkd_jax.study.damage import left_out
from tlkd_jax.training import serving as measured

FILE = 'serving.json'


def measure(root: pathlib.Path, rows: Rows, num_steps: int) -> None:
  """Times what is not timed yet; a failure is a warning.

  Args:
    root: STUDY.
    rows: of its finished cells.
    num_steps: of its settings; 0 where the data choose.
  """
  if 0 < num_steps < measured.LEAST_STEPS:
    return
  known: dict[Figures, Serving] = {}
  with left_out(root / FILE):
    known = read(root)
  wanted = dict.fromkeys(figures_of(row) for row in runs.chosen(rows))
  left = [own for own in wanted if own is not None and own not in known]
  for own in left:
    try:
      known[own] = costs.measure(own)
    except (RuntimeError, ValueError) as error:
      logging.warning('%s was not timed: %s', own.model, error)
      continue
    logging.info('%s', measured.line(known[own]))
  if left:
    stored = [costs.as_json(one) for one in known.values()]
    records.write_json(root / FILE, stored)


def read(root: pathlib.Path) -> dict[Figures, Serving]:
  """What `measure` has written; {} of another study.

  Raises:
    ValueError: it is damaged.
  """
  path = root / FILE
  if not path.exists():
    return {}
  stored = sealed.read_json(path)
  if not isinstance(stored, list):
    raise ValueError(f'{path} is damaged: it holds no list')
  found = [costs.from_json(one) for one in stored]
  return {one.figures: one for one in found}


def collect(root: pathlib.Path, rows: Rows) -> dict[Figures, Serving]:
  """Of each network what most is known of, also by cells' --suite=cost."""
  known: dict[Figures, Serving] = {}
  with left_out(root / FILE):
    known = read(root)
  for row in runs.chosen(rows):
    folder, own = root / row['folder'], []
    with left_out(measured.path_of(folder)):
      own = [*measured.read(folder).values()]
    for one in own:
      before = known.get(one.figures)
      if before is None or len(one.timings) > len(before.timings):
        known[one.figures] = one
  return known


def figures_of(row: CellRow) -> Figures | None:
  """Of a cell's network, also of an earlier version; None where unknown."""
  if 'prediction_cost' in row:
    return costs.from_json(row['prediction_cost']).figures
  classes = len(row.get('confusion', ()))
  if not classes or 'image_size' not in row:
    return None
  try:
    return costs.figures(row['model'], row['image_size'], classes)
  except ValueError:
    # A variant that has another name by now, or none.
    return None


def section(
  rows: Rows,
  known: Mapping[Figures, Serving],
  treatments: Sequence[str],
  source: str,
) -> Section | None:
  """Every arm at each place, and the treatments against their teachers.

  Args:
    rows: of results.json, an arm of its own for each student.
    known: of collect.
    treatments: arms that a sentence is of.
    source: files that the numbers come from.
  """
  labels, rows = runs.labels(rows), runs.indexed(rows)
  groups: dict[str, list[Point]] = {}
  for place in runs.places(rows):
    # The first treatment's reference has no say here: by name, teachers last.
    for arm in runs.arms(rows, ''):
      point = _point(rows, [place], arm, labels[arm], treatments, known)
      if point is not None:
        groups.setdefault(str(place), []).append(point)
  pairs = []
  # Networks may see images of another size on each data set.
  for dataset in dict.fromkeys(row['dataset'] for row in rows):
    here = [row for row in rows if row['dataset'] == dataset]
    for arm in treatments:
      both = _with_teacher(here, arm)
      if both is None:
        continue
      teacher, shared = both
      points = [
        _point(shared, runs.places(shared), name, labels[name], [arm], known)
        for name in (arm, teacher)
      ]
      if points[0] is not None and points[1] is not None:
        pairs.append((dataset, points[0], points[1]))
  return serving.section(groups, pairs, source)


def _with_teacher(rows: Rows, arm: str) -> tuple[str, Rows] | None:
  """An arm's first teacher, and the rows of both where both are; else None."""
  own = [row for row in runs.chosen(rows) if row['arm'] == arm]
  if not own or not own[0]['teachers']:
    return None
  teacher = own[0]['teachers'][0]
  theirs = [row for row in runs.chosen(rows) if row['arm'] == teacher]
  if not theirs or theirs[0]['kind'] != 'teacher':
    return None
  common = {_at(row) for row in own} & {_at(row) for row in theirs}
  return teacher, runs.indexed(
    [row for row in own + theirs if _at(row) in common]
  )


def _at(row: CellRow) -> tuple[Place, int]:
  return runs.place_of(row), row['seed']


def _point(
  rows: Rows,
  places: Sequence[Place],
  arm: str,
  label: str,
  treatments: Sequence[str],
  known: Mapping[Figures, Serving],
) -> Point | None:
  """An arm's mean over places of its means over seeds; None without rows."""
  found = [runs.values(rows, place, arm, 'top1') for place in places]
  means = [float(np.mean(values)) for values in found if values.size]
  own = [row for place in places for row in runs.at(rows, place, arm).values()]
  if not means or not own:
    return None
  kind = own[0]['kind']
  style = kind if kind == 'teacher' or arm not in treatments else 'kd'
  figures = next(filter(None, map(figures_of, own)), None)
  cost = figures and known.get(figures, Serving(figures))
  return Point(label, style, float(np.mean(means)), cost or None)
