"""What a command prints at its end: a table of its runs, and what it says."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tlkd_jax.answer import effects
from tlkd_jax.answer.labels import LABELS, label_of_part
from tlkd_jax.evaluation import comparison, evaluate
from tlkd_jax.evaluation.records import number
from tlkd_jax.report import savings, tables
from tlkd_jax.training import serving


def table(
  summaries: dict[str, dict[str, Any]], workdirs: Mapping[str, pathlib.Path]
) -> str:
  """The closing table of a run, with what a reader must know of it.

  Args:
    summaries: key of each part -> its summary.
    workdirs: key -> its folder, for the students' answers.
  """
  rows = []
  guided = next((s for s in summaries.values() if 'teacher' in s), {})
  if 'tl' in summaries and 'self_training' in guided:
    # It stands there as TL.
    guided = {}
  for key, summary in ({'teacher': guided} | summaries).items():
    role = 'teacher' if key == 'teacher' else 'student'
    name = label_of_part(
      key,
      self_trained='self_training' in summary,
      fixmatch='fixmatch' in summary,
    )
    if role == 'teacher' and 'mutual' in summary:
      name = 'peer'
    if role in summary:
      rows.append((name, summary[role]))
  changes = None
  if {'tl', 'kd'} <= summaries.keys():
    changes = _changes(workdirs['kd'], workdirs['tl'])
  said = tables.remarks(summaries, changes)
  saved = _saved(summaries.get('kd', {}), workdirs)
  said += [saved] if saved else []
  return '\n'.join([tables.closing_table(rows), *said])


def _changes(kd: pathlib.Path, tl: pathlib.Path) -> dict[str, Any]:
  """McNemar's test of two finished runs on the same test images.

  With the interval over images, `low` to `high`, that a report page has.
  """
  correct = []
  for workdir in (kd, tl):
    found = evaluate.load(workdir / 'predictions' / 'test.npz')
    correct.append(found.logits.argmax(axis=-1) == found.labels)
  difference = correct[0].astype(float) - correct[1]
  low, high = effects.interval_over_images(difference)
  return comparison.mcnemar(*correct) | {'low': low, 'high': high}


def _saved(kd: Mapping[str, Any], workdirs: Mapping[str, pathlib.Path]) -> str:
  """What the student saves against its teacher; '' of one without."""
  if 'teacher' not in kd or kd.get('mutual') or kd.get('self_training'):
    return ''
  timed = serving.read(workdirs['kd'])
  student, teacher = (
    savings.Point(
      LABELS[arm],
      arm,
      number(kd[role]['test']['top1']),
      timed.get(role) or serving.of_summary(kd, role),
    )
    for arm, role in (('kd', 'student'), ('teacher', 'teacher'))
  )
  return savings.sentence(student, teacher)
