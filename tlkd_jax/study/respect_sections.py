"""Sections of a study's page on the respects of `respects`."""

from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Block, Figure, Text, interval, named_table
from tlkd_jax.study import respects
from tlkd_jax.study.analysis import Rows
from tlkd_jax.study.respects import Measure

SOURCE = 'results.json'
# Of the largest changes between classes.
_MOST_CHANGES = 8


def _arms(conclusion: Conclusion) -> tuple[str, str]:
  return conclusion.treatment, conclusion.reference


def _names(conclusion: Conclusion) -> tuple[str, str]:
  treatment, reference = _arms(conclusion)
  return conclusion.labels[treatment], conclusion.labels[reference]


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
      'difference, or value': one.difference,
      '95 % over seeds': interval(one.low, one.high),
      'p': one.p,
    }
    for one in found
  ]
  return [named_table(title, rows, SOURCE, note)] if rows else []


def under_corruption(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """Calibration, relative errors and the slope of the gap."""
  found = respects.under_corruption(rows, *_arms(conclusion))
  name, base = _names(conclusion)
  return _table(
    f'{name} and {base} on degraded images, beside accuracy',
    found,
    (name, base),
    "mCE: the error of each of ImageNet-C's fifteen corruptions, over five "
    f'severities, divided by that of {base} of the same seed, averaged; '
    'relative: the rise over the clean error, divided likewise; below 1 '
    f'{name} is the more robust one, and p is of 1. The gap is {name} minus '
    f'{base}; its slope is of a straight line a seed. p is of the exact '
    'sign-flip test, of the slope of the t test; nothing is corrected.',
  )


def steps_to_level(rows: Rows, conclusion: Conclusion) -> list[Block]:
  """How many steps it takes to come near the reference's best."""
  found, missed = respects.steps_to_level(rows, *_arms(conclusion))
  name, base = _names(conclusion)
  share = f'{100 * respects.LEVEL:.0f} %'
  blocks = _table(
    f"Steps to {share} of {base}'s best validation accuracy",
    found,
    (name, base),
    "The level is of each seed's own run; straight between two evaluations, "
    'and no finer than they are: a level that is reached at the first one '
    'counts as reached there.',
  )
  if missed:
    left = '; '.join(f'{place}: {n}' for place, n in missed.items())
    text = f'Seeds of which one arm does not reach that level: {left}.'
    blocks.append(Text(text))
  return blocks


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
      'corrected': one.correction[0],
      '95 %, corrected': interval(*one.correction[1:]),
      'lost': one.damage[0],
      '95 %, lost': interval(*one.damage[1:]),
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
  for place in runs.places(rows):
    blocks += _confusions(rows, place, conclusion)
  return blocks


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
  data = named_table(
    f'What changes most between classes: {place}',
    table,
    SOURCE,
    'Shares of the images of the true class, all seeds together; the largest '
    'of many differences are partly luck.',
  )
  figure = Figure(
    f'Confusions: {place}',
    [plots.confusion(label, counts, ticks) for label, counts in both],
    'Answers of all seeds by true class (rows) and predicted class (columns).',
    data,
    note=numbers if len(names) <= plots.MOST_TICKS else '',
  )
  return [figure, data] if table else [figure]
