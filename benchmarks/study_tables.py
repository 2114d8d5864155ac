"""Tables of docs/study from committed rows: see benchmarks.publish."""

import collections
from typing import Any, cast

import numpy as np

from benchmarks.tables import table
from tlkd_jax.answer import words, worth
from tlkd_jax.evaluation import statistics

Rows = list[dict[str, Any]]

# Data set of the study of six seeds -> its name and sizes, in their order.
PLACES = {
  'digits': ('digits, 32 px', (5, 10, 20, 50)),
  'trashnet': ('TrashNet, 64 px', (10, 20, 50, 90)),
  'cifar10': ('CIFAR-10, 64 px', (10, 50)),
}
_LABELS = {
  'teacher': 'teacher (Lite2)',
  'linear_probe': 'linear probe',
  'tl': 'TL',
  'tl_label_smoothing': 'TL + label smoothing',
  'tl_self_distillation': 'TL + self-distillation',
  'kd': 'TL+KD',
  'teacher_high_res': 'teacher at 112 px',
  'kd_high_res_teacher': 'TL+KD, teacher at 112 px',
}
_METRICS = {'top1': 'top-1', 'macro_f1': 'macro F1', 'nll': 'NLL', 'ece': 'ECE'}
_GROUPS = {
  'clean': 'clean',
  'noise': 'noise',
  'blur': 'blur',
  'weather': 'weather',
  'digital': 'digital',
  'extra': "ImageNet-C's extra four",
  'camera': 'camera',
  'standard': "ImageNet-C's fifteen",
}


def _seeds(rows: Rows, arm: str, dataset: str, size: float) -> dict[int, dict]:
  """Seed -> row that was chosen, by seed."""
  found = {
    row['seed']: row
    for row in rows
    if row['chosen']
    and (row['arm'], row['dataset'], row['size']) == (arm, dataset, size)
  }
  return dict(sorted(found.items()))


def _scores(rows: Rows, arm, dataset, size, metric='top1') -> np.ndarray:
  own = _seeds(rows, arm, dataset, size).values()
  return np.array([row['test'][metric] for row in own])


def _shares(test: dict[str, float]) -> str:
  low, high = test['ci_low'], test['ci_high']
  return f'{test["mean_difference"]:+.3f} ({low:+.3f} to {high:+.3f})'


def _p(test: dict[str, float]) -> str:
  return f'{test["p_sign_flip"]:.2g}'


def _spread(values: np.ndarray) -> str:
  return f'{values.mean():.3f} ± {values.std(ddof=1):.3f}'


def six_seeds(rows: Rows, grid: Rows) -> str:
  """The study of three data sets and six seeds, and its grid."""
  parts = ['# Three data sets, six seeds', '## Every place', _places(rows)]
  for dataset, (title, _) in PLACES.items():
    parts += [f'## {title[0].upper()}{title[1:]}', _arms(rows, dataset)]
    parts.append(_differences(rows, dataset))
  parts += ['## In labels', _IN_LABELS, in_labels(rows)]
  parts += ['## Degraded images', _DEGRADED, degraded(rows)]
  parts += ['## Temperature and soft weight', _GRID, temperatures(grid)]
  return '\n\n'.join(parts) + '\n'


_IN_LABELS = (
  'How many training images TL needs for the accuracy of TL+KD, with 95 % '
  'intervals over seeds; nothing is extrapolated beyond the sizes.'
)
_DEGRADED = (
  'The students of TrashNet at 20 a class on 200 of its test images under 25 '
  'corruptions at 5 severities, mean top-1 by group.'
)
_GRID = (
  'Digits, 50 images a class, seeds 0 to 2, test top-1 minus that of TL; soft '
  'weight in the columns.'
)


def _places(rows: Rows) -> str:
  lines = []
  arms = 'teacher', 'tl', 'tl_label_smoothing', 'kd'
  for dataset, (title, sizes) in PLACES.items():
    for size in sizes:
      values = [_scores(rows, arm, dataset, size) for arm in arms]
      line = [f'{title}, {size}', *(f'{v.mean():.3f}' for v in values)]
      for reference in (2, 1):
        test = statistics.compare_paired(values[3], values[reference])
        line += [_shares(test), _p(test)]
      lines.append(line)
  heads = ['data, images a class', 'teacher', 'TL', 'TL + label smoothing']
  heads += ['TL+KD', 'TL+KD minus TL + label smoothing (95 %)', 'p']
  return table([*heads, 'TL+KD minus TL (95 %)', 'p'], lines)


def _there(rows: Rows, dataset: str) -> list[str]:
  size = PLACES[dataset][1][0]
  return [arm for arm in _LABELS if _seeds(rows, arm, dataset, size)]


def _arms(rows: Rows, dataset: str) -> str:
  lines = []
  for size in PLACES[dataset][1]:
    for arm in _there(rows, dataset):
      found = [_scores(rows, arm, dataset, size, name) for name in _METRICS]
      line = [size, _LABELS[arm], len(found[0]), *map(_spread, found)]
      lines.append(line)
  return table(['per class', 'arm', 'seeds', *_METRICS.values()], lines)


def _differences(rows: Rows, dataset: str) -> str:
  lines = []
  for size in PLACES[dataset][1]:
    for arm in _there(rows, dataset):
      if arm == 'tl' or arm.startswith('teacher'):
        continue
      line: list[Any] = [size, _LABELS[arm]]
      for metric in ('top1', 'nll'):
        test = statistics.compare_paired(
          _scores(rows, arm, dataset, size, metric),
          _scores(rows, 'tl', dataset, size, metric),
        )
        line += [] if len(line) > 2 else [test['pairs']]
        line.append(f'{test["mean_difference"]:+.3f}')
        line.append(f'{test["ci_low"]:+.3f} to {test["ci_high"]:+.3f}')
        line.append(_p(test))
      lines.append(line)
  heads = ['per class', 'arm', 'seeds', 'minus TL, top-1', '95 % over seeds']
  heads += ['sign-flip p', 'NLL', '95 % over seeds', 'sign-flip p']
  return table(heads, lines)


def in_labels(rows: Rows) -> str:
  """What TL+KD is worth in labels, over the curve and size by size."""
  lines = []
  for dataset, (title, _) in PLACES.items():
    (found,) = worth.in_labels(
      cast(Any, [row for row in rows if row['dataset'] == dataset]), 'kd', 'tl'
    )
    over = found.over_curve
    whole = f'{over.percent:+.0f} % ({over.low:+.0f} to {over.high:+.0f})'
    for one in found.by_size:
      count, low, high = (
        words.label_count(end, found.sizes)
        for end in (one.labels, one.low, one.high)
      )
      share = words.label_percent(one, found.sizes)
      lines.append([title, f'{one.size:.0f}', count, share, low, high, whole])
  heads = ['data', 'training images', 'TL needs', 'labels', 'from', 'to']
  return table([*heads, 'over the curve'], lines)


def degraded(rows: Rows) -> str:
  """Accuracy by group of corruptions."""
  sides = [
    _seeds(rows, arm, 'trashnet', 20).values()
    for arm in ('tl', 'tl_label_smoothing', 'kd')
  ]
  lines = []
  for group, name in _GROUPS.items():
    values = [
      np.array([row['degraded']['top1'][group] for row in side])
      for side in sides
    ]
    test = statistics.compare_paired(values[2], values[0])
    means = [f'{value.mean():.3f}' for value in values]
    lines.append([name, *means, _shares(test), _p(test)])
  heads = ['images', 'TL', 'TL + label smoothing', 'TL+KD']
  return table([*heads, 'TL+KD minus TL (95 %)', 'p'], lines)


def temperatures(grid: Rows) -> str:
  """Mean difference in top-1 by temperature and soft weight."""
  plain = _scores(grid, 'tl', 'digits', 50)
  gains: dict[tuple[float, float], float] = {}
  for row in grid:
    changes = row['changes']
    if 'distillation.temperature' in changes:
      key = (
        changes['distillation.temperature'],
        changes['distillation.soft_weight'],
      )
      own = _scores(grid, row['arm'], 'digits', 50)
      gains[key] = float((own - plain).mean())
  weights = sorted({weight for _, weight in gains})
  lines = [
    [f'{t:g}', *(f'{gains[t, w]:+.3f}' for w in weights)]
    for t in sorted({t for t, _ in gains})
  ]
  first, *rest = (f'{w:g}' for w in weights)
  return table(['temperature', f'soft weight {first}', *rest], lines)


_ROUND_OF_VIEWS = 3
_DATASETS = {'trashnet': 'TrashNet', 'cifar10': 'CIFAR-10'}


def tuning(rows: Rows) -> str:
  """Every trial of the three rounds, the best first, arm by arm."""
  trials: dict[tuple, Rows] = collections.defaultdict(list)
  for row in rows:
    name = _recipe(row)
    # The second round ran a teacher of the first again, to the same end.
    first = min(
      other['round']
      for other in rows
      if other['arm'] == row['arm'] and _recipe(other) == name
    )
    if row['round'] == first:
      trials[row['arm'], name].append(row)
  lines = []
  for arm, label in (('tl', 'TL'), ('kd', 'TL+KD'), ('teacher', 'teacher')):
    own = {n: found for (a, n), found in trials.items() if a == arm}
    order = sorted(own, key=lambda n: _mean(own[n], 'nll')[0])
    for name in order:
      best = name == order[0] and arm != 'teacher'
      shown = f'**{name}**' if best else name
      lines.append([label, shown, *_trial(own[name])])
  heads = ['arm', 'recipe', 'NLL', 'top-1', 'ECE']
  heads += [f'{name} NLL, top-1' for name in _DATASETS.values()]
  return (
    '# Every trial of the tuning\n\n'
    'Validation images, means over both data sets and seeds 100 to 102; ± is '
    'the standard deviation over the seeds. Of TL+KD temperature 2, soft '
    'weight 1, rate 0.001 and the labels smoothed by 0.1 where nothing else is '
    'said; 5/3 of the side is 160 px on TrashNet and 112 on CIFAR-10.\n\n'
    + table(heads, lines)
    + '\n'
  )


def _recipe(row: dict[str, Any]) -> str:
  trial = row['trial']
  rate = trial.get('optimizer.learning_rate')
  if row['arm'] == 'tl':
    return f'rate {rate:g}, smoothing {trial["label_smoothing"]:g}'
  fit, wide = trial['teacher.fit'], row['round'] == _ROUND_OF_VIEWS
  if row['arm'] == 'teacher':
    return fit + (', at 5/3 of the side' if wide else '')
  parts = [f'{fit} teacher' + (' at 5/3 of the side' if wide else '')]
  for key, word, usual in (
    ('distillation.temperature', 'temperature', 2),
    ('distillation.soft_weight', 'weight', 1),
    ('optimizer.learning_rate', 'rate', 0.001),
  ):
    if trial.get(key, usual) != usual:
      parts.append(f'{word} {trial[key]:g}')
  return ', '.join(parts)


def _mean(rows: Rows, metric: str) -> tuple[float, float]:
  """Of each seed's mean over the data sets: mean and standard deviation."""
  by_seed = collections.defaultdict(list)
  for row in rows:
    by_seed[row['seed']].append(row['validation'][metric])
  means = [np.mean(values) for values in by_seed.values()]
  return float(np.mean(means)), float(np.std(means, ddof=1))


def _trial(rows: Rows) -> list[str]:
  mean, spread = _mean(rows, 'nll')
  cells = [f'{mean:.3f} ± {spread:.3f}']
  cells += [f'{_mean(rows, name)[0]:.3f}' for name in ('top1', 'ece')]
  for dataset in _DATASETS:
    own = [row for row in rows if row['dataset'] == dataset]
    values = [_mean(own, name)[0] for name in ('nll', 'top1')]
    cells.append(', '.join(f'{value:.3f}' for value in values))
  return cells


_LOOKS = {
  'normal': 'one number a seed, spread 0.5 points',
  'heavy': 'the same, t with 3 degrees of freedom',
  'discrete': 'counts of 630 images, spread 1.5',
  'places': 'three data sets, spreads 1, 2, 0.7 and their images',
  'drawn': '630 images, drawn',
}


def looks(stored: dict[str, Any]) -> str:
  """Errors and costs of looking after every seed, and coverage."""
  parts = ['# Looking after every seed', '## Errors', errors(stored)]
  parts += ['## Seeds until sure', costs(stored)]
  parts += ['## Coverage of intervals that are looked at once', held(stored)]
  return '\n\n'.join(parts) + '\n'


def _look(stored, design: str, gain: float, most: int = 20) -> dict[str, Any]:
  wanted = {'design': design, 'gain_points': gain, 'max_seeds': most}
  (found,) = [row for row in stored['rows'] if wanted.items() <= row.items()]
  return found


def errors(stored: dict[str, Any]) -> str:
  """How often a sure verdict is wrong, beside a t test at every look."""
  lines = []
  for design, name in _LOOKS.items():
    null, edge = (_look(stored, design, gain) for gain in (0.0, 0.5))
    cells = null['helps'] + null['hurts'], null['one_look_a_seed']
    lines.append([name, *(f'{v:.3f}' for v in (*cells, edge['equal']))])
  heads = ['studies', 'no difference: helps or hurts']
  heads += ['t test at every look', 'at the margin of 0.5: equal']
  return table(heads, lines)


def costs(stored: dict[str, Any]) -> str:
  """Mean seeds until sure, and the share of studies that are."""
  kinds = [('normal', 10), ('normal', 20)]
  kinds += [('places', most) for most in (10, 20, 60)]
  lines = []
  for gain in (0.0, 0.5, 1.0, 2.0):
    found = [_look(stored, design, gain, most) for design, most in kinds]
    lines.append(
      [f'{gain:g}' + ' (equal)' * (gain == 0)]
      + [f'{r["seeds_mean"]:.1f}, {100 * (1 - r["open"]):.0f} %' for r in found]
    )
  heads = ['difference, points', 'spread 0.5; at most 10', 'at most 20']
  heads += ['three data sets; at most 10', 'at most 20', 'at most 60']
  return table(heads, lines)


def held(stored: dict[str, Any]) -> str:
  """Coverage of 95 % intervals over seeds, and over seeds and images."""
  lines = [
    [
      row['seeds'],
      f'{100 * row["over_seeds"]:.1f} %',
      f'{100 * row["over_seeds_and_images"]:.1f} %',
    ]
    for row in stored['coverage']
  ]
  return table(['seeds', 'over seeds', 'over seeds and images'], lines)


def label_worth(stored: dict[str, Any]) -> str:
  """Coverage of the intervals of label worth."""
  heads = ['curves', 'noise', 'worth', 'seeds', 'over the curve', 'width']
  lines = [
    [
      row['curves'],
      row['noise'],
      f'{row["percent"]:.0f} %',
      row['seeds'],
      f'{100 * row["held"]:.1f} %',
      f'{row["median_width"]:.0f}',
      ', '.join(f'{100 * share:.1f}' for share in row['held_by_size']),
    ]
    for row in stored['rows']
  ]
  before = [
    [row['curves'], row['seeds'], f'{100 * row["held"]:.1f} %']
    for row in stored['percentile']
  ]
  studies = stored['rows'][0]['studies']
  fewer = stored['percentile'][0]['studies']
  said = (
    f'{studies:,} invented studies a line, `python -m benchmarks.label_worth`: '
    'how many of the 95 % intervals hold it, their median width in per cent of '
    'labels, and the same size by size. Noise `images` are 300 test images '
    'drawn anew, which the intervals are told, and seeds.'
  )
  parts = ['# Do the intervals of "worth x % labels" hold the truth?', said]
  parts.append(table([*heads, 'size by size, %'], lines))
  parts.append(
    f'The percentile bootstrap over seeds, worth 20 %, {fewer} studies a line:'
  )
  parts.append(table(['curves', 'seeds', 'it holds the truth in'], before))
  return '\n\n'.join(parts) + '\n'
