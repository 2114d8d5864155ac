"""Numbers of a model card, each from the stored predictions of a run."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from tlkd_jax.evaluation import bootstrap, evaluate, metrics, statistics
from tlkd_jax.evaluation.predictions import predicted_class
from tlkd_jax.report import pairing
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings, from_config
from tlkd_jax.training import decoding, workdir

REPLICATES = 1000
# Metric -> its name for people, and what the hub calls it, '' where it has no
# name for it.
_METRICS = {
  'top1': ('accuracy', 'accuracy'),
  'balanced_accuracy': ('balanced accuracy', ''),
  'macro_f1': ('macro F1', 'f1'),
  'nll': ('negative log likelihood', ''),
  'brier': ('Brier score', 'brier_score'),
  'ece': ('expected calibration error', ''),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A metric on test images with its 95 % interval."""

  label: str
  hub: str
  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Pair:
  """Accuracy of a student with a teacher and without; 95 % of the difference.

  Attributes:
    treatment: with one.
    reference: without.
    low: of the interval of the difference.
    high: likewise.
  """

  treatment: float
  reference: float
  low: float
  high: float

  @property
  def difference(self) -> float:
    """With a teacher minus without."""
    return self.treatment - self.reference


def metrics_of(test: evaluate.Predictions) -> list[Row]:
  """Metrics with intervals: Wilson's of the accuracy, else percentiles.

  The calibration error has none, as resamples have larger ones.

  Args:
    test: predictions on test images.
  """
  logits, labels = test.logits, test.labels
  counts = bootstrap.resample_counts(len(labels), REPLICATES, 0)
  drawn = bootstrap.bootstrap_metrics(logits, labels, counts, _METRICS)
  rows = []
  for name, (label, hub) in _METRICS.items():
    low, high = np.nanpercentile(drawn[name], (2.5, 97.5))
    value = metrics.METRICS[name](logits, labels)
    if name == 'ece':
      # Repeated images make bins that look worse calibrated than they are.
      low = high = np.nan
    elif name == 'top1':
      hits = round(value * len(labels))
      low, high = statistics.proportion_interval(hits, len(labels))
    rows.append(Row(label, hub, float(value), float(low), float(high)))
  return rows


def recalls(
  test: evaluate.Predictions, num_classes: int
) -> list[tuple[int, str]]:
  """For each class its test images, and the share that was found, in words."""
  hit = predicted_class(test.logits) == test.labels
  found = []
  for label in range(num_classes):
    own = hit[test.labels == label]
    words = ''
    if own.size:
      low, high = statistics.proportion_interval(int(own.sum()), own.size)
      words = f'{own.mean():.2f} ({low:.2f} to {high:.2f})'
    found.append((int(own.size), words))
  return found


def beside_tl(
  run: pathlib.Path, settings: Settings, test: evaluate.Predictions
) -> Pair | None:
  """A TL+KD run beside the TL run of the same recipe, data and seed.

  It is looked for where a comparison and a study have it: RUN/../tl and
  RUN/../../tl/NAME.

  Args:
    run: workdir of the TL+KD run.
    settings: of it.
    test: its predictions on test images.

  Returns:
    None where there is no such run, it has other test images, or anything else
    differs than what makes the arm: it would be no effect of the teacher.

  Raises:
    ValueError: its record is damaged.
  """
  run = run.resolve()
  for other in (run.parent / 'tl', run.parent.parent / 'tl' / run.name):
    stored = other / 'predictions' / 'test.npz'
    if not stored.exists() or not (other / 'config.json').exists():
      continue
    theirs = from_config(workdir.read(other))
    same = (
      theirs.arm == 'tl'
      and _recipe(theirs) == _recipe(settings)
      and decoding.data_key(theirs) == decoding.data_key(settings)
    )
    reference = evaluate.load(stored)
    if same and np.array_equal(reference.indices, test.indices):
      return _pair(test, reference)
  return None


def _recipe(settings: Settings) -> dict[str, Any]:
  return pairing.recipe(flatten(workdir.as_json(settings)))


def _pair(test: evaluate.Predictions, reference: evaluate.Predictions) -> Pair:
  hits, others = (
    (predicted_class(each.logits) == test.labels).astype(np.float64)
    for each in (test, reference)
  )
  low, high = statistics.bootstrap_mean_interval(hits - others)
  return Pair(float(hits.mean()), float(others.mean()), low, high)
