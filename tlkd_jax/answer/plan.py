"""What is stated before the runs: the question and how it will be judged."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tlkd_jax.evaluation.sequential import FIRST_LOOK
from tlkd_jax.runtime import sealed

# In a study's folder.
FILE = 'plan.json'
# That a verdict is called sure with, where an effect of the seen size is true.
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the primary question of a comparison is judged.

  Attributes:
    margin: accuracies that differ by less are equal to the reader, a share.
    max_seeds: the level is spent over looks after every seed up to this one;
      at least FIRST_LOOK.
    metrics: secondary ones, corrected by Holm over them.
    places: 'data set, size' in words: a seed counts when all have it; () are
      the places with the most pairs.
    words: what else was stated, (what, value).
    after: runs that were finished when it was stated; None: it never was.
  """

  margin: float = 0.005
  max_seeds: int = 20
  metrics: tuple[str, ...] = ()
  places: tuple[str, ...] = ()
  words: tuple[tuple[str, str], ...] = ()
  after: int | None = None

  def __post_init__(self):
    if not 0 < self.margin < 1:
      raise ValueError(f'margin is {self.margin}; accepted: between 0 and 1')
    if self.max_seeds < FIRST_LOOK:
      raise ValueError(
        f'max_seeds is {self.max_seeds}; accepted: at least {FIRST_LOOK}, '
        'the seeds of the first look'
      )


def as_json(plan: Plan) -> dict[str, Any]:
  """The plan, as it is stored."""
  return dataclasses.asdict(plan)


def from_json(stored: Mapping[str, Any]) -> Plan:
  """A stored plan.

  Raises:
    ValueError: it is damaged.
  """
  try:
    return Plan(
      margin=float(stored['margin']),
      max_seeds=int(stored['max_seeds']),
      metrics=tuple(stored['metrics']),
      places=tuple(stored['places']),
      words=tuple((str(k), str(v)) for k, v in stored['words']),
      after=stored['after'],
    )
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{FILE} is damaged: {error}') from error


def read(root: pathlib.Path) -> Plan | None:
  """The plan of a study's folder; None of one that stated nothing.

  Raises:
    ValueError: the file is damaged.
  """
  path = root / FILE
  if not path.exists():
    return None
  stored = sealed.read_json(path)
  try:
    return from_json(stored)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
