"""The course of training: accuracy against epochs, seconds and images."""

from tlkd_jax.evaluation import records
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Figure, Section, named_table
from tlkd_jax.report.context import Context
from tlkd_jax.report.runs import RunFolder
from tlkd_jax.training import targets

# Kind of run -> where its curve begins, and what seconds and cost include.
_BEGINS = {
  'kd': " Seconds and images of TL+KD start where the teacher's own "
  'fine-tuning ended.',
  'self_training': ' Seconds and images of self-training start where the TL '
  'run ended that labels its images.',
  'fixmatch': '',
}
_WITH = {
  'kd': ", the teacher's included",
  'self_training': ", the labelling run's included",
  'fixmatch': '',
}
_INCLUDES = {
  'kd': "TL+KD with its teacher's fine-tuning, which can be shared by many "
  'students.',
  'self_training': 'Self-training with the TL run that labels its images.',
  'fixmatch': 'FixMatch sees an image without label twice in a step, weakly '
  'and strongly augmented, and asks no other network.',
}


def section(context: Context) -> Section:
  """Validation accuracy of each arm by three measures of effort."""
  pair = context.pair
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
    ('seconds', f'seconds{_WITH[pair.kd.kind]}'),
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
    context.source('metrics.jsonl', arms=[arm]) for arm in tables
  )
  figure = Figure(
    'Learning curves',
    panels,
    'Validation accuracy of each model by epochs, by seconds of training, and '
    'by images that went forward through a network.' + _BEGINS[pair.kd.kind],
    named_table('Validation by step', rows, source),
    legend=plots.legend(list(tables), context.named),
    note='An image that student and teacher both see counts twice. Seconds '
    'are wall-clock of this machine at that time, compilation included.',
  )
  cost = [
    {
      'model': context.named[arm],
      'seconds': table[-1]['seconds'],
      'images': table[-1]['images'],
      'last top-1 on validation': table[-1]['top1'],
    }
    for arm, table in tables.items()
    if table
  ]
  totals = named_table(
    'What it cost',
    cost,
    source,
    _INCLUDES[pair.kd.kind],
  )
  return Section('training', 'Training', [figure, totals])


def course(run: RunFolder, before: dict[str, float]) -> list[dict[str, float]]:
  """Validation rows with `epoch`, `seconds` and `images` spent until then.

  Args:
    run: the run.
    before: `seconds` and `images` that were spent before it began.
  """
  seconds: dict[int, float] = {}
  found = []
  batch = int(run.config['batch_size'])
  for row in run.rows():
    step = row['step']
    if 'seconds' in row:
      seconds[step] = row['seconds']
    if row['split'] != 'validation' or 'top1' not in row:
      continue
    images = step * batch
    found.append(
      {
        'step': step,
        'epoch': images / max(run.summary['num_train'], 1),
        'seconds': before['seconds'] + seconds.get(step, float('nan')),
        'images': before['images'] + images + _teacher_images(run, images),
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


def _spent(teacher: RunFolder | None) -> dict[str, float]:
  """What a teacher's own fine-tuning cost; nothing if it is not known."""
  if teacher is None:
    return _nothing()
  table = course(teacher, _nothing())
  images = table[-1]['images'] if table else 0.0
  seconds = records.number(teacher.summary['seconds'])
  return {'seconds': seconds, 'images': images}
