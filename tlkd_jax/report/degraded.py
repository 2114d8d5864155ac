"""The section on degraded images, from the cells that the suite stored."""

from typing import Any

import numpy as np

from tlkd_jax.evaluation import degradation, fidelity, metrics, robustness
from tlkd_jax.evaluation.corruptions import CORRUPTION_GROUPS, SEVERITIES
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import (
  Figure,
  Section,
  Table,
  Text,
  interval,
  named_table,
)
from tlkd_jax.report.context import Context, missing

_TITLE = 'Degraded images'
_CELLS = 'evaluation/corruptions/'
_METRICS = ('top1', 'nll', 'ece')
_SETS = {
  'ImageNet-C-like, 15': degradation.STANDARD,
  'further four': CORRUPTION_GROUPS['extra'],
  'camera': CORRUPTION_GROUPS['camera'],
}

Cells = dict[tuple[str, int], dict[str, np.ndarray]]


def section(context: Context) -> Section:
  """Accuracy by severity, corruption errors relative to TL, the gap's slope."""
  cells = {
    arm: degradation.read_cells(run.path)
    for arm in context.arms
    for run in [context.run(arm)]
    if run is not None
  }
  names = _shared(cells)
  blocks: list = []
  if not names:
    text = missing(context, 'corruptions', 'The test on degraded images')
    return Section('degraded', _TITLE, [text])
  cells = {arm: found for arm, found in cells.items() if _has(found, names)}
  others = 'teacher' in cells and not degradation.same_examples(
    *(cells[arm][degradation.CLEAN] for arm in ('tl', 'teacher'))
  )
  if others:
    del cells['teacher']
  if len(names) < len(degradation.NAMES):
    what = (
      f'Of {len(degradation.NAMES)} corruptions {len(names)} are here; the rest'
    )
    blocks.append(missing(context, 'corruptions', what))
  if others:
    blocks.append(
      Text('The teacher was tested on other degraded images and is left out.')
    )
  source = context.source(f'{_CELLS}NAME_SEVERITY.npz', arms=list(cells))
  blocks += [
    _errors(context, cells, names, source),
    _by_severity(context, cells, names, source),
    *_slopes(context, cells, names, source),
    _by_corruption(context, cells, names, source),
  ]
  return Section('degraded', _TITLE, blocks)


def _shared(cells: dict[str, Cells]) -> list[str]:
  """Corruptions with all cells of TL and TL+KD, on the same images."""
  if not all(degradation.CLEAN in cells.get(a, {}) for a in ('tl', 'kd')):
    return []
  tl, kd = cells['tl'], cells['kd']
  if not degradation.same_images(tl[degradation.CLEAN], kd[degradation.CLEAN]):
    return []
  both = set(degradation.complete(tl)) & set(degradation.complete(kd))
  return [name for name in degradation.NAMES if name in both]


def _has(found: Cells, names: list[str]) -> bool:
  return degradation.CLEAN in found and set(names) <= set(
    degradation.complete(found)
  )


def _error(cell: dict[str, np.ndarray]) -> float:
  return 1 - metrics.top1(cell['logits'], cell['labels'])


def _errors_of(found: Cells, names: list[str]) -> dict[str, np.ndarray]:
  return {n: np.array([_error(found[n, s]) for s in SEVERITIES]) for n in names}


def _note(context: Context, cells: dict[str, Cells]) -> str:
  clean = cells['tl'][degradation.CLEAN]
  record = context.pair.tl.record('corruptions')
  count, table = len(clean['labels']), ''
  if record is not None:
    table = f' {record["severities_from"]}; {record["notes"]}'
  return f'{count} test images, {_whose(context, cells)}.{table}'


def _whose(context: Context, cells: dict[str, Cells]) -> str:
  """Which models answered to the same corrupted images."""
  clean = {arm: found[degradation.CLEAN] for arm, found in cells.items()}
  students = f'the same corrupted ones for TL and {context.named["kd"]}'
  if 'teacher' not in clean:
    return students
  if degradation.same_images(clean['tl'], clean['teacher']):
    return 'the same corrupted ones for all models'
  sides = [int(clean[arm]['image_size']) for arm in ('tl', 'teacher')]
  if sides[0] == sides[1]:
    return f"{students}; the teacher's cut as it looks at images"
  return f"{students}; the teacher's at its own size, {sides[1]} pixels"


def _errors(context, cells, names, source) -> Table:
  """Corruption errors with TL as the reference."""
  errors = {arm: _errors_of(found, names) for arm, found in cells.items()}
  clean = {arm: _error(f[degradation.CLEAN]) for arm, f in cells.items()}
  found = robustness.corruption_errors(
    errors['kd'], clean['kd'], errors['tl'], clean['tl'], names
  )
  rows = []
  for title, members in _SETS.items():
    members = [n for n in members if n in names]
    if not members:
      continue
    together = robustness.corruption_errors(
      errors['kd'], clean['kd'], errors['tl'], clean['tl'], members
    )
    means = _row(
      context,
      {
        arm: robustness.mean_corrupted_error(own, members)
        for arm, own in errors.items()
      },
    )
    rows.append(
      {
        'corruption': f'mean: {title}',
        **means,
        'CE (TL = 1)': together['mce'],
        'relative CE': together['relative_mce'],
      }
    )
  for name in names:
    means = _row(
      context, {arm: float(own[name].mean()) for arm, own in errors.items()}
    )
    rows.append(
      {
        'corruption': name,
        **means,
        'CE (TL = 1)': found['ce'][name],
        'relative CE': found['relative_ce'][name],
      }
    )
  return named_table(
    'Corrupted error, mean over severities 1 to 5',
    rows,
    source,
    _note(context, cells)
    + " CE: error divided by TL's; relative CE: rise over the clean error "
    "divided by TL's rise (– where TL does not get worse). Below 1 "
    f'{context.named["kd"]} is the more robust one. The means of the last two '
    'columns are mCE and relative mCE.',
  )


def _row(context: Context, means: dict[str, float]) -> dict[str, Any]:
  return {
    'error teacher': means.get('teacher'),
    'error TL': means['tl'],
    f'error {context.named["kd"]}': means['kd'],
    'difference': means['kd'] - means['tl'],
  }


def _by_severity(context, cells, names, source) -> Figure:
  rows, panels = [], []
  severities = [0, *SEVERITIES]
  for title, members in _SETS.items():
    members = [n for n in members if n in names]
    if not members:
      continue
    for metric in _METRICS:
      lines = {}
      for arm, found in cells.items():
        values = []
        for s in severities:
          group = members if s else [degradation.CLEAN[0]]
          measured = [
            metrics.METRICS[metric](
              found[n, s]['logits'], found[n, s]['labels']
            )
            for n in group
          ]
          values.append(float(np.mean(measured)))
        lines[arm] = (severities, values)
        rows += [
          _mean_row(context.named[arm], title, metric, s, v)
          for s, v in zip(severities, values, strict=True)
        ]
      label = {'top1': 'top-1 accuracy', 'nll': 'NLL', 'ece': 'ECE'}[metric]
      panels.append(
        plots.lines(
          title, lines, x_label='severity', y_label=label, whole_x=True
        )
      )
  rows += _agreements(context, cells, names, severities)
  return Figure(
    'By severity',
    panels,
    'Accuracy, NLL and ECE by severity (0: as it is), mean over the '
    'corruptions of a set.',
    named_table('Means by severity, with agreement', rows, source),
    legend=plots.legend(list(cells), context.named),
  )


def _mean_row(
  model: str, title: str, metric: str, severity: int, mean: float
) -> dict[str, Any]:
  return {
    'set': title,
    'model': model,
    'metric': metric,
    'severity': severity,
    'value': mean,
  }


def _agreements(context, cells, names, severities) -> list[dict[str, Any]]:
  """Agreement with the teacher and with the clean answer, all corruptions."""
  rows = []
  for arm, found in cells.items():
    taught = (
      arm != 'teacher'
      and 'teacher' in cells
      and degradation.same_images(
        found[degradation.CLEAN], cells['teacher'][degradation.CLEAN]
      )
    )
    for s in severities:
      group = [(n, s) for n in names] if s else [degradation.CLEAN]
      others = {'agreement with own clean answer': found[degradation.CLEAN]}
      values: dict[str, list[float]] = {}
      for cell in group:
        if taught:
          others['agreement with teacher'] = cells['teacher'][cell]
        for title, other in others.items():
          values.setdefault(title, []).append(
            fidelity.agreement(found[cell]['logits'], other['logits'])
          )
      rows += [
        _mean_row(context.named[arm], 'all', title, s, float(np.mean(v)))
        for title, v in values.items()
      ]
  return rows


def _slopes(context, cells, names, source) -> list:
  """Does the gap between TL+KD and TL grow with severity?"""
  rows, panels, data, texts = [], [], [], []
  name_of_kd = context.named['kd']
  for title, members in (_SETS | {'all': tuple(names)}).items():
    members = [n for n in members if n in names]
    if not members:
      continue
    kd, tl = [
      np.array(
        [
          [
            robustness.right(
              cells[arm][n, s]['logits'], cells[arm][n, s]['labels']
            )
            for s in SEVERITIES
          ]
          for n in members
        ]
      )
      for arm in ('kd', 'tl')
    ]
    found = robustness.gap_slope(kd, tl, SEVERITIES)
    gaps = found['gaps']
    rows.append(
      {
        'set': title,
        'corruptions': len(members),
        'mean gap': float(np.mean(gaps)),
        'slope per severity': found['slope'],
        '95 % interval': interval(found['low'], found['high']),
        'p': found['p'],
        'the gap': _trend(found, name_of_kd),
      }
    )
    middle = float(np.mean(gaps)) - found['slope'] * float(np.mean(SEVERITIES))
    panels.append(
      plots.gaps(
        title,
        SEVERITIES,
        gaps,
        (middle, found['slope']),
        f'{name_of_kd} minus TL, top-1',
      )
    )
    data += [
      [title, s, float(g)] for s, g in zip(SEVERITIES, gaps, strict=True)
    ]
    texts.append(f'{title}: {_trend(found, name_of_kd)}')
  table = named_table(
    'Does the gap in accuracy grow with severity?',
    rows,
    source,
    f'Gap: {name_of_kd} minus TL in top-1. The interval is over images, one '
    'pair of models; the corruptions are taken as given.',
  )
  figure = Figure(
    'The gap by severity',
    panels,
    f'{name_of_kd} minus TL accuracy by severity, with its straight line; '
    + '; '.join(texts)
    + '.',
    Table('Gap by severity', ['set', 'severity', 'gap'], data, source),
  )
  return [table, figure]


def _trend(found: dict[str, float], name_of_kd: str) -> str:
  if found['low'] > 0:
    return f'moves in favour of {name_of_kd}'
  if found['high'] < 0:
    return 'moves in favour of TL'
  return 'no clear trend'


def _by_corruption(context, cells, names, source) -> Figure:
  panels, rows = [], []
  severities = [0, *SEVERITIES]
  for name in names:
    lines = {}
    for arm, found in cells.items():
      errors = [
        _error(found[degradation.CLEAN if s == 0 else (name, s)])
        for s in severities
      ]
      lines[arm] = (severities, [1 - e for e in errors])
    panels.append(
      plots.lines(
        name.replace('_', ' '),
        lines,
        x_label='',
        y_label='',
        small=True,
        whole_x=True,
        y_range=(0, 1),
      )
    )
    rows += [
      [name, s, context.named[arm], y]
      for arm, (_, ys) in lines.items()
      for s, y in zip(severities, ys, strict=True)
    ]
  return Figure(
    'Accuracy by corruption and severity',
    panels,
    'Top-1 accuracy (0 to 1) against severity 0 (as it is) to 5, one panel per '
    'corruption.',
    Table(
      'Accuracy by corruption',
      ['corruption', 'severity', 'model', 'top-1'],
      rows,
      source,
    ),
    legend=plots.legend(list(cells), context.named),
    narrow=True,
  )
