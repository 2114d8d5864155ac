"""Plain-text tables of summaries, for the end of a run and the README."""

from typing import Any

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


def remarks(summaries: dict[str, dict[str, Any]]) -> list[str]:
  """What a reader of the table must know; one sentence each.

  Args:
    summaries: arm -> summary, any of 'teacher', 'tl', 'kd'.
  """
  found = []
  kd = summaries.get('kd')
  teacher = (kd or {}).get('teacher') or summaries.get('teacher', {}).get(
    'teacher'
  )
  student = summaries.get('tl', kd or {}).get('student')
  # A peer is not there to be the better one.
  if teacher and student and not (kd or {}).get('mutual'):
    gap = teacher['test']['top1'] - student['test']['top1']
    if gap <= 0:
      arm = 'TL' if 'tl' in summaries else 'the TL+KD student'
      found.append(
        f'The teacher is no better than {arm} on test ({gap:+.3f} top-1): it '
        'may have little to teach here.'
      )
  if kd and 'tl' in summaries:
    gain = (
      kd['student']['test']['top1'] - summaries['tl']['student']['test']['top1']
    )
    found.append(
      f'TL+KD minus TL on test: {gain:+.3f} top-1. One seed each: a '
      'difference of this size may be chance; repeat with several seeds.'
    )
  return found
