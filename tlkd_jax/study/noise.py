"""The noise floor: one cell of each place again, on one core and on more.

A run of few images differs by points where its sums differ in their last digit,
and they do between numbers of cores. What the same cell differs from itself by
is no effect of anything, and stands beside the effect on the page. Reruns lie
in STUDY/noise and count in no mean; STUDY/noise.json is what is known of them.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax import data, protocols
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place, not_alike
from tlkd_jax.evaluation import records
from tlkd_jax.runtime import made, sealed
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells, matrix, measured, tuning
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.damage import left_out
from tlkd_jax.study.matrix import Cell
from tlkd_jax.training import defaults
from tlkd_jax.training.loop import fine_tune

FILE = 'noise.json'
FOLDER = 'noise'
_RECORD = 'rerun.json'
# Whose reruns are of one floor.
_ALIKE = ('device', 'processor', 'versions', 'commit')


@dataclasses.dataclass(frozen=True)
class Floor:
  """What one cell differs from itself by.

  Attributes:
    place: of the cell.
    arm: likewise.
    seed: likewise.
    top1: cores -> test accuracies, of the study's own run too where it was made
      alike; most runs first.
    left_out: reruns by another device or other versions than the first.
  """

  place: Place
  arm: str
  seed: int
  top1: dict[int, tuple[float, ...]]
  left_out: int

  def spread(self, cores: int) -> float:
    """Largest less smallest on so many cores, a share; NaN of one run."""
    values = self.top1.get(cores, ())
    return float(np.ptp(values)) if len(values) > 1 else float('nan')

  @property
  def over_all(self) -> float:
    """Largest less smallest of all runs."""
    return float(np.ptp([v for found in self.top1.values() for v in found]))


def cells_of(config: Settings, root: pathlib.Path) -> list[Cell]:
  """One cell of each place: the reference's of the first seed.

  Raises:
    ValueError: the arms are still being tuned, or the reference is not run.
  """
  study = matrix.section_of(config)
  known = tuning.known(config, root)
  found: dict[tuple[str, float], Cell] = {}
  for cell in known:
    if (cell.arm, cell.seed) == (study.reference, config.seed):
      found.setdefault((cell.dataset, cell.size), cell)
  if not found:
    raise ValueError(
      f'--noise runs cells of {study.reference!r} (study.reference) and seed '
      f'{config.seed} again, and none is among the cells that can be named by '
      'now; accepted: a study whose arms are tuned, with that arm among '
      'study.run_arms'
    )
  return list(found.values())


def run(
  config: Settings,
  root: pathlib.Path,
  load: Callable[[Settings], data.Dataset],
  mesh: Mesh,
) -> None:
  """Runs what is missing of the reruns on this process's cores.

  Args:
    config: of the study.
    root: STUDY; what the cells need is finished.
    load: config -> Dataset.
    mesh: devices.

  Raises:
    ValueError: as cells_of.
    UserError, RunError, Interrupted: as fine_tune.
  """
  study, by = matrix.section_of(config), made.by(mesh)
  known = tuning.known(config, root)
  for cell in cells_of(config, root):
    for number in range(study.repeats):
      name = f'{FOLDER}/{by["cores"]}cores/{cell.name}/run{number}'
      folder = root / name
      if (folder / _RECORD).exists():
        continue
      logging.info('study: %s', name)
      guides = cells.guides_of(config, cell, known, root)
      own = matrix.make_config(config, cell, guides)
      dataset = load(own)
      own = defaults.for_data(own, dataset)
      for part in protocols.plan(own, folder):
        fine_tune(part.settings, part.workdir, dataset, mesh)
      found = measured.measure(folder)
      records.write_json(
        folder / _RECORD,
        {
          'dataset': cell.dataset,
          'size': cell.size,
          'arm': cell.arm,
          'seed': cell.seed,
          'number': number,
          'test': found['test'],
          'hits': found['hits'],
          'made': by,
        },
      )
      for part in folder.rglob('checkpoints'):
        shutil.rmtree(part, ignore_errors=True)


def collect(root: pathlib.Path, *, write: bool = True) -> list[dict[str, Any]]:
  """All finished reruns, written to STUDY/noise.json; that file without any."""
  paths = sorted(root.glob(f'{FOLDER}/*cores/*/*/*/*/**/{_RECORD}'))
  found: list[dict[str, Any]] = []
  for path in paths:
    with left_out(path):
      found.append(sealed.read_json(path))
  if found and write:
    lines = ',\n'.join(records.dumps(one, sort_keys=True) for one in found)
    sealed.write_text(root / FILE, f'[\n{lines}\n]\n')
  elif not found and (root / FILE).exists():
    with left_out(root / FILE):
      found = sealed.read_json(root / FILE)
  return found


def floors(
  rows: Sequence[CellRow], reruns: Sequence[dict[str, Any]]
) -> list[Floor]:
  """The noise floor of each place that has reruns."""
  by_cell: dict[tuple, list[dict[str, Any]]] = {}
  for one in reruns:
    place = Place(one['dataset'], one['size'], one.get('recipe', ''))
    key = place, one['arm'], one['seed']
    by_cell.setdefault(key, []).append(one)
  found = []
  for (place, arm, seed), again in by_cell.items():
    own = runs.at(rows, place, arm).get(seed)
    every = [*again, *([own] if own is not None and 'made' in own else [])]
    by = again[0]['made']
    alike = [one for one in every if not not_alike(one['made'], by, _ALIKE)]
    top1: dict[int, list[float]] = {}
    for one in alike:
      top1.setdefault(one['made']['cores'], []).append(one['test']['top1'])
    found.append(
      Floor(
        place,
        arm,
        seed,
        {cores: tuple(top1[cores]) for cores in sorted(top1)},
        len(again) - sum(one in alike for one in again),
      )
    )
  return sorted(found, key=lambda one: one.place)


def words(found: Sequence[Floor], effect: float, spread: float) -> str:
  """The floor in one paragraph, beside the effect.

  Args:
    found: of each place.
    effect: mean difference over all places, a share.
    spread: of it over seeds.
  """
  counts = sorted({cores for one in found for cores in one.top1})
  said = []
  for cores in counts:
    spreads = [one.spread(cores) for one in found]
    spreads = [value for value in spreads if not np.isnan(value)]
    if spreads:
      said.append(
        f'{_points(max(spreads))} points on {cores} core{"s" * (cores != 1)}'
      )
  text = (
    'The same cell run again, with the same seed, data and settings, differs '
    f'by up to {" and ".join(said)}'
    if said
    else 'The same cell was not run twice on the same number of cores'
  )
  if len(counts) > 1:
    across = max(one.over_all for one in found)
    text += f', and by up to {_points(across)} points between numbers of cores'
  text += f' ({len(found)} place{"s" * (len(found) != 1)}).'
  if np.isnan(effect):
    return text
  text += f' The effect is {100 * effect:+.2f} points, a mean over places'
  if np.isnan(spread):
    return f'{text} of one seed.'
  return (
    f'{text} and seeds, which spread by {_points(spread)}; this noise is part '
    'of that spread.'
  )


def _points(value: float) -> str:
  return f'{100 * value:.2f}'
