"""`--until=sure`: seeds are added until the answer is sure, or a budget spent.

Looking after every seed is what the intervals of the answer are made for, see
tlkd_jax.evaluation.sequential.
"""

import dataclasses
import math
import pathlib
import time

from tlkd_jax.answer import conclusions
from tlkd_jax.answer import plan as plans
from tlkd_jax.answer.decision import SURE, UNKNOWN, Decision
from tlkd_jax.answer.words import points
from tlkd_jax.evaluation.sequential import FIRST_LOOK
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells, matrix, results, students, tuning
from tlkd_jax.study import plans as stating
from tlkd_jax.study.matrix import Cell


@dataclasses.dataclass(frozen=True)
class Until:
  """When a study that adds seeds ends at the latest.

  Attributes:
    seeds: that it has at most.
    deadline: no cell begins after it, nor a seed that would not end before it,
      in seconds of time.time(); None is never.
    jobs: processes that share the cells.
  """

  seeds: int
  deadline: float | None
  jobs: int

  def seconds_left(self) -> float:
    """Until the deadline; infinity without one."""
    return math.inf if self.deadline is None else self.deadline - time.time()

  def is_over(self) -> bool:
    """Whether no further cell begins."""
    return self.seconds_left() <= 0


def make(
  config: Settings, seeds: int | None, deadline: float | None, jobs: int
) -> Until:
  """The end of a study.

  Args:
    config: of the study.
    seeds: of --max_seeds; None is study.max_seeds.
    deadline: see Until.
    jobs: likewise.

  Raises:
    ValueError: fewer seeds than a first look takes, more than are planned, or
      one of them tunes.
  """
  study = matrix.section_of(config)
  most = study.max_seeds if seeds is None else seeds
  if not FIRST_LOOK <= most <= study.max_seeds:
    raise ValueError(
      f'--max_seeds is {most}; accepted: {FIRST_LOOK}, the first look, to '
      f'{study.max_seeds} (study.max_seeds, which is fixed by the first run)'
    )
  matrix.make_matrix(config, count=most)
  return Until(most, deadline, jobs)


def check_places(
  config: Settings, root: pathlib.Path, plan: plans.Plan
) -> None:
  """Refuses a folder that other data sets share.

  Raises:
    ValueError: their seeds would not be added.
  """
  others = sorted({*plan.places} - {*stating.make(config).places})
  if others:
    raise ValueError(
      f'--until=sure adds seeds of this command alone, and {root} is also of '
      f'{"; ".join(others)}; accepted: all data sets in one command '
      '(configs/study.py:dataset=A,also=B), or another --workdir'
    )


def known(config: Settings, root: pathlib.Path, until: Until) -> list[Cell]:
  """The cells of a study that adds seeds, that can be named by now.

  Those of the first look's seeds; where all of them are finished and leave the
  answer open, those of one seed more, and so on.
  """
  count = FIRST_LOOK
  found = tuning.known(config, root, count)
  while _all_done(root, found) and not tuning.is_tuning(config, found):
    if count == until.seeds:
      return found
    more = tuning.known(config, root, count + 1)
    if not _all_done(root, more):
      open_ = _is_open(config, root) and _there_is_time(root, found, until)
      return more if open_ else found
    found, count = more, count + 1
  return found


def _all_done(root: pathlib.Path, found: list[Cell]) -> bool:
  return all(cells.is_done(root, cell) for cell in found)


def _is_open(config: Settings, root: pathlib.Path) -> bool:
  return looks(config, root)[-1].verdict not in SURE


def looks(config: Settings, root: pathlib.Path) -> list[Decision]:
  """The decisions on what is finished, see conclusions.decisions."""
  study = matrix.section_of(config)
  rows = results.collect(root, cells.criterion(config))
  answered = results.with_answers(root, rows)
  return conclusions.decisions(
    students.as_recipes(answered, study.arms),
    study.treatment,
    study.reference,
    plans.read(root) or plans.Plan(),
  )


def _there_is_time(
  root: pathlib.Path, finished: list[Cell], until: Until
) -> bool:
  return seconds_a_seed(root, finished, until.jobs) <= until.seconds_left()


def seconds_a_seed(
  root: pathlib.Path, finished: list[Cell], jobs: int
) -> float:
  """What the last seed took, its cells side by side."""
  last = max(cell.seed for cell in finished)
  taken = [
    cells.read_record(cells.folder_of(root, cell))['wall_seconds']
    for cell in finished
    if cell.seed == last
  ]
  return sum(taken) / jobs


def line(
  config: Settings, root: pathlib.Path, finished: list[Cell], until: Until
) -> str:
  """How far the answer is: its interval, the one before, and what is left."""
  seen = looks(config, root)
  now = seen[-1]
  text = f'{now.seeds} seeds: {now.verdict}, {_interval(now)}'
  if len(seen) > 1:
    text += f' (after {seen[-2].seeds}: {_interval(seen[-2])})'
  if now.verdict != UNKNOWN:
    return text
  if now.seeds >= until.seeds:
    return f'{text}; no more than {until.seeds} seeds'
  a_seed = seconds_a_seed(root, finished, until.jobs)
  if a_seed > until.seconds_left():
    return f'{text}; the budget is spent'
  most = until.seeds - now.seeds
  if now.more is None:
    return f'{text}; no number of seeds may tell, at most {most} more'
  wanted = min(now.more, most)
  minutes = min(wanted * a_seed, until.seconds_left()) / 60
  return f'{text}; about {now.more} more seeds, {minutes:.0f} min'


def _interval(one: Decision) -> str:
  return f'{points(one.mean)} points, {points(one.low)} to {points(one.high)}'
