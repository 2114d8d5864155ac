"""Sections on probabilities: calibration, risk and coverage, other data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.evaluation import calibration, reliability, selective
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Figure, Section, Table, named_table
from tlkd_jax.report.context import Context, missing

_POINTS = 120


def calibration_section(context: Context) -> Section:
  """Reliability diagrams and what a temperature mends."""
  before, after, data, rows = [], [], [], []
  for arm in context.arms:
    test, validation = context.test[arm], context.validation.get(arm)
    bins = reliability.reliability_diagram(test.logits, test.labels)
    before.append(plots.reliability(context.named[arm], {arm: bins}))
    data += bin_rows({'model': context.named[arm]}, bins)
    level = calibration.calibrated_ece_level(test.logits, 0)
    if validation is None:
      continue
    found = calibration.temperature_scaling(
      validation.logits, validation.labels, test.logits, test.labels
    )
    scaled = test.logits.astype(np.float64) / found['temperature']
    bins = reliability.reliability_diagram(scaled, test.labels)
    name = f'{context.named[arm]}, T = {found["temperature"]:.2f}'
    after.append(plots.reliability(name, {arm: bins}))
    data += bin_rows({'model': name}, bins)
    raw, scaled = found['before'], found['after']
    bound = ' (at the bound)' if found['at_bound'] else ''
    rows.append(
      {
        'model': context.named[arm] + bound,
        'T': found['temperature'],
        'ECE': raw['ece'],
        'ECE at T': scaled['ece'],
        'ECE if calibrated, 95 %': level['quantile_95'],
        'class-wise ECE': raw['ece_classwise'],
        'class-wise at T': scaled['ece_classwise'],
        'NLL': raw['nll'],
        'NLL at T': scaled['nll'],
        'Brier': raw['brier'],
        'Brier at T': scaled['brier'],
        'overconfidence': raw['overconfidence'],
      }
    )
  source = context.source('predictions/validation.npz', 'predictions/test.npz')
  table = named_table(
    'Calibration on test, before and after temperature scaling',
    rows,
    source,
    'T is fitted on validation by NLL. A perfectly calibrated model of these '
    'confidences would stay below the level named "if calibrated" in 95 of '
    '100 such test splits. Overconfidence: mean confidence minus accuracy.',
  )
  figure = Figure(
    'Reliability diagrams',
    before + after,
    'Accuracy against confidence in 15 bins, before and after temperature '
    'scaling; on the dotted line confidence is as large as accuracy. Grey: '
    'share of the images in the bin.',
    named_table('Bins', data, source),
  )
  return Section('calibration', 'Calibration', [table, figure])


def bin_rows(
  named: Mapping[str, str], bins: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """Rows of a table of bins that are not empty, each beginning with `named`."""
  return [
    {
      **named,
      'from': float(bins['lower'][i]),
      'to': float(bins['upper'][i]),
      'images': int(count),
      'accuracy': float(bins['accuracy'][i]),
      'mean confidence': float(bins['confidence'][i]),
    }
    for i, count in enumerate(bins['count'])
    if count
  ]


def selective_section(context: Context) -> Section:
  """Risk against coverage."""
  lines, data = {}, []
  for arm in context.arms:
    one = context.test[arm]
    curve = selective.risk_coverage_curve(one.logits, one.labels)
    count = len(curve['risk'])
    rows = np.unique(
      np.linspace(0, count - 1, min(_POINTS, count)).round().astype(int)
    )
    x, y = curve['coverage'][rows], curve['risk'][rows]
    lines[arm] = (x, y)
    data += [
      [context.named[arm], float(a), float(b)]
      for a, b in zip(x, y, strict=True)
    ]
  figure = Figure(
    'Risk against coverage',
    [
      plots.lines(
        'Error among the most confident',
        lines,
        x_label='coverage',
        y_label='error rate',
        markers=False,
      )
    ],
    'Error rate among the most confident share of the test images; the lower '
    'the curve, the better a model knows when it is right.',
    Table(
      'Risk by coverage',
      ['model', 'coverage', 'risk'],
      data,
      context.source('predictions/test.npz'),
    ),
    legend=plots.legend(context.arms, context.named),
  )
  return Section('coverage', 'Knowing when it is right', [figure])


def ood_section(context: Context) -> Section:
  """Telling another data set's images apart."""
  title = 'Other data than trained on'
  rows, used = [], []
  for arm in context.arms:
    run = context.run(arm)
    record = run.record('ood') if run else None
    if record is None:
      continue
    used.append(arm)
    for score, values in record['scores'].items():
      rows.append(
        {
          'model': context.named[arm],
          'other data': record['out'],
          'score': score,
          'AUROC': values['auroc'],
          'FPR at 95 % TPR': values['fpr95'],
          'AUPR in': values['aupr_in'],
          'AUPR out': values['aupr_out'],
          'images in': record['in_count'],
          'images out': record['out_count'],
        }
      )
  blocks: list = []
  if rows:
    blocks.append(
      named_table(
        'Telling the test images from other data',
        rows,
        context.source('evaluation/ood.json', arms=used),
        'Positive: in-distribution (AUPR out: the other data). AUROC 0.5 is '
        'chance; below it, the other data look more familiar.',
      )
    )
  if not {'tl', 'kd'} <= set(used):
    blocks.append(missing(context, 'ood', 'The comparison with other data'))
  return Section('ood', title, blocks)
