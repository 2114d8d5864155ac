"""The tables of docs/benchmarks.md and docs/scaling.md from rows of bench.json.

`TABLES` maps the name of a benchmark in run_all.py to a function from its rows
to Markdown. Times are medians with minimum and maximum in brackets.
"""

from benchmarks.roofline import CHIPS, roofline

_PARTS = {
  'forward': 'forward',
  'step': 'step',
  'frozen_step': 'step, frozen BatchNorm',
}
_SIDES = {'ours': 'ours', 'torch': 'PyTorch', 'compiled': 'torch.compile'}


def table(heads: list[str], rows: list[list]) -> str:
  """Markdown of a table."""
  lines = [heads, ['---'] * len(heads), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def spread(row: dict, name: str, unit: str = 'ms', digits: int = 0) -> str:
  """'median (smallest to largest)' of machine.summary's fields, or ''."""
  if f'{name}_{unit}' not in row:
    return ''
  values = row[f'{name}_{unit}'], *row[f'{name}_min_max']
  middle, low, high = (f'{value:,.{digits}f}' for value in values)
  return f'{middle} ({low} to {high})'


def train_step(rows: list[dict]) -> str:
  """A table for each part: milliseconds of each side, and the ratio."""
  parts = []
  for part, title in _PARTS.items():
    present = [row for row in rows if f'{part}_ours_ms' in row]
    sides = [s for s in _SIDES if any(f'{part}_{s}_ms' in r for r in present)]
    if present:
      heads = [f'{title}, ms', *(_SIDES[side] for side in sides), 'ratio']
      lines = [
        [
          row['model'],
          *(spread(row, f'{part}_{side}') for side in sides),
          row.get(f'{part}_ratio', ''),
        ]
        for row in present
      ]
      parts.append(table(heads, lines))
  return '\n\n'.join(parts)


def end_to_end(rows: list[dict]) -> str:
  """Epochs of both sides, and those of each round."""
  row = rows[-1]
  heads = ['', 'ours, s', 'PyTorch, s', 'ratio', 'ours, MiB', 'PyTorch, MiB']
  heads += ['setup: ours, PyTorch, s', 'test top-1: ours, PyTorch']
  lines, rounds = [], []
  for arm, name, ratio in (('tl', 'TL', 'tl'), ('kd', 'TL+KD', 'tlkd')):
    sides = [row[f'{arm}_{side}'] for side in ('ours', 'torch')]
    times = [spread(side, 'epoch', 'seconds', 1) for side in sides]
    lines.append(
      [name, *times, row[f'{ratio}_ratio']]
      + [f'{side["peak_mib"]:,}' for side in sides]
      + [', '.join(str(side['setup_seconds']) for side in sides)]
      + [', '.join(f'{side["test_top1"]:.3f}' for side in sides)]
    )
    for label, side in zip(('ours', 'PyTorch'), sides, strict=True):
      epochs = [
        ', '.join(f'{s:.1f}' for s in epochs) for epochs in side['by_round']
      ]
      rounds.append([f'{name}, {label}', *epochs])
  numbers = [f'round {i + 1}, s' for i in range(row['rounds'])]
  return table(heads, lines) + '\n\n' + table(['', *numbers], rounds)


def loop_overhead(rows: list[dict]) -> str:
  """Milliseconds of a step in the loop and alone."""
  return table(
    ['pixels', 'loop, ms', 'bare step, ms', 'loop / bare'],
    [
      [
        row['image_size'],
        spread(row, 'loop', digits=1),
        spread(row, 'bare', digits=1),
        '{} ({} to {})'.format(row['ratio'], *row['ratio_min_max']),
      ]
      for row in rows
    ],
  )


def many_seeds(rows: list[dict]) -> str:
  """Images a second of several seeds, in one program and in processes."""
  return table(
    ['pixels', 'seeds', 'processes, images/s', 'one program', 'ratio'],
    [
      [
        row['image_size'],
        row['seeds'],
        spread(row, 'processes', 'images_s'),
        spread(row, 'program', 'images_s'),
        row['ratio'],
      ]
      for row in rows
    ],
  )


def allocators(rows: list[dict]) -> str:
  """A step after compilation and from the cache, two allocators."""
  return table(
    ['allocator', 'the step was', 'sending it, ms', 'step, ms', 'peak MiB'],
    [
      [
        row['allocator'],
        row['step is'],
        spread(row, 'send', digits=1),
        spread(row, 'step'),
        f'{row["peak_mib"]:,}',
      ]
      for row in rows
    ],
  )


def startup(rows: list[dict]) -> str:
  """Seconds from the command to its first step or its end."""
  heads = ['configuration', 'until', 'cold, s', 'warm, s']
  heads += ['of the processor: cold, s', 'warm, s']
  fields = ('cold', 'warm', 'cold_cpu', 'warm_cpu')
  return table(
    heads,
    [
      [
        row['config'],
        row['until'],
        *(spread(row, field, 'seconds', 1) for field in fields),
      ]
      for row in rows
    ],
  )


def convolutions(rows: list[dict]) -> str:
  """Ours and lax, forward and gradients."""
  heads = ['case', 'forward: ours, ms', 'lax, ms', 'ratio']
  heads += ['gradients: ours, ms', 'lax, ms', 'ratio']
  lines = []
  for row in rows:
    line = [row['case']]
    for part in ('forward', 'gradients'):
      line += [
        spread(row, f'{part}_{side}', digits=1) for side in ('ours', 'lax')
      ]
      line.append(row[f'{part}_ratio'])
    lines.append(line)
  return table(heads, lines)


def input_pipeline(rows: list[dict]) -> str:
  """Images per second of each part."""
  parts = {
    'prepare': 'prepare',
    'decode': 'decode',
    'train': 'batches',
    'augment': 'augment',
    'step': 'a step consumes',
  }
  lines = []
  for name in ('large', 'small'):
    row = rows[-1][name]
    line = [f'{row["images"]:,} at {row["image_size"]} px']
    for part in parts:
      low, high = row['min_max'][part]
      middle = row['images_per_second'][part]
      line.append(f'{middle:,} ({low:,} to {high:,})')
    lines.append([*line, row['times_step']])
  return table(['images', *parts.values(), 'batches / step'], lines)


def growth(rows: list[dict]) -> str:
  """The exponents of each axis."""
  lines = []
  for axis, result in rows[-1]['axes'].items():
    sizes = [point['size'] for point in result['points']]
    found = [f'{name} {e}' for name, e in result['exponents'].items()]
    lines.append([axis, f'{sizes[0]:,} to {sizes[-1]:,}', ', '.join(found)])
  return table(['axis', 'from, to', 'exponents'], lines)


def scaling_measured(rows: list[dict]) -> str:
  """A step on more devices of the same two cores."""
  heads = ['devices', 'processes', 'step, ms', 'longer by']
  lines = [
    [
      row['devices'],
      row['processes'],
      spread(row, 'step'),
      f'{row["overhead"]:.0%}',
      f'{row["loss_difference"]:.1e}',
    ]
    for row in rows
  ]
  return table([*heads, 'largest difference of a loss'], lines)


def scaling_computed(rows: list[dict]) -> str:
  """What a step computes and sends, and the rooflines of `CHIPS`."""
  costs, bounds = [], []
  for row in rows:
    start = [f'{row["teacher"]} -> {row["student"]}', row['chips']]
    sent = row['collectives']
    kinds = ', '.join(f'{c["count"]} {kind}' for kind, c in sent.items())
    moved = sum(c['bytes'] for c in sent.values()) / 1e6
    costs.append(
      [*start, row['chips'] * row['batch_per_chip']]
      + [f'{row["flops_per_chip"] / 1e9:.1f}']
      + [f'{row["bytes_per_chip"] / 1e9:.2f}', row['temporary_mib']]
      + [kinds or 'none', f'{moved:.1f}']
    )
    found = [roofline(row, chip) for chip in CHIPS]
    bounds.append(
      start
      + [
        f'{bound["images_per_second"]:,.0f}, {bound["efficiency"]:.0%} '
        f'({bound["bound"]})'
        for bound in found
      ]
    )
  heads = ['pair', 'chips', 'batch', 'GFLOP per chip', 'GB per chip']
  heads += ['temporaries MiB', 'collectives', 'MB']
  chips = [f'{chip}: images/s, of linear' for chip in CHIPS]
  return table(heads, costs) + '\n\n' + table(['pair', 'chips', *chips], bounds)


def scaling_sharded(rows: list[dict]) -> str:
  """The same with the optimizer's state in parts, and what a chip holds of it.

  Copied it is AdamW's two moments.
  """
  held = [
    [f'{row["teacher"]} -> {row["student"]}', row['chips']]
    + [f'{8 * row["student_parameters"] / 1e6:.1f}']
    + [f'{row["optimizer_bytes_per_chip"] / 1e6:.1f}']
    for row in rows
  ]
  heads = [
    'pair',
    'chips',
    "optimizer's state copied, MB",
    'in parts, MB a chip',
  ]
  return table(heads, held) + '\n\n' + scaling_computed(rows)


def metrics(rows: list[dict]) -> str:
  """Seconds of the bootstrap and of what it replaces."""
  return table(
    ['one model once, s', 'bootstrap of two, s', 'by copying, s', 'ratio'],
    [
      [
        spread(row, 'one_model_once', 'seconds', 2),
        spread(row, 'bootstrap', 'seconds', 1),
        spread(row, 'by_copying', 'seconds', 0),
        row['times_as_fast'],
      ]
      for row in rows
    ],
  )


def corruptions(rows: list[dict]) -> str:
  """Images per second of the whole set; how often as fast, one by one."""
  row = rows[-1]
  whole = table(
    ['the package, images/s', 'ours, images/s', 'ratio', 'without glass blur'],
    [
      [
        spread(row, 'reference', 'images_per_second', 1),
        spread(row, 'our', 'images_per_second', 0),
        row['times_as_fast'],
        row['times_as_fast_without_glass_blur'],
      ]
    ],
  )
  each = row['times_as_fast_by_corruption'].items()
  each = sorted(each, key=lambda item: -item[1])
  return whole + '\n\n' + table(['corruption', 'ratio'], each)


def families(rows: list[dict]) -> str:
  """Milliseconds of each side, and the ratio."""
  titles = {
    'step': 'step, ms',
    'features': 'features, ms',
  }
  parts = []
  for part, title in titles.items():
    present = [row for row in rows if row.get('part') == part]
    if not present:
      continue
    heads = [title, 'px', 'ours', 'PyTorch', 'channels_last', 'ratio']
    lines = [
      [row['model'], row['image_size']]
      + [
        'died' if side in row.get('died', ()) else spread(row, side)
        for side in ('ours', 'eager', 'channels_last')
      ]
      + [row.get('ratio') or f'failed: {row["failed"]}']
      for row in present
    ]
    parts.append(table(heads, lines))
  return '\n\n'.join(parts)


def accelerator(rows: list[dict]) -> str:
  """The short figures of benchmarks/accelerator."""
  from benchmarks.accelerator import tables

  return tables.short_table(rows)


TABLES = {
  'train_step': train_step,
  'families': train_step,
  'new_families': families,
  'frozen_features': families,
  'end_to_end': end_to_end,
  'end_to_end_preloaded': end_to_end,
  'loop_overhead': loop_overhead,
  'many_seeds': many_seeds,
  'allocators': allocators,
  'startup': startup,
  'convolutions': convolutions,
  'input_pipeline': input_pipeline,
  'growth': growth,
  'scaling': scaling_measured,
  'scaling_computed': scaling_computed,
  'scaling_sharded': scaling_sharded,
  'metrics': metrics,
  'corruptions': corruptions,
  'accelerator': accelerator,
}
