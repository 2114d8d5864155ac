"""Sections to look at: Grad-CAM, changed and badly answered images."""

import io
from typing import Any

import numpy as np
from PIL import Image

from tlkd_jax.evaluation import comparison, gradcam, metrics, statistics
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import (
  Block,
  Gallery,
  Picture,
  Section,
  Table,
  interval,
  named_table,
)
from tlkd_jax.report.context import Context, missing, read_images

_CHANGED = 8
_WORST = 8
_MAPS = 12
# Of a picture on the page, pixels.
_SIDE = 112


def changed_section(context: Context) -> Section:
  """Images whose true class gained or lost most, and the worst answers."""
  images = read_images(context)
  kd, tl, labels = context.test['kd'], context.test['tl'], context.labels
  found = comparison.most_changed(kd.logits, tl.logits, labels, len(labels))
  taught = context.pair.kd.kind == 'kd'
  gained_by = 'the teacher' if taught else context.named['kd']
  blocks: list[Block] = []
  if not images:
    blocks.append(missing(context, 'qualitative', 'The pictures'))
  for kind, title in (
    ('improved', f'Where the true class gained most with {gained_by}'),
    ('worsened', 'Where it lost most'),
  ):
    blocks += _changes(context, found[kind], title, images)
  losses = metrics.nll_per_example(kd.logits, labels)
  worst = np.argsort(-losses, kind='stable').tolist()
  blocks += _worst(context, worst, images)
  return Section('pictures', 'Changed and badly answered images', blocks)


def _changes(context, rows, title, images) -> list[Block]:
  indices = context.test['tl'].indices
  names, name_of_kd = context.class_names, context.named['kd']
  shown = [r for r in rows if int(indices[r['position']]) in images]
  shown = shown[:_CHANGED]
  pictures = [
    Picture(
      [(images[int(indices[r['position']])], '')],
      f'{names[r["label"]]}: p {r["y_probability"]:.2f} (TL: '
      f'{names[r["y_class"]]}) → {r["x_probability"]:.2f} ({name_of_kd}: '
      f'{names[r["x_class"]]})',
    )
    for r in shown
  ]
  table = named_table(
    f'{title}: the first {min(len(rows), 2 * _CHANGED)}',
    [
      {
        'index': int(indices[r['position']]),
        'true class': names[r['label']],
        'p by TL': r['y_probability'],
        f'p by {name_of_kd}': r['x_probability'],
        'TL says': names[r['y_class']],
        f'{name_of_kd} says': names[r['x_class']],
      }
      for r in rows[: 2 * _CHANGED]
    ],
    context.source('predictions/test.npz', arms=['tl', 'kd']),
    'Probability of the true class.',
  )
  if not pictures:
    return [table]
  source = context.source('evaluation/images.npz', arms=['tl', 'kd'])
  return [Gallery(title, pictures, source, data=table)]


def _worst(context, order, images) -> list[Block]:
  kd, indices = context.test['kd'], context.test['kd'].indices
  probabilities = softmax(kd.logits)
  names, labels = context.class_names, context.labels
  pictures = []
  for i in order:
    if len(pictures) == _WORST:
      break
    if int(indices[i]) not in images:
      continue
    said = int(probabilities[i].argmax())
    pictures.append(
      Picture(
        [(images[int(indices[i])], '')],
        f'{names[int(labels[i])]}, taken for {names[said]} with p '
        f'{probabilities[i, said]:.2f}',
      )
    )
  if not pictures:
    return []
  source = context.source('evaluation/images.npz', arms=['kd'])
  title = f'Worst answers of {context.named["kd"]}, by loss'
  return [Gallery(title, pictures, source)]


def gradcam_section(context: Context) -> Section:
  """Where the models look for the true class."""
  title = 'Where the models look'
  maps, records = {}, {}
  for arm in context.arms:
    run = context.run(arm)
    arrays = run.arrays('gradcam') if run else None
    if run and arrays is not None:
      maps[arm] = arrays
      records[arm] = run.record('qualitative')
  if not {'tl', 'kd'} <= set(maps):
    text = missing(context, 'qualitative', 'Grad-CAM')
    return Section('gradcam', title, [text])
  shared = maps['tl']['indices']
  for arrays in maps.values():
    shared = np.intersect1d(shared, arrays['indices'])
  aligned = {}
  for arm, arrays in maps.items():
    order = np.argsort(arrays['indices'])
    rows = order[np.searchsorted(arrays['indices'][order], shared)]
    aligned[arm] = arrays['maps'][rows].astype(np.float32)
  source = context.source(
    'evaluation/gradcam.npz', 'evaluation/images.npz', arms=list(maps)
  )
  stages = ', '.join(
    f'{context.named[arm]} {record["gradcam_stage"]} '
    f'({aligned[arm].shape[1]}x{aligned[arm].shape[2]})'
    for arm, record in records.items()
    if record
  )
  blocks: list[Block] = [
    _likeness(context, aligned, len(shared), source, stages)
  ]
  gallery = _overlays(context, shared, aligned, source)
  blocks.insert(0, gallery)
  return Section('gradcam', title, blocks)


def _likeness(
  context: Context, aligned, count: int, source: str, stages: str
) -> Table:
  pairs = [('tl', 'teacher'), ('kd', 'teacher'), ('kd', 'tl')]
  pairs = [(a, b) for a, b in pairs if a in aligned and b in aligned]
  found = {
    pair: gradcam.compare_maps(aligned[pair[0]], aligned[pair[1]])
    for pair in pairs
  }
  rows = []
  for (a, b), values in found.items():
    row: dict[str, Any] = {'models': f'{context.named[a]} – {context.named[b]}'}
    for key, name in (('rank_correlation', 'rank correlation'), ('iou', 'IoU')):
      span = statistics.mean_interval(values[key])
      row[name] = span['mean']
      row[f'{name}, 95 %'] = interval(span['low'], span['high'])
    row['images'] = int((~np.isnan(values['iou'])).sum())
    rows.append(row)
  note = ''
  if ('tl', 'teacher') in found and ('kd', 'teacher') in found:
    gain = (
      found['kd', 'teacher']['rank_correlation']
      - found['tl', 'teacher']['rank_correlation']
    )
    span = statistics.mean_interval(gain)
    note = (
      f" {context.named['kd']}'s maps correlate with the teacher's by "
      f"{span['mean']:+.3f} more than TL's do (95 % interval over images "
      f'{interval(span["low"], span["high"])}).'
    )
  return named_table(
    'How alike the maps are',
    rows,
    source,
    f'Means over the images (of {count}) where both maps show something. IoU '
    f'of the 20 % of pixels that speak loudest for the class. Stages: '
    f'{stages}.{note}',
  )


def _overlays(context, shared, aligned, source) -> Gallery:
  images = read_images(context)
  test = context.test
  probabilities = {arm: softmax(p.logits) for arm, p in test.items()}
  position = {int(n): i for i, n in enumerate(test['tl'].indices)}
  pictures = []
  for index in _chosen(context, shared, images):
    place = int(np.searchsorted(shared, index))
    i = position[index]
    image = np.asarray(Image.open(io.BytesIO(images[index])).convert('RGB'))
    label = int(context.labels[i])
    cells = [(images[index], 'image')]
    for arm, maps in aligned.items():
      heat = gradcam.resize(maps[place : place + 1], image.shape[:2])[0]
      heat = heat / heat.max() if heat.max() > 0 else heat
      said = int(probabilities[arm][i].argmax()) if arm in test else label
      own = probabilities[arm][i, label] if arm in test else float('nan')
      sign = '✓' if said == label else '✗ ' + context.class_names[said]
      overlay = _jpeg(plots.heat_overlay(image, heat))
      cells.append((overlay, f'{context.named[arm]} {own:.2f} {sign}'))
    pictures.append(Picture(cells, f'true class: {context.class_names[label]}'))
  return Gallery(
    'Grad-CAM for the true class',
    pictures,
    source,
    'Red speaks for the true class, blue does not; every map is scaled to its '
    'own maximum. Below a map: the probability of the true class, ✓ or what '
    'the model says instead. A third of the images gained most with the '
    'teacher, a third lost most, a third is spread over the test images.',
  )


def _chosen(context: Context, shared: np.ndarray, images) -> list[int]:
  kd, tl = context.test['kd'], context.test['tl']
  indices = tl.indices
  known = {int(n) for n in shared if int(n) in images} & set(indices.tolist())
  found = comparison.most_changed(
    kd.logits, tl.logits, context.labels, len(indices)
  )
  chosen: list[int] = []
  for kind in ('improved', 'worsened'):
    ordered = [int(indices[r['position']]) for r in found[kind]]
    chosen += [n for n in ordered if n in known][: _MAPS // 3]
  rest = sorted(known - set(chosen))
  if rest:
    places = np.linspace(0, len(rest) - 1, min(len(rest), _MAPS // 3))
    chosen += [rest[i] for i in places.round().astype(int)]
  return chosen


def _jpeg(pixels: np.ndarray) -> bytes:
  picture = Image.fromarray(pixels)
  picture.thumbnail((_SIDE, _SIDE))
  data = io.BytesIO()
  picture.save(data, 'JPEG', quality=80)
  return data.getvalue()
