"""Plain-text tables of summaries, for the end of a run and the README."""

from collections.abc import Mapping
from typing import Any

_ONE_SEED = (
  'One seed each, and another seed gives another difference: repeat with '
  'several (python -m tlkd_jax.study).'
)
_COLUMNS = (
  ('top-1', 'top1', '{:.3f}'),
  ('top-5', 'top5', '{:.3f}'),
  ('macro F1', 'macro_f1', '{:.3f}'),
  ('NLL', 'nll', '{:.3f}'),
  ('ECE', 'ece', '{:.3f}'),
  ('agreement', 'teacher_agreement', '{:.3f}'),
)


def closing_table(rows: list[tuple[str, dict[str, Any]]]) -> str:
  """One line per (label, {'validation': metrics, 'test': metrics}) and split.

  A metric that a row lacks, or that is undefined (NaN), is shown as '-'.
  """
  lines = [['', 'split', 'n', *(title for title, _, _ in _COLUMNS)]]
  for label, splits in rows:
    for split, values in splits.items():
      cells = [label, split, str(values['count'])]
      for _, key, form in _COLUMNS:
        value = values.get(key)
        undefined = value is None or value != value
        cells.append('-' if undefined else form.format(value))
      lines.append(cells)
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = []
  for cells in lines:
    padded = [
      cell.ljust(width) if i < 2 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    text.append('  '.join(padded).rstrip())
  text.insert(1, '  '.join('-' * width for width in widths))
  return '\n'.join(text)


def remarks(
  summaries: dict[str, dict[str, Any]],
  changes: Mapping[str, Any] | None = None,
) -> list[str]:
  """What a reader of the table must know: what the teacher knew, cost, brought.

  Args:
    summaries: arm -> summary, any of 'teacher', 'tl', 'kd'.
    changes: comparison.mcnemar of the TL+KD and the TL student's test answers,
      with the interval `low` to `high` over images, where both are there.
  """
  kd, tl = summaries.get('kd', {}), summaries.get('tl')
  found = [_knew(name, said) for name, said in _said(kd).items()]
  teacher = kd.get('teacher') or summaries.get('teacher', {}).get('teacher')
  student = (tl or kd).get('student')
  # A peer, or the student's own run, is not there to be the better one.
  apart = not (kd.get('mutual') or kd.get('self_training'))
  if teacher and student and apart:
    gap = teacher['test']['top1'] - student['test']['top1']
    arm = 'TL' if tl else 'the TL+KD student'
    if gap <= 0:
      found.append(
        f'The teacher is no better than {arm} on test ({gap:+.3f} top-1): it '
        'may have little to teach here.'
      )
    else:
      found.append(f'The teacher is better than {arm} by {gap:.3f} top-1.')
  if kd and tl:
    name = 'self-training' if kd.get('self_training') else 'TL+KD'
    tests = tl['student']['test'], kd['student']['test']
    found.append(_cost(summaries, name))
    found.append(_gain(name[:1].upper() + name[1:], *tests, changes))
  return found


def _said(kd: Mapping[str, Any]) -> dict[str, Any]:
  return kd.get('teacher_says') or {}


def _knew(name: str, said: Mapping[str, Any]) -> str:
  views, unseen = said['training views'], said['validation']
  right = f'right on {views["agreement"]:.2f} of them'
  return (
    f'What the {name} said of training views (temperature '
    f'{said["temperature"]:g}): p(label) {views["p_label"]:.2f}, '
    f'{views["effective_classes"]:.1f} classes in effect, {right}; of '
    f'validation images {unseen["p_label"]:.2f}. At 1.00 it would be the label '
    'and no more.'
  )


def _cost(summaries: Mapping[str, Mapping[str, Any]], name: str) -> str:
  own = summaries['kd']['seconds']
  plain = summaries['tl']['seconds']
  teacher = summaries.get('teacher', {}).get('seconds', 0.0)
  if 'self_training' in summaries['kd']:
    teacher = plain
  times = (own + teacher) / max(plain, 1e-9)
  extra = f' and {teacher:.0f} s for its teacher' if teacher else ''
  return (
    f'Training took {plain:.0f} s for TL, {own:.0f} s for {name}{extra}: '
    f'{times:.1f} times the cost.'
  )


def _gain(
  name: str,
  tl: Mapping[str, Any],
  kd: Mapping[str, Any],
  changes: Mapping[str, Any] | None,
) -> str:
  gain, nll = kd['top1'] - tl['top1'], kd['nll'] - tl['nll']
  text = f'{name} minus TL on test: {gain:+.3f} top-1, {nll:+.3f} NLL'
  if changes is None:
    return f'{text}. {_ONE_SEED}'
  return (
    f'{text}; {changes["only_x"]} test images won, {changes["only_y"]} lost, '
    f'95 % over images {changes["low"]:+.3f} to {changes["high"]:+.3f}, '
    f'McNemar p = {changes["p"]:.2g}. {_ONE_SEED}'
  )
