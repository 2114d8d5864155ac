"""One report from stored runs: index.html, report.md and report.json."""

import os
import pathlib
from collections.abc import Sequence

from tlkd_jax.evaluation import records
from tlkd_jax.report import (
  accuracy,
  answer,
  confidence,
  context,
  degraded,
  html,
  markdown,
  pictures,
  runs,
  training,
)
from tlkd_jax.report.blocks import Section

REPLICATES = 1000


def write(
  paths: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  replicates: int = REPLICATES,
) -> pathlib.Path:
  """Writes a report of finished runs; needs neither models nor data.

  Runs are found in the folders given, at any depth: a compare run's workdir, a
  study's folder, single runs. A TL and a TL+KD run are paired where their
  configurations are equal but for the arm, the teacher and the distillation;
  pairs that differ only in their seed form a setting and are tested together
  (statistics.compare_paired). The first pair (first setting, lowest seed) is
  shown in detail from its stored predictions and evaluation/ folder; what is
  missing there is said, with the command that fills it.

  Args:
    paths: folders.
    out: folder of the report, made if need be; index.html (self-contained,
      no network), report.md and report.json are replaced.
    replicates: bootstrap resamples of the pair in detail.

  Returns:
    The path of index.html.

  Raises:
    FileNotFoundError: a folder does not exist or holds no finished run.
    ValueError: a damaged file, or a pair measured on different examples.
  """
  out = pathlib.Path(out)
  collection = runs.collect(paths)
  judged = [
    found
    for setting in collection.settings
    if (found := answer.judge(setting, collection.notes)) is not None
  ]
  detail = None
  if judged:
    pair = judged[0].setting.pairs[0]
    detail = context.open_pair(pair, out)
  sections = [answer.section(judged, detail, collection, out)]
  if detail:
    sections += _detail(detail, replicates)
  title = 'TL and TL+KD compared' if judged else 'Runs'
  pairs = sum(len(j.setting.pairs) for j in judged)
  subtitle = ', '.join(
    f'{count} {name}{"s" * (count != 1)}'
    for count, name in (
      (len(collection.runs), 'run'),
      (pairs, 'pair'),
      (len(judged), 'setting'),
    )
  )
  out.mkdir(parents=True, exist_ok=True)
  index = out / 'index.html'
  index.write_text(html.page(title, subtitle, sections))
  (out / 'report.md').write_text(markdown.page(title, subtitle, sections))
  records.write_json(
    out / 'report.json',
    {
      'title': title,
      'answer': answer.sentence(judged, detail),
      'comparisons': answer.short(judged),
      'sections': markdown.as_data(sections),
    },
  )
  return index


def _detail(detail: context.Context, replicates: int) -> list[Section]:
  return [
    accuracy.metrics_section(detail, replicates),
    accuracy.disagreement_section(detail),
    pictures.changed_section(detail),
    pictures.gradcam_section(detail),
    confidence.calibration_section(detail),
    confidence.selective_section(detail),
    accuracy.teacher_section(detail),
    accuracy.embedding_section(detail),
    degraded.section(detail),
    confidence.ood_section(detail),
    training.section(detail),
  ]
