"""The page of docs/study/int8.json: students in float and in int8."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.tables import table
from tlkd_jax.evaluation import statistics
from tlkd_jax.study.arms import ARMS

Rows = Sequence[dict[str, Any]]

# Form of a file -> in words.
FORMS = {
  'float': 'float',
  'static': 'int8, static',
  'qat': 'int8, fine-tuned with rounding',
  'float_on': 'float, fine-tuned as long without rounding',
}
METRICS = ('top1', 'nll', 'ece')
# Of the study that the students are of.
_ARMS = ARMS['confirm']
_ROUNDED = ('static', 'qat')
# What is compared with the float file.
_OTHERS = (*_ROUNDED, 'float_on')
_SIGNS = {'top1': 100.0, 'nll': 1.0, 'ece': 1.0}
_DIGITS = {'top1': 2, 'nll': 3, 'ece': 3}


def int8(rows: Rows) -> str:
  """The page: a table of places, and what int8 costs each arm."""
  networks = sorted({f'{r["model"]} at {r["image_size"]} px' for r in rows})
  steps = sorted({r['qat_steps'] for r in rows})
  parts = (
    '# What int8 leaves of a student',
    f'{len(rows)} students ({", ".join(networks)}) by the recipe of the '
    'confirmatory study, each as a float ONNX file, quantised statically (256 '
    'training images at most, no bound on the accuracy that it costs) and '
    'fine-tuned on with rounding '
    f'({", ".join(map(str, steps))} steps, guided by itself in float), '
    'all run by ONNX Runtime on all test images. Means over seeds.'
    f'{_processors(rows)}{_without_control(rows)}',
    _places(rows),
    'The same in short: the float, the static and the file that was fine-tuned '
    'with rounding.',
    _short(rows),
    '## What int8 costs, and whether it costs the taught student more',
    'Int8 minus float, the mean over places (data set, size) seed by seed, '
    'with its 95 % t interval over seeds; then the same for the difference '
    'between an arm and TL. The last lines take what fine-tuning on gives by '
    'itself from what it gives with rounding. Accuracy in points.',
    _costs(rows),
    _largest(rows),
    *_times(rows),
  )
  return '\n\n'.join(part.rstrip() for part in parts) + '\n'


def _processors(rows: Rows) -> str:
  found: dict[str, list[str]] = {}
  for size in _sizes(rows):
    own = {
      r.get('processor', 'not recorded') for r in rows if r['size'] == size
    }
    for name in sorted(own):
      found.setdefault(name, []).append(size)
  if len(found) < 2:
    return ''
  said = (
    f'{name} (images a class: {", ".join(s)})' for name, s in found.items()
  )
  return f' Processors: {"; ".join(said)}.'


def _without_control(rows: Rows) -> str:
  having = _sizes(_having(rows, 'float_on'))
  missing = [size for size in _sizes(rows) if size not in having]
  if not missing:
    return ''
  sizes = ' and '.join(missing)
  return f' Students of {sizes} images a class have none of the last kind.'


def _sizes(rows: Rows) -> list[str]:
  return [*dict.fromkeys(size for _, size, _ in _groups(rows))]


def _times(rows: Rows) -> list[str]:
  found = [one for row in rows for one in row.get('times', [])]
  if not found:
    return []
  heads = ['file', 'batch', 'float, ms', 'int8, ms', 'float / int8']
  lines = [
    [
      FORMS[one['form']],
      one['batch'],
      *(_range(one[f'{k}_ms'], one[f'{k}_min_max']) for k in ('float', 'int8')),
      _range(one['ratio'], one['ratio_min_max']),
    ]
    for one in found
  ]
  return [
    '## Milliseconds',
    'Of one call of ONNX Runtime on '
    f'{found[0]["threads"]} threads at {found[0]["pixels"]} px, both files in '
    f'turn; medians of {found[0]["rounds"]} rounds with the least and the '
    'greatest.',
    table(heads, lines),
  ]


def _range(middle: float, ends: Sequence[float]) -> str:
  return f'{middle:.2f} ({ends[0]:.2f} to {ends[1]:.2f})'


def _places(rows: Rows) -> str:
  heads = ['data set', 'images a class', 'arm', 'seeds', 'file', 'top-1']
  heads += ['NLL', 'ECE', 'same class as float', 'MB']
  lines = []
  for dataset, size, arm in _groups(rows):
    for form, words in FORMS.items():
      own = _having(_of(rows, dataset, size, arm), form)
      if not own:
        continue
      found = [row['forms'][form] for row in own]
      mean = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
      lines.append(
        [dataset, size, _label(arm), len(own), words]
        + [f'{mean[name]:.3f}' for name in METRICS]
        + [f'{mean["agreement"]:.3f}', f'{mean["bytes"] / 1e6:.2f}']
      )
  return table(heads, lines)


def _short(rows: Rows) -> str:
  heads = ['images a class', 'student', 'seeds', 'top-1', 'NLL', 'ECE']
  heads += ['same class as float']
  lines = []
  for dataset, size, arm in _groups(rows):
    own = [row['forms'] for row in _of(rows, dataset, size, arm)]

    def means(key: str, forms: Sequence[str], own=own) -> str:
      found = (np.mean([one[form][key] for one in own]) for form in forms)
      return ', '.join(f'{value:.3f}' for value in found)

    three = ('float', *_ROUNDED)
    lines.append(
      [f'{size} ({dataset})', _label(arm), len(own)]
      + [means(name, three) for name in METRICS]
      + [means('agreement', _ROUNDED)]
    )
  return table(heads, lines)


def _costs(rows: Rows) -> str:
  heads = ['file', 'arm', 'seeds', 'top-1', 'NLL', 'ECE']
  lines = []
  arms = list(dict.fromkeys(arm for _, _, arm in _groups(rows)))
  for form in _OTHERS:
    own_rows = _having(rows, form)
    for arm in arms:
      own = {m: [*_losses(own_rows, arm, form, m).values()] for m in METRICS}
      lines.append(_line(FORMS[form], _label(arm), own))
    for arm in arms:
      if arm == 'tl' or 'tl' not in arms:
        continue
      both = {
        m: _apart(
          _losses(own_rows, arm, form, m), _losses(own_rows, 'tl', form, m)
        )
        for m in METRICS
      }
      name = f'{_label(arm)} minus {_label("tl")}'
      lines.append(_line(FORMS[form], name, both))
  both = _having(rows, 'float_on')
  for arm in arms:
    rounding = {
      m: _apart(_losses(both, arm, 'qat', m), _losses(both, arm, 'float_on', m))
      for m in METRICS
    }
    lines.append(_line('with rounding minus without', _label(arm), rounding))
  return table(heads, lines)


def _having(rows: Rows, form: str) -> list[dict[str, Any]]:
  return [row for row in rows if form in row['forms']]


def _line(
  form: str, name: str, found: Mapping[str, list[float]]
) -> list[str | int]:
  head: list[str | int] = [form, name, len(found['top1'])]
  return head + [_interval(found[m], m) for m in METRICS]


def _largest(rows: Rows) -> str:
  apart = max(
    abs(r['forms']['qat']['top1'] - r['qat_in_jax_top1']) for r in rows
  )
  fallen = sum(
    r['forms']['static']['top1'] < r['forms']['float']['top1'] - 0.01
    for r in rows
  )
  return (
    f'{fallen} of {len(rows)} statically quantised students lose more than one '
    'point on test. The fine-tuned file and the same student in JAX differ by '
    f'at most {100 * apart:.2f} points of test accuracy.'
  )


def _losses(rows: Rows, arm: str, form: str, metric: str) -> dict[int, float]:
  """Seed -> int8 minus float, the mean over places; seeds with all of these."""
  places = {
    (dataset, size) for dataset, size, one in _groups(rows) if one == arm
  }
  found: dict[int, list[float]] = {}
  for row in rows:
    if row['arm'] == arm:
      forms = row['forms']
      lost = forms[form][metric] - forms['float'][metric]
      found.setdefault(row['seed'], []).append(lost)
  return {
    seed: float(np.mean(values))
    for seed, values in sorted(found.items())
    if len(values) == len(places)
  }


def _apart(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
  return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def _interval(values: list[float], metric: str) -> str:
  scaled = _SIGNS[metric] * np.asarray(values)
  digits = _DIGITS[metric]
  if len(scaled) < 2:
    return f'{scaled.mean():+.{digits}f}' if len(scaled) else '-'
  found = statistics.mean_interval(scaled)
  low, high = found['low'], found['high']
  return (
    f'{found["mean"]:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})'
  )


def _groups(rows: Rows) -> list[tuple[str, str, str]]:
  order = [*_ARMS, *(row['arm'] for row in rows)]
  found = {(row['dataset'], row['size'], row['arm']) for row in rows}

  def key(group):
    dataset, size, arm = group
    return dataset, int(size) if size.isdigit() else 10**9, order.index(arm)

  return sorted(found, key=key)


def _of(rows: Rows, dataset: str, size: str, arm: str) -> list[dict[str, Any]]:
  wanted = dataset, size, arm
  return [r for r in rows if (r['dataset'], r['size'], r['arm']) == wanted]


def _label(arm: str) -> str:
  return _ARMS[arm].label if arm in _ARMS else arm
