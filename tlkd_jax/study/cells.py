"""One cell of a study: its run, and the record that says it is finished."""

import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import data, protocols
from tlkd_jax.evaluation import records
from tlkd_jax.evaluation.metrics import goodness
from tlkd_jax.runtime import atomic, made, sealed
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings
from tlkd_jax.settings.top import AUTOMATIC
from tlkd_jax.study import measured
from tlkd_jax.study.damage import left_out
from tlkd_jax.study.matrix import Cell, by_group, make_config, needed
from tlkd_jax.training import (
  balance,
  decoding,
  defaults,
  inputs,
  learned,
  networks,
  targets,
)
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.loop import fine_tune
from tlkd_jax.training.metric_writers import read_rows

# Where things lie: no part of what a run computes.
_PLACES = frozenset(
  {
    'teacher.checkpoint',
    'student.checkpoint',
    'dataset',
    'distillation.more_teachers',
    'data.data_dir',
    'data.cache_dir',
    'targets.dir',
    'targets.features_dir',
  }
)
# How a run is done, which may change between finished cells.
_MANNER = frozenset(
  {
    'data.memory_budget_mib',
    'keep_checkpoints',
    'log_every_steps',
    'memory_check',
    'targets.features_mib',
  }
)


def folder_of(root: pathlib.Path, cell: Cell) -> pathlib.Path:
  """The cell's workdir."""
  return root / 'cells' / cell.name


def criterion(config: Settings) -> str:
  """The validation metric that chooses among the trials of one cell."""
  assert config.study is not None
  return config.study.criterion or config.best_metric


def is_done(root: pathlib.Path, cell: Cell) -> bool:
  """Whether the cell is finished; one with a damaged record is not."""
  return find_record(folder_of(root, cell)) is not None


def failure(root: pathlib.Path, cell: Cell) -> str | None:
  """Why the cell failed, or None."""
  path = folder_of(root, cell) / 'failed.txt'
  return path.read_text() if path.exists() else None


def best_trial(records: list[dict[str, Any]], metric: str) -> dict[str, Any]:
  """The record with the best validation metric; ties keep the first.

  Args:
    records: trials of one cell.
    metric: as of `criterion`; where it was chosen by the data, it is the one
      by which the records' own steps were chosen.
  """
  if metric == AUTOMATIC:
    metric = records[0].get('best_metric', 'top1')
  return max(records, key=lambda r: goodness(metric, r['validation'][metric]))


def run(
  config: Settings,
  cell: Cell,
  matrix: list[Cell],
  root: pathlib.Path,
  load: Callable[[Settings], data.Dataset],
  mesh: Mesh,
) -> dict[str, Any]:
  """Runs a cell, or what is left of it; returns and writes its record.

  Args:
    config: the study's.
    cell: to run; what it needs is finished.
    matrix: at least all cells of its group.
    root: STUDY.
    load: config -> Dataset.
    mesh: devices.

  Raises:
    UserError, RunError, Interrupted: as train.fine_tune.
    ValueError: the folder holds a run of another configuration.
  """
  began = time.monotonic()
  folder = folder_of(root, cell)
  (folder / 'failed.txt').unlink(missing_ok=True)
  atomic.sweep(folder)
  own = configure(config, cell, matrix, root)
  dataset, summaries = load(own), []
  own = defaults.for_data(own, dataset)
  # An arm may consist of several runs, of which the last is its result.
  parts = protocols.plan(own, folder)
  for part in parts:
    summaries.append(fine_tune(part.settings, part.workdir, dataset, mesh))
  assert config.study is not None
  record = _record(parts[-1].settings, cell, folder, summaries[-1])
  record['made'] = made.by(mesh)
  if cell.seed in config.study.tuning_seeds:
    record['tuning'] = True
  if own.data.folds and own.data.fold is None:
    record['folds'] = own.data.folds
  for part, summary in zip(parts[:-1], summaries, strict=False):
    images = learned.images(part.settings, part.workdir, summary)
    asked = _images_asked(part.settings, part.workdir)
    record['seconds'] += summary['seconds']
    record['train_images'] += images
    record['teacher_images'] += asked * (part.settings.arm == 'kd')
  # Of a run that was finished before, only the record was made.
  record['wall_seconds'] = max(time.monotonic() - began, record['seconds'])
  records.write_json(folder / 'cell.json', record)
  _thin(config.study.keep, root, cell, matrix)
  return record


def guides_of(
  config: Settings, cell: Cell, matrix: list[Cell], root: pathlib.Path
) -> dict[str, tuple[Cell, pathlib.Path]]:
  """Arm of each teacher -> its chosen cell, which is finished, and its run."""
  guides = {}
  for arm in cell.teachers:
    tried = [c for c in needed(cell, matrix) if c.arm == arm]
    found = [read_record(folder_of(root, c)) for c in tried]
    best = tried[found.index(best_trial(found, criterion(config)))]
    guides[arm] = best, folder_of(root, best)
  return guides


def configure(
  config: Settings, cell: Cell, matrix: list[Cell], root: pathlib.Path
) -> Settings:
  """The cell's configuration; a run of another one in its place is an error.

  A study may move to another folder, and keys that came with a newer version
  of this package do not concern a run that was begun before.

  Raises:
    ValueError: lists what differs.
  """
  own = make_config(config, cell, guides_of(config, cell, matrix, root))
  folder = folder_of(root, cell)
  if (folder / 'config.json').exists():
    last = protocols.plan(own, folder)[-1].settings
    _compare(folder, flatten(workdirs.as_json(last)))
    workdirs.check_origins(folder, last)
    if not (folder / 'summary.json').exists():
      (folder / 'config.json').unlink()
  return own


def check_finished(
  config: Settings, matrix: list[Cell], root: pathlib.Path
) -> None:
  """Refuses finished cells of another configuration than the study's.

  Not those whose settings are not at hand (published rows, damaged files), nor
  those whose teachers, which say some of them, are no longer finished.

  Raises:
    ValueError: as `configure`.
  """
  groups, known = by_group(matrix), {}
  for cell in matrix:
    group, folder = groups[cell.group], folder_of(root, cell)
    if not (folder / 'config.json').exists():
      continue
    if not all(is_done(root, c) for c in [cell, *needed(cell, group)]):
      continue
    guides = guides_of(config, cell, group, root)
    # Of cells that differ in their seed alone it is made once: it takes long.
    alike = [cell, *(guide for guide, _ in guides.values())]
    key = tuple(dataclasses.replace(each, seed=0) for each in alike)
    if key not in known:
      own = make_config(config, cell, guides)
      last = protocols.plan(own, folder)[-1].settings
      known[key] = flatten(workdirs.as_json(last))
    _compare(folder, known[key] | {'seed': cell.seed}, finished=True)


def _compare(
  folder: pathlib.Path, own: dict[str, Any], *, finished: bool = False
) -> None:
  """Raises ValueError where a run is of other settings than its cell's.

  Args:
    folder: of the run.
    own: dotted key -> value, of the cell.
    finished: the run is, and settings that cannot be read are left out.
  """
  there: dict[str, Any] = {}
  with left_out(folder / 'config.json') if finished else nullcontext():
    there = flatten(workdirs.read(folder))
  new = workdirs.comparable(own)
  old = workdirs.comparable(own | there)
  free = _PLACES | workdirs.left_open(own) | (_MANNER if finished else set())
  shared = (there.keys() & new.keys()) - free
  keys = sorted(k for k in shared if old[k] != new[k])
  if keys:
    raise workdirs.another_configuration(folder, old, new, keys, 'that folder')


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """What `run` wrote.

  Raises:
    FileNotFoundError: the cell is not finished.
    ValueError: the record is damaged.
  """
  record = sealed.read_json(folder / 'cell.json')
  if not isinstance(record, dict) or 'validation' not in record:
    raise ValueError(f'{folder / "cell.json"} is damaged: it is of no cell')
  return record


def find_record(folder: pathlib.Path) -> dict[str, Any] | None:
  """The same; None where there is none, or a damaged one, which is said.

  The run that it is of is untouched by that: the next command makes its record
  again.
  """
  path = folder / 'cell.json'
  try:
    about = path.stat()
  except FileNotFoundError:
    return None
  return _known_record(folder, about.st_mtime_ns, about.st_size, about.st_ino)


@functools.lru_cache(maxsize=10_000)
def _known_record(folder: pathlib.Path, *version: int) -> dict[str, Any] | None:
  # A study looks at all its records every second.
  del version
  try:
    return read_record(folder)
  except FileNotFoundError:
    return None
  except ValueError as error:
    logging.warning('%s; the next command makes it again', error)
    return None


def _record(
  config: Settings, cell: Cell, folder: pathlib.Path, summary: dict[str, Any]
) -> dict[str, Any]:
  role = 'teacher' if cell.kind == 'teacher' else 'student'
  rows = read_rows(folder / 'metrics.jsonl')
  record: dict[str, Any] = {
    'dataset': cell.dataset,
    'size': cell.size,
    'arm': cell.arm,
    'seed': cell.seed,
    'trial': dict(cell.trial),
    'label': cell.label,
    'kind': cell.kind,
    'changes': {k: v for k, v in cell.changes if k not in _PLACES},
    'teachers': list(cell.teachers),
    'model': config.network(role).name,
    'image_size': networks.look(config, role).image_size,
    'num_train': summary['num_train'],
    'best_step': summary['best_step'],
    'best_metric': summary.get('best_metric', 'top1'),
    **measured.measure(folder),
    'curve': [
      [row['step'], row['seconds'], row['top1']] for row in _with_seconds(rows)
    ],
    # Images through a network: trained on, and seen by teachers meanwhile.
    'train_images': learned.images(config, folder, summary),
    'teacher_images': len(cell.teachers)
    * targets.images_seen(
      _images_asked(config, folder),
      summary['num_train'] + summary.get('num_unlabelled', 0),
      mode=config.targets.mode,
      views=targets.num_views(
        config.targets.views, config.distillation.teacher_view
      ),
      balanced=inputs.is_balanced(config),
    ),
    'seconds': summary['seconds'],
  }
  counted = summary.get('prediction_cost', {}).get(role)
  if counted is not None:
    record['prediction_cost'] = counted
  for split in ('validation', 'test'):
    agreement = summary[role][split].get('teacher_agreement')
    if agreement is not None:
      record[split]['teacher_agreement'] = agreement
  return record


def _images_asked(config: Settings, folder: pathlib.Path) -> int:
  """Images that a guide was asked of in the steps of a run."""
  return learned.steps(config, folder) * config.batch_size


def _with_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Validation rows with the time of the train row of the same step."""
  seconds = {r['step']: r['seconds'] for r in rows if r['split'] == 'train'}
  return [
    # One that learns nothing has no row of its training.
    row | {'seconds': seconds.get(row['step'], 0.0)}
    for row in rows
    if row['split'] == 'validation'
  ]


def _thin(
  keep: str, root: pathlib.Path, cell: Cell, matrix: list[Cell]
) -> None:
  """Removes checkpoints that nothing needs any more."""
  if keep == 'all':
    return
  folder = folder_of(root, cell)
  shutil.rmtree(folder / 'checkpoints' / 'latest', ignore_errors=True)
  for part in (*folder.glob('fold*'), *folder.glob('member*')):
    # The whole is in the cell's own.
    shutil.rmtree(part / 'checkpoints', ignore_errors=True)
  if keep == 'best':
    return
  for other in [cell, *needed(cell, matrix)]:
    users = [c for c in matrix if other in needed(c, matrix)]
    if all(is_done(root, user) for user in users):
      for name in ('checkpoints', 'targets', 'peer'):
        shutil.rmtree(folder_of(root, other) / name, ignore_errors=True)


class Loader:
  """Decodes data sets; the last one is kept for the cells that share it."""

  def __init__(self):
    self._key: str | None = None
    self._known: dict[data.Look, data.Dataset] = {}

  def __call__(self, config: Settings) -> data.Dataset:
    """The data of a run, see decoding.load_dataset."""
    key, looks = decoding.data_key(config), networks.looks(config)
    # What this run does not need is not kept in memory beside what it needs.
    kept = self._known if key == self._key else {}
    self._known = {look: kept[look] for look in looks if look in kept}
    kept = {}
    dataset = decoding.load_dataset(config, self._known)
    if not self._known:
      about = balance.lines(config, dataset)
      text = '\n  '.join([dataset.describe(), *about])
      logging.info('%s', text)
    own = dataclasses.replace(dataset, others=())
    self._known = dict(zip(looks, (own, *dataset.others), strict=True))
    self._key = key
    return dataset
