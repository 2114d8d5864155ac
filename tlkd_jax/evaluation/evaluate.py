"""Runs a model over a split once; everything after works on its predictions."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tlkd_jax.evaluation import fidelity, metrics, records
from tlkd_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Predictions:
  """A model's outputs on a split, in the order of the split.

  Attributes:
    logits: float32 [N, K].
    pre_logits: float32 [N, D].
    labels: int32 [N].
    indices: int64 [N], each example's number in its data set.
  """

  logits: np.ndarray
  pre_logits: np.ndarray
  labels: np.ndarray
  indices: np.ndarray


# What a run reports of itself; a study adds the rest from the predictions.
SUMMARY_METRICS = ('top1', 'top5', 'macro_f1', 'nll', 'ece')


def predict(
  eval_step: Callable,
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
) -> Predictions:
  """Collects outputs over padded batches, dropping what `mask` says is padding.

  Args:
    eval_step: from network.make_eval_step.
    variables: (params, model_state), on the mesh.
    batches: this process's share of each global batch.
    mesh: devices.
  """
  columns: dict[str, list[np.ndarray]] = {}
  for batch in batches:
    on_device = sharding.shard_batch(batch, mesh)
    outputs = eval_step(variables, on_device['image'])
    rest = sharding.gather(
      {name: on_device[name] for name in ('label', 'index', 'mask')}, mesh
    )
    host = jax.device_get(outputs | rest)
    keep = host['mask'] > 0
    for name, value in host.items():
      columns.setdefault(name, []).append(np.asarray(value)[keep])
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Predictions(
    logits=joined['logits'].astype(np.float32),
    pre_logits=joined['pre_logits'].astype(np.float32),
    labels=joined['label'],
    indices=joined['index'],
  )


def summarize(
  predictions: Predictions, teacher: Predictions | None = None
) -> dict[str, Any]:
  """The metrics of a run's summary.

  Args:
    predictions: of the model.
    teacher: of its teacher on the same examples, for `teacher_agreement`.
  """
  logits, labels = predictions.logits, predictions.labels
  summary: dict[str, Any] = {
    name: metrics.METRICS[name](logits, labels) for name in SUMMARY_METRICS
  }
  summary['count'] = len(labels)
  if teacher is not None:
    summary['teacher_agreement'] = fidelity.agreement(logits, teacher.logits)
  return summary


def save(
  path: str | pathlib.Path, predictions: Predictions, step: int | None = None
) -> None:
  """Writes `predictions/<split>.npz`, whole or not at all.

  Args:
    path: of the file.
    predictions: of a split.
    step: of the weights; None at the end of a run, whose best it is.
  """
  arrays = dataclasses.asdict(predictions)
  if step is not None:
    arrays['step'] = np.asarray(step)
  records.write_arrays(pathlib.Path(path), arrays)


def save_confusions(
  folder: pathlib.Path, found: Mapping[str, Predictions]
) -> None:
  """Writes `predictions/confusion.npz`: name -> counts, int64 [K, K].

  Rows are true classes, columns predicted ones. Not part of a summary, as it
  grows with the square of the classes.

  Args:
    folder: a run's `predictions`.
    found: 'validation', 'test', and those of the teacher as 'teacher_...'.
  """
  arrays = {
    name: metrics.confusion_matrix(one.logits, one.labels)
    for name, one in found.items()
  }
  records.write_arrays(folder / 'confusion.npz', arrays)


def load(path: str | pathlib.Path) -> Predictions:
  """Reads what `save` wrote."""
  return load_with_step(path)[0]


def load_with_step(
  path: str | pathlib.Path,
) -> tuple[Predictions, int | None]:
  """The same, and the step that was given to `save`."""
  arrays = records.read_arrays(pathlib.Path(path))
  step = arrays.pop('step', None)
  return Predictions(**arrays), None if step is None else int(step)
