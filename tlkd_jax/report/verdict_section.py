"""Did TL+KD beat TL? What answer says of the runs, and the runs themselves."""

import pathlib
from collections.abc import Sequence
from typing import Any

from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.answer.labels import LABELS
from tlkd_jax.answer.words import points
from tlkd_jax.evaluation import metrics, records
from tlkd_jax.report import verdict_blocks
from tlkd_jax.report.blocks import Block, Section, Table, Text, named_table
from tlkd_jax.report.context import Context, relative
from tlkd_jax.report.pairing import Paired
from tlkd_jax.report.runs import RunFolder

_NO_PAIR = (
  'There is no answer here: no TL run and one of TL+KD, self-training or '
  'FixMatch, of the same configuration and seed, are among the runs of this '
  'report. Give it the workdir of `configs/compare.py`, or two such runs.'
)


def section(
  conclusions: Sequence[Conclusion],
  paired: Paired,
  context: Context | None,
  runs: Sequence[RunFolder],
  notes: Sequence[str],
  out: pathlib.Path,
) -> Section:
  """The answer, its tests and curves, and the runs that it rests on.

  Args:
    conclusions: one for each treatment.
    paired: what they were drawn from.
    context: the pair on show.
    runs: all of the report.
    notes: what was left out and why.
    out: folder of the report.
  """
  blocks: list[Block] = [] if conclusions else [Text(_NO_PAIR, 'lead')]
  for conclusion in conclusions:
    blocks += verdict_blocks.in_words(conclusion)
  if len(conclusions) > 1:
    blocks.append(
      Text(
        f'These are {len(conclusions)} answers, one for each arm that is '
        'compared with TL; nothing corrects for their number.'
      )
    )
  if context is not None:
    blocks += _teacher(context)
  for conclusion in conclusions:
    blocks += _grounds(conclusion, paired, _source(conclusion, paired, out))
  blocks.append(_runs_table(runs, out))
  blocks += map(Text, notes)
  return Section('answer', f'Did {_asked(paired)} beat TL?', blocks)


def _asked(paired: Paired) -> str:
  labels = dict.fromkeys(one.kd.label for one in paired.pairs)
  *others, last = labels or [LABELS['kd']]
  return f'{", ".join(others)} or {last}' if others else last


def answer(conclusions: Sequence[Conclusion]) -> str:
  """What the section begins with, one paragraph for each treatment."""
  found = [conclusion.sentence for conclusion in conclusions]
  return '\n'.join(found) or _NO_PAIR


def _grounds(
  conclusion: Conclusion, paired: Paired, source: str
) -> list[Block]:
  labels = conclusion.labels
  treatment = labels[conclusion.treatment]
  alone = conclusion.per_place['top1']
  effects = [e for found in conclusion.by_place.values() for e in found]
  title = f'Paired by seed: {treatment} minus TL on test'
  blocks = verdict_blocks.tests(title, effects, labels, source)
  blocks += verdict_blocks.over_all_places(conclusion, source)
  if len(conclusion.overall.seeds) > 1:
    blocks += verdict_blocks.every_metric(conclusion, source)
  if len(alone) > 1:
    by_place = {str(effect.places[0]): effect for effect in alone}
    title = f'{treatment} minus TL, test accuracy by place'
    blocks += verdict_blocks.intervals(title, by_place, source)
  shown = {'tl': conclusion.reference, 'kd': conclusion.treatment}
  blocks += verdict_blocks.accuracy_by_size(paired.rows, shown, labels, source)
  return blocks + verdict_blocks.in_labels(conclusion, source)


def _source(conclusion: Conclusion, paired: Paired, out: pathlib.Path) -> str:
  return ', '.join(
    dict.fromkeys(
      f'{relative(run.path, out)}/predictions/test.npz'
      for pair in paired.pairs
      if pair.treatment == conclusion.treatment
      for run in (pair.tl, pair.kd)
    )
  )


def _teacher(context: Context) -> list[Block]:
  if 'teacher' not in context.test:
    return []
  teacher, tl = context.test['teacher'], context.test['tl']
  gap = metrics.top1(teacher.logits, teacher.labels) - metrics.top1(
    tl.logits, tl.labels
  )
  if gap > 0:
    return []
  return [
    Text(
      f'The teacher of the pair on show is no better than TL ({points(gap)} '
      'points on test): it may have little to teach here.'
    )
  ]


def _runs_table(runs: Sequence[RunFolder], out: pathlib.Path) -> Table:
  rows = []
  for run in runs:
    role = 'teacher' if run.arm == 'teacher' else 'student'
    # A teacher may see other pixels than its students.
    own = run.config.get(f'{role}.image_size') or run.config['image_size']
    rows.append(
      {
        'run': relative(run.path, out),
        'arm': run.label,
        'data': run.dataset,
        'size': run.size_in_words,
        'seed': run.seed,
        'model': run.config[f'{role}.name'],
        'pixels': int(own),
        'training images': run.num_train,
        'top-1 on test': records.number(run.summary[role]['test']['top1']),
        'training seconds': records.number(run.summary['seconds']),
      }
    )
  source = 'config.json and summary.json of each run'
  return named_table('The runs', rows, source)


def as_data(conclusions: Sequence[Conclusion]) -> list[dict[str, Any]]:
  """The tests by treatment and place, for report.json."""
  return [
    {
      'treatment': conclusion.labels[conclusion.treatment],
      'place': str(place),
      'seeds': list(effects[0].seeds),
      'tests': {
        effect.metric: effect.test
        | {'p_holm': effect.p, 'verdict': effect.verdict}
        for effect in effects
      },
      'values': {
        effect.metric: {'kd': effect.x, 'tl': effect.y} for effect in effects
      },
    }
    for conclusion in conclusions
    for place, effects in conclusion.by_place.items()
  ]
