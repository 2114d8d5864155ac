"""STUDY/results.json: one row a cell, from the records on disk."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from tlkd_jax.answer.rows import Answers, make_answers, unpack
from tlkd_jax.evaluation import degradation, records
from tlkd_jax.report import markdown
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells, measured
from tlkd_jax.study.analysis import CellRow
from tlkd_jax.study.damage import left_out

# A trial that was not chosen must not tell how it does on test.
_HIDDEN = (
  'test',
  'curve',
  'degraded',
  'hits',
  'agreed',
  'confusion',
  'reliability',
  'temperature',
)


def collect(root: pathlib.Path, metric: str) -> list[CellRow]:
  """All finished cells, of whatever command, ordered by name.

  One with a damaged record is left out, and named in a warning.

  Of the trials of one cell, the best on validation has `chosen`; the others,
  and all of seeds that tune, keep their validation metrics alone. A row has
  `degraded` where the suite `corruptions` was run on its cell: `count` images;
  `top1`, by group of corruptions, the mean over them and their severities;
  `errors` of each; and over ImageNet-C's fifteen, where all are there,
  `top1_by_severity`, likewise of nll and ece, which are there `clean` too.

  Args:
    root: STUDY.
    metric: that chooses, see cells.criterion.
  """
  # Not `**`: it would walk through checkpoints that come and go.
  found = [*root.glob('cells/*/*/*/*/cell.json')]
  found += root.glob('cells/*/*/*/*/*/cell.json')
  rows: list[dict[str, Any]] = []
  for folder in sorted(path.parent for path in found):
    record = cells.find_record(folder)
    if record is not None:
      place = {'folder': str(folder.relative_to(root))}
      rows.append(record | place | _degraded(folder, record))
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(key_of(row), []).append(row)
  for trials in groups.values():
    # Seeds that tune choose for others, and answer nothing themselves.
    tunes = any(row.get('tuning') for row in trials)
    best = None if tunes else cells.best_trial(trials, metric)
    for row in trials:
      row['chosen'] = row is best
      row['trials'] = len(trials)
      if row is not best:
        for name in _HIDDEN:
          row.pop(name, None)
  rows.sort(key=lambda row: (key_of(row), sorted(row['trial'].items())))
  return cast(list[CellRow], rows)


def with_answers(root: pathlib.Path, rows: Sequence[CellRow]) -> list[CellRow]:
  """Students' rows with `answers`: their own, or of predictions at hand."""
  found = []
  for row in rows:
    row = row.copy()
    if row['chosen'] and row['kind'] != 'teacher':
      path = root / row['folder'] / 'predictions' / 'test.npz'
      if 'hits' in row:
        row['answers'] = unpack(row['hits'])
      elif path.exists():
        with left_out(path):
          row['answers'] = _answers(path)
    found.append(row)
  return found


def _answers(path: pathlib.Path) -> Answers:
  # Not pre_logits, which are most of the file.
  return make_answers(
    **records.read_arrays(path, ('logits', 'labels', 'indices'))
  )


def completed(root: pathlib.Path, rows: Sequence[CellRow]) -> list[CellRow]:
  """Rows with what cells of earlier versions lack, from their predictions.

  As far as those are at hand; what a row says already stays, but for the
  suite `corruptions`, which may have run since.
  """
  found = []
  for row in rows:
    folder = root / row['folder']
    if row['chosen'] and not {'temperature', 'reliability'} <= {*row}:
      with left_out(folder / 'predictions'):
        row = _completed(folder, row)
    if row['chosen']:
      row = cast(CellRow, {**row, **_degraded(folder, row)})
    found.append(row)
  return found


def _completed(folder: pathlib.Path, row: CellRow) -> CellRow:
  needed = (folder / 'predictions' / f'{s}.npz' for s in ('validation', 'test'))
  if not all(path.exists() for path in needed):
    return row
  found = measured.measure(folder)
  for split in ('validation', 'test'):
    found[split] = found[split] | row[split]
  return cast(CellRow, {**found, **row, 'test': found['test']})


def _degraded(folder: pathlib.Path, row: Mapping[str, Any]) -> dict[str, Any]:
  path = folder / 'evaluation' / 'corruptions.json'
  found: dict[str, Any] = {}
  if path.exists():
    with left_out(path):
      stored = sealed.read_json(path)
      # It may have run before the cell went on to another best step.
      step, best = stored.get('step'), row.get('best_step')
      if step is None or best is None or step == best:
        found = _of_corruptions(stored)
  return found


def _of_corruptions(found: dict[str, Any]) -> dict[str, Any]:
  errors = found['mean_corrupted_error'].items()
  top1 = {group: 1 - error for group, error in errors if error is not None}
  top1 = {'clean': found['clean']['top1']} | top1
  table = found.get('corruptions', {})
  degraded: dict[str, Any] = {'count': found['count'], 'top1': top1}
  if table:
    degraded['errors'] = {
      name: 1 - float(np.mean(row['top1'])) for name, row in table.items()
    }
  if {*degradation.STANDARD} <= {*table}:
    standard = [table[name] for name in degradation.STANDARD]
    for metric in ('top1', 'nll', 'ece'):
      values = np.array([row[metric] for row in standard], np.float64)
      degraded[f'{metric}_by_severity'] = values.mean(axis=0)
    for metric in ('nll', 'ece'):
      degraded[f'{metric}_clean'] = found['clean'][metric]
  return {'degraded': records.plain(degraded)}


def key_of(row: dict[str, Any]) -> tuple[str, float, str, int]:
  """What identifies a cell, whatever the trial."""
  return row['dataset'], row['size'], row['arm'], row['seed']


def write(root: pathlib.Path, config: Settings) -> list[CellRow]:
  """Writes results.json and results.md; returns the rows."""
  return write_rows(root, collect(root, cells.criterion(config)))


def write_rows(root: pathlib.Path, rows: list[CellRow]) -> list[CellRow]:
  """Writes rows as `write` does; returns them."""
  lines = ',\n'.join(records.dumps(row, sort_keys=True) for row in rows)
  replace_text(root / 'results.json', f'[\n{lines}\n]\n')
  replace_text(root / 'results.md', as_markdown(rows))
  return rows


def as_markdown(rows: Sequence[CellRow]) -> str:
  """One line per chosen cell."""
  table = [_cells(row) for row in rows if row['chosen']]
  if not table:
    return ''
  columns = list(table[0])
  lines = [columns, ['---'] * len(columns), *(row.values() for row in table)]
  return ''.join(f'{markdown.row([*line])}\n' for line in lines)


def _cells(row: CellRow) -> dict[str, str]:
  validation, test = row['validation'], row['test']
  return {
    'data': row['dataset'],
    'size': f'{row["size"]:g}',
    'arm': row['arm'],
    'seed': str(row['seed']),
    'trial': ', '.join(f'{k}={v}' for k, v in row['trial'].items()) or '-',
    'val top-1': f'{records.number(validation["top1"]):.4f}',
    'test top-1': f'{records.number(test["top1"]):.4f}',
    'test NLL': f'{records.number(test["nll"]):.4f}',
    'test ECE': f'{records.number(test["ece"]):.4f}',
    's': f'{records.number(row["seconds"]):.0f}',
  }
