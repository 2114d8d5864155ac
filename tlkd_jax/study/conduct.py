"""A study from its settings to its page: the command's parts, and Python's."""

import contextlib
import pathlib

from tlkd_jax.answer import effects
from tlkd_jax.runtime import devices, locked, sharding
from tlkd_jax.runtime.errors import RunError, as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.study import (
  cells,
  noise,
  pages,
  plans,
  results,
  serving,
  students,
  tuning,
  until,
  workers,
)
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.matrix import Cell, by_group, check, needed, section_of
from tlkd_jax.study.until import Until

# The only part of one: no other machine shares the folder.
WHOLE = 0, 1


def run(
  config: Settings, root: pathlib.Path, end: Until | None = None
) -> tuple[list[CellRow], str]:
  """Runs a whole study in this process, or what is left of it.

  Args:
    config: of the study.
    root: STUDY.
    end: adds seeds until the answer is sure, or this; None runs study.seeds.

  Returns:
    (its rows, the answer in one paragraph); the pages are written.

  Raises:
    UserError: settings that a cell refuses.
    RunError: cells failed; the pages are of the others.
    Interrupted: the process was asked to stop; what is finished stays.
  """
  with alone(root):
    with as_user_errors():
      prepare(config, root, end)
    run_part(config, root, end=end)
    time_predictions(config, root, end)
  rows, answer = write(config, root)
  check_complete(config, root, end=end)
  return rows, answer


def alone(
  root: pathlib.Path, part: tuple[int, int] = WHOLE, *, wanted: bool = True
) -> contextlib.AbstractContextManager[None]:
  """One command at a time has a study's folder, or a part of it.

  Its workers belong to it, and are not wanted here.
  """
  index, count = part
  name = '' if part == WHOLE else f'{index + 1}-of-{count}'
  return locked.held(root, wanted=wanted, part=name)


def prepare(
  config: Settings, root: pathlib.Path, end: Until | None = None
) -> None:
  """Makes the folder, checks every cell and states the plan.

  Raises:
    ValueError, FileNotFoundError: what would stop a cell; another plan, or
      finished cells of another configuration.
  """
  matrix = known(config, root, end)
  root.mkdir(parents=True, exist_ok=True)
  checked = check(config, matrix)
  cells.check_finished(config, matrix, root)
  plan = plans.state(config, root)
  plans.say(plan, checked)
  if end is not None:
    until.check_places(config, root, plan)


def known(
  config: Settings, root: pathlib.Path, end: Until | None = None
) -> list[Cell]:
  """The cells that can be named by now, see tuning and until."""
  if end is None:
    return tuning.known(config, root)
  return until.known(config, root, end)


def run_part(
  config: Settings,
  root: pathlib.Path,
  part: tuple[int, int] = WHOLE,
  *,
  worker: bool = False,
  end: Until | None = None,
) -> None:
  """Runs cells in this process until none is left for it.

  Args:
    config: of the study.
    root: STUDY.
    part: (index, count) of the machines that share the folder.
    worker: another process started this one, tells the progress and has
      forgotten the failures.
    end: see run.

  Raises:
    Interrupted: the process was asked to stop.
  """
  mesh, load = sharding.make_mesh(), cells.Loader()
  devices.say(mesh)
  shard = workers.shard_of(known(config, root, end), *part)
  report = None
  if not worker:
    workers.forget_failures(shard, root)
    report = make_report(config, root, part, 1, end)

  def tell() -> None:
    if report is not None:
      report()
    results.write(root, config)

  try:
    before: list = []
    # What confirms is known when all that tunes is finished.
    while len(shard) > len(before):
      now, groups = shard, by_group(shard)

      def run_cell(cell: Cell, groups=groups):
        cells.run(config, cell, groups[cell.group], root, load, mesh)

      workers.work(
        now,
        root,
        run_cell,
        workers.Sparingly(tell),
        end.is_over if end else lambda: False,
      )
      tell()
      if end and end.is_over():
        return
      before, shard = now, workers.shard_of(known(config, root, end), *part)
  finally:
    if report is not None:
      report.close()


def make_report(
  config: Settings,
  root: pathlib.Path,
  part: tuple[int, int],
  jobs: int,
  end: Until | None = None,
) -> workers.Report:
  """The lines of progress of one machine's part."""
  look = None
  if end is not None:

    def look(finished: list[Cell], end: Until = end) -> str:
      if tuning.is_tuning(config, finished):
        return ''
      return until.line(config, root, finished, end)

  return workers.Report(
    lambda: workers.shard_of(known(config, root, end), *part), root, jobs, look
  )


def write(config: Settings, root: pathlib.Path) -> tuple[list[CellRow], str]:
  """Writes results and pages of what is finished.

  Returns:
    (the rows, the answer in one paragraph; '' while none of them answers).
  """
  found = results.collect(root, cells.criterion(config))
  rows = results.write_rows(root, results.completed(root, found))
  scores = tuning.write(config, root)
  if config.study is None or not any(row['chosen'] for row in rows):
    return rows, ''
  return rows, pages.write(root, rows, config.study, scores)


def time_predictions(
  config: Settings, root: pathlib.Path, end: Until | None = None
) -> None:
  """Measures what predictions cost, once no cell is left that would disturb it.

  Where cells are missing, or run in another process, nothing is measured: the
  command that finishes the study does it.
  """
  states = workers.states(known(config, root, end), root).values()
  if not {'running', 'open'} & {*states}:
    rows = results.collect(root, cells.criterion(config))
    serving.measure(root, rows, config.num_steps)


def check_noise(config: Settings, root: pathlib.Path) -> None:
  """Fails on what would stop the runs of `--noise`, before the first.

  Raises:
    ValueError: no cell can be run again by now, or one's teachers are missing.
  """
  known_ = tuning.known(config, root)
  for cell in noise.cells_of(config, root):
    missing = [c for c in needed(cell, known_) if not cells.is_done(root, c)]
    if missing:
      raise ValueError(
        f'--noise runs {cell.name} again, whose teacher {missing[0].name} is '
        'not finished; run the study first'
      )


def run_noise(config: Settings, root: pathlib.Path) -> None:
  """Runs a cell of each place again on this process's cores, see noise.run.

  Raises:
    UserError: another process does so in this study.
  """
  with locked.held(root / noise.FOLDER):
    noise.run(config, root, cells.Loader(), sharding.make_mesh())


def noise_in_words(config: Settings, root: pathlib.Path) -> str:
  """What the same cell differs from itself by, beside the effect."""
  study = section_of(config)
  found = results.collect(root, cells.criterion(config))
  rows = students.as_recipes(found, study.arms)
  effect = effects.overall(rows, study.treatment, study.reference, 'top1')
  return noise.words(
    noise.floors(rows, students.as_recipes(noise.collect(root), study.arms)),
    effect.test['mean_difference'],
    effect.test['std_difference'],
  )


def check_complete(
  config: Settings,
  root: pathlib.Path,
  part: tuple[int, int] = WHOLE,
  end: Until | None = None,
  *,
  ran: bool = True,
) -> None:
  """Fails where cells are without a result.

  Args:
    config: of the study.
    root: STUDY.
    part: (index, count) of the machines that share the folder.
    end: see run.
    ran: whether cells were to be run, so that none should be left.

  Raises:
    RunError: why cells failed, which, and which wait for one; or how many were
      not run, as their workers were stopped.
  """
  everything = known(config, root, end)
  states = workers.states(workers.shard_of(everything, *part), root)
  reasons: dict[str, list[str]] = {}
  for cell, state in states.items():
    if state in ('failed', 'blocked'):
      why = cells.failure(root, cell) or 'waiting for a cell that failed'
      reasons.setdefault(why.strip(), []).append(cell.name)
  if reasons:
    found = (f'{why}: {", ".join(names)}' for why, names in reasons.items())
    raise RunError('cells without a result:\n  ' + '\n  '.join(found))
  left = sum(state in ('open', 'running') for state in states.values())
  if left and ran and not (end and end.is_over()):
    raise RunError(f'{left} cells are not finished; the same command goes on')
  open_ = sum(not cells.is_done(root, cell) for cell in everything)
  if part != WHOLE and open_ and tuning.is_tuning(config, everything):
    raise RunError(
      f'{open_} cells that tune, of other machines, are not finished; the same '
      'command goes on when they are'
    )
