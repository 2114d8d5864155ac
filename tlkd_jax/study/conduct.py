"""A study from its settings to its page: the command's parts, and Python's."""

import os
import pathlib

from tlkd_jax.runtime import devices, sharding
from tlkd_jax.runtime.errors import RunError, as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells, pages, plans, results, tuning, workers
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.matrix import check

# The only part of one: no other machine shares the folder.
WHOLE = 0, 1


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
    matrix = tuning.known(config, root)
    root.mkdir(parents=True, exist_ok=True)
    check(config, matrix)
    plans.state(config, root)
  run_part(config, root)
  rows, answer = write(config, root)
  check_complete(config, root)
  return rows, answer


def run_part(
  config: Settings,
  root: pathlib.Path,
  part: tuple[int, int] = WHOLE,
  *,
  worker: bool = False,
) -> None:
  """Runs cells in this process until none is left for it.

  Args:
    config: of the study.
    root: STUDY.
    part: (index, count) of the machines that share the folder.
    worker: another process started this one, tells the progress and has
      forgotten the failures; when it is gone, this one stops.

  Raises:
    Interrupted: the process was asked to stop.
  """
  mesh, load = sharding.make_mesh(), cells.Loader()
  devices.say(mesh)
  shard = workers.shard_of(tuning.known(config, root), *part)
  if worker:
    workers.end_with_parent(os.getppid())
    report = None
  else:
    workers.forget_failures(shard, root)
    report = make_report(config, root, part, 1)

  def after_each() -> None:
    if report is not None:
      report()
    results.write(root, config)

  try:
    before: list = []
    # What confirms is known when all that tunes is finished.
    while len(shard) > len(before):
      now = shard
      workers.work(
        now,
        root,
        lambda cell, now=now: cells.run(config, cell, now, root, load, mesh),
        after_each,
      )
      before, shard = now, workers.shard_of(tuning.known(config, root), *part)
  finally:
    if report is not None:
      report.close()


def make_report(
  config: Settings, root: pathlib.Path, part: tuple[int, int], jobs: int
) -> workers.Report:
  """The lines of progress of one machine's part."""
  return workers.Report(
    lambda: workers.shard_of(tuning.known(config, root), *part), root, jobs
  )


def write(config: Settings, root: pathlib.Path) -> tuple[list[CellRow], str]:
  """Writes results and pages of what is finished.

  Returns:
    (the rows, the answer in one paragraph; '' while none of them answers).
  """
  rows = results.write(root, config)
  scores = tuning.write(config, root)
  if config.study is None or not any(row['chosen'] for row in rows):
    return rows, ''
  return rows, pages.write(root, rows, config.study, scores)


def check_complete(
  config: Settings, root: pathlib.Path, part: tuple[int, int] = WHOLE
) -> None:
  """Raises RunError with the cells that failed, or wait for one that did."""
  everything = tuning.known(config, root)
  states = workers.states(workers.shard_of(everything, *part), root)
  failed = [
    f'{cell.name}: {state}'
    for cell, state in states.items()
    if state in ('failed', 'blocked')
  ]
  if failed:
    raise RunError('cells without a result:\n  ' + '\n  '.join(failed))
  open_ = sum(not cells.is_done(root, cell) for cell in everything)
  if part != WHOLE and open_ and tuning.is_tuning(config, everything):
    raise RunError(
      f'{open_} cells that tune, of other machines, are not finished; the same '
      'command goes on when they are'
    )
