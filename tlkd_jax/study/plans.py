"""STUDY/plan.json: what a study states before its runs, and holds to."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable

from absl import logging

from tlkd_jax.answer import plan as plans
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.plan import Plan
from tlkd_jax.evaluation import records
from tlkd_jax.settings import Settings
from tlkd_jax.study import matrix, students, trials
from tlkd_jax.study.matrix import Cell
from tlkd_jax.training import networks

# Of several commands in one folder the places are those of all.
_ADDED = ('places', 'after')


def make(config: Settings) -> Plan:
  """What a study's settings state."""
  study = matrix.section_of(config)
  arms = study.treatment, study.reference
  tried = trials.of_arms(study, matrix.ordered_arms(study))
  counts = {arm: len(tried[arm]) for arm in arms if arm in tried}
  words = [
    ('treatment', study.treatment),
    ('reference', study.reference),
    ('trials an arm', ', '.join(f'{c} ({a})' for a, c in counts.items())),
    ('step', f'the best by {config.best_metric} on validation'),
  ]
  if study.tuning_seeds:
    by = study.criterion or 'nll'
    seeds = ', '.join(map(str, study.tuning_seeds))
    words.append(('tuned', f'on seeds {seeds} by {by} on validation'))
  if max(counts.values(), default=1) > 1 and not study.tuning_seeds:
    words.append(('tuned', 'each cell on its own validation images'))
  several = students.names_of(study.arms)
  if several:
    words.append(('students', ', '.join(several)))
  words.append(('confirming seeds', f'from {config.seed} on'))
  folds = config.data.folds
  if folds:
    tested = f'fold {config.data.fold}'
    if config.data.fold is None:
      tested = f'seed i is tested on fold i mod {folds}'
    words.append(('folds', f'{folds}, {tested}'))
  places = [
    runs.in_words(runs.Place(name, size))
    for name, section in study.datasets.items()
    for size in section.sizes or study.sizes
  ]
  return Plan(
    margin=study.margin,
    max_seeds=study.max_seeds,
    metrics=tuple(name for name in study.metrics if name != 'top1'),
    places=tuple(places),
    words=tuple(words),
    after=0,
  )


def state(config: Settings, root: pathlib.Path) -> Plan:
  """Writes what is stated, where no run is finished yet; returns the plan.

  A further data set of the same folder adds its places.

  Raises:
    ValueError: another plan was stated, and runs are finished; names what
      differs.
  """
  new, finished = make(config), _finished(root)
  stated = plans.read(root)
  if stated is None or not finished:
    plan = dataclasses.replace(new, after=finished)
  else:
    _check(stated, new, root)
    places = dict.fromkeys((*stated.places, *new.places))
    plan = dataclasses.replace(stated, places=tuple(places))
  if plan != stated:
    records.write_json(root / plans.FILE, plans.as_json(plan))
  return plan


def say(plan: Plan, checked: Iterable[tuple[Cell, Settings]]) -> None:
  """Logs what is stated, and what each arm looks at, before the first run.

  Args:
    plan: of the study.
    checked: from matrix.check.
  """
  lines = [f'{what}: {value}' for what, value in plan.words]
  seen: dict[str, dict[str, None]] = collections.defaultdict(dict)
  for cell, config in checked:
    role = 'teacher' if cell.kind == 'teacher' else 'student'
    network = config.network(role).name
    side = networks.look(config, role).image_size
    # Once, of several trials.
    seen[f'{cell.dataset}, {network} at {side} px'][cell.arm] = None
  lines += [f'{look}: {", ".join(arms)}' for look, arms in seen.items()]
  logging.info('study of %s\n  %s', '; '.join(plan.places), '\n  '.join(lines))


def _check(stated: Plan, new: Plan, root: pathlib.Path) -> None:
  old, now = (_flat(plan) for plan in (stated, new))
  lines = [
    f'{name}: {old.get(name, "nothing")} there, {now.get(name, "nothing")} now'
    for name in dict.fromkeys((*old, *now))
    if old.get(name) != now.get(name)
  ]
  if lines:
    raise ValueError(
      f'{root / plans.FILE} was stated before the runs, and says otherwise:\n  '
      + '\n  '.join(lines)
      + '\nwhat a study is judged by does not change once it has results; '
      'accepted: what is there, or another --workdir'
    )


def _flat(plan: Plan) -> dict[str, str]:
  found = {
    f'study.{field.name}': str(getattr(plan, field.name))
    for field in dataclasses.fields(plan)
    if field.name not in (*_ADDED, 'words')
  }
  return found | dict(plan.words)


def _finished(root: pathlib.Path) -> int:
  return len([*root.glob('cells/*/*/*/*/cell.json')]) + len(
    [*root.glob('cells/*/*/*/*/*/cell.json')]
  )
