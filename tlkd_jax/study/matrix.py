"""From a study's configuration to its cells, and from a cell to a run."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tlkd_jax import settings
from tlkd_jax.settings import Settings, Study, WrongSettings
from tlkd_jax.study import trials
from tlkd_jax.study.trials import Trial
from tlkd_jax.training import decoding, networks, preparation


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study.

  Attributes:
    dataset: a key of config.study.datasets.
    size: training images per class, or a fraction below 1; 0 is all.
    arm: a key of config.study.arms.
    seed: of the run; arms are paired by it.
    trial: values of the hyper-parameters that are searched, (key, value); of
      a student with the keys of its teacher.
    label: the arm's, for people.
    kind: what the run trains, 'teacher', 'tl' or 'kd'.
    teachers: arms whose cells of the same data and seed guide this one.
    changes: configuration keys with their values, on top of the study's.
  """

  dataset: str
  size: float
  arm: str
  seed: int
  trial: Trial
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


def trial_name(trial: Trial) -> str:
  """Folder name of a trial: the last part of each key, with its value."""
  last = [key.split('.')[-1] for key, _ in trial]
  # Two sections may have a key of one name.
  names = [
    part if last.count(part) == 1 else key
    for part, (key, _) in zip(last, trial, strict=True)
  ]
  whole = ','.join(
    f'{name}={value}' for name, (_, value) in zip(names, trial, strict=True)
  )
  # As in a URL; results are looked for one folder deep.
  return whole.replace('/', '%2F')


def section_of(config: Settings) -> Study:
  """The section `study`.

  Raises:
    ValueError: the configuration is of no study.
  """
  if config.study is None:
    raise ValueError('--config is not of a study; take configs/study.py')
  return config.study


def make_matrix(
  config: Settings,
  chosen: Mapping[tuple[str, float, str], list[Trial]] | None = None,
  count: int | None = None,
) -> list[Cell]:
  """The cells that the answer comes from, each after those that it needs.

  The order is by seed, data set and size, so that a study that is stopped
  early has some seeds of everything.

  Args:
    config: of the study.
    chosen: (data set, size, arm) -> trials to run; None runs all.
    count: of seeds; None is study.seeds.

  Raises:
    ValueError: it is no study, or as trials.of_arms.
  """
  study = section_of(config)
  count = study.seeds if count is None else count
  seeds = range(config.seed, config.seed + count)
  twice = sorted(set(study.tuning_seeds) & set(seeds))
  if twice:
    raise ValueError(
      f'study.tuning_seeds holds {", ".join(map(str, twice))}, which confirm: '
      f'seeds {config.seed} to {seeds[-1]} (seed and study.seeds); accepted: '
      'other seeds'
    )
  return _cells_of(config, seeds, chosen)


def make_tuning(config: Settings) -> list[Cell]:
  """The cells that choose a trial of each arm, on seeds of their own.

  Raises:
    ValueError: as make_matrix.
  """
  return _cells_of(config, section_of(config).tuning_seeds, None)


def _cells_of(
  config: Settings,
  seeds: Iterable[int],
  chosen: Mapping[tuple[str, float, str], list[Trial]] | None,
) -> list[Cell]:
  study = section_of(config)
  arms = ordered_arms(study)
  every = trials.of_arms(study, arms)
  return [
    _make_cell(study, dataset, size, arm, seed, trial)
    for seed in seeds
    for dataset, section in study.datasets.items()
    for size in section.sizes or study.sizes
    for arm in arms
    for trial in (every[arm] if chosen is None else chosen[dataset, size, arm])
  ]


def _make_cell(
  study: Study, dataset: str, size: float, arm: str, seed: int, trial: Trial
) -> Cell:
  section = study.arms[arm]
  own = {
    key: value
    for key, value in trial
    if section.kind == 'teacher' or not trials.is_of_teacher(key)
  }
  changes = {
    **study.datasets[dataset].changes,
    **section.changes,
    **own,
  }
  return Cell(
    dataset=dataset,
    size=size,
    arm=arm,
    seed=seed,
    trial=trial,
    label=section.label,
    kind=section.kind,
    teachers=section.teachers,
    changes=tuple(changes.items()),
  )


def needed(cell: Cell, matrix: Iterable[Cell]) -> list[Cell]:
  """The cells that must be finished before this one: its teachers' trials.

  Of a teacher with several kinds, the trials of the kind that it asks for.
  """
  return [
    other
    for other in matrix
    if other.group == cell.group
    and other.arm in cell.teachers
    and trials.agree(other.trial, cell.trial)
  ]


def by_group(matrix: Iterable[Cell]) -> dict[tuple, list[Cell]]:
  """Cells of each group, in which `needed` finds all that a cell needs.

  Looking through the whole matrix for each of its cells would be quadratic.
  """
  groups: dict[tuple, list[Cell]] = {}
  for cell in matrix:
    groups.setdefault(cell.group, []).append(cell)
  return groups


def ordered_arms(study: Study) -> list[str]:
  """The arms to run and their teachers, each after its teachers."""
  order: list[str] = []

  def add(name: str) -> None:
    for teacher in study.arms[name].teachers:
      add(teacher)
    if name not in order:
      order.append(name)

  for name in study.run_arms or study.arms:
    add(name)
  return order


def make_config(
  config: Settings,
  cell: Cell,
  guides: Mapping[str, tuple[Cell, pathlib.Path]],
) -> Settings:
  """The configuration of a cell's run.

  Args:
    config: the study's.
    cell: of the run.
    guides: arm of each teacher -> (the cell, its finished run).

  Raises:
    ValueError: keys or values that the configuration refuses.
  """
  own = _without_teachers(config, cell)
  if not cell.teachers:
    return own
  first, *more = cell.teachers
  its_cell, its_folder = guides[first]
  theirs = _without_teachers(config, its_cell)
  role = 'teacher' if its_cell.kind == 'teacher' else 'student'
  size = networks.look(theirs, role).image_size
  values = {
    'teacher.name': theirs.network(role).name,
    'teacher.image_size': 0 if size == preparation.image_size(own) else size,
    'teacher.checkpoint': str(its_folder),
    'distillation.more_teachers': tuple(str(guides[name][1]) for name in more),
  }
  return _with_values(own, values, cell)


def _without_teachers(config: Settings, cell: Cell) -> Settings:
  changes = dict(cell.changes)
  loss = changes.get('distillation.loss', config.distillation.loss)
  if loss != config.distillation.loss:
    # A new loss brings its own defaults.
    changes = settings.loss_values(loss) | changes
  fraction = 0 < cell.size < 1
  own = {
    'study': None,
    'arm': cell.kind,
    'seed': cell.seed,
    'train_fraction': cell.size if fraction else 1.0,
    'num_train_per_class': 0 if fraction else cell.size,
  }
  return _with_values(config, changes | own, cell)


def _with_values(
  config: Settings, values: dict[str, Any], cell: Cell
) -> Settings:
  try:
    return settings.with_values(config, values)
  except WrongSettings as error:
    lines = [f'study.arms.{cell.arm}: {line}' for line in error.problems]
    raise WrongSettings(lines) from error


def check(config: Settings, matrix: list[Cell]) -> list[tuple[Cell, Settings]]:
  """Fails on what would stop a cell, before the first one runs.

  Returns:
    (the first cell of each data set, arm and trial, its settings), without
    the files of its teachers.

  Raises:
    ValueError, FileNotFoundError: see settings.Settings, data.load_splits.
  """
  found: dict[tuple, tuple[Cell, Settings]] = {}
  for cell in matrix:
    key = cell.dataset, cell.arm, cell.trial
    if key not in found:
      guides = {c.arm: (c, pathlib.Path()) for c in needed(cell, matrix)}
      found[key] = cell, make_config(config, cell, guides)
  for name in dict.fromkeys(cell.dataset for cell in matrix):
    _check_data(config, [cell for cell in matrix if cell.dataset == name])
  return [*found.values()]


def _check_data(config: Settings, cells: list[Cell]) -> None:
  """Fails on data that are not there, cannot be split, or have too few images.

  Args:
    config: of the study.
    cells: of one data set.
  """
  largest = max(cells, key=lambda cell: cell.size)
  # All of them, or a share, are as many as there are.
  size = largest.size if largest.size >= 1 else 1
  cell = dataclasses.replace(largest, size=size)
  # Little is decoded: as small and as few as there can be.
  least = {
    'image_size': 8,
    'teacher.image_size': 0,
    'data.train_size': None,
    'data.num_validation_per_class': 1,
    'data.num_test_per_class': 1,
  }
  own = _without_teachers(config, cell)
  decoding.load_dataset(_with_values(own, least, cell))
