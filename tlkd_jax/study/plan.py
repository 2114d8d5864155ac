"""From a study's configuration to its cells, and from a cell to a run."""

import dataclasses
import itertools
import pathlib
from typing import Any

from tlkd_jax import arms, losses
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import build

KINDS = ('teacher', 'tl', 'kd')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study.

  Attributes:
    dataset: a key of config.study.datasets.
    size: training images per class, or a fraction below 1; 0 is all.
    arm: a key of config.study.arms.
    seed: of the run; arms are paired by it.
    trial: values of the hyper-parameters that are searched, (key, value).
    label: the arm's, for people.
    kind: what the run trains, one of KINDS.
    teachers: arms whose cells of the same data and seed guide this one.
    changes: configuration keys with their values, on top of the study's.
  """

  dataset: str
  size: float
  arm: str
  seed: int
  trial: tuple[tuple[str, Any], ...]
  label: str
  kind: str
  teachers: tuple[str, ...]
  changes: tuple[tuple[str, Any], ...]

  @property
  def group(self) -> tuple[str, float, int]:
    """Cells of one group share their data, and need no cell of another."""
    return self.dataset, self.size, self.seed

  @property
  def name(self) -> str:
    """The cell's folder, relative to STUDY/cells."""
    parts = [self.dataset, size_name(self.size), self.arm, f'seed{self.seed}']
    return '/'.join(parts + ([trial_name(self.trial)] if self.trial else []))


def size_name(size: float) -> str:
  """Folder name of a train size."""
  return 'all' if size == 0 else f'{size:g}'


def trial_name(trial: tuple[tuple[str, Any], ...]) -> str:
  """Folder name of a trial: the last part of each key, with its value."""
  return ','.join(f'{key.split(".")[-1]}={value}' for key, value in trial)


def make_plan(config: Any) -> list[Cell]:
  """All cells of a study, each after those that it depends on.

  The order is by seed, data set and size, so that a study that is stopped
  early has some seeds of everything.

  Raises:
    ValueError: an arm, teacher, size or key that does not exist.
  """
  study = config.study
  arms = _ordered_arms(study)
  trials = make_trials(study.grid)
  cells = []
  for seed in range(config.seed, config.seed + study.seeds):
    for dataset, section in study.datasets.items():
      for size in tuple(section.sizes) or tuple(study.sizes):
        for arm in arms:
          cells += [
            _make_cell(study, dataset, size, arm, seed, trial)
            for trial in trials
          ]
  return cells


def _make_cell(study, dataset, size, arm, seed, trial) -> Cell:
  section = study.arms[arm]
  changes = flatten(study.datasets[dataset].changes.to_dict())
  changes |= flatten(section.changes.to_dict()) | dict(trial)
  return Cell(
    dataset=dataset,
    size=size,
    arm=arm,
    seed=seed,
    trial=trial,
    label=section.label,
    kind=section.kind,
    teachers=tuple(section.teachers),
    changes=tuple(changes.items()),
  )


def make_trials(grid: Any) -> list[tuple[tuple[str, Any], ...]]:
  """Every combination of a grid's values; one empty trial without any."""
  axes = [
    [(key, value) for value in values]
    for key, values in flatten(grid.to_dict()).items()
    if values
  ]
  return [tuple(combination) for combination in itertools.product(*axes)]


def _ordered_arms(study: Any) -> list[str]:
  """The arms to run and their teachers, each after its teachers."""
  order: list[str] = []

  def add(name: str, needed_by: tuple[str, ...]) -> None:
    if name not in study.arms:
      raise unknown_name('arm', name, study.arms)
    if name in needed_by:
      path = ' -> '.join((*needed_by, name))
      raise ValueError(f'study.arms: {path} is a circle of teachers')
    section = study.arms[name]
    if section.kind not in KINDS:
      raise unknown_name(f'study.arms.{name}.kind', section.kind, KINDS)
    if (section.kind == 'kd') != bool(section.teachers):
      raise ValueError(
        f'study.arms.{name}: kind {section.kind!r} with teachers '
        f'{tuple(section.teachers)}; "kd" needs at least one, others have none'
      )
    for teacher in section.teachers:
      add(teacher, (*needed_by, name))
    if name not in order:
      order.append(name)

  for name in tuple(study.run_arms) or tuple(study.arms):
    add(name, ())
  return order


def make_config(
  config: Any, cell: Cell, plan: list[Cell], folders: dict[str, pathlib.Path]
) -> Any:
  """The configuration of a cell's run.

  Args:
    config: the study's.
    cell: one of `plan`.
    plan: all cells, for what the teachers are.
    folders: arm -> the finished run to use as that teacher.

  Raises:
    ValueError: a key or value that the configuration refuses.
  """
  own = _without_teachers(config, cell)
  if not cell.teachers:
    return own
  first, *more = cell.teachers
  own.distillation.more_teachers = tuple(str(folders[name]) for name in more)
  its_cell = next(c for c in plan if (c.group, c.arm) == (cell.group, first))
  theirs = _without_teachers(config, its_cell)
  role = 'teacher' if its_cell.kind == 'teacher' else 'student'
  size = build.image_size(theirs, role)
  own.teacher.name = theirs[role].name
  own.teacher.image_size = 0 if size == own.image_size else size
  own.teacher.checkpoint = str(folders[first])
  return own


def _without_teachers(config: Any, cell: Cell) -> Any:
  config = config.copy_and_resolve_references().unlock()
  del config.study
  config.lock()
  apply_changes(config, dict(cell.changes), f'study.arms.{cell.arm}')
  config.arm = cell.kind
  config.seed = cell.seed
  fraction = 0 < cell.size < 1
  config.train_fraction = float(cell.size) if fraction else 1.0
  config.num_train_per_class = 0 if fraction else int(cell.size)
  return config


def apply_changes(config: Any, changes: dict[str, Any], where: str) -> None:
  """Sets keys, 'section.key' -> value; a new loss brings its own defaults.

  Raises:
    ValueError: the configuration has no such key or refuses the value.
  """
  loss = changes.get('distillation.loss', config.distillation.loss)
  if loss != config.distillation.loss:
    config.distillation.loss = loss
    published = losses.find(loss)
    config.distillation.soft_weight = published.weight
    config.distillation.warmup_fraction = published.warmup
    with config.unlocked():
      config.distillation.options = losses.hyperparameters_of(loss)
  known = list(flatten(config.to_dict()))
  for key, value in changes.items():
    if key not in known:
      raise ValueError(f'{where}: {unknown_name("key", key, known)}')
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise ValueError(f'{where}: {key}={value!r}: {error}') from error


def check(config: Any, plan: list[Cell]) -> None:
  """Fails on what would stop a cell, before the first one runs.

  Raises:
    ValueError, FileNotFoundError: see arms.check_values, data.load_splits.
  """
  seen, models = set(), set()
  for cell in plan:
    if (cell.dataset, cell.arm, cell.trial) in seen:
      continue
    seen.add((cell.dataset, cell.arm, cell.trial))
    folders = dict.fromkeys(cell.teachers, pathlib.Path())
    own = make_config(config, cell, plan, folders)
    arms.check_values(own)
    if (own.student.name, own.teacher.name) not in models:
      models.add((own.student.name, own.teacher.name))
      arms.check_models(own)
  _check_sizes(config, plan)


def _check_sizes(config: Any, plan: list[Cell]) -> None:
  """Fails where a class holds fewer images than the largest train size."""
  for name in dict.fromkeys(cell.dataset for cell in plan):
    cells = [c for c in plan if c.dataset == name and c.size >= 1]
    if not cells:
      continue
    own = _without_teachers(config, max(cells, key=lambda cell: cell.size))
    # Little is decoded: as small and as few as there can be.
    own.image_size, own.teacher.image_size = 8, 0
    own.data.num_eval_per_class = 1
    build.load_dataset(own)
