"""Tables of a record: for the docs, and the short one at the end."""

import json
import statistics
from typing import Any

from benchmarks import roofline
from benchmarks.accelerator import cards, record
from benchmarks.tables import spread, table

PAIRS = ('default', 'resnet', 'vit')
_SPEED = tuple(f'speed {pair}' for pair in PAIRS)
_TORCH = tuple(f'torch {pair}' for pair in PAIRS)
_ARMS = {
  'tl': 'TL',
  'online': 'TL+KD, teacher in the step',
  'stored': 'TL+KD, stored targets',
  'probed': "a teacher's forward pass (probed)",
}
_FORMS = {
  'lax': 'lax',
  'shifted': 'shifted',
  'plain': "shifted, JAX's gradient",
}
NOT_MEASURED = 'not measured'


def _ms(row: dict) -> str:
  low, high = row['ms_min_max']
  return f'{row["ms"]:,.2f} ({low:,.2f} to {high:,.2f})'


def _share(value: float | None) -> str:
  return '' if value is None else f'{value:.0%}'


def line(row: dict) -> str:
  """One row as it is measured, for the terminal; '' where it says nothing."""
  if 'left_out' in row:
    return f'left out: {row["left_out"]}'
  key = row['key']
  for kind in ('out_of_memory', 'broken'):
    if kind in row:
      return f'{key}: {kind.replace("_", " ")}, {row[kind]}'
  if 'ok' in row:
    said = 'ok' if row['ok'] else 'FAILED'
    bound = f'{row["found"]} of {row["bound"]}' if 'bound' in row else row['of']
    return f'{said}: {key}, {bound}'
  if 'ms' in row:
    found = f'{key}: {_ms(row)} ms, {row["images_per_second"]:,.0f} images/s'
    return found + (f', MFU {row["mfu"]:.1%}' if 'mfu' in row else '')
  return '' if key.startswith('checked') else f'{key}: done'


def _measured(found: dict, name: str) -> list[dict]:
  """A part's rows without what did not fit or broke."""
  rows = record.rows(found, name)
  return [r for r in rows if 'broken' not in r and 'out_of_memory' not in r]


def checks(found: dict) -> str:
  """Of each check the worst case."""
  groups: dict[str, list[dict]] = {}
  for row in record.rows(found, 'checks', 'determinism'):
    if 'ok' in row:
      prefix = 'deterministic ' * row['key'].startswith('deterministic')
      groups.setdefault(prefix + row['check'], []).append(row)
  lines = []
  for name, rows in groups.items():
    worst = max(rows, key=lambda row: (not row['ok'], row.get('found', 0.0)))
    holds = sum(row['ok'] for row in rows)
    shown = [worst.get('found', 'broke'), worst.get('bound', '')]
    lines.append([name, f'{holds} of {len(rows)}', *shown, worst['of']])
  if 'losses of more devices' not in groups:
    lines.append(['losses of more devices', NOT_MEASURED, '', '', ''])
  return table(['check', 'holds', 'largest', 'bound', 'where'], lines)


def speed(found: dict) -> str:
  """Every arm and batch of each pair."""
  heads = ['pair', 'arm', 'batch', 'step, ms', 'n', 'images/s', 'MFU']
  heads += ['sending it, ms', 'compilation, s', 'temporaries, MiB']
  lines = []
  for row in record.rows(found, *_SPEED):
    head = [f'{row["teacher"]} -> {row["student"]}', _ARMS[row['arm']]]
    head.append(row['batch'])
    if 'ms' not in row:
      lines.append([*head, _side(row), *[''] * 6])
      continue
    memory = row['temporary_mib']
    lines.append(
      [*head, _ms(row), f'{row["rounds"]} x {row["steps"]}']
      + [f'{row["images_per_second"]:,.0f}', _share(row.get('mfu'))]
      + [row['send_ms'], row['compile_s'], '' if memory is None else memory]
    )
  return table(heads, lines)


def against_torch(found: dict) -> str:
  """Our steps beside PyTorch's, and the ratio to the faster of its two."""
  theirs = {row['key']: row for row in record.rows(found, *_TORCH)}
  heads = ['pair', 'arm', 'batch', 'ours, ms', 'PyTorch, ms']
  heads += ['torch.compile, ms', 'ratio']
  lines = []
  for row in record.rows(found, *_SPEED):
    if row['arm'] not in ('tl', 'online') or 'ms' not in row:
      continue
    sides = [theirs.get(f'{row["key"]} {mode}') for mode in _MODES]
    if not any(sides):
      continue
    shown = [NOT_MEASURED if side is None else _side(side) for side in sides]
    head = [row['pair'], _ARMS[row['arm']], row['batch'], _ms(row)]
    lines.append([*head, *shown, _ratio(row, sides) or ''])
  skipped = {
    found['parts'][name]['skipped']
    for name in _TORCH
    if 'skipped' in found['parts'].get(name, {})
  }
  notes = [f'{why}.' for why in sorted(skipped)]
  return '\n\n'.join([table(heads, lines)] * bool(lines) + notes)


_MODES = ('eager', 'compiled')


def _side(row: dict) -> str:
  if 'ms' in row:
    return _ms(row)
  return 'out of memory' if 'out_of_memory' in row else 'broken'


def _ratio(row: dict, sides: list) -> float | None:
  times = [side['ms'] for side in sides if side and 'ms' in side]
  return round(row['ms'] / min(times), 3) if times else None


def inputs(found: dict) -> str:
  """Images a second of each part of the input path, and of a step."""
  rows = {row['key']: row for row in _measured(found, 'input')}
  lines = []
  if 'decode' in rows:
    rates = rows['decode']['images_per_second']
    cores = rows['decode']['cores']
    for part, name in (
      ('decode', f'decoding on {cores} cores, once a run'),
      ('train', 'batches of decoded images'),
      ('augment', 'augmentation on the device'),
    ):
      lines.append([name, f'{rates[part]:,.0f}'])
  if 'send' in rows:
    rate = rows['send']['send_gb_per_second']
    lines.append(['uint8 images to the device, GB/s', rate])
  best = _best(found, 'default', 'tl')
  if best:
    rate, side = best['images_per_second'], -(-best['image_size'] * 8 // 7)
    needed = rate * side**2 * 3 / 1e9
    lines.append(['a step of TL consumes (default pair)', f'{rate:,.0f}'])
    lines.append(['which is GB/s of uint8', f'{needed:.2f}'])
  return table(['input path', 'images/s'], lines)


def depthwise(found: dict) -> str:
  """Milliseconds of the forms, and which is the fastest."""
  lines = []
  for row in _measured(found, 'depthwise'):
    for part in ('forward', 'gradients'):
      times = [spread(row, f'{part}_{form}', digits=3) for form in _FORMS]
      fastest = _FORMS[row[f'{part}_fastest']]
      head = [row['case'], row['dtype'], part]
      lines.append([*head, *times, fastest, row[f'{part}_apart']])
  heads = ['case', 'dtype', 'pass', *(f'{f}, ms' for f in _FORMS.values())]
  return table([*heads, 'fastest', 'apart by'], lines)


def loop(found: dict) -> str:
  """The loop beside the bare step."""
  lines = [
    [row['image_size'], row['batch_size'], spread(row, 'loop', digits=2)]
    + [spread(row, 'bare', digits=2)]
    + ['{} ({} to {})'.format(row['ratio'], *row['ratio_min_max'])]
    for row in _measured(found, 'loop')
  ]
  heads = ['pixels', 'batch', 'loop, ms', 'bare step, ms', 'loop / bare']
  return table(heads, lines)


def bounds(found: dict, computed: dict) -> str:
  """What a step takes at least by its program's costs, and what it took.

  Args:
    found: the record.
    computed: docs/bench.json, whose scaling_computed is of programs for a
      processor; the same bound by those, scaled to the batch.
  """
  kind = found['machine']['kind']
  card = cards.find(kind)
  if card is None:
    return f'No peaks are known of {kind}.'
  heads = ['pair', 'arm', 'batch', 'GFLOP: own count', "XLA's, given"]
  heads += ["XLA's, compiled", 'GB', 'at least, ms', 'measured, ms', 'ratio']
  heads.append('as computed in scaling.md, ms')
  lines = []
  for row in record.rows(found, *_SPEED):
    if 'ms' not in row:
      continue
    flop = max(row['model_flop'], row['xla_flop'] or 0.0)
    least, by = cards.bound(flop, row['xla_bytes'] or 0.0, card)
    counts = [row['model_flop'], row['xla_flop_given'], row['xla_flop']]
    lines.append(
      [row['pair'], _ARMS[row['arm']], row['batch']]
      + ['' if n is None else f'{n / 1e9:,.0f}' for n in counts]
      + ['' if not row['xla_bytes'] else f'{row["xla_bytes"] / 1e9:.2f}']
      + [f'{1e3 * least:.2f} ({by})', f'{row["ms"]:.2f}']
      + [f'{row["ms"] / 1e3 / least:.2f}', _computed(row, card, computed)]
    )
  return table(heads, lines)


def _computed(row: dict, card: cards.Card, results: dict) -> str:
  rows = results.get('scaling_computed', {}).get('rows', [])
  alike = [
    r
    for r in rows
    if r['chips'] == 1 and row['arm'] == 'online'
    if all(r[k] == row[k] for k in ('student', 'teacher', 'image_size'))
  ]
  if not alike or card.name not in roofline.CHIPS:
    return ''
  busy = roofline.roofline(alike[0], card.name)['busy']
  return f'{1e3 * busy * row["batch"] / alike[0]["batch_per_chip"]:.2f}'


def _best(found: dict, pair: str, arm: str) -> dict | None:
  rows = [
    row
    for row in record.rows(found, f'speed {pair}')
    if row['arm'] == arm and 'ms' in row
  ]
  return max(rows, key=lambda row: row['images_per_second'], default=None)


def short(found: dict) -> dict[str, Any]:
  """The figures of `summary`."""
  rows = record.rows(found, 'checks', 'determinism')
  held = [row['ok'] for row in rows if 'ok' in row]
  figures: dict[str, Any] = {
    'benchmark': 'accelerator',
    'device': found['machine']['kind'],
    'small': found['identity']['small'],
    'checks': len(held),
    'checks_hold': sum(held),
  }
  theirs = {row['key']: row for row in record.rows(found, *_TORCH)}
  for pair in PAIRS:
    for arm in ('tl', 'online'):
      row = _best(found, pair, arm)
      if row is None:
        continue
      sides = [theirs.get(f'{row["key"]} {mode}') for mode in _MODES]
      figures[f'{pair} {arm}'] = {
        'batch': row['batch'],
        'images_per_second': row['images_per_second'],
        'mfu': row.get('mfu'),
        'ratio_to_torch': _ratio(row, sides),
      }
  ratios = [row['ratio'] for row in _measured(found, 'loop')]
  if ratios:
    figures['loop_ratio'] = max(ratios)
  wins = [
    row[f'{part}_fastest']
    for row in _measured(found, 'depthwise')
    for part in ('forward', 'gradients')
  ]
  if wins:
    figures['depthwise_fastest'] = statistics.mode(wins)
  return figures


def short_table(rows: list[dict]) -> str:
  """Of run_all's rows: each what `short` gave."""
  return '\n\n'.join(_short(row) for row in rows)


def _short(figures: dict) -> str:
  lines = [['checks', f'{figures["checks_hold"]} of {figures["checks"]} hold']]
  for name, value in figures.items():
    if isinstance(value, dict):
      pair, arm = name.split()
      shown = f'{value["images_per_second"]:,.0f} images/s at {value["batch"]}'
      if value['mfu'] is not None:
        shown += f', MFU {value["mfu"]:.1%}'
      ratio = value['ratio_to_torch']
      shown += f', / PyTorch {ratio or NOT_MEASURED}'
      lines.append([f'{pair}: {_ARMS[arm]}', shown])
  for name, key in (
    ('loop / bare step', 'loop_ratio'),
    ('depthwise, most often fastest', 'depthwise_fastest'),
  ):
    if key in figures:
      lines.append([name, figures[key]])
  return table([figures['device'], ''], lines)


def summary(found: dict) -> str:
  """The short table, and what is missing."""
  return '\n\n'.join([_short(short(found)), *_missing(found)])


def _missing(found: dict) -> list[str]:
  said = []
  for name, part in found['parts'].items():
    said += [f'{name}: left out {text}' for text in part['left_out']]
    if 'failed' in part:
      said.append(f'{name}: {part["failed"].splitlines()[-1]}')
    if 'skipped' in part:
      said.append(f'{name}: {part["skipped"]}')
  return ['\n'.join(f'- {text}' for text in said)] if said else []


def markdown(found: dict) -> str:
  """All tables."""
  if not found:
    return 'Nothing was measured yet.'
  about = found['machine']
  versions = ', '.join(f'{k} {v}' for k, v in about['versions'].items())
  head = f'{about["devices"]} x {about["kind"]}, {about["cpu"]}, '
  head += f'{about["cores"]} cores, {versions}; {found["date"]}'
  if about.get('driver'):
    head += f'; driver: {about["driver"].splitlines()[0]}'
  if found['card']:
    head += f'; peaks: {found["card"]["source"]}'
  parts = [head + '.']
  if found['identity']['small']:
    parts.append('**A rehearsal in the small form: its figures say nothing.**')
  path = record.ROOT / 'docs' / 'bench.json'
  computed = json.loads(path.read_text()) if path.exists() else {}
  for title, text in (
    ('In short', summary(found)),
    ('Right?', checks(found)),
    ('Speed', speed(found)),
    ('Against PyTorch', against_torch(found)),
    ('Bounds', bounds(found, computed)),
    ('Input path', inputs(found)),
    ('Depthwise convolutions', depthwise(found)),
    ('Loop', loop(found)),
  ):
    parts.append(f'## {title}\n\n{text}')
  return '\n\n'.join(parts)
