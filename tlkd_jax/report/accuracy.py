"""Sections on one pair's answers: metrics, disagreements, classes, teacher."""

from typing import Any

import numpy as np

from tlkd_jax.answer import verdicts
from tlkd_jax.evaluation import (
  comparison,
  fidelity,
  metrics,
)
from tlkd_jax.report import plots, space
from tlkd_jax.report.blocks import (
  Figure,
  Section,
  Table,
  Text,
  interval,
  named_table,
)
from tlkd_jax.report.context import Context, missing

_TEST = 'predictions/test.npz'


def metrics_section(context: Context, replicates: int) -> Section:
  """Every metric of the pair with the interval of the difference."""
  kd, tl = context.test['kd'], context.test['tl']
  found = comparison.paired_bootstrap(
    kd.logits, tl.logits, tl.labels, num_replicates=replicates
  )
  right = [one.logits.argmax(axis=1) == one.labels for one in (kd, tl)]
  p = comparison.mcnemar(*right)['p']
  teacher: dict[str, float] = {}
  name_of_kd, taught = context.named['kd'], context.pair.kd.kind == 'kd'
  if 'teacher' in context.test:
    one = context.test['teacher']
    teacher = metrics.compute_metrics(one.logits, one.labels)
  rows = [
    {
      'metric': name,
      **({'teacher': teacher.get(name)} if taught else {}),
      'TL': row['y'],
      name_of_kd: row['x'],
      f'{name_of_kd} minus TL': row['difference'],
      '95 % interval': interval(row['low'], row['high']),
      f'{name_of_kd} is': verdicts.decide_over_images(
        row['difference'],
        row['low'],
        row['high'],
        name,
        p if name == 'top1' else None,
      ),
    }
    for name, row in found.items()
  ]
  count = len(tl.labels)
  table = named_table(
    f'All metrics on the {count:,} test images',
    rows,
    context.source(_TEST),
    f'Intervals: paired bootstrap over images, {replicates:,} resamples; they '
    'hold for these two models, not for the method. No correction for the '
    'number of metrics. Conventions: Brier is summed over classes; ECE has 15 '
    'equal-width bins; NLL and entropy in nats; AURC after Geifman.',
  )
  return Section('metrics', 'All metrics', [Text(context.describe()), table])


def disagreement_section(context: Context) -> Section:
  """McNemar's table, who corrects whom, and classes."""
  kd, tl, labels = context.test['kd'], context.test['tl'], context.labels
  right = [p.logits.argmax(axis=1) == labels for p in (kd, tl)]
  test = comparison.mcnemar(*right)
  overlap = comparison.error_overlap(kd.logits, tl.logits, labels)
  source = context.source(_TEST, arms=['tl', 'kd'])
  name_of_kd = context.named['kd']
  counts = Table(
    'Who is right where',
    ['', 'TL right', 'TL wrong'],
    [
      [f'{name_of_kd} right', overlap['both_right'], overlap['only_x_right']],
      [f'{name_of_kd} wrong', overlap['only_y_right'], overlap['both_wrong']],
    ],
    source,
    f"McNemar's test ({test['test']}): p = {test['p']:.3g}.",
  )
  rates = Table(
    'Corrections and damage',
    ['quantity', 'value', 'meaning'],
    [
      [
        'correction rate',
        overlap['correction_rate'],
        f"share of TL's errors that {name_of_kd} gets right",
      ],
      [
        'damage rate',
        overlap['damage_rate'],
        f"share of TL's right answers that {name_of_kd} gets wrong",
      ],
      [
        'error overlap',
        overlap['error_jaccard'],
        'both wrong / either wrong',
      ],
      [
        'same wrong class',
        overlap['same_wrong_class'],
        f'of the {overlap["both_wrong"]} images that both get wrong',
      ],
    ],
    source,
  )
  blocks = [counts, rates, _classes(context, source), _confusions(context)]
  return Section('items', 'Image by image', blocks)


def _classes(context: Context, source: str) -> Table:
  kd, tl, labels = context.test['kd'], context.test['tl'], context.labels
  deltas = comparison.per_class_deltas(kd.logits, tl.logits, labels)
  tables = [metrics.per_class_table(p.logits, labels) for p in (tl, kd)]
  name_of_kd = context.named['kd']
  rows = [
    {
      'class': name,
      'images': int(deltas['support'][k]),
      'recall TL': float(tables[0]['recall'][k]),
      f'recall {name_of_kd}': float(tables[1]['recall'][k]),
      'Δ recall': float(deltas['recall'][k]),
      'Δ precision': float(deltas['precision'][k]),
      'Δ F1': float(deltas['f1'][k]),
      'corrected': int(deltas['corrected'][k]),
      'damaged': int(deltas['damaged'][k]),
    }
    for k, name in enumerate(context.class_names)
  ]
  return named_table('By class', rows, source, f'Δ is {name_of_kd} minus TL.')


def _confusions(context: Context) -> Figure:
  panels, rows = [], []
  names = context.class_names
  ticks, numbers = plots.tick_names(names)
  for arm in context.arms:
    one = context.test[arm]
    counts = metrics.confusion_matrix(one.logits, one.labels)
    panels.append(plots.confusion(context.named[arm], counts, ticks))
    rows += [
      [context.named[arm], names[i], names[j], int(counts[i, j])]
      for i, j in np.ndindex(*counts.shape)
      if counts[i, j]
    ]
  return Figure(
    'Confusion matrices',
    panels,
    'Images by true class (rows) and predicted class (columns), one matrix '
    'per model; the darker, the larger the share of the row.',
    Table(
      'Counts, zeros left out',
      ['model', 'true', 'predicted', 'images'],
      rows,
      context.source(_TEST),
    ),
    note=numbers if len(names) <= plots.MOST_TICKS else '',
  )


def teacher_section(context: Context) -> Section | None:
  """How closely each student follows the teacher; None where none can be."""
  if context.pair.kd.kind != 'kd':
    return None
  if 'teacher' not in context.test:
    text = (
      'No teacher answered to these test images: neither predictions/'
      "teacher_test.npz of the TL+KD run nor a teacher's own run is there."
    )
    return Section(
      'teacher', 'Likeness to the teacher', [Text(text, 'missing')]
    )
  teacher, labels = context.test['teacher'], context.labels
  columns = {
    arm: fidelity.compute_fidelity(
      context.test[arm].logits, teacher.logits, labels
    )
    for arm in ('tl', 'kd')
  }
  for arm, values in columns.items():
    values['cka_of_pre_logits'] = fidelity.debiased_linear_cka(
      context.test[arm].pre_logits, teacher.pre_logits
    )
  rows: list[list[Any]] = [
    [name, value, columns['kd'][name], columns['kd'][name] - value]
    for name, value in columns['tl'].items()
  ]
  wrong = int((teacher.logits.argmax(axis=1) != labels).sum())
  table = Table(
    'Likeness to the teacher on test',
    ['measure', 'TL', context.named['kd'], 'difference'],
    rows,
    context.source(_TEST),
    f'The teacher is wrong on {wrong} of {len(labels)} images. Divergences in '
    'nats; CKA is linear and debiased.',
  )
  return Section('teacher', 'Likeness to the teacher', [table, *_cka(context)])


def _cka(context: Context) -> list:
  stored = {}
  for arm in context.arms:
    run = context.run(arm)
    arrays = run.arrays('features') if run else None
    if arrays is not None:
      stored[arm] = arrays
  pairs = [('tl', 'teacher'), ('kd', 'teacher'), ('kd', 'tl')]
  pairs = [(a, b) for a, b in pairs if a in stored and b in stored]
  if not pairs:
    return []
  rows = []
  for a, b in pairs:
    shared, i, j = np.intersect1d(
      stored[a]['indices'], stored[b]['indices'], return_indices=True
    )
    for stage in sorted(n for n in stored[a] if n.startswith('features_')):
      if stage in stored[b] and len(shared) >= 4:
        value = fidelity.debiased_linear_cka(
          stored[a][stage][i], stored[b][stage][j]
        )
        pair = f'{context.named[a]} – {context.named[b]}'
        rows.append(
          {
            'stage': stage.removeprefix('features_'),
            'models': pair,
            'images': len(shared),
            'debiased linear CKA': value,
          }
        )
  table = named_table(
    "CKA of the stages' features, averaged over each image",
    rows,
    context.source('evaluation/features.npz', arms=list(stored)),
    'Stages of one name are compared. 1: alike up to rotation and scale.',
  )
  curves: dict[str, tuple[list, list]] = {}
  colour_of = {('tl', 'teacher'): 'tl', ('kd', 'teacher'): 'kd'}
  for a, b in pairs:
    if (a, b) in colour_of:
      label = f'{context.named[a]} – {context.named[b]}'
      own = [
        row['debiased linear CKA'] for row in rows if row['models'] == label
      ]
      curves[colour_of[a, b]] = (list(range(1, len(own) + 1)), own)
  if not curves:
    return [table]
  labels = {arm: f'{context.named[arm]} and teacher' for arm in curves}
  return [
    Figure(
      "Likeness of features to the teacher's, stage by stage",
      [
        plots.lines(
          'CKA with the teacher',
          curves,
          x_label='stage',
          y_label='debiased linear CKA',
          whole_x=True,
        )
      ],
      'Debiased linear CKA between each student and the teacher for every '
      'stage, from the first to the last.',
      table,
      legend=plots.legend(list(curves), labels),
    )
  ]


def embedding_section(context: Context) -> Section:
  """Where the images lie in the space of pre_logits."""
  views, used = [], []
  for arm in context.arms:
    run = context.run(arm)
    arrays = run.arrays('embedding') if run else None
    record = run.record('qualitative') if run else None
    if arrays is None or record is None:
      continue
    used.append(arm)
    views.append(space.View(context.named[arm], arrays, record))
  if not views:
    text = missing(context, 'qualitative', 'The view of pre_logits')
    return Section('space', space.TITLE, [text])
  source = context.source(
    'evaluation/embedding.npz', 'evaluation/qualitative.json', arms=used
  )
  found = space.blocks(views, context.class_names, source)
  return Section('space', space.TITLE, found)
