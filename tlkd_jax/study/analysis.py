"""What the rows of a study say: pure functions from rows to numbers.

`rows` are those of results.json. Arms are paired by seed within a data set
and train size, here called a place. Differences are arm minus reference.
"""

import collections
import itertools
import math
from typing import Any

import numpy as np

from tlkd_jax.evaluation import curves, statistics
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER

Row = dict[str, Any]
Place = tuple[str, float]


def chosen(rows: list[Row]) -> list[Row]:
  """The rows that were chosen on validation."""
  return [row for row in rows if row['chosen']]


def places(rows: list[Row]) -> list[Place]:
  """Every (data set, size), by number of images."""
  first = {(r['dataset'], r['size']): r['num_train'] for r in rows}
  return sorted(first, key=lambda place: (place[0], first[place]))


def arms(rows: list[Row], reference: str) -> list[str]:
  """Students' arms, the reference first; then the teachers."""
  kinds = {row['arm']: row['kind'] for row in rows}
  return sorted(kinds, key=lambda a: (kinds[a] == 'teacher', a != reference, a))


def labels(rows: list[Row]) -> dict[str, str]:
  """Arm -> label."""
  return {row['arm']: row['label'] for row in rows}


def at(rows: list[Row], place: Place, arm: str) -> dict[int, Row]:
  """Seed -> row of one arm at one place."""
  return {
    row['seed']: row
    for row in chosen(rows)
    if (row['dataset'], row['size'], row['arm']) == (*place, arm)
  }


def values(rows: list[Row], place: Place, arm: str, metric: str) -> np.ndarray:
  """Test values over seeds, [k]; NaN where undefined."""
  found = at(rows, place, arm)
  return np.array(
    [_number(found[seed]['test'][metric]) for seed in sorted(found)]
  )


def pairs(
  rows: list[Row], place: Place, arm: str, reference: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
  """Test values (arm, reference) of the seeds that both have, [k] each."""
  x, y = at(rows, place, arm), at(rows, place, reference)
  seeds = sorted(x.keys() & y.keys())
  return (
    np.array([_number(x[s]['test'][metric]) for s in seeds]),
    np.array([_number(y[s]['test'][metric]) for s in seeds]),
  )


def _number(value: float | None) -> float:
  return math.nan if value is None else float(value)


def compare(rows: list[Row], study: Any) -> list[Row]:
  """Every arm with the reference, at every place, in every metric.

  Holm's correction is over the places and metrics of one arm: once of the
  exact sign-flip p (`p_holm`), which few seeds keep from ever being small,
  and once of the t test's (`p_t_holm`), which assumes normal differences.

  Args:
    rows: of results.json.
    study: config.study.

  Returns:
    statistics.compare_paired with `dataset`, `size`, `arm`, `metric`,
    `p_holm`, `p_t_holm` and `verdict_holm` (by the latter).
  """
  found = []
  for arm in arms(rows, study.reference):
    if arm == study.reference:
      continue
    tests = []
    for place, metric in itertools.product(places(rows), study.metrics):
      x, y = pairs(rows, place, arm, study.reference, metric)
      if not len(x):
        continue
      test = statistics.compare_paired(x, y, metric not in LOWER_IS_BETTER)
      where = {'dataset': place[0], 'size': place[1], 'arm': arm}
      tests.append(where | {'metric': metric} | test)
    exact = statistics.holm([test['p_sign_flip'] for test in tests])
    normal = statistics.holm([test['p_t'] for test in tests])
    for test, p, p_t in zip(tests, exact, normal, strict=True):
      higher = test['metric'] not in LOWER_IS_BETTER
      test['p_holm'], test['p_t_holm'] = float(p), float(p_t)
      test['verdict_holm'] = statistics.verdict(
        test['mean_difference'], float(p_t), higher
      )
    found += tests
  return found


def overall(
  rows: list[Row], arm: str, reference: str, metric: str, dataset: str = ''
) -> Row:
  """One test over all places: the mean difference of each seed.

  Each data set weighs the same. In a study that is not finished, places with
  fewer pairs than the most are left out, and a seed counts if all others have
  it.

  Args:
    rows: of results.json.
    arm: under test.
    reference: that it is compared with.
    metric: a test metric.
    dataset: only this one; '' is all.

  Returns:
    statistics.compare_paired with `places`, how many it is over, and
    `left_out`, those with fewer pairs; `pairs` is 0 without a seed.
  """
  sides = {
    place: (at(rows, place, arm), at(rows, place, reference))
    for place in places(rows)
    if dataset in ('', place[0])
  }
  common = {place: x.keys() & y.keys() for place, (x, y) in sides.items()}
  most = max(map(len, common.values()), default=0)
  used = [place for place in sides if most and len(common[place]) == most]
  by_dataset = collections.defaultdict(list)
  for place in used:
    by_dataset[place[0]].append(sides[place])
  seeds = set.intersection(*(common[p] for p in used)) if used else set()

  def mean(side: int, seed: int) -> float:
    return float(
      np.mean(
        [
          np.mean([_number(pair[side][seed]['test'][metric]) for pair in found])
          for found in by_dataset.values()
        ]
      )
    )

  x, y = ([mean(side, s) for s in sorted(seeds)] for side in (0, 1))
  test = statistics.compare_paired(
    np.array(x), np.array(y), metric not in LOWER_IS_BETTER
  )
  left_out = [place for place in sides if place not in used]
  return test | {'places': len(used), 'left_out': left_out}


def friedman(rows: list[Row], metric: str, reference: str) -> Row | None:
  """Do the students' arms differ at all? Blocks are the places.

  With one place the seeds are the blocks. Only arms that every block has.

  Returns:
    statistics.friedman_test with `arms` and `blocks`; None below 3 arms or 2
    blocks.
  """
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  students = [r for r in chosen(rows) if r['kind'] != 'teacher']
  one_place = len(places(students)) == 1
  scores: dict[Any, dict[str, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in students:
    block = row['seed'] if one_place else (row['dataset'], row['size'])
    value = sign * _number(row['test'][metric])
    scores[block][row['arm']].append(value)
  common = [
    arm
    for arm in arms(students, reference)
    if all(arm in block for block in scores.values())
  ]
  if len(common) < 3 or len(scores) < 2:
    return None
  table = [[np.mean(block[arm]) for arm in common] for block in scores.values()]
  found = statistics.friedman_test(table)
  found['mean_ranks'] = found['mean_ranks'].tolist()
  return found | {'arms': common, 'blocks': len(scores)}


def degraded(rows: list[Row], study: Any) -> list[Row]:
  """The treatment minus the reference on corrupted images, where both ran.

  Returns:
    statistics.compare_paired of top-1 for every place and group of corruptions
    (`clean` are the same images as they are), over the seeds that have both on
    equally many images, with `dataset`, `size`, `group`, `count` of images and
    the reference's mean, `reference`.
  """
  found = []
  for place in places(rows):
    sides = [
      {
        s: r['degraded']
        for s, r in at(rows, place, arm).items()
        if 'degraded' in r
      }
      for arm in (study.treatment, study.reference)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    seeds = [s for s in seeds if sides[0][s]['count'] == sides[1][s]['count']]
    if not seeds:
      continue
    count = sides[0][seeds[0]]['count']
    for group in sides[0][seeds[0]]['top1']:
      x, y = (
        np.array([_number(side[s]['top1'].get(group)) for s in seeds])
        for side in sides
      )
      where = {'dataset': place[0], 'size': place[1], 'group': group}
      test = statistics.compare_paired(x, y)
      found.append(
        where | test | {'count': count, 'reference': float(y.mean())}
      )
  return found


def worth(
  rows: list[Row], arm: str, reference: str, dataset: str, metric: str = 'top1'
) -> Row | None:
  """How many per cent more labels an arm is worth, see curves.

  Returns:
    curves.label_efficiency with `sizes` (training images), `seeds` and
    `outside`: sizes at which the arm lies outside of the reference's curve.
    None below two sizes with common seeds.
  """
  at_sizes = [place for place in places(rows) if place[0] == dataset]
  both = [
    (at(rows, place, arm), at(rows, place, reference)) for place in at_sizes
  ]
  both = [(x, y) for x, y in both if x.keys() & y.keys()]
  if len(both) < 2:
    return None
  seeds = sorted(set.intersection(*(x.keys() & y.keys() for x, y in both)))
  if not seeds:
    return None
  sizes = [next(iter(y.values()))['num_train'] for _, y in both]
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  scores = [
    [[sign * _number(side[s]['test'][metric]) for side in sides] for s in seeds]
    for sides in zip(*both, strict=True)
  ]
  found = curves.label_efficiency(sizes, *scores)
  equivalent = found['equivalent_labels'].tolist()
  return found | {
    'sizes': sizes,
    'seeds': len(seeds),
    'equivalent_labels': equivalent,
    'outside': [
      n for n, e in zip(sizes, equivalent, strict=True) if math.isnan(e)
    ],
  }


def cost(rows: list[Row], place: Place, arm: str) -> Row:
  """What one cell of an arm took on average: all trials, teachers included.

  Returns:
    `seconds`, of which `teacher_seconds` for training teachers;
    `train_images` (forward and backward) and `forward_images` (teachers'
    forward passes while students learn), likewise with the teachers' own.
  """
  own = [
    r for r in rows if (r['dataset'], r['size'], r['arm']) == (*place, arm)
  ]
  seeds = {row['seed'] for row in own}
  total = {
    'seconds': sum(row['seconds'] for row in own) / len(seeds),
    'teacher_seconds': 0.0,
    'train_images': sum(row['train_images'] for row in own) / len(seeds),
    'forward_images': sum(row['teacher_images'] for row in own) / len(seeds),
  }
  for teacher in own[0]['teachers']:
    theirs = cost(rows, place, teacher)
    total['teacher_seconds'] += theirs['seconds']
    for name in ('seconds', 'train_images', 'forward_images'):
      total[name] += theirs[name]
  return total


def edges(rows: list[Row], reference: str, metric: str = 'top1') -> list[Row]:
  """Teacher's edge over the reference beside the gain that it brought.

  Returns:
    One entry for each place and arm with a teacher: `edge` (the best of its
    teachers minus the reference) and `gain` (arm minus reference), means over
    the common seeds, and `agreement` with the teacher on test.
  """
  found = []
  for place, arm in itertools.product(places(rows), arms(rows, reference)):
    own = at(rows, place, arm)
    base = at(rows, place, reference)
    names = next(iter(own.values()))['teachers'] if own else []
    theirs = [at(rows, place, name) for name in names]
    seeds = own.keys() & base.keys()
    seeds = sorted(seeds.intersection(*(t.keys() for t in theirs)))
    if not (names and seeds):
      continue

    def mean(side: dict[int, Row], name: str, seeds=seeds) -> float:
      return float(np.mean([_number(side[s]['test'][name]) for s in seeds]))

    plain = mean(base, metric)
    found.append(
      {
        'dataset': place[0],
        'size': place[1],
        'arm': arm,
        'edge': max(mean(t, metric) for t in theirs) - plain,
        'gain': mean(own, metric) - plain,
        'agreement': mean(own, 'teacher_agreement'),
      }
    )
  return found


def sensitivity(
  rows: list[Row], reference: str, metric: str = 'top1'
) -> dict[Place, dict[tuple[float, float], float]]:
  """Place -> (temperature, soft weight) -> mean difference to the reference.

  Of arms that set both keys; {} without any.
  """
  keys = ('distillation.temperature', 'distillation.soft_weight')
  settings = {
    row['arm']: tuple(row['changes'][key] for key in keys)
    for row in rows
    if all(key in row['changes'] for key in keys)
  }
  found: dict[Place, dict] = {}
  for place, arm in itertools.product(places(rows), settings):
    x, y = pairs(rows, place, arm, reference, metric)
    if len(x):
      found.setdefault(place, {})[settings[arm]] = float(np.mean(x - y))
  return found


def mean_curve(
  rows: list[Row], place: Place, arm: str
) -> list[tuple[int, float]]:
  """(step, mean validation accuracy) at steps that every seed evaluated."""
  found = [
    dict((s, v) for s, _, v in r['curve'])
    for r in at(rows, place, arm).values()
  ]
  if not found:
    return []
  steps = set.intersection(*(set(curve) for curve in found))
  return [(s, float(np.mean([c[s] for c in found]))) for s in sorted(steps)]
