"""Where test images lie in the space of pre_logits, of one or more models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Block, Figure, named_table

TITLE = 'The space before the last layer'
_VIEWS = (('tsne', 't-SNE'), ('pca', 'PCA'))


@dataclasses.dataclass(frozen=True)
class View:
  """What the suite `qualitative` stored of one model.

  Attributes:
    name: of the model, for people.
    arrays: embedding.npz.
    record: qualitative.json, with the names of its classes by its own labels.
  """

  name: str
  arrays: Mapping[str, np.ndarray]
  record: Mapping[str, Any]


def blocks(
  views: Sequence[View], class_names: Sequence[str], source: str, note: str = ''
) -> list[Block]:
  """How well classes separate, and pictures of it; [] without a view.

  Args:
    views: of models that saw the same classes.
    class_names: of all of them; a model may have them in another order.
    source: files that the numbers come from.
    note: of the pictures.
  """
  if not views:
    return []
  rows = [
    {
      'model': one.name,
      'images': one.record['embedding']['count'],
      'kNN accuracy': one.record['embedding']['knn_accuracy'],
      'silhouette': one.record['embedding']['silhouette'],
      'variance in PCA': float(
        np.sum(one.record['embedding']['explained_by_pca'])
      ),
    }
    for one in views
  ]
  labels = [_labels(one, class_names) for one in views]
  panels = [
    plots.scatter(f'{one.name}, {name}', one.arrays[kind], own)
    for kind, name in _VIEWS
    for one, own in zip(views, labels, strict=True)
  ]
  data = [
    {
      'model': one.name,
      'view': name,
      'index': int(i),
      'class': class_names[int(k)],
      'x': float(x),
      'y': float(y),
    }
    for one, own in zip(views, labels, strict=True)
    for kind, name in _VIEWS
    for i, k, (x, y) in zip(
      one.arrays['indices'], own, one.arrays[kind], strict=True
    )
  ]
  table = named_table(
    'How well classes separate',
    rows,
    source,
    'kNN: 10 nearest others by cosine distance, labels of test. Silhouette: '
    '-1 to 1, cosine.',
  )
  colours = plots.class_colours(len(class_names))
  names = list(zip(class_names, colours, strict=True))
  figure = Figure(
    'Test images by their pre_logits',
    panels,
    'Each point is a test image, coloured by its true class; t-SNE shows '
    'neighbourhoods (distances between clusters mean little), PCA the two '
    'directions of largest variance.',
    named_table('Places', data, source),
    legend=[(n, c, '') for n, c in names] if len(names) <= 20 else [],
    note=note,
  )
  return [table, figure]


def _labels(one: View, class_names: Sequence[str]) -> np.ndarray:
  """True classes of a model's images as places among the names, int [N]."""
  names, labels = one.record.get('class_names'), one.arrays['labels']
  if names is None or sorted(names) != sorted(class_names):
    return labels
  return np.asarray([class_names.index(name) for name in names])[labels]
