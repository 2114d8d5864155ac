"""One report from stored runs: index.html, report.md and report.json."""

import os
import pathlib
from collections.abc import Sequence

from tlkd_jax.answer import conclusions as answers
from tlkd_jax.answer import plan as plans
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.evaluation import records
from tlkd_jax.report import (
  REPLICATES,
  accuracy,
  confidence,
  context,
  degraded,
  holdings,
  html,
  markdown,
  pairing,
  pictures,
  run_costs,
  runs,
  teaching,
  training,
  verdict_section,
)
from tlkd_jax.report.blocks import Section
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.paths import expanded


def write(
  paths: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  replicates: int = REPLICATES,
) -> pathlib.Path:
  """Writes a report of finished runs; needs neither models nor data.

  Runs are found in the folders given, at any depth: a compare run's workdir, a
  study's folder, single runs. `pairing` says which of them are compared,
  `answer` what that says. The first pair (first place, lowest seed) is shown in
  detail from its stored predictions and evaluation/ folder; what is missing
  there is said, with the command that fills it.

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
  out = expanded(out)
  folders = [expanded(path) for path in paths]
  found, notes = runs.collect(folders)
  paired = pairing.pair(found, notes)
  plan = _plan(folders)
  conclusions = [
    answers.draw(
      paired.rows, treatment, pairing.REFERENCE, pairing.METRIC_NAMES, plan
    )
    for treatment in paired.treatments
  ]
  shown = _first(conclusions, paired)
  detail = context.open_pair(shown, out) if shown else None
  sections = [
    verdict_section.section(conclusions, paired, detail, found, notes, out)
  ]
  held = holdings.section(found, out)
  sections += [held] if held else []
  served = run_costs.section(paired, out)
  sections += [served] if served else []
  if detail:
    sections += _detail(detail, replicates)
  title = f'TL and {detail.named["kd"]} compared' if detail else 'Runs'
  places = {pair.place for pair in paired.pairs}
  subtitle = ', '.join(
    f'{count} {name}{"s" * (count != 1)}'
    for count, name in (
      (len(found), 'run'),
      (len(paired.pairs), 'pair'),
      (len(places), 'place'),
    )
  )
  out.mkdir(parents=True, exist_ok=True)
  index = out / 'index.html'
  replace_text(index, html.page(title, subtitle, sections))
  replace_text(out / 'report.md', markdown.page(title, subtitle, sections))
  records.write_json(
    out / 'report.json',
    {
      'title': title,
      'answer': verdict_section.answer(conclusions),
      'comparisons': verdict_section.as_data(conclusions),
      'sections': markdown.as_data(sections),
    },
  )
  return index


def _plan(folders: Sequence[pathlib.Path]) -> plans.Plan | None:
  """What the study stated, of which alone the report is."""
  stated = [plans.read(folder) for folder in folders]
  return stated[0] if len(stated) == 1 else None


def _first(
  conclusions: Sequence[Conclusion], paired: pairing.Paired
) -> pairing.Pair | None:
  """The pair on show: the first that counts in an answer."""
  for conclusion in conclusions:
    for effect in conclusion.per_place['top1']:
      key = conclusion.treatment, effect.places[0], effect.seeds[0]
      for pair in paired.pairs:
        if (pair.treatment, pair.place, pair.kd.seed) == key:
          return pair
  return None


def _detail(detail: context.Context, replicates: int) -> list[Section]:
  said = teaching.section(detail)
  likeness = accuracy.teacher_section(detail)
  return [
    accuracy.metrics_section(detail, replicates),
    *([said] if said else []),
    accuracy.disagreement_section(detail),
    pictures.changed_section(detail),
    pictures.gradcam_section(detail),
    confidence.calibration_section(detail),
    confidence.selective_section(detail),
    *([likeness] if likeness else []),
    accuracy.embedding_section(detail),
    degraded.section(detail),
    confidence.ood_section(detail),
    training.section(detail),
  ]
