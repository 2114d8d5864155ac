"""Did TL+KD beat TL? Over seeds where there are several, else over images."""

import dataclasses
import math
from typing import Any

import numpy as np

from tlkd_jax.evaluation import comparison, curves, metrics, statistics
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Figure, Section, Table, Text, interval
from tlkd_jax.report.context import Context, relative
from tlkd_jax.report.runs import LABELS, Collection, Setting, align

# What is compared over seeds; all of METRICS for the pair on show.
METRIC_NAMES = (
  'top1',
  'balanced_accuracy',
  'macro_f1',
  'nll',
  'brier',
  'ece',
  'aurc',
)

_SEVERAL = (
  " Means over seeds. The interval is Student's over the paired differences; p "
  "is the exact sign-flip test's, corrected (Holm) over settings for the "
  'verdict only.'
)


@dataclasses.dataclass(frozen=True)
class Judged:
  """A setting with the test metrics of its runs.

  Attributes:
    setting: of the pairs.
    values: metric -> (TL+KD [k], TL [k]), one entry per pair.
    tests: metric -> statistics.compare_paired of them.
  """

  setting: Setting
  values: dict[str, tuple[np.ndarray, np.ndarray]]
  tests: dict[str, dict[str, Any]]


def judge(setting: Setting, notes: list[str]) -> Judged | None:
  """Measures all pairs of a setting; None if none has comparable answers."""
  found: dict[str, list[tuple[float, float]]] = {n: [] for n in METRIC_NAMES}
  for pair in setting.pairs:
    stored = [run.predictions('test') for run in (pair.kd, pair.tl)]
    both = align(*stored) if all(s is not None for s in stored) else None
    if both is None:
      notes.append(
        f'{pair.kd.path} and {pair.tl.path} have no predictions of the same '
        'test images and were left out.'
      )
      continue
    for name in METRIC_NAMES:
      metric = metrics.METRICS[name]
      kd, tl = (metric(p.logits, p.labels) for p in both)
      found[name].append((kd, tl))
  if not found['top1']:
    return None
  values = {n: tuple(np.array(v).T) for n, v in found.items()}
  tests = {
    name: statistics.compare_paired(
      kd, tl, higher_is_better=name not in metrics.LOWER_IS_BETTER
    )
    for name, (kd, tl) in values.items()
  }
  return Judged(setting, values, tests)


def verdicts(judged: list[Judged], name: str) -> list[str]:
  """'better', 'worse' or 'inconclusive' by setting, Holm's p over settings."""
  adjusted = statistics.holm([j.tests[name]['p_sign_flip'] for j in judged])
  higher = name not in metrics.LOWER_IS_BETTER
  return [
    statistics.verdict(j.tests[name]['mean_difference'], p, higher)
    for j, p in zip(judged, adjusted, strict=True)
  ]


def section(
  judged: list[Judged], context: Context | None, collection: Collection, out
) -> Section:
  """The answer, the runs it rests on, and the pairs by seed."""
  blocks: list = [Text(sentence(judged, context), 'lead')]
  blocks += [Text(text) for text in _remarks(judged, context)]
  if judged:
    blocks += _seed_blocks(judged, out)
  blocks.append(_runs_table(collection, out))
  blocks += [Text(note) for note in collection.notes]
  return Section('answer', 'Did TL+KD beat TL?', blocks)


def sentence(judged: list[Judged], context: Context | None) -> str:
  """One sentence with numbers and their uncertainty."""
  if not judged:
    return (
      'There is no answer here: no TL and TL+KD run of the same configuration '
      'and seed are among the runs of this report. Give it the workdir of '
      '`configs/compare.py`, or a TL and a TL+KD run.'
    )
  if len(judged) > 1:
    return _over_settings(judged)
  test = judged[0].tests['top1']
  if test['pairs'] == 1 and context is not None:
    return _one_seed(context)
  kd, tl = (values.mean() for values in judged[0].values['top1'])
  verdict = test['verdict']
  word = {
    'better': 'Yes',
    'worse': 'No, it was worse',
    'inconclusive': 'Inconclusive',
  }[verdict]
  return (
    f'{word}: over {test["pairs"]} seeds on {judged[0].setting.title}, the '
    f'mean test accuracy was {_percent(kd)} with the teacher (TL+KD) and '
    f'{_percent(tl)} without (TL), a difference of '
    f'{_points(test["mean_difference"])} points (95 % interval '
    f'{_points(test["ci_low"])} to {_points(test["ci_high"])}; exact sign-flip '
    f'p = {test["p_sign_flip"]:.3g}, with {test["pairs"]} pairs it cannot be '
    f'below {test["smallest_p"]:.3g}).'
  )


def _one_seed(context: Context) -> str:
  kd, tl = context.test['kd'], context.test['tl']
  found = comparison.paired_bootstrap(
    kd.logits, tl.logits, tl.labels, names=['top1']
  )['top1']
  right = [p.logits.argmax(axis=1) == tl.labels for p in (kd, tl)]
  p = comparison.mcnemar(*right)['p']
  apart = found['low'] > 0 or found['high'] < 0
  chance = (
    'more than the choice of test images explains'
    if apart
    else 'no more than the choice of test images explains'
  )
  return (
    f'One seed: inconclusive. This TL+KD model got {_percent(found["x"])} of '
    f'the {len(tl.labels):,} test images right and this TL model '
    f'{_percent(found["y"])}, a difference of {_points(found["difference"])} '
    f'points (95 % interval over images {_points(found["low"])} to '
    f'{_points(found["high"])}, McNemar p = {p:.2g}), which is {chance}; '
    'whether the method helps is seen only over several seeds.'
  )


def _over_settings(judged: list[Judged]) -> str:
  found = verdicts(judged, 'top1')
  counts = {
    word: found.count(word) for word in ('better', 'worse', 'inconclusive')
  }
  means = np.array([j.tests['top1']['mean_difference'] for j in judged])
  pairs = [j.tests['top1']['pairs'] for j in judged]
  least = statistics.smallest_p(max(pairs))
  seeds = (
    f'{min(pairs)}'
    if min(pairs) == max(pairs)
    else f'{min(pairs)}–{max(pairs)}'
  )
  if max(pairs) == 1:
    start = 'One seed each: inconclusive'
  elif counts['better'] and not counts['worse']:
    start = 'Yes, in part' if counts['inconclusive'] else 'Yes'
  elif counts['worse'] and not counts['better']:
    start = 'No'
  else:
    start = 'It depends' if counts['better'] else 'Inconclusive'
  return (
    f'{start}: of {len(judged)} settings (data set, training size, recipe; '
    f'{seeds} seed{"s" * (max(pairs) > 1)} each) TL+KD was better than TL in '
    f'{counts["better"]}, worse in {counts["worse"]} and inconclusive in '
    f"{counts['inconclusive']} by test accuracy (exact sign-flip test, Holm's "
    'correction over the settings); the mean difference ranged from '
    f'{_points(means.min())} to {_points(means.max())} points and was '
    f'{_points(means.mean())} on average. With so many seeds one p cannot be '
    f'below {least:.3g}.'
  )


def _remarks(judged: list[Judged], context: Context | None) -> list[str]:
  texts = []
  if context is not None and 'teacher' in context.test:
    teacher, tl = context.test['teacher'], context.test['tl']
    gap = metrics.top1(teacher.logits, teacher.labels) - metrics.top1(
      tl.logits, tl.labels
    )
    if gap <= 0:
      texts.append(
        f'The teacher of the pair on show is no better than TL ({_points(gap)} '
        'points on test): it may have little to teach here.'
      )
  for one in judged:
    test = one.tests['top1']
    if 1 < test['pairs'] and test['smallest_p'] >= statistics.ALPHA:
      texts.append(
        f'{one.setting.title}: with {test["pairs"]} seeds no exact two-sided '
        f'test gets below {test["smallest_p"]:.3g}, so the verdict is '
        '"inconclusive" whatever the numbers; 6 seeds are the least.'
      )
  return texts


def _seed_blocks(judged: list[Judged], out) -> list:
  rows, shown, names = [], [], []
  several = any(j.tests['top1']['pairs'] > 1 for j in judged)
  by_metric = {name: verdicts(judged, name) for name in METRIC_NAMES}
  for i, one in enumerate(judged):
    for name in METRIC_NAMES:
      test = one.tests[name]
      kd, tl = (values.mean() for values in one.values[name])
      row = [one.setting.title, name, test['pairs'], float(kd), float(tl)]
      row.append(test['mean_difference'])
      if several:
        span = interval(test['ci_low'], test['ci_high'])
        p = test['p_sign_flip'] if test['pairs'] > 1 else None
        row += [span, p, test['smallest_p'], test['cohen_dz']]
      alone = test['pairs'] == 1
      row.append('one seed: inconclusive' if alone else by_metric[name][i])
      rows.append(row)
    test = one.tests['top1']
    names.append(one.setting.title)
    shown.append((test['mean_difference'], test['ci_low'], test['ci_high']))
  columns = ['setting', 'metric', 'seeds', 'TL+KD', 'TL', 'difference']
  if several:
    columns += ['95 % interval', 'p', 'smallest p', 'd_z']
  columns.append('verdict')
  source = ', '.join(
    dict.fromkeys(
      f'{relative(run.path, out)}/predictions/test.npz'
      for one in judged
      for pair in one.setting.pairs
      for run in (pair.tl, pair.kd)
    )
  )
  title = 'Paired by seed: TL+KD minus TL on test'
  note = 'Smaller is better for nll, brier, ece, aurc.' + several * _SEVERAL
  table = Table(title, columns, rows, source, note)
  blocks: list = [table]
  if len(judged) > 1:
    blocks.append(
      Figure(
        'Difference in test accuracy by setting',
        [
          plots.intervals(
            'TL+KD minus TL', names, shown, 'difference in top-1 accuracy'
          )
        ],
        'Mean difference over seeds with its 95 % interval; right of 0 the '
        'teacher helped.',
        Table(
          'Difference in top-1 accuracy',
          ['setting', 'difference', 'low', 'high'],
          [[n, *map(float, row)] for n, row in zip(names, shown, strict=True)],
          source,
        ),
      )
    )
  return blocks + _size_blocks(judged, source)


def _size_blocks(judged: list[Judged], source: str) -> list:
  """Accuracy against the number of training images, where several are there."""
  families: dict[tuple[str, str], list[Judged]] = {}
  for one in judged:
    key = (one.setting.dataset, one.setting.variant)
    families.setdefault(key, []).append(one)
  panels, rows, texts = [], [], []
  for (dataset, variant), members in families.items():
    members = sorted(members, key=lambda j: j.setting.num_train)
    sizes = [j.setting.num_train for j in members]
    if len(set(sizes)) < 2 or len(set(sizes)) < len(sizes):
      continue
    title = ', '.join(part for part in (dataset, variant) if part)
    curves_, bands = {}, {}
    for arm, place in (('tl', 1), ('kd', 0)):
      values = [j.values['top1'][place] for j in members]
      spans = [statistics.mean_interval(v) for v in values]
      curves_[arm] = (sizes, [s['mean'] for s in spans])
      if all(len(v) > 1 for v in values):
        bands[arm] = ([s['low'] for s in spans], [s['high'] for s in spans])
      rows += [
        [title, n, LABELS[arm], s['mean'], s['low'], s['high']]
        for n, s in zip(sizes, spans, strict=True)
      ]
    panels.append(
      plots.lines(
        title,
        curves_,
        bands=bands,
        x_label='training images',
        y_label='top-1 accuracy on test',
        log_x=True,
      )
    )
    texts += _worth(title, sizes, members)
  if not panels:
    return []
  figure = Figure(
    'Test accuracy against the number of training images',
    panels,
    'Mean over seeds of TL and TL+KD by size of the training set; bands are '
    '95 % intervals over seeds.',
    Table(
      'Accuracy by training size',
      ['data', 'training images', 'arm', 'mean top-1', 'low', 'high'],
      rows,
      source,
    ),
    legend=plots.legend(['tl', 'kd'], LABELS),
  )
  return [figure, *texts]


def _worth(title: str, sizes: list[int], members: list[Judged]) -> list[Text]:
  counts = {len(j.values['top1'][0]) for j in members}
  if len(counts) > 1:
    return []
  kd, tl = (
    np.array([j.values['top1'][place] for j in members]).T for place in (0, 1)
  )
  found = curves.label_efficiency(sizes, kd, tl)
  if math.isnan(found['percent_more_labels']):
    return [
      Text(
        f'{title}: what the teacher is worth in labels cannot be read here, '
        'TL and TL+KD reach no accuracy in common over these sizes.'
      )
    ]
  span = interval(found['low'], found['high'])
  return [
    Text(
      f'{title}: in labels the teacher is worth '
      f'{found["percent_more_labels"]:+.0f} % (95 % interval over seeds: '
      f'{span}).'
    )
  ]


def _runs_table(collection: Collection, out) -> Table:
  rows = []
  for run in collection.runs:
    role = 'teacher' if run.arm == 'teacher' else 'student'
    config = run.config
    rows.append(
      [
        relative(run.path, out),
        run.label,
        run.dataset,
        run.size,
        run.seed,
        config[f'{role}.name'],
        int(config['image_size']),
        int(run.summary['num_train']),
        run.summary[role]['test']['top1'],
        float(run.summary['seconds']),
      ]
    )
  columns = ['run', 'arm', 'data', 'size', 'seed', 'model', 'pixels']
  columns += ['training images', 'top-1 on test', 'training seconds']
  return Table(
    'The runs', columns, rows, 'config.json and summary.json of each run'
  )


def _percent(value: float) -> str:
  return f'{100 * value:.1f} %'


def _points(value: float) -> str:
  return '–' if math.isnan(value) else f'{100 * value:+.1f}'


def short(judged: list[Judged]) -> list[dict[str, Any]]:
  """The tests by setting and metric, for report.json."""
  return [
    {
      'setting': one.setting.title,
      'seeds': [pair.tl.seed for pair in one.setting.pairs],
      'tests': one.tests,
      'values': {
        name: {'kd': kd, 'tl': tl} for name, (kd, tl) in one.values.items()
      },
    }
    for one in judged
  ]
