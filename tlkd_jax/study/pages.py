"""STUDY/index.html, report.md and report.json: the answer, then its grounds."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER
from tlkd_jax.report import html, markdown, plots
from tlkd_jax.report.blocks import Figure, Section, Table, Text, interval
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.study import analysis, answer
from tlkd_jax.study.analysis import Row
from tlkd_jax.study.answer import SOURCE, TITLE, points, where


def write(root: pathlib.Path, rows: list[Row], study: Any) -> str:
  """Writes the three files; returns the answer, a paragraph.

  Args:
    root: STUDY.
    rows: of results.json.
    study: config.study.
  """
  sections = make_sections(root, rows, study)
  seeds = sorted({row['seed'] for row in rows})
  count = len(analysis.chosen(rows))
  subtitle = f'{count} runs; seeds {", ".join(map(str, seeds))}'
  replace_text(root / 'index.html', html.page(TITLE, subtitle, sections))
  replace_text(root / 'report.md', markdown.page(TITLE, subtitle, sections))
  data = json.dumps(_plain(markdown.as_data(sections)), indent=1)
  replace_text(root / 'report.json', data + '\n')
  first = sections[0].blocks[0]
  return first.text if isinstance(first, Text) else ''


def _plain(value: Any) -> Any:
  """JSON has no NaN."""
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and math.isnan(value) else value


def make_sections(
  root: pathlib.Path, rows: list[Row], study: Any
) -> list[Section]:
  """The page's sections; those without data are left out."""
  tests = analysis.compare(rows, study)
  found = [
    answer.section(root, rows, study, tests),
    _curves(rows, study),
    _arms(rows, study, tests),
    _other_metrics(rows, study, tests),
    _degradation(rows, study),
    _lost(rows, study, tests),
    _convergence(rows, study),
    _sensitivity(rows, study),
    _cost(rows, study),
  ]
  return [section for section in found if section.blocks]


def _curves(rows, study) -> Section:
  blocks: list = []
  shown = {'tl': study.reference, 'kd': study.treatment}
  for row in rows:
    if row['arm'] == study.treatment and row['teachers']:
      shown = {'teacher': row['teachers'][0]} | shown
  names = analysis.labels(rows)
  for dataset in dict.fromkeys(place[0] for place in analysis.places(rows)):
    at_sizes = [p for p in analysis.places(rows) if p[0] == dataset]
    if len(at_sizes) < 2:
      continue
    lines, bands, table = {}, {}, []
    for style, arm in shown.items():
      found = []
      for place in at_sizes:
        value = analysis.values(rows, place, arm, 'top1')
        if value.size:
          count = next(iter(analysis.at(rows, place, arm).values()))
          spread = statistics.mean_interval(value)
          found.append((count['num_train'], spread))
          row = [names[arm], count['num_train'], spread['mean']]
          table.append([*row, interval(spread['low'], spread['high'])])
      if found:
        x = [n for n, _ in found]
        lines[style] = x, [s['mean'] for _, s in found]
        bands[style] = tuple([s[k] for _, s in found] for k in ('low', 'high'))
    panel = plots.lines(
      dataset,
      lines,
      bands=bands,
      x_label='training images',
      y_label='test accuracy',
      log_x=True,
    )
    columns = ['arm', 'training images', 'test accuracy', '95 % over seeds']
    data = Table(f'Accuracy on {dataset}', columns, table, SOURCE)
    legend = plots.legend(
      list(lines), {style: names[arm] for style, arm in shown.items()}
    )
    alt = f'Test accuracy on {dataset} against the number of training images'
    blocks.append(
      Figure(f'Accuracy against labels: {dataset}', [panel], alt, data, legend)
    )
  return Section('curves', 'Accuracy against the number of labels', blocks)


def _arms(rows, study, tests) -> Section:
  names = analysis.labels(rows)
  by_key = {
    (t['dataset'], t['size'], t['arm']): t
    for t in tests
    if t['metric'] == 'top1'
  }
  kinds = {row['arm']: row['kind'] for row in rows}
  table, names_shown, bars = [], [], []
  for place in analysis.places(rows):
    for arm in analysis.arms(rows, study.reference):
      value = analysis.values(rows, place, arm, 'top1')
      if not value.size:
        continue
      spread = statistics.mean_interval(value)
      row = [where(place), names[arm], len(value), spread['mean']]
      row.append(spread['std'])
      test = by_key.get((*place, arm))
      if test is None:
        table.append([*row, None, '–', ''])
        continue
      bounds = interval(test['ci_low'], test['ci_high'])
      table.append([*row, test['mean_difference'], bounds, test['verdict']])
      if kinds[arm] == 'teacher':
        continue
      names_shown.append(f'{names[arm]}, {place[0]} {place[1]:g}')
      bars.append((test['mean_difference'], test['ci_low'], test['ci_high']))
  columns = ['place', 'arm', 'seeds', 'test accuracy', 'std over seeds']
  columns += ['minus reference', '95 % over seeds', 'verdict']
  data = Table('All arms', columns, table, SOURCE)
  blocks: list = [data] if table else []
  if 0 < len(names_shown) <= 60:
    panel = plots.intervals(
      'difference to the reference', names_shown, bars, 'test accuracy'
    )
    alt = 'Differences of all students to the reference with their intervals'
    blocks.append(Figure('Students against the reference', [panel], alt, data))
  return Section('arms', 'All arms', blocks)


def _other_metrics(rows, study, tests) -> Section:
  table = []
  for test in tests:
    if test['arm'] == study.treatment and test['metric'] != 'top1':
      place = test['dataset'], test['size']
      plain = analysis.values(rows, place, study.reference, test['metric'])
      better = 'lower' if test['metric'] in LOWER_IS_BETTER else 'higher'
      row = [where(place), test['metric'], better, float(np.nanmean(plain))]
      row += [
        test['mean_difference'],
        interval(test['ci_low'], test['ci_high']),
      ]
      table.append([*row, test['p_sign_flip'], test['verdict']])
  columns = ['place', 'metric', 'better', 'reference', 'difference']
  columns += ['95 % over seeds', 'p (sign-flip)', 'verdict']
  title = 'The treatment minus the reference in other metrics'
  note = 'ECE with 15 bins is above 0 for a perfectly calibrated model too.'
  blocks: list = [Table(title, columns, table, SOURCE, note)] if table else []
  return Section('calibration', 'Calibration and other metrics', blocks)


def _degradation(rows, study) -> Section:
  names = analysis.labels(rows)
  table, bars, shown = [], [], []
  for test in analysis.degraded(rows, study):
    place = where((test['dataset'], test['size']))
    bounds = interval(test['ci_low'], test['ci_high'])
    table.append(
      [place, test['group'], test['count'], test['pairs'], test['reference']]
      + [test['mean_difference'], bounds, test['p_sign_flip'], test['verdict']]
    )
    shown.append(f'{test["group"]}, {place}')
    bars.append((test['mean_difference'], test['ci_low'], test['ci_high']))
  columns = [
    'place',
    'corruptions',
    'images',
    'seeds',
    'reference',
    'difference',
  ]
  columns += ['95 % over seeds', 'p (sign-flip)', 'verdict']
  title = 'The treatment minus the reference on degraded images, accuracy'
  note = (
    "Means over a group's corruptions and five severities; `standard` are "
    "ImageNet-C's fifteen, `clean` the same images as they are."
  )
  data = Table(title, columns, table, SOURCE, note)
  blocks: list = [data] if table else []
  if 0 < len(bars) <= 60:
    panel = plots.intervals(
      f'{names[study.treatment]} minus {names[study.reference]}',
      *(shown, bars, 'test accuracy'),
    )
    alt = 'Differences on degraded images with their intervals over seeds'
    blocks.append(Figure('Under degradation', [panel], alt, data))
  return Section('degradation', 'Degraded images', blocks)


def _lost(rows, study, tests) -> Section:
  edges = analysis.edges(rows, study.reference)
  names = analysis.labels(rows)
  table = [
    [where((e['dataset'], e['size'])), names[e['arm']], e['edge'], e['gain']]
    + [e['agreement']]
    for e in edges
  ]
  blocks: list = []
  lost = [e for e in edges if e['arm'] == study.treatment and e['gain'] < 0]
  if edges:
    text = '; '.join(
      f'{where((e["dataset"], e["size"]))} ({points(e["gain"])} points, '
      f'teacher {points(e["edge"])} against the reference)'
      for e in lost
    )
    blocks.append(Text(f'It lost at: {text}.' if lost else 'It lost nowhere.'))
    note = 'Means over seeds; of several teachers, the best one.'
    columns = ['place', 'arm', "teacher's edge", 'gain', 'agreement']
    title = 'What the teacher knew and what the student gained'
    blocks.append(Table(title, columns, table, SOURCE, note))
  if len(edges) > 2:
    x, y = ([e[key] for e in edges] for key in ('edge', 'gain'))
    if np.std(x) > 0 and np.std(y) > 0:
      r = float(np.corrcoef(x, y)[0, 1])
      blocks.append(
        Text(f'Correlation of edge and gain over these {len(edges)}: {r:+.2f}.')
      )
  return Section('lost', 'Where it lost, and what the teacher had', blocks)


def _convergence(rows, study) -> Section:
  names = analysis.labels(rows)
  shown = {'tl': study.reference, 'kd': study.treatment}
  blocks: list = []
  for dataset in dict.fromkeys(place[0] for place in analysis.places(rows)):
    panels, table, drawn = [], [], []
    for place in analysis.places(rows):
      curves = {
        style: analysis.mean_curve(rows, place, arm)
        for style, arm in shown.items()
      }
      if place[0] != dataset or not all(curves.values()):
        continue
      drawn = list(curves)
      lines = {s: tuple(zip(*c, strict=True)) for s, c in curves.items()}
      label = where(place)
      axes = {'x_label': 'step', 'y_label': 'validation accuracy'}
      panels.append(plots.lines(label, lines, small=True, **axes))
      for style, curve in curves.items():
        table += [[label, names[shown[style]], *point] for point in curve]
    if panels:
      columns = ['place', 'arm', 'step', 'validation accuracy']
      data = Table(f'Convergence: {dataset}', columns, table, SOURCE)
      legend = plots.legend(drawn, {s: names[a] for s, a in shown.items()})
      alt = f'Mean validation accuracy over seeds by step on {dataset}'
      blocks.append(Figure(data.title, panels, alt, data, legend, narrow=True))
  return Section('convergence', 'Convergence', blocks)


def _sensitivity(rows, study) -> Section:
  blocks: list = []
  for place, grid in analysis.sensitivity(rows, study.reference).items():
    weights = sorted({w for _, w in grid})
    table = [
      [t, *(grid.get((t, w)) for w in weights)]
      for t in sorted({t for t, _ in grid})
    ]
    columns = ['temperature', *(f'soft weight {w:g}' for w in weights)]
    title = f'Accuracy minus the reference: {where(place)}'
    note = 'Means over seeds. The best of many cells is partly luck.'
    blocks.append(Table(title, columns, table, SOURCE, note))
  return Section('sensitivity', 'Temperature and soft weight', blocks)


def _cost(rows, study) -> Section:
  names = analysis.labels(rows)
  table = []
  for place in analysis.places(rows):
    for arm in analysis.arms(rows, study.reference):
      if analysis.at(rows, place, arm):
        spent = analysis.cost(rows, place, arm)
        table.append([where(place), names[arm], *spent.values()])
  columns = ['place', 'arm', 'seconds', 'of them for teachers']
  columns += ['images trained on', "images through teachers' forward pass"]
  note = (
    'Mean of a seed, all trials and the training of the teachers included; '
    'seconds as they passed on the machine of the run, compilation included.'
  )
  blocks: list = []
  if table:
    blocks = [Table('Cost of an arm', columns, table, SOURCE, note)]
  return Section('cost', 'Cost', blocks)
