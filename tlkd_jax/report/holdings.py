"""What the data of the runs hold: counts, what was left out, exact copies."""

import pathlib
from collections.abc import Sequence
from typing import Any

from tlkd_jax.data import facts
from tlkd_jax.report.blocks import Block, Section, Text, named_table
from tlkd_jax.report.context import relative
from tlkd_jax.report.runs import RunFolder


def section(runs: Sequence[RunFolder], out: pathlib.Path) -> Section | None:
  """The data sets of the runs; None if no run says what they hold.

  Args:
    runs: all of the report.
    out: folder of the report.
  """
  rows: dict[tuple, dict[str, Any]] = {}
  said: dict[str, None] = {}
  sources = {}
  for run in runs:
    held = run.summary.get('data')
    if not held:
      continue
    sources.setdefault(run.dataset, f'{relative(run.path, out)}/summary.json')
    for split, counts in held['splits'].items():
      (low, least), (high, most) = counts['smallest'], counts['largest']
      row = {
        'data': run.dataset,
        'split': split,
        'classes': held['classes'],
        'images': counts['images'],
        'used': counts['used'],
        'smallest class': f'{low}: {least}',
        'largest class': f'{high}: {most}',
      }
      rows.setdefault(tuple(row.values()), row)
    lines = [f'left out {s}' for s in facts.left_out_lines(held['left_out'])]
    for line in [*lines, *facts.copies_lines(held)]:
      said.setdefault(f'{run.dataset}: {line}.')
  if not rows:
    return None
  table = named_table(
    'Images by split',
    list(rows.values()),
    ', '.join(sources.values()),
    'Classes are counted over the images that are used.',
  )
  blocks: list[Block] = [table, *map(Text, said)]
  return Section('data', 'The data', blocks)
