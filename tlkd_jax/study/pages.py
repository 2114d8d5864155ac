"""STUDY/index.html, report.md and report.json: the answer, then its grounds."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlkd_jax.answer import conclusions as answers
from tlkd_jax.answer import plan as plans
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.answer.effects import per_place
from tlkd_jax.answer.words import points
from tlkd_jax.evaluation import records, statistics
from tlkd_jax.report import html, markdown, verdict_blocks
from tlkd_jax.report.blocks import (
  Block,
  Section,
  Text,
  interval,
  named_table,
  show,
)
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.settings import Study
from tlkd_jax.study import (
  analysis,
  correlations,
  noise,
  pooled,
  respect_sections,
  results,
  serving,
  students,
)
from tlkd_jax.study.analysis import CellRow, Rows
from tlkd_jax.study.noise import Floor
from tlkd_jax.study.respect_sections import minus
from tlkd_jax.study.tuning import Score

TITLE = 'Does the teacher help?'
SOURCE = 'results.json'


def write(
  root: pathlib.Path,
  rows: Sequence[CellRow],
  study: Study,
  scores: Sequence[Score] = (),
) -> str:
  """Writes the three files; returns the answer, a paragraph.

  Args:
    root: STUDY.
    rows: of results.json.
    study: which arms and metrics are asked about.
    scores: of the trials, where seeds of their own chose them.
  """
  raw = runs.indexed(results.with_answers(root, rows))
  rows = runs.indexed(students.as_recipes(raw, study.arms))
  plan = plans.read(root)
  conclusion = answers.draw(
    rows,
    study.treatment,
    study.reference,
    study.metrics,
    plan,
  )
  reruns = students.as_recipes(noise.collect(root), study.arms)
  sections = make_sections(rows, conclusion, reruns)
  sections[0].blocks[1:1] = _each_student(rows, study, plan)
  for more in (
    pooled.embeddings(root, rows, conclusion),
    _served(root, raw, study),
  ):
    sections += [more] if more else []
  if scores:
    tried = _tuning(scores, study, conclusion)
    sections.append(Section('tuning', 'How the arms were tuned', tried))
  seeds = sorted({row['seed'] for row in rows if row['chosen']})
  count = len(runs.chosen(rows))
  subtitle = f'{count} runs; seeds {", ".join(map(str, seeds))}'
  replace_text(root / 'index.html', html.page(TITLE, subtitle, sections))
  replace_text(root / 'report.md', markdown.page(TITLE, subtitle, sections))
  records.write_json(root / 'report.json', markdown.as_data(sections))
  return conclusion.sentence


def _each_student(
  rows: Rows, study: Study, plan: plans.Plan | None
) -> list[Block]:
  """The answer on each of several students."""
  found: list[Block] = []
  for name in students.names_of(study.arms):
    own = [row for row in rows if row.get('recipe') == name]
    one = answers.draw(
      own, study.treatment, study.reference, study.metrics, plan
    )
    found.append(Text(f'{name}: {one.sentence}'))
  return found


def _served(root: pathlib.Path, rows: Rows, study: Study) -> Section | None:
  """What predictions cost; every student's arms are arms of their own here."""
  treatments = [study.treatment] + [
    name
    for name, arm in study.arms.items()
    if students.base_of(name, arm)[0] == study.treatment
    and name != study.treatment
  ]
  known = serving.collect(root, rows)
  return serving.section(rows, known, treatments, f'{SOURCE}, {serving.FILE}')


def make_sections(
  rows: Rows, conclusion: Conclusion, reruns: Sequence[dict[str, Any]] = ()
) -> list[Section]:
  """The page's sections; those without data are left out.

  Args:
    rows: of the study, with answers.
    conclusion: drawn from them.
    reruns: of noise.collect.
  """
  floors = noise.floors(rows, reruns)
  found = [
    Section('answer', TITLE, _answer(rows, conclusion, floors)),
    Section(
      'curves',
      'Accuracy against the number of labels',
      _curves(rows, conclusion),
    ),
    Section('arms', 'All arms', _arms(rows, conclusion)),
    Section(
      'calibration',
      'Calibration and other metrics',
      _other_metrics(conclusion) + pooled.reliability(rows, conclusion),
    ),
    Section(
      'items',
      'Image by image',
      respect_sections.items(rows, conclusion),
    ),
    Section(
      'degradation',
      'Degraded images',
      respect_sections.degraded(rows, conclusion),
    ),
    Section(
      'lost',
      'Where it lost, and what the teacher had',
      _lost(rows, conclusion),
    ),
    Section(
      'convergence',
      'Convergence',
      respect_sections.convergence(rows, conclusion),
    ),
    Section(
      'sensitivity',
      'Temperature and soft weight',
      _sensitivity(rows, conclusion),
    ),
    Section('cost', 'Cost', _cost(rows, conclusion)),
  ]
  return [section for section in found if section.blocks]


def _answer(
  rows: Rows, conclusion: Conclusion, floors: Sequence[Floor]
) -> list[Block]:
  labels = conclusion.labels
  blocks = verdict_blocks.in_words(conclusion)
  blocks += _noise(floors, conclusion)
  blocks += verdict_blocks.tests(
    f'{minus(conclusion)}, test accuracy',
    conclusion.per_place['top1'],
    labels,
    SOURCE,
  )
  blocks += verdict_blocks.over_all_places(conclusion, SOURCE)
  ranks = analysis.friedman(rows, 'top1', conclusion.reference)
  if ranks is not None:
    order = np.argsort(ranks['mean_ranks'], kind='stable')
    table = [
      {'arm': labels[ranks['arms'][i]], 'mean rank': ranks['mean_ranks'][i]}
      for i in order
    ]
    blocks.append(
      named_table(
        'Mean ranks of the arms (test accuracy, 1 is best)',
        table,
        SOURCE,
        f'Friedman over {ranks["blocks"]} blocks: chi2 = '
        f'{show(ranks["statistic"])}, p = {show(ranks["p"])}.',
      )
    )
  return blocks


def _noise(floors: Sequence[Floor], conclusion: Conclusion) -> list[Block]:
  if not floors:
    return []
  test = conclusion.overall.test
  said = noise.words(floors, test['mean_difference'], test['std_difference'])
  table = [
    {
      'place': str(one.place),
      'arm': conclusion.labels.get(one.arm, one.arm),
      'seed': one.seed,
      'cores': cores,
      'runs': len(values),
      'test accuracies': ', '.join(f'{value:.3f}' for value in values),
      'largest less smallest': one.spread(cores),
      'left out': one.left_out,
    }
    for one in floors
    for cores, values in one.top1.items()
  ]
  note = (
    'The same cell with the same seed, data and settings, by one commit, '
    "device and versions; the study's own run is among those of its number of "
    'cores. None of them counts elsewhere on this page but that one.'
  )
  title = 'The same cell run again'
  return [Text(said), named_table(title, table, noise.FILE, note)]


def _curves(rows: Rows, conclusion: Conclusion) -> list[Block]:
  shown = {'tl': conclusion.reference, 'kd': conclusion.treatment}
  for row in rows:
    if row['arm'] == conclusion.treatment and row['teachers']:
      shown = {'teacher': row['teachers'][0]} | shown
  found = verdict_blocks.accuracy_by_size(
    rows, shown, conclusion.labels, SOURCE
  )
  return found + verdict_blocks.in_labels(conclusion, SOURCE)


def _arms(rows: Rows, conclusion: Conclusion) -> list[Block]:
  labels, reference = conclusion.labels, conclusion.reference
  arms = runs.arms(rows, reference)
  students = {row['arm'] for row in rows if row['kind'] != 'teacher'}
  effects = {
    (effect.places[0], arm): effect
    for arm in arms
    if arm != reference
    for effect in per_place(rows, arm, reference, 'top1')
  }
  table, shown = [], {}
  for place in runs.places(rows):
    for arm in arms:
      values = runs.values(rows, place, arm, 'top1')
      if not values.size:
        continue
      spread = statistics.mean_interval(values)
      effect = effects.get((place, arm))
      test = effect.test if effect else {}
      if effect and arm in students:
        shown[f'{labels[arm]}, {place}'] = effect
      bounds = [test.get(key, np.nan) for key in ('ci_low', 'ci_high')]
      table.append(
        {
          'place': str(place),
          'arm': labels[arm],
          'seeds': len(values),
          'test accuracy': spread['mean'],
          'std over seeds': spread['std'],
          'minus reference': test.get('mean_difference'),
          '95 % over seeds': interval(*bounds),
          'verdict': effect.verdict if effect else '',
        }
      )
  blocks: list[Block] = [named_table('All arms', table, SOURCE)]
  return blocks + verdict_blocks.intervals(
    'Students minus the reference', shown, SOURCE
  )


def _other_metrics(conclusion: Conclusion) -> list[Block]:
  effects = [
    effect
    for found in conclusion.by_place.values()
    for effect in found
    if effect.metric != 'top1'
  ]
  title = f'{minus(conclusion)} in other metrics'
  blocks = verdict_blocks.every_metric(conclusion, SOURCE)
  return blocks + verdict_blocks.tests(
    title, effects, conclusion.labels, SOURCE
  )


def _lost(rows: Rows, conclusion: Conclusion) -> list[Block]:
  edges = analysis.edges(rows, conclusion.reference)
  if not edges:
    return []
  text = '; '.join(
    f'{e.place} ({points(e.gain)} points, teacher {points(e.edge)} against the '
    'reference)'
    for e in edges
    if e.arm == conclusion.treatment and e.gain < 0
  )
  table = [
    {
      'place': str(e.place),
      'arm': conclusion.labels[e.arm],
      "teacher's edge": e.edge,
      'gain': e.gain,
      'agreement': e.agreement,
    }
    for e in edges
  ]
  blocks: list[Block] = [
    Text(f'It lost at: {text}.' if text else 'It lost nowhere.'),
    named_table(
      'What the teacher knew and what the student gained',
      table,
      SOURCE,
      'Means over seeds; of several teachers, the best one.',
    ),
  ]
  found, places = correlations.with_gain(
    rows, conclusion.treatment, conclusion.reference
  )
  names = (
    conclusion.labels[arm]
    for arm in (conclusion.treatment, conclusion.reference)
  )
  blocks.append(Text(correlations.words(found, places, *names)))
  return blocks


def _sensitivity(rows: Rows, conclusion: Conclusion) -> list[Block]:
  blocks: list[Block] = []
  found = analysis.sensitivity(rows, conclusion.reference)
  for place, grid in found.items():
    weights = sorted({weight for _, weight in grid})
    table = [
      {'temperature': t}
      | {f'soft weight {w:g}': grid.get((t, w)) for w in weights}
      for t in sorted({t for t, _ in grid})
    ]
    title = f'Accuracy minus the reference: {place}'
    note = 'Means over seeds. The best of many cells is partly luck.'
    blocks.append(named_table(title, table, SOURCE, note))
  return blocks


def _tuning(
  scores: Sequence[Score], study: Study, conclusion: Conclusion
) -> list[Block]:
  metric = scores[0].metric
  table = [
    {
      'arm': conclusion.labels.get(score.arm, study.arms[score.arm].label),
      'chosen over': score.scope,
      'trial': ', '.join(f'{k} = {v}' for k, v in score.trial) or 'as it is',
      f'validation {metric}': score.mean,
      'std over seeds': score.std,
      'runs': score.cells,
      'chosen': score.chosen,
    }
    for score in scores
  ]
  seeds = ', '.join(map(str, study.tuning_seeds))
  return [
    named_table(
      f'Trials on seeds {seeds}',
      table,
      'tuning.json',
      'Means over validation images of seeds that confirm nothing; every data '
      'set weighs the same. The best of several means is partly luck, which '
      'is why other seeds confirm it.',
    )
  ]


def _cost(rows: Rows, conclusion: Conclusion) -> list[Block]:
  table = []
  for place in runs.places(rows):
    for arm in runs.arms(rows, conclusion.reference):
      if runs.at(rows, place, arm):
        spent = analysis.cost(rows, place, arm)
        table.append(
          {
            'place': str(place),
            'arm': conclusion.labels[arm],
            'seconds': spent['seconds'],
            'of them for teachers': spent['teacher_seconds'],
            'images trained on': spent['train_images'],
            "images through teachers' forward pass": spent['forward_images'],
          }
        )
  if not table:
    return []
  return [
    named_table(
      'Cost of an arm',
      table,
      SOURCE,
      'Mean of a seed, all trials and the training of the teachers included; '
      'seconds as they passed on the machine of the run, compilation included.',
    )
  ]
