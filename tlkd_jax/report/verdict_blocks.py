"""An answer's blocks, the same on every page: words, tests, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer import words
from tlkd_jax.answer.conclusions import Conclusion
from tlkd_jax.answer.effects import Effect
from tlkd_jax.answer.rows import Row
from tlkd_jax.evaluation import statistics
from tlkd_jax.evaluation.metrics import (
  LOWER_IS_BETTER,
  METRICS,
  NO_BETTER_SIDE,
  SCALED,
)
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Block, Figure, Text, interval, named_table

# More lines than this are no picture.
MOST_INTERVALS = 60

_NOTE = (
  'Paired by seed; intervals over seeds are of the t distribution, p of the '
  'exact sign-flip test and of the t test. The verdict is that of the exact p, '
  'corrected by Holm over the places of a metric; of accuracy it stands only '
  'where the interval over seeds and images holds no 0 either, and where both '
  'would be so with two test images of any one cell answered otherwise.'
)
_LOOKS_NOTE = (
  'Intervals of the mean difference over seeds and test images, wide enough '
  'for all of these looks (alpha spending). Helps or hurts: the 95 % interval '
  'holds no 0; equal: the 90 % interval lies within the margin; either only if '
  'two test images of one cell, answered otherwise, would leave it so.'
)
_SECONDARY_NOTE = (
  'Mean differences over all places, data sets weighted equally; the verdict '
  'is that of the exact sign-flip p, corrected by Holm over these metrics, and '
  'as good as one look at it.'
)
_EVERY_NOTE = (
  'Means over all places, data sets weighted equally. Nothing is corrected for '
  'the number of metrics: these describe, and the question is answered above.'
)
_SCALED_NOTE = (
  "The same after each run's logits were divided by the temperature that is "
  'best for its NLL on validation (Guo et al. 2017), which changes no answer: '
  'what stays is no matter of confidence alone. A run whose best temperature '
  'lies beyond those searched, as where all of validation is right, counts not.'
)
_IN_LABELS_NOTE = (
  'Training images at which the reference, straight in their logarithm between '
  'the sizes, has the same accuracy; "from" and "to" hold all numbers at which '
  'the t test of 5 % tells no difference. Nothing is extrapolated.'
)
_ONE_SEED = (
  'One seed: what there is beyond the difference is over test images, of these '
  'two models alone.'
)


def in_words(conclusion: Conclusion) -> list[Block]:
  """The sentence, then what belongs to it."""
  lead = Text(conclusion.sentence, 'lead')
  return [lead, *map(Text, conclusion.remarks)]


def tests(
  title: str,
  effects: Sequence[Effect],
  labels: Mapping[str, str],
  source: str,
) -> list[Block]:
  """A table of one treatment's effects, one place and metric a row; [] of none.

  Args:
    title: of the table.
    effects: of one arm and reference.
    labels: arm -> label.
    source: files that the rows come from.
  """
  if not effects:
    return []
  several = any(len(effect.seeds) > 1 for effect in effects)
  images = any(effect.images is not None for effect in effects)
  rows = [_row(effect, labels, several, images) for effect in effects]
  note = _NOTE if several else _ONE_SEED
  lower = sorted({e.metric for e in effects} & LOWER_IS_BETTER)
  if lower:
    note += f' Smaller is better for {", ".join(lower)}.'
  if 'ece' in lower:
    note += ' ECE is above 0 for a perfectly calibrated model too.'
  return [named_table(title, rows, source, note)]


def _row(
  effect: Effect, labels: Mapping[str, str], several: bool, images: bool
) -> dict[str, Any]:
  test, over = effect.test, effect.images
  (place,) = effect.places
  row: dict[str, Any] = {
    'place': str(place),
    'metric': effect.metric,
    'seeds': len(effect.seeds),
    labels[effect.reference]: float(effect.y.mean()),
    labels[effect.arm]: float(effect.x.mean()),
    'difference': test['mean_difference'],
  }
  if several:
    row['95 % over seeds'] = interval(test['ci_low'], test['ci_high'])
  if images:
    row['95 % over images'] = interval(over.low, over.high) if over else None
  if images and several:
    both = effect.both
    name = '95 % over seeds and images'
    row[name] = interval(both.low, both.high) if both else None
  if several:
    row |= {
      'p (sign-flip)': test['p_sign_flip'],
      'p (Holm)': effect.p,
      'p (t)': test['p_t'],
      'd_z': test['cohen_dz'],
    }
  elif images:
    row['p (McNemar)'] = over.mcnemar_p if over else None
  return row | {'verdict': effect.verdict}


def over_all_places(conclusion: Conclusion, source: str) -> list[Block]:
  """How the answer came about seed by seed, and the secondary metrics."""
  blocks: list[Block] = []
  if conclusion.looks:
    rows = [
      {
        'seeds': one.seeds,
        'difference': one.mean,
        '95 % interval': interval(one.low, one.high),
        '90 % interval': interval(one.inner_low, one.inner_high),
        'std over seeds': one.spread,
        'error from test images': one.from_images,
        'verdict': one.verdict,
      }
      for one in conclusion.looks
    ]
    what = _minus(conclusion)
    title = f'{what} over all places, look by look'
    blocks.append(named_table(title, rows, source, _LOOKS_NOTE))
  secondary = [one for one in conclusion.secondary if len(one.seeds) > 1]
  if secondary:
    rows = [
      {
        'metric': one.metric,
        'seeds': len(one.seeds),
        'difference': one.test['mean_difference'],
        '95 % over seeds': interval(one.test['ci_low'], one.test['ci_high']),
        'p (sign-flip)': one.test['p_sign_flip'],
        'p (Holm)': one.p,
        'verdict': one.verdict,
      }
      for one in secondary
    ]
    title = f'{_minus(conclusion)} over all places, secondary metrics'
    blocks.append(named_table(title, rows, source, _SECONDARY_NOTE))
  return blocks


def every_metric(conclusion: Conclusion, source: str) -> list[Block]:
  """Every metric over all places, before and after temperature scaling."""
  pooled = conclusion.pooled
  blocks: list[Block] = []
  for suffix, which, note in (
    ('', 'all metrics', _EVERY_NOTE),
    (SCALED, 'after temperature scaling', _SCALED_NOTE),
  ):
    rows = [
      {
        'metric': name,
        'seeds': len(one.seeds),
        conclusion.labels[one.reference]: float(one.y.mean()),
        conclusion.labels[one.arm]: float(one.x.mean()),
        'difference': one.test['mean_difference'],
        '95 % over seeds': interval(one.test['ci_low'], one.test['ci_high']),
        'p (sign-flip)': one.test['p_sign_flip'],
        'better is': _better(one.metric),
      }
      for name in METRICS
      if (one := pooled.get(name + suffix)) is not None and one.seeds
    ]
    if rows:
      title = f'{_minus(conclusion)} over all places, {which}'
      blocks.append(named_table(title, rows, source, note))
  return blocks


def _better(metric: str) -> str:
  if metric in NO_BETTER_SIDE:
    return 'neither'
  return 'smaller' if metric in LOWER_IS_BETTER else 'larger'


def in_labels(conclusion: Conclusion, source: str) -> list[Block]:
  """How many training images the reference needs for the same, size by size."""
  base = conclusion.labels[conclusion.reference]
  rows = [
    {
      'data': ', '.join(part for part in worth.series if part),
      'training images': size,
      f'{base} needs': words.label_count(one.labels, worth.sizes),
      'from': words.label_count(one.low, worth.sizes) if known else None,
      'to': words.label_count(one.high, worth.sizes) if known else None,
      'labels': words.label_percent(one, worth.sizes),
      '95 % over': 'seeds and images' if worth.images else 'seeds',
    }
    for worth in conclusion.worth
    for size, one in zip(worth.sizes, worth.by_size, strict=True)
    for known in [one.low == one.low]
  ]
  if not rows:
    return []
  name = conclusion.labels[conclusion.treatment]
  return [
    named_table(
      f'{name} in labels, size by size', rows, source, _IN_LABELS_NOTE
    )
  ]


def _minus(conclusion: Conclusion) -> str:
  labels = conclusion.labels
  return f'{labels[conclusion.treatment]} minus {labels[conclusion.reference]}'


def intervals(
  title: str,
  effects: Mapping[str, Effect],
  source: str,
  x_label: str = 'difference in test accuracy',
) -> list[Block]:
  """A figure of effects with their intervals over seeds, by name."""
  if not 0 < len(effects) <= MOST_INTERVALS:
    return []
  bounds = {
    name: [effect.test[key] for key in ('mean_difference', 'ci_low', 'ci_high')]
    for name, effect in effects.items()
  }
  data = named_table(
    title,
    [
      {'what': name, 'difference': mean, 'low': low, 'high': high}
      for name, (mean, low, high) in bounds.items()
    ],
    source,
  )
  panel = plots.intervals(
    title, list(bounds), [tuple(v) for v in bounds.values()], x_label
  )
  alt = (
    'Mean differences over seeds with their 95 % intervals; right of 0 is more '
    'accurate.'
  )
  return [Figure(title, [panel], alt, data)]


def accuracy_by_size(
  rows: Sequence[Row],
  shown: Mapping[str, str],
  labels: Mapping[str, str],
  source: str,
) -> list[Block]:
  """A figure for each data set of which several sizes are there.

  Args:
    rows: of the study or report.
    shown: style of line, a key of plots.COLOURS -> arm.
    labels: arm -> label.
    source: files that the rows come from.
  """
  places = runs.places(rows)
  series = dict.fromkeys((place.dataset, place.recipe) for place in places)
  figures: list[Block] = []
  for one in series:
    at_sizes = [p for p in places if (p.dataset, p.recipe) == one]
    if len(at_sizes) < 2:
      continue
    name = ', '.join(part for part in one if part)
    lines, bands, table = {}, {}, []
    for style, arm in shown.items():
      found = [
        (next(iter(at.values()))['num_train'], _spread(rows, place, arm))
        for place in at_sizes
        if (at := runs.at(rows, place, arm))
      ]
      if not found:
        continue
      x = [count for count, _ in found]
      lines[style] = x, [spread['mean'] for _, spread in found]
      bands[style] = tuple(
        [spread[end] for _, spread in found] for end in ('low', 'high')
      )
      table += [
        {
          'arm': labels[arm],
          'training images': count,
          'test accuracy': spread['mean'],
          '95 % over seeds': interval(spread['low'], spread['high']),
        }
        for count, spread in found
      ]
    if lines:
      figures.append(
        Figure(
          f'Accuracy against labels: {name}',
          [
            plots.lines(
              name,
              lines,
              bands=bands,
              x_label='training images',
              y_label='test accuracy',
              log_x=True,
            )
          ],
          f'Mean test accuracy on {name} against the number of training '
          'images; bands are 95 % intervals over seeds.',
          named_table(f'Accuracy on {name}', table, source),
          plots.legend(list(lines), {s: labels[shown[s]] for s in lines}),
        )
      )
  return figures


def _spread(rows: Sequence[Row], place: runs.Place, arm: str) -> dict:
  return statistics.mean_interval(runs.values(rows, place, arm, 'top1'))
