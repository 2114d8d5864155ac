"""The answer to the study's question, in a sentence and its tests."""

import math
import pathlib
from typing import Any

import numpy as np

from tlkd_jax.evaluation import evaluate, statistics
from tlkd_jax.report.blocks import Section, Table, Text, interval, show
from tlkd_jax.study import analysis
from tlkd_jax.study.analysis import Place, Row

TITLE = 'Does the teacher help?'
SOURCE = 'results.json'


def section(
  root: pathlib.Path, rows: list[Row], study: Any, tests: list[Row]
) -> Section:
  """The answer, what the teacher is worth, and the tests behind it."""
  blocks: list = [Text(sentence(rows, study, tests), 'lead')]
  name = analysis.labels(rows).get(study.treatment, study.treatment)
  blocks += [Text(text) for text in rivals_in_words(rows, study)]
  for dataset in dict.fromkeys(place[0] for place in analysis.places(rows)):
    text = worth_in_words(rows, study, dataset)
    if text:
      blocks.append(Text(text))
  table = []
  for test in tests:
    if (test['arm'], test['metric']) == (study.treatment, 'top1'):
      place = test['dataset'], test['size']
      items = items_interval(root, rows, study, place)
      table.append(
        [
          where(place),
          test['pairs'],
          test['mean_difference'],
          interval(test['ci_low'], test['ci_high']),
          interval(*items),
          test['p_t'],
          test['p_sign_flip'],
          test['p_t_holm'],
          test['cohen_dz'],
          test['verdict'],
        ]
      )
  columns = ['place', 'seeds', 'difference', '95 % over seeds']
  columns += ['95 % over images', 'p (t)', 'p (sign-flip)', 'p (t, Holm)']
  note = (
    'Paired by seed. The verdict is that of the exact sign-flip test of this '
    'place alone; Holm corrects over all places and metrics of this arm.'
  )
  if table:
    title = f'{name} minus the reference, test accuracy'
    columns += ['d_z', 'verdict']
    blocks.append(Table(title, columns, table, SOURCE, note))
  ranks = analysis.friedman(rows, 'top1', study.reference)
  if ranks is not None:
    blocks.append(_ranks(rows, ranks))
  return Section('answer', TITLE, blocks)


def sentence(rows: list[Row], study: Any, tests: list[Row]) -> str:
  """The answer in one sentence, with its uncertainty."""
  name = analysis.labels(rows).get(study.treatment, study.treatment)
  base = analysis.labels(rows).get(study.reference, study.reference)
  test = analysis.overall(rows, study.treatment, study.reference, 'top1')
  if not test['pairs']:
    return (
      f'There is no answer yet: no seed has finished both {name} and {base} at '
      'every place of the study.'
    )
  word = {
    'better': 'Yes',
    'worse': 'No, it hurts',
    'inconclusive': 'Inconclusive',
  }[test['verdict']]
  alone = [
    t['verdict']
    for t in tests
    if (t['arm'], t['metric']) == (study.treatment, 'top1')
  ]
  counts = ', '.join(
    f'{kind} at {alone.count(kind)}'
    for kind in ('better', 'worse', 'inconclusive')
  )
  bounds = 'unknown with one seed'
  if test['pairs'] > 1:
    bounds = f'{points(test["ci_low"])} to {points(test["ci_high"])}'
  seeds = f'{test["pairs"]} paired seed{"s" * (test["pairs"] > 1)}'
  text = (
    f'{word}: the mean test accuracy of {name} minus that of {base} was '
    f'{points(test["mean_difference"])} points over {test["places"]} '
    f'place{"s" * (test["places"] > 1)} (data set and train size), 95 % '
    f'interval {bounds} over {seeds}; exact sign-flip p = '
    f'{test["p_sign_flip"]:.3g}, where so many seeds cannot give less than '
    f'{test["smallest_p"]:.3g}. Each place alone: {counts}.'
  )
  if test['left_out']:
    missing = '; '.join(map(where, test['left_out']))
    text += f' Not finished, and left out of the mean: {missing}.'
  return text


def rivals_in_words(rows: list[Row], study: Any) -> list[str]:
  """How each arm without a teacher does, against both arms in question."""
  names = analysis.labels(rows)
  kinds = {row['arm']: row['kind'] for row in rows}
  found = []
  for arm in analysis.arms(rows, study.reference):
    if kinds[arm] != 'tl' or arm == study.reference:
      continue
    parts = []
    for first, second in ((arm, study.reference), (study.treatment, arm)):
      test = analysis.overall(rows, first, second, 'top1')
      if test['pairs'] < 2:
        continue
      low, high = points(test['ci_low']), points(test['ci_high'])
      over = f'{test["places"]} place{"s" * (test["places"] > 1)}'
      parts.append(
        f'{names[first]} minus {names[second]} '
        f'{points(test["mean_difference"])} points ({low} to {high}; {over}, '
        f'{test["pairs"]} seeds, p = {test["p_sign_flip"]:.3g})'
      )
    if parts:
      found.append(f'Without a teacher: {"; ".join(parts)}.')
  return found


def worth_in_words(rows: list[Row], study: Any, dataset: str) -> str:
  """'The teacher is worth x % more labels', or why that is not known; ''."""
  found = analysis.worth(rows, study.treatment, study.reference, dataset)
  if found is None:
    return ''
  percent = found['percent_more_labels']
  if math.isnan(percent):
    return (
      f'On {dataset} the curves over train sizes share no accuracy, so that '
      'the teacher cannot be expressed in labels.'
    )
  bounds = 'unknown with these seeds'
  if not math.isnan(found['low'] + found['high']):
    bounds = f'{found["low"]:+.0f} to {found["high"]:+.0f} %'
  text = (
    f'On {dataset} the teacher is worth {percent:+.0f} % labels (95 % interval '
    f'over seeds: {bounds}): so many more would plain fine-tuning need for the '
    'same accuracy, averaged over the accuracies that both reach.'
  )
  if found['outside']:
    sizes = ', '.join(map(str, found['outside']))
    text += (
      f' At {sizes} training images its accuracy lies outside of what plain '
      'fine-tuning reached at any size that was tried.'
    )
  return text


def items_interval(
  root: pathlib.Path, rows: list[Row], study: Any, place: Place
) -> tuple[float, float]:
  """Bootstrap over test images of the difference, averaged over seeds.

  From the stored predictions; NaN where they are not at hand.
  """
  x = analysis.at(rows, place, study.treatment)
  y = analysis.at(rows, place, study.reference)
  differences = []
  for seed in sorted(x.keys() & y.keys()):
    sides = []
    for row in (x[seed], y[seed]):
      path = root / row['folder'] / 'predictions' / 'test.npz'
      if not path.exists():
        return math.nan, math.nan
      stored = evaluate.load(path)
      sides.append(stored.logits.argmax(axis=-1) == stored.labels)
    differences.append(sides[0].astype(float) - sides[1])
  if not differences:
    return math.nan, math.nan
  low, high = statistics.bootstrap_mean_interval(
    np.mean(differences, axis=0), method='percentile', num_replicates=2000
  )
  # Without what rounding makes of an exact zero.
  return round(low, 12), round(high, 12)


def _ranks(rows: list[Row], found: Row) -> Table:
  names = analysis.labels(rows)
  order = np.argsort(found['mean_ranks'], kind='stable')
  return Table(
    'Mean ranks of the arms (test accuracy, 1 is best)',
    ['arm', 'mean rank'],
    [[names[found['arms'][i]], found['mean_ranks'][i]] for i in order],
    SOURCE,
    f'Friedman over {found["blocks"]} blocks: chi2 = '
    f'{show(found["statistic"])}, p = {show(found["p"])}.',
  )


def points(value: float) -> str:
  """A share as signed percentage points."""
  return f'{100 * value:+.2f}'


def where(place: Place) -> str:
  """A place in words."""
  dataset, size = place
  if size == 0:
    return f'{dataset}, all images'
  text = f'{size:g} of the images' if size < 1 else f'{size:g} per class'
  return f'{dataset}, {text}'
