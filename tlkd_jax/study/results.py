"""STUDY/results.json: one row a cell, from the records on disk."""

import json
import pathlib
from typing import Any

from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.settings import Settings
from tlkd_jax.study import cells

# A trial that was not chosen must not tell how it does on test.
_HIDDEN = ('test', 'curve', 'degraded')


def collect(root: pathlib.Path, metric: str) -> list[dict[str, Any]]:
  """All finished cells, of whatever command, ordered by name.

  Of the trials of one cell, the best on validation has `chosen`; the others
  keep their validation metrics alone. A row has `degraded` where the suite
  `corruptions` was run on its cell: `count` images and `top1`, by group of
  corruptions, the mean over them and their severities.

  Args:
    root: STUDY.
    metric: that chooses, config.best_metric.
  """
  # Not `**`: it would walk through checkpoints that come and go.
  found = [*root.glob('cells/*/*/*/*/cell.json')]
  found += root.glob('cells/*/*/*/*/*/cell.json')
  rows = [
    cells.read_record(path.parent)
    | {'folder': str(path.parent.relative_to(root))}
    | _degraded(path.parent)
    for path in sorted(found)
  ]
  groups: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(key_of(row), []).append(row)
  for trials in groups.values():
    best = cells.best_trial(trials, metric)
    for row in trials:
      row['chosen'] = row is best
      row['trials'] = len(trials)
      if row is not best:
        for name in _HIDDEN:
          row.pop(name, None)
  return sorted(rows, key=lambda r: (key_of(r), sorted(r['trial'].items())))


def _degraded(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / 'evaluation' / 'corruptions.json'
  if not path.exists():
    return {}
  found = json.loads(path.read_text())
  errors = found['mean_corrupted_error'].items()
  top1 = {group: 1 - error for group, error in errors if error is not None}
  top1 = {'clean': found['clean']['top1']} | top1
  return {'degraded': {'count': found['count'], 'top1': top1}}


def key_of(row: dict[str, Any]) -> tuple[str, float, str, int]:
  """What identifies a cell, whatever the trial."""
  return row['dataset'], row['size'], row['arm'], row['seed']


def write(root: pathlib.Path, config: Settings) -> list[dict[str, Any]]:
  """Writes results.json and results.md; returns the rows."""
  rows = collect(root, config.best_metric)
  lines = ',\n'.join(json.dumps(row, sort_keys=True) for row in rows)
  replace_text(root / 'results.json', f'[\n{lines}\n]\n')
  replace_text(root / 'results.md', as_markdown(rows))
  return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
  """One line per chosen cell."""
  lines = [
    '| data | size | arm | seed | trial | val top-1 | test top-1 | test NLL |'
    ' test ECE | s |',
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  for row in rows:
    if row['chosen']:
      trial = ', '.join(f'{k}={v}' for k, v in row['trial'].items()) or '-'
      values = [row['validation']['top1']]
      values += [row['test'][name] for name in ('top1', 'nll', 'ece')]
      shown = [f'{value:.4f}' for value in values]
      parts = [row['dataset'], f'{row["size"]:g}', row['arm'], row['seed']]
      parts += [trial, *shown, f'{row["seconds"]:.0f}']
      lines.append('| ' + ' | '.join(map(str, parts)) + ' |')
  return '\n'.join(lines) + '\n'
