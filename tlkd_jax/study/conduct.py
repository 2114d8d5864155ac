"""A study from its settings to its page: the command's parts, and Python's."""

import os
import pathlib

from tlkd_jax.runtime import devices, sharding
from tlkd_jax.runtime.errors import RunError, as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells, pages, results, workers
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.matrix import Cell, check, make_matrix


def run(config: Settings, root: pathlib.Path) -> tuple[list[CellRow], str]:
  """Runs a whole study in this process, or what is left of it.

  Args:
    config: of the study.
    root: STUDY.

  Returns:
    (its rows, the answer in one paragraph); the pages are written.

  Raises:
    UserError: settings that a cell refuses.
    RunError: cells failed; the pages are of the others.
    Interrupted: the process was asked to stop; what is finished stays.
  """
  with as_user_errors():
    matrix = make_matrix(config)
    root.mkdir(parents=True, exist_ok=True)
    check(config, matrix)
  run_shard(config, matrix, root)
  rows, answer = write(config, root)
  check_complete(matrix, root)
  return rows, answer


def run_shard(
  config: Settings,
  shard: list[Cell],
  root: pathlib.Path,
  *,
  worker: bool = False,
) -> None:
  """Runs cells in this process until none is left for it.

  Args:
    config: of the study.
    shard: cells to run.
    root: STUDY.
    worker: another process started this one, tells the progress and has
      forgotten the failures; when it is gone, this one stops.

  Raises:
    Interrupted: the process was asked to stop.
  """
  mesh, load = sharding.make_mesh(), cells.Loader()
  devices.say(mesh)
  if worker:
    workers.end_with_parent(os.getppid())
    report = None
  else:
    workers.forget_failures(shard, root)
    report = workers.Report(shard, root, 1)

  def after_each() -> None:
    if report is not None:
      report()
    results.write(root, config)

  try:
    workers.work(
      shard,
      root,
      lambda cell: cells.run(config, cell, shard, root, load, mesh),
      after_each,
    )
  finally:
    if report is not None:
      report.close()


def write(config: Settings, root: pathlib.Path) -> tuple[list[CellRow], str]:
  """Writes results and pages of what is finished.

  Returns:
    (the rows, the answer in one paragraph, '' without rows).
  """
  rows = results.write(root, config)
  if not rows or config.study is None:
    return rows, ''
  return rows, pages.write(root, rows, config.study)


def check_complete(shard: list[Cell], root: pathlib.Path) -> None:
  """Raises RunError with the cells that failed, or wait for one that did."""
  failed = [
    f'{cell.name}: {state}'
    for cell, state in workers.states(shard, root).items()
    if state in ('failed', 'blocked')
  ]
  if failed:
    raise RunError('cells without a result:\n  ' + '\n  '.join(failed))
