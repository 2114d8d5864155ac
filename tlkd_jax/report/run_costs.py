"""What predictions of finished runs cost: from their files to the section."""

import pathlib
from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer.labels import LABELS
from tlkd_jax.evaluation import records
from tlkd_jax.models import serving as costs
from tlkd_jax.models.serving import Serving
from tlkd_jax.report import serving
from tlkd_jax.report.blocks import Section
from tlkd_jax.report.context import relative
from tlkd_jax.report.pairing import Pair, Paired
from tlkd_jax.report.runs import RunFolder
from tlkd_jax.report.savings import Point
from tlkd_jax.training import serving as measured


def section(paired: Paired, out: pathlib.Path) -> Section | None:
  """Of all arms that are compared, and of their teachers.

  Args:
    paired: the runs of a report.
    out: its folder.
  """
  labels = {row['arm']: row['label'] for row in paired.rows}
  # TL stands beside each of its treatments, and counts once a run.
  found: dict[tuple[str, str, str], dict[tuple, Point]] = {}
  taught: dict[tuple[str, str], list[tuple[Point, Point]]] = {}
  sources = {}
  for pair in paired.pairs:
    place = str(pair.place)
    sources[f'{relative(pair.kd.path, out)}/evaluation/cost.json'] = None
    kd = _point(labels[pair.treatment], 'kd', pair.kd, 'student')
    tl = _point(LABELS['tl'], 'tl', pair.tl, 'student')
    points: dict[tuple, Point] = {(pair.tl.path,): tl, (pair.kd.path,): kd}
    teacher = _teacher(pair)
    if teacher is not None:
      said_by = pair.teacher.path if pair.teacher else pair.kd.path
      points[said_by, 'teacher'] = teacher
      taught.setdefault((place, kd.label), []).append((kd, teacher))
    for run, point in points.items():
      key = place, point.label, point.style
      found.setdefault(key, {})[run] = point
  groups: dict[str, list[Point]] = {}
  for (place, _, _), points in found.items():
    groups.setdefault(place, []).append(_mean([*points.values()]))
  pairs = [
    (place, _mean([s for s, _ in both]), _mean([t for _, t in both]))
    for (place, _), both in taught.items()
  ]
  return serving.section(groups, pairs, ', '.join(sources))


def _teacher(pair: Pair) -> Point | None:
  """The teacher of a pair, by its own run or by what its student says of it.

  A peer learned beside the student, and nobody would serve it.
  """
  if pair.kd.kind != 'kd' or 'mutual' in pair.kd.summary:
    return None
  known = [
    _point(LABELS['teacher'], 'teacher', run, 'teacher')
    for run in (pair.teacher, pair.kd)
    if run is not None and 'teacher' in run.summary
  ]
  return _mean(known) if known else None


def _of_run(run: RunFolder, role: str) -> Serving | None:
  """As it was measured, else as the summary counts it, else from its names."""
  timed = measured.read(run.path).get(role)
  return timed or measured.of_summary(run.summary, role) or _named(run, role)


def _named(run: RunFolder, role: str) -> Serving | None:
  """Of a run of an earlier version, by what its configuration says."""
  own = run.config.get(f'{role}.image_size') or run.config['image_size']
  stored = run.predictions('test')
  if not own or stored is None:
    return None
  name, classes = run.config[f'{role}.name'], stored.logits.shape[1]
  try:
    return Serving(costs.figures(name, int(own), classes))
  except ValueError:
    # A variant that has another name by now, or none.
    return None


def _point(label: str, style: str, run: RunFolder, role: str) -> Point:
  accuracy = records.number(run.summary[role]['test']['top1'])
  return Point(label, style, accuracy, _of_run(run, role))


def _mean(points: Sequence[Point]) -> Point:
  """Of runs of one arm; of their costs the one that most is known of."""
  first = points[0]
  known = [one.cost for one in points if one.cost is not None]
  return Point(
    first.label,
    first.style,
    float(np.mean([one.accuracy for one in points])),
    max(known, key=lambda one: len(one.timings), default=None),
  )
