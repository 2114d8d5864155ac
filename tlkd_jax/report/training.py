"""The course of training: accuracy against epochs, seconds and images."""

from typing import Any

from tlkd_jax.evaluation import records
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Figure, Section, named_table
from tlkd_jax.report.context import Context
from tlkd_jax.report.pairing import Pair
from tlkd_jax.report.runs import RunFolder
from tlkd_jax.training import learned, shares, targets

# What is counted -> where its curve begins, and what seconds and cost include.
_BEGINS = {
  'kd': " Seconds and images of TL+KD start where the teacher's own run ended.",
  'alone': " Seconds and images of TL+KD are those of the student's run: the "
  "teacher's own is not here.",
  'peer': '',
  'self_training': ' Seconds and images of self-training start where the TL '
  'run ended that labels its images.',
  'fixmatch': '',
}
_WITH = {
  'kd': ", the teacher's included",
  'alone': '',
  'peer': '',
  'self_training': ", the labelling run's included",
  'fixmatch': '',
}
_INCLUDES = {
  'kd': "TL+KD with its teacher's own run, which can be shared by many "
  'students.',
  'alone': "TL+KD without its teacher's own run, which is not here.",
  'peer': 'TL+KD with its peer, which learned in the same run.',
  'self_training': 'Self-training with the TL run that labels its images.',
  'fixmatch': 'FixMatch sees an image without label twice in a step, weakly '
  'and strongly augmented, and asks no other network.',
}


def section(context: Context) -> Section:
  """Validation accuracy of each arm by three measures of effort."""
  pair, counted = context.pair, _counted(context.pair)
  runs = {'tl': pair.tl, 'kd': pair.kd}
  if pair.teacher is not None:
    runs = {'teacher': pair.teacher} | runs
  # Self-training begins where a TL run of the same student ended.
  first = pair.tl if pair.kd.kind == 'self_training' else pair.teacher
  before = {'tl': _nothing(), 'kd': _spent(first)}
  before['teacher'] = _nothing()
  tables: dict[str, list[dict[str, float]]] = {
    arm: course(run, before[arm]) for arm, run in runs.items()
  }
  panels, rows = [], []
  for key, label in (
    ('epoch', 'epochs'),
    ('seconds', f'seconds{_WITH[counted]}'),
    ('images', 'images through a network'),
  ):
    shown = {
      arm: ([r[key] for r in table], [r['top1'] for r in table])
      for arm, table in tables.items()
      if table
    }
    if shown:
      panels.append(
        plots.lines(
          f'Validation accuracy by {key}',
          shown,
          x_label=label,
          y_label='top-1 on validation',
        )
      )
  for arm, table in tables.items():
    rows += [
      {
        'model': context.named[arm],
        'step': int(r['step']),
        'epoch': r['epoch'],
        'seconds': r['seconds'],
        'images': r['images'],
        'top-1': r['top1'],
        'NLL': r['nll'],
      }
      for r in table
    ]
  source = ', '.join(
    context.source('metrics.jsonl', arms=[arm])
    for arm, table in tables.items()
    if table
  )
  figure = Figure(
    'Learning curves',
    panels,
    'Validation accuracy of each model by epochs, by seconds of training, and '
    'by images that went forward through a network.' + _BEGINS[counted],
    named_table('Validation by step', rows, source),
    legend=plots.legend(list(tables), context.named),
    note='An image that student and teacher both see counts twice. Seconds '
    'are wall-clock of this machine at that time, compilation included.',
  )
  cost = [
    {'model': context.named[arm], **_cost(run, tables[arm])}
    for arm, run in runs.items()
  ]
  totals = named_table(
    'What it cost',
    cost,
    context.source('metrics.jsonl', 'summary.json', arms=list(tables)),
    _INCLUDES[counted],
  )
  return Section('training', 'Training', [figure, totals])


def _counted(pair: Pair) -> str:
  """A key of what the page says is counted: by the kind, and who is known."""
  if pair.kd.kind != 'kd' or pair.teacher is not None:
    return pair.kd.kind
  return 'peer' if 'mutual' in pair.kd.summary else 'alone'


def course(run: RunFolder, before: dict[str, float]) -> list[dict[str, float]]:
  """Validation rows with `epoch`, `seconds` and `images` spent until then.

  Args:
    run: the run.
    before: `seconds` and `images` that were spent before it began.
  """
  seconds: dict[int, float] = {}
  found = []
  batch = int(run.config['batch_size'])
  per_step = shares.images_per_step(learned.of_record(run.config))
  for row in run.rows():
    step = row['step']
    if 'seconds' in row:
      seconds[step] = row['seconds']
    if row['split'] != 'validation' or 'top1' not in row:
      continue
    # Of these guides are asked; some of them a student may see twice.
    images = step * batch
    seen = step * per_step + _teacher_images(run, images)
    found.append(
      {
        'step': step,
        'epoch': images / max(run.summary['num_train'], 1),
        'seconds': before['seconds'] + seconds.get(step, float('nan')),
        'images': before['images'] + seen,
        'top1': row['top1'],
        'nll': row['nll'],
      }
    )
  return found


def _teacher_images(run: RunFolder, images: int) -> int:
  """Images that the teacher saw while the student saw `images`."""
  if run.arm != 'kd':
    return 0
  config, summary = run.config, run.summary
  return targets.images_seen(
    images,
    int(summary['num_train']) + int(summary.get('num_unlabelled', 0)),
    mode=config.get('targets.mode', 'online'),
    views=targets.num_views(
      int(config.get('targets.views', 0)),
      config.get('distillation.teacher_view', 'same'),
    ),
    balanced=config.get('data.balance') == 'sampling',
  )


def _nothing() -> dict[str, float]:
  return {'seconds': 0.0, 'images': 0.0}


def _spent(run: RunFolder | None) -> dict[str, float]:
  """What a whole run cost; nothing if it is not known."""
  if run is None:
    return _nothing()
  settings = learned.of_record(run.config)
  images = learned.images(settings, run.path, run.summary)
  seconds = records.number(run.summary['seconds'])
  return {'seconds': seconds, 'images': float(images)}


def _cost(run: RunFolder, table: list[dict[str, float]]) -> dict[str, Any]:
  """By the last row of its course; of a probe, which has none, as a whole."""
  if table:
    spent, top1 = table[-1], table[-1]['top1']
  else:
    role = 'teacher' if run.arm == 'teacher' else 'student'
    stored = run.summary[role]['validation']['top1']
    spent, top1 = _spent(run), records.number(stored)
  return {
    'seconds': spent['seconds'],
    'images': spent['images'],
    'last top-1 on validation': top1,
  }
