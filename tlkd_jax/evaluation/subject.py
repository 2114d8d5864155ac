"""A finished run under evaluation: its model, its data and its predictions."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, Split, pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.network import Network
from tlkd_jax.runtime import sealed, sharding


@dataclasses.dataclass(frozen=True)
class Subject:
  """What the suites are given.

  Attributes:
    workdir: folder of the run.
    model: name of its model.
    step: training step of the weights.
    network: the model and how it looks at images.
    variables: (params, model_state), on the mesh.
    eval_step: from network.make_eval_step.
    dataset: the run's own data, or others with the split 'test'.
    batch_size: global.
    mesh: devices.
    teacher: workdir of the run's teacher; None where it has none.
    ood_dataset: what `ood` takes for out-of-distribution; None: its default.
    max_images: at most so many images for the suites that need the model more
      than once per image; None: all.
    place: '' for the run's own data; for others the folder below `evaluation`.
  """

  workdir: pathlib.Path
  model: str
  step: int
  network: Network
  variables: Any
  eval_step: Any
  dataset: Dataset
  batch_size: int
  mesh: Mesh
  teacher: pathlib.Path | None = None
  ood_dataset: str | None = None
  max_images: int | None = None
  place: str = ''

  @property
  def folder(self) -> pathlib.Path:
    """Where the suites write."""
    return self.workdir / 'evaluation' / self.place

  @property
  def predictions(self) -> pathlib.Path:
    """Where predictions on whole splits are kept."""
    return (self.folder if self.place else self.workdir) / 'predictions'

  def data_settings(self) -> dict[str, Any]:
    """The section `data` of the run's configuration, as it was recorded.

    Raises:
      FileNotFoundError: the run has none.
      ValueError: it is damaged.
    """
    return sealed.read_json(self.workdir / 'config.json').get('data', {})

  def batches(self, split: Split) -> Iterable[dict[str, np.ndarray]]:
    """This process's share of each batch of a split, in order."""
    return pipeline.eval_batches(
      split, self.batch_size, **sharding.this_process()
    )

  def predict(self, split: Split, change=None) -> evaluate.Predictions:
    """Predictions on a split; `change` maps batches to batches."""
    batches = self.batches(split)
    changed = batches if change is None else map(change, batches)
    return evaluate.predict(self.eval_step, self.variables, changed, self.mesh)

  def sample(self, split: str = 'test') -> Split:
    """At most max_images of a split, evenly spaced over its order.

    The choice depends on the split's length alone, so runs on the same data
    that are limited alike see the same images.
    """
    return take(self.dataset.splits[split], self.max_images)


def best_step(workdir: pathlib.Path) -> int | None:
  """Of a run's own network, as its summary says; None before the run's end.

  Raises:
    ValueError: the summary is damaged.
  """
  path = workdir / 'summary.json'
  return sealed.read_json(path).get('best_step') if path.exists() else None


def take(split: Split, count: int | None) -> Split:
  """At most `count` examples, evenly spaced over the split's order."""
  if count is None or count >= len(split):
    return split
  rows = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
  return split.take(rows)
