"""Sections of a study's page on the respects of `respects`."""

from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.report import plots, verdict_blocks
from tlkd_jax.report.blocks import (
  Block,
  Figure,
  Text,
  interval,
  named_table,
  show,
)
from tlkd_jax.study import analysis, respects
from tlkd_jax.study.analysis import Rows
from tlkd_jax.study.respects import Measure

SOURCE = 'results.json'
# Of the largest changes between classes.
_MOST_CHANGES = 8
# Places whose confusions are drawn: a page of a hundred takes long to open.
_MOST_MATRICES = 12


def _arms(conclusion: Conclusion) -> tuple[str, str]:
  return conclusion.treatment, conclusion.reference


def _names(conclusion: Conclusion) -> tuple[str, str]:
  treatment, reference = _arms(conclusion)
  return conclusion.labels[treatment], conclusion.labels[reference]


def minus(conclusion: Conclusion) -> str:
  """The difference that is asked about, in words."""
  return ' minus '.join(_names(conclusion))


def _table(
  title: str, found: Sequence[Measure], names: tuple[str, str], note: str
) -> list[Block]:
  rows = [
    {
      'place': str(one.place),
      'what': one.name,
      'seeds': one.seeds,
      names[1]: one.reference,
      names[0]: one.treatment,
      'difference': one.difference,
      '95 % over seeds': interval(one.low, one.high),
      'p': one.p,
    }
    for one in found
  ]
  return [named_table(title, rows, SOURCE, note)] if rows else []


def _under_corruption(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Calibration, relative errors and the slope of the gap."""
  found = respects.under_corruption(rows, *_arms(conclusion))
  name, base = _names(conclusion)
  compared = [one for one in found if not one.alone]
  alone = [
    {
      'place': str(one.place),
      'what': one.name,
      'seeds': one.seeds,
      'value': one.difference,
      '95 % over seeds': f'{show(one.low)} to {show(one.high)}',
      'p': one.p,
    }
    for one in found
    if one.alone
  ]
  if not found:
    return []
  note = (
    "mCE: the error of each of ImageNet-C's fifteen corruptions, over five "
    f'severities, divided by that of {base} of the same seed, averaged; '
    'relative: the rise over the clean error, divided likewise; below 1 '
    f'{name} is the more robust one, and p is of 1. The gap is {name} minus '
    f'{base}; its slope is of a straight line a seed. p is of the exact '
    'sign-flip test, of the slope of the t test; nothing is corrected.'
  )
  blocks = _table(
    'Calibration on degraded images',
    compared,
    (name, base),
    "Means over ImageNet-C's fifteen corruptions and five severities; p is of "
    'the exact sign-flip test, and nothing is corrected.',
  )
  title = f'{name} on degraded images, relative to {base}'
  return [*blocks, named_table(title, alone, SOURCE, note)]


def _steps_to_level(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """How many steps it takes to come near the best that both reach."""
  share = f'{100 * respects.LEVEL:.0f} %'
  return _table(
    f'Steps to {share} of the best validation accuracy that both arms reach',
    respects.steps_to_level(rows, *_arms(conclusion)),
    _names(conclusion),
    "The level is of each seed's own pair; straight between two evaluations, "
    'and no finer than they are: a level that is reached at the first one '
    'counts as reached there. p is of the exact sign-flip test.',
  )


def items(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Who corrects whom, and what is taken for what."""
  name, base = _names(conclusion)
  table = [
    {
      'place': str(one.place),
      'seeds': one.seeds,
      'both right': one.both_right,
      f'{name} alone': one.only_treatment,
      f'{base} alone': one.only_reference,
      'both wrong': one.both_wrong,
      'corrected (95 %)': _share(one.correction),
      'lost (95 %)': _share(one.damage),
    }
    for one in respects.overlaps(rows, *_arms(conclusion))
  ]
  blocks: list[Block] = []
  if table:
    note = (
      f"Answers of all seeds together. Corrected: share of {base}'s errors "
      f'that {name} gets right; lost: share of its right answers that {name} '
      'gets wrong. Two runs of one arm with other seeds differ too.'
    )
    title = f'Who corrects whom: {name} and {base}'
    blocks.append(named_table(title, table, SOURCE, note))
  places = runs.places(rows)
  for place in places[:_MOST_MATRICES]:
    blocks += _confusions(rows, place, conclusion)
  if len(places) > _MOST_MATRICES and any('confusion' in row for row in rows):
    text = (
      f'Confusions are drawn of the first {_MOST_MATRICES} of {len(places)} '
      f'places; those of the others are in `{SOURCE}`.'
    )
    blocks.append(Text(text))
  return blocks


def _share(found: tuple[float, float, float]) -> str:
  mean, low, high = map(show, found)
  return f'{mean} ({low} to {high})'


def _confusions(
  rows: Rows, place: runs.Place, conclusion: Conclusion
) -> list[Block]:
  arms = _arms(conclusion)
  found = [respects.confusions(rows, place, arm) for arm in arms]
  if any(one is None for one in found):
    return []
  (ours, names), (theirs, _) = [one for one in found if one is not None]
  if ours.shape != theirs.shape:
    return []
  ticks, numbers = plots.tick_names(names)
  labels = _names(conclusion)
  both = list(zip(labels, (ours, theirs), strict=True))[::-1]
  shares = [counts / counts.sum(axis=1, keepdims=True) for _, counts in both]
  change = np.nan_to_num(shares[1] - shares[0])
  order = np.argsort(-np.abs(change), axis=None)[:_MOST_CHANGES]
  table = [
    {
      'true': names[i],
      'said': names[j],
      labels[1]: float(shares[0][i, j]),
      labels[0]: float(shares[1][i, j]),
      'difference': float(change[i, j]),
    }
    for i, j in zip(*np.unravel_index(order, change.shape), strict=True)
    if change[i, j]
  ]
  changes = named_table(
    f'What changes most between classes: {place}',
    table,
    SOURCE,
    'Shares of the images of the true class, all seeds together; the largest '
    'of many differences are partly luck.',
  )
  counts = [
    {
      'arm': label,
      'true': names[i],
      'said': names[j],
      'answers': int(found[i, j]),
    }
    for label, found in both
    for i, j in np.ndindex(*found.shape)
    if found[i, j]
  ]
  data = named_table(f'Counts, zeros left out: {place}', counts, SOURCE)
  figure = Figure(
    f'Confusions: {place}',
    [plots.confusion(label, counts, ticks) for label, counts in both],
    'Answers of all seeds by true class (rows) and predicted class (columns).',
    data,
    note=numbers if len(names) <= plots.MOST_TICKS else '',
  )
  return [figure, changes] if table else [figure]


def degraded(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Accuracy, calibration and slopes on degraded images."""
  found = analysis.degraded(rows, conclusion.treatment, conclusion.reference)
  if not found:
    return []
  table = [
    {
      'place': str(one.place),
      'corruptions': one.group,
      'images': one.count,
      'seeds': one.test['pairs'],
      'teacher': one.teacher,
      'reference': one.reference,
      'difference': one.test['mean_difference'],
      '95 % over seeds': interval(one.test['ci_low'], one.test['ci_high']),
      'p (sign-flip)': one.test['p_sign_flip'],
      'verdict': one.verdict,
    }
    for one in found
  ]
  data = named_table(
    f'{minus(conclusion)} on degraded images, accuracy',
    table,
    SOURCE,
    "Means over a group's corruptions and five severities; `standard` are "
    "ImageNet-C's fifteen, `clean` the same images as they are. The verdict is "
    'by the exact p, corrected (Holm) over the places of a group.',
  )
  blocks: list[Block] = [data]
  if len(found) <= verdict_blocks.MOST_INTERVALS:
    panel = plots.intervals(
      minus(conclusion),
      [f'{one.group}, {one.place}' for one in found],
      [
        (
          one.test['mean_difference'],
          one.test['ci_low'],
          one.test['ci_high'],
        )
        for one in found
      ],
      'test accuracy',
    )
    alt = 'Differences on degraded images with their intervals over seeds'
    blocks.append(Figure('Under degradation', [panel], alt, data))
  return blocks + _under_corruption(rows, conclusion)


def convergence(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Steps to a level, and validation accuracy by step."""
  shown = {'tl': conclusion.reference, 'kd': conclusion.treatment}
  labels = {style: conclusion.labels[arm] for style, arm in shown.items()}
  blocks = _steps_to_level(rows, conclusion)
  for dataset in dict.fromkeys(place.dataset for place in runs.places(rows)):
    panels, table = [], []
    for place in runs.places(rows):
      curves = {
        style: analysis.mean_curve(rows, place, arm)
        for style, arm in shown.items()
      }
      if place.dataset != dataset or not all(curves.values()):
        continue
      lines = {s: tuple(zip(*c, strict=True)) for s, c in curves.items()}
      axes = {'x_label': 'step', 'y_label': 'validation accuracy'}
      panels.append(plots.lines(str(place), lines, small=True, **axes))
      table += [
        {
          'place': str(place),
          'arm': labels[style],
          'step': step,
          'validation accuracy': value,
        }
        for style, curve in curves.items()
        for step, value in curve
      ]
    if panels:
      data = named_table(f'Convergence: {dataset}', table, SOURCE)
      legend = plots.legend(list(shown), labels)
      alt = f'Mean validation accuracy over seeds by step on {dataset}'
      blocks.append(Figure(data.title, panels, alt, data, legend, narrow=True))
  return blocks
