"""Trials chosen on seeds of their own, apart from those that confirm."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from tlkd_jax.evaluation import records
from tlkd_jax.evaluation.metrics import goodness
from tlkd_jax.settings import Settings, Study
from tlkd_jax.study import cells, matrix, trials
from tlkd_jax.study.matrix import Cell
from tlkd_jax.study.trials import Trial

# The criterion where none is named: it says more of a few hundred images than
# accuracy, which counts them.
DEFAULT = 'nll'


@dataclasses.dataclass(frozen=True)
class Score:
  """What a trial of an arm reached on the validation images.

  Attributes:
    arm: whose.
    scope: the places over which it is the mean, for people.
    trial: the values.
    metric: the criterion.
    mean: over seeds and places; every data set weighs the same.
    std: over seeds, of the mean over places; NaN for one seed.
    cells: how many it is the mean of.
    chosen: whether it is the arm's best.
  """

  arm: str
  scope: str
  trial: Trial
  metric: str
  mean: float
  std: float
  cells: int
  chosen: bool


def known(
  config: Settings, root: pathlib.Path, count: int | None = None
) -> list[Cell]:
  """The cells of a study that can be named by now.

  With tuning seeds, those that tune; and where these are finished, those that
  confirm what they chose.

  Args:
    config: of the study.
    root: STUDY.
    count: of seeds that confirm; None is study.seeds.

  Raises:
    ValueError: as matrix.make_matrix.
  """
  study = matrix.section_of(config)
  if not study.tuning_seeds:
    return matrix.make_matrix(config, count=count)
  tuning = matrix.make_tuning(config)
  if not all(cells.is_done(root, cell) for cell in tuning):
    return tuning
  chosen = choose(study, tuning, scores_of(config, root, tuning))
  return tuning + matrix.make_matrix(config, chosen, count)


def write(config: Settings, root: pathlib.Path) -> list[Score]:
  """Writes STUDY/tuning.json; returns the scores of what is finished."""
  study = matrix.section_of(config)
  if not study.tuning_seeds:
    return []
  found = [c for c in matrix.make_tuning(config) if cells.is_done(root, c)]
  scores = scores_of(config, root, found)
  rows = [
    dataclasses.asdict(score) | {'trial': dict(score.trial)} for score in scores
  ]
  records.write_json(root / 'tuning.json', rows)
  return scores


def is_tuning(config: Settings, found: Sequence[Cell]) -> bool:
  """Whether cells, as `known` gives them, are those that tune alone."""
  seeds = matrix.section_of(config).tuning_seeds
  return bool(seeds) and all(cell.seed in seeds for cell in found)


def scores_of(
  config: Settings, root: pathlib.Path, tuning: Sequence[Cell]
) -> list[Score]:
  """The score of every trial, of finished cells.

  Args:
    config: of the study.
    root: STUDY.
    tuning: cells that tune, finished.
  """
  study = matrix.section_of(config)
  metric = study.criterion or DEFAULT
  groups: dict[tuple[str, str], dict[Trial, list[tuple[Cell, float]]]] = {}
  for cell in tuning:
    record = cells.read_record(cells.folder_of(root, cell))
    value = records.number(record['validation'][metric])
    key = cell.arm, scope_of(study, cell.dataset, cell.size)
    found = groups.setdefault(key, {}).setdefault(cell.trial, [])
    found.append((cell, value))
  scores = []
  for (arm, scope), by_trial in groups.items():
    values = {trial: _weighed(found) for trial, found in by_trial.items()}
    means = {trial: float(np.mean(each)) for trial, each in values.items()}
    best = max(means, key=lambda trial: goodness(metric, means[trial]))
    scores += [
      Score(
        arm,
        scope,
        trial,
        metric,
        means[trial],
        float(np.std(each, ddof=1)) if len(each) > 1 else float('nan'),
        len(by_trial[trial]),
        trial == best,
      )
      for trial, each in values.items()
    ]
  return scores


def choose(
  study: Study, tuning: Sequence[Cell], scores: Sequence[Score]
) -> dict[tuple[str, float, str], list[Trial]]:
  """(data set, size, arm) -> the trials to confirm.

  That is the best one; of an arm of teachers also those whose students chose
  them.
  """
  best: dict[tuple[str, str], Trial] = {}
  for score in scores:
    if score.chosen:
      best[score.arm, score.scope] = score.trial
  found: dict[tuple[str, float, str], list[Trial]] = {}
  for cell in tuning:
    scope = scope_of(study, cell.dataset, cell.size)
    key = cell.dataset, cell.size, cell.arm
    found.setdefault(key, [best[cell.arm, scope]])
  for dataset, size, arm in list(found):
    scope = scope_of(study, dataset, size)
    for teacher in study.arms[arm].teachers:
      its = found[dataset, size, teacher]
      asked = best[arm, scope]
      able = [
        score
        for score in scores
        if (score.arm, score.scope) == (teacher, scope)
        and trials.agree(score.trial, asked)
      ]
      first = max(able, key=lambda score: goodness(score.metric, score.mean))
      if first.trial not in its:
        its.append(first.trial)
  return found


def scope_of(study: Study, dataset: str, size: float) -> str:
  """The places that choose together with this one."""
  if study.tune_over == 'all':
    return 'all places'
  if study.tune_over == 'dataset':
    return dataset
  return f'{dataset}, {matrix.size_name(size)}'


def _weighed(found: Sequence[tuple[Cell, float]]) -> list[float]:
  """Seed by seed: the mean over data sets of the means over their sizes."""
  by_seed: dict[int, dict[str, list[float]]] = {}
  for cell, value in found:
    own = by_seed.setdefault(cell.seed, {})
    own.setdefault(cell.dataset, []).append(value)
  return [
    float(np.mean([np.mean(values) for values in own.values()]))
    for own in by_seed.values()
  ]
