"""Who runs which cell when: one worker, or several processes, or machines.

Workers share nothing but the folder. Each takes the first cell that is ready
and not claimed, until all cells are finished, failed, or wait for a failed
one.
"""

import collections
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from absl import logging

from tlkd_jax.runtime import bars, devices, interrupts
from tlkd_jax.runtime.errors import Interrupted, RunError, UserError
from tlkd_jax.runtime.texts import duration
from tlkd_jax.study import cells, claims
from tlkd_jax.study.matrix import Cell, by_group, needed

POLL_SECONDS = 1.0
# See Sparingly.
_SHARE, _FREE_SECONDS = 0.05, 0.2


def shard_of(matrix: list[Cell], index: int, count: int) -> list[Cell]:
  """Part `index` of `count` of a matrix; no group is torn apart."""
  groups = list(dict.fromkeys(cell.group for cell in matrix))
  mine = set(groups[index::count])
  return [cell for cell in matrix if cell.group in mine]


def states(shard: list[Cell], root: pathlib.Path) -> dict[Cell, str]:
  """Cell -> 'done', 'failed', 'blocked' (by a failed one), 'running', 'open'.

  A shard lists cells after those that they need.
  """
  found: dict[Cell, str] = {}
  lost: set[tuple] = set()
  for cell in shard:
    folder = cells.folder_of(root, cell)
    if cells.is_done(root, cell):
      found[cell] = 'done'
    elif claims.holder(folder) is not None:
      found[cell] = 'running'
    elif cells.failure(root, cell) is not None:
      found[cell] = 'failed'
    elif any((cell.group, teacher) in lost for teacher in cell.teachers):
      found[cell] = 'blocked'
    else:
      found[cell] = 'open'
    if found[cell] in ('failed', 'blocked'):
      lost.add((cell.group, cell.arm))
  return found


def work(
  shard: list[Cell],
  root: pathlib.Path,
  run: Callable[[Cell], Any],
  report: Callable[[], None],
  is_over: Callable[[], bool] = lambda: False,
) -> None:
  """Runs cells of a shard until none is left for this process.

  Args:
    shard: cells to run.
    root: STUDY.
    run: runs one cell to its end.
    report: called after each.
    is_over: no further cell begins where it says so.

  Raises:
    Interrupted: the process was asked to stop; the cell's state is saved.
  """
  groups = by_group(shard)
  while True:
    now = states(shard, root)
    took = False
    # One pass over all cells for each look at the disk: a look for every cell
    # would make a study's bookkeeping quadratic.
    for cell in shard:
      if is_over():
        return
      if not _take(cell, groups[cell.group], root, now):
        continue
      took = True
      with claims.touching(cells.folder_of(root, cell)):
        _run_one(cell, root, run)
      report()
    if took:
      continue
    if 'running' in now.values():
      time.sleep(POLL_SECONDS)
    elif 'open' not in states(shard, root).values():
      return


def _take(cell: Cell, group, root, now: dict[Cell, str]) -> bool:
  if now[cell] != 'open':
    return False
  # `now` ages while this process works; the files do not.
  if not all(cells.is_done(root, c) for c in needed(cell, group)):
    return False
  folder = cells.folder_of(root, cell)
  if not claims.take(folder, root / 'claims.lock'):
    return False
  if cells.is_done(root, cell) or cells.failure(root, cell) is not None:
    claims.release(folder)
    return False
  return True


def _run_one(cell: Cell, root: pathlib.Path, run) -> None:
  logging.info('study: %s', cell.name)
  try:
    run(cell)
    # Taken again and again, it would never end.
    if not cells.is_done(root, cell):
      _fail(cell, root, 'it ended without a whole record (cell.json)')
  except Interrupted:
    raise
  except (UserError, RunError, ValueError, OSError) as error:
    _fail(cell, root, f'{type(error).__name__}: {error}')
  # One broken cell must not cost the others; its trace is in the log.
  except Exception as error:
    _fail(cell, root, f'{type(error).__name__}: {error}')
    logging.error('%s', traceback.format_exc())


def _fail(cell: Cell, root: pathlib.Path, reason: str) -> None:
  logging.error('study: %s failed: %s', cell.name, reason)
  (cells.folder_of(root, cell) / 'failed.txt').write_text(reason + '\n')


def forget_failures(shard: list[Cell], root: pathlib.Path) -> None:
  """Cells that failed are tried again."""
  for cell in shard:
    (cells.folder_of(root, cell) / 'failed.txt').unlink(missing_ok=True)


def spawn(
  root: pathlib.Path, jobs: int, arguments: list[str]
) -> list[subprocess.Popen]:
  """Starts workers, each on its share of the cores, logging to STUDY/logs.

  Args:
    root: STUDY.
    jobs: how many.
    arguments: of Python, to run this command again.
  """
  (root / 'logs').mkdir(parents=True, exist_ok=True)
  workers = []
  for index in range(jobs):
    with (root / 'logs' / f'worker{index}.log').open('a') as log:
      command = [sys.executable, *arguments, f'--worker={index}/{jobs}']
      command.append(f'--parent={os.getpid()}')
      workers.append(
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
      )
  return workers


def start(arguments: list[str]) -> subprocess.Popen:
  """Runs this command again in a process of its own, which says what it does.

  Args:
    arguments: of Python.
  """
  return subprocess.Popen([sys.executable, *arguments])


def keep_to_share(index: int, count: int, cores: int) -> None:
  """Restricts this process to part `index` of `count` of cores or GPUs.

  Before JAX starts, which takes as many threads as there are cores.

  Args:
    index: of this process.
    count: of processes side by side.
    cores: that each has where there is no accelerator, whatever the count; with
      one they share all.

  Raises:
    ValueError: the machine has fewer cores.
  """
  if hasattr(os, 'sched_setaffinity'):
    all_cores = sorted(os.sched_getaffinity(0))
    if not devices.has_card():
      _check_cores(len(all_cores), count, cores)
      first = index * cores
      os.sched_setaffinity(0, set(all_cores[first : first + cores]))
    elif len(all_cores) >= count:
      os.sched_setaffinity(0, set(all_cores[index::count]))
  gpus = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
  if len(gpus) >= count > 1:
    os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[index::count])


def _check_cores(there: int, count: int, cores: int) -> None:
  if count * cores > there:
    raise ValueError(
      f'--jobs={count} with study.cores={cores} takes {count * cores} cores, '
      f'and this process may use {there}; accepted: at most '
      f'--jobs={max(there // cores, 1)}'
      + (f' and study.cores={there}' if cores > there else '')
    )


def check_cores(count: int, cores: int) -> None:
  """Refuses more processes than there are cores for.

  Raises:
    ValueError: names what would fit.
  """
  if hasattr(os, 'sched_setaffinity') and not devices.has_card():
    _check_cores(devices.cores(), count, cores)


class Sparingly:
  """Calls a function as often as that takes a small share of the time.

  What looks at all cells takes longer the more there are: after each of them
  it would be quadratic. What is quick is called each time.
  """

  def __init__(self, function: Callable[[], Any]):
    self._function, self._next = function, -math.inf

  def __call__(self) -> None:
    """Calls it, or leaves it out."""
    began = time.monotonic()
    if began < self._next:
      return
    self._function()
    ended = time.monotonic()
    spent = ended - began
    if spent > _FREE_SECONDS:
      self._next = ended + spent / _SHARE


def wait(workers: list, report: Callable[[], None]) -> list[int]:
  """Waits for workers, reporting meanwhile; returns their exit codes.

  A signal to stop is passed on to them.
  """
  look = Sparingly(report)
  try:
    with interrupts.raised():
      while any(worker.poll() is None for worker in workers):
        look()
        time.sleep(POLL_SECONDS)
  except (Interrupted, KeyboardInterrupt):
    for worker in workers:
      worker.send_signal(signal.SIGTERM)
    for worker in workers:
      worker.wait()
    raise
  return [worker.returncode for worker in workers]


class Report:
  """Lines of progress: how many cells are finished, how long the rest takes."""

  def __init__(
    self,
    known: Callable[[], list[Cell]],
    root: pathlib.Path,
    jobs: int,
    look: Callable[[list[Cell]], str] | None = None,
  ):
    """Args: the cells known by now; STUDY; how many workers; what to say.

    `look` says how far the answer is, of cells of which all are finished.
    """
    self._known, self._root, self._jobs = known, root, jobs
    self._look, self._seen = look, ''
    self._shard = known()
    self._shown: list[str] = []
    # Where there is a terminal, lines stand above the bar of a run.
    self._bar = bars.tqdm(
      desc='study',
      total=len(self._shard),
      disable=not bars.in_notebook(),
      unit='cell',
    )

  def __call__(self) -> None:
    """Prints a line where something changed; rewrites STUDY/progress.txt."""
    now = states(self._shard, self._root)
    if set(now.values()) == {'done'}:
      if self._look is not None:
        self._say(self._look(self._shard))
      # The cells that tune are finished, and say which ones confirm.
      self._shard = self._known()
      self._bar.total = len(self._shard)
      now = states(self._shard, self._root)
    running = [cell.name for cell, state in now.items() if state == 'running']
    count = collections.Counter(now.values())
    line = [f'{count["done"]}/{len(now)} cells']
    line += [f'{count[k]} {k}' for k in ('failed', 'blocked') if count[k]]
    line += [f'now {", ".join(running)}'] if running else []
    if line == self._shown:
      return
    self._shown = list(line)
    self._bar.update(count['done'] - self._bar.n)
    if count['open'] or count['running']:
      seconds = seconds_left(now, self._root)
      known = seconds is not None
      left = duration(seconds / self._jobs) if known else 'unknown time'
      line.append(f'{left} left')
    logging.info('study: %s', '; '.join(line))
    text = table(now) + '\n' + '; '.join(line) + '\n'
    text += f'{self._seen}\n' if self._seen else ''
    (self._root / 'progress.txt').write_text(text)

  def _say(self, seen: str) -> None:
    if seen != self._seen:
      logging.info('study: %s', seen)
      self._seen, self._shown = seen, []

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


def table(now: dict[Cell, str]) -> str:
  """Finished cells of each arm (rows), data set and size (columns)."""
  rows = list(dict.fromkeys(c.arm for c in now))
  columns = list(dict.fromkeys((c.dataset, c.size) for c in now))
  total = collections.Counter((c.arm, c.dataset, c.size) for c in now)
  done = collections.Counter(
    (c.arm, c.dataset, c.size) for c, state in now.items() if state == 'done'
  )
  lines = [['', *(f'{name} {size:g}' for name, size in columns)]]
  for arm in rows:
    keys = [(arm, *column) for column in columns]
    lines.append([arm, *(f'{done[k]}/{total[k]}' for k in keys)])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    for line in lines
  )


def seconds_left(now: dict[Cell, str], root: pathlib.Path) -> float | None:
  """Time that one worker needs for the rest; None before a cell is finished.

  A cell takes as long as the finished ones most like it did on average.
  """
  taken = collections.defaultdict(list)
  for cell, state in now.items():
    if state == 'done':
      record = cells.read_record(cells.folder_of(root, cell))
      for key in _likeness(cell):
        taken[key].append(record['wall_seconds'])
  if not taken:
    return None
  left = 0.0
  for cell, state in now.items():
    if state in ('open', 'running'):
      known = next(key for key in _likeness(cell) if key in taken)
      left += sum(taken[known]) / len(taken[known])
  return left


def _likeness(cell: Cell) -> list[tuple]:
  return [
    (cell.dataset, cell.size, cell.arm),
    (cell.dataset, cell.arm),
    (cell.dataset, cell.kind),
    (cell.kind,),
    (),
  ]
