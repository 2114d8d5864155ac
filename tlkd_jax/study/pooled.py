"""Parts of a study's page on probabilities and embeddings.

Reliability of all cells of a place together; embeddings of one cell of an arm
beside the same seed's of the other, as a run's page has them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.answer.rows import Place
from tlkd_jax.evaluation import records
from tlkd_jax.evaluation import reliability as binned
from tlkd_jax.report import plots, space
from tlkd_jax.report.blocks import Block, Figure, Section, named_table
from tlkd_jax.report.confidence import bin_rows
from tlkd_jax.runtime import sealed
from tlkd_jax.study.analysis import CellRow, Rows

SOURCE = 'results.json'
# Places whose diagrams are drawn.
_MOST_PLACES = 12
_WHEN = {'before': 'as they are', 'after': 'at their temperatures'}


def reliability(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Diagrams of both arms, before and after temperature scaling."""
  styles = {'tl': conclusion.reference, 'kd': conclusion.treatment}
  labels = {k: conclusion.labels[arm] for k, arm in styles.items()}
  found = diagrams(rows, conclusion)
  data = [
    one
    for (place, when), arms in found.items()
    for style, bins in arms.items()
    for one in bin_rows(
      {
        'place': str(place),
        'arm': labels[style],
        'confidences': _WHEN[when],
      },
      bins,
    )
  ]
  if not data:
    return []
  places = list(dict.fromkeys(place for place, _ in found))
  panels = [
    plots.reliability(f'{place}, {_WHEN[when]}', arms)
    for (place, when), arms in found.items()
    if place in places[:_MOST_PLACES]
  ]
  note = (
    "At their temperatures: each run's logits divided by the one that is best "
    'for its NLL on validation.'
  )
  if len(places) > _MOST_PLACES:
    note += f' The first {_MOST_PLACES} of {len(places)} places are drawn.'
  return [
    Figure(
      'Reliability, all seeds together',
      panels,
      'Accuracy against confidence in 15 bins; on the dotted line confidence '
      'is as large as accuracy. Grey: share of the images in the bin.',
      named_table('Bins', data, SOURCE),
      plots.legend(list(styles), labels),
      note=note,
    )
  ]


def diagrams(
  rows: Rows, conclusion: Conclusion
) -> dict[tuple[Place, str], dict[str, dict[str, np.ndarray]]]:
  """(place, 'before' or 'after') -> 'tl' or 'kd' -> bins of all its seeds.

  Over the pairs of the answer of which both runs have their bins; see
  reliability.reliability_diagram.
  """
  arms = conclusion.treatment, conclusion.reference
  found = {}
  for place in runs.places(rows):
    pairs = runs.pairs(rows, place, *arms).values()
    both = [xy for xy in pairs if all('reliability' in row for row in xy)]
    for when in _WHEN if both else ():
      found[place, when] = {
        style: binned.pooled_diagram(
          [xy[side]['reliability'][when] for xy in both]
        )
        for style, side in (('tl', 1), ('kd', 0))
      }
  return found


def embeddings(
  root: pathlib.Path, rows: Rows, conclusion: Conclusion
) -> Section | None:
  """Of the first pair of cells that the suite `qualitative` was run on.

  Args:
    root: STUDY.
    rows: of it.
    conclusion: which arms.
  """
  arms = conclusion.treatment, conclusion.reference
  for place in runs.places(rows):
    for seed, pair in runs.pairs(rows, place, *arms).items():
      folders = [root / row['folder'] / 'evaluation' for row in pair]
      if all(_is_stored(folder) for folder in folders):
        return _section(root, place, seed, pair, conclusion)
  return None


def _is_stored(folder: pathlib.Path) -> bool:
  names = 'embedding.npz', 'qualitative.json'
  return all((folder / name).exists() for name in names)


def _section(
  root: pathlib.Path,
  place: Place,
  seed: int,
  pair: tuple[CellRow, CellRow],
  conclusion: Conclusion,
) -> Section:
  views, sources = [], []
  for row in pair[::-1]:
    folder = root / row['folder'] / 'evaluation'
    record: Mapping[str, Any] = sealed.read_json(folder / 'qualitative.json')
    arrays = records.read_arrays(folder / 'embedding.npz')
    views.append(space.View(conclusion.labels[row['arm']], arrays, record))
    sources.append(f'{row["folder"]}/evaluation/embedding.npz')
  note = f'One cell of each arm: {place}, seed {seed}.'
  blocks = space.blocks(
    views, views[0].record['class_names'], ', '.join(sources), note
  )
  return Section('space', space.TITLE, blocks)
