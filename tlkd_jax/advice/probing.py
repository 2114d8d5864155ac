"""Step 2: what frozen features of each candidate know of the classes.

Logistic regression on the features of a pretrained network, fitted to training
images and scored on validation images; with folds, cross-validated on all that
is not test in a fold, fold by fold, so that a choice that all folds make has
seen no test image.
"""

import dataclasses
import time
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tlkd_jax.advice.request import Candidate, Request, settings_of
from tlkd_jax.data import Dataset, Fold, sources
from tlkd_jax.data import pipeline as batches
from tlkd_jax.evaluation import evaluate, metrics
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.training import decoding, logistic, networks, preparation

_STRENGTHS = logistic.STRENGTHS[1::3]
_INNER_FOLDS = 3
# By which the strength is chosen.
_MOST_CHOSEN_BY = 256
_SECONDS_TIMED = 2.0


@dataclasses.dataclass(frozen=True)
class Probe:
  """A candidate at one size.

  Attributes:
    model: as Candidate is written.
    image_size: side in pixels.
    accuracy: on validation.
    nll: likewise.
    by_fold: nll of each fold; () without folds.
    milliseconds: of a prediction, in batches, on this machine.
    images: that were seen, of training and validation.
    fit_seconds: of the regression, for one row of features.
  """

  model: str
  image_size: int
  accuracy: float
  nll: float
  by_fold: tuple[float, ...]
  milliseconds: float
  images: int
  fit_seconds: float

  @property
  def candidate(self) -> Candidate:
    """The model."""
    name, _, weights = self.model.partition('=')
    return Candidate(name, weights or 'pretrained')


def from_json(stored: dict[str, Any]) -> Probe:
  """Of dataclasses.asdict."""
  return Probe(**stored | {'by_fold': tuple(stored['by_fold'])})


def measure(
  request: Request,
  candidate: Candidate,
  image_size: int,
  looked: dict[str, Any],
  most: int,
  mesh: Mesh,
) -> Probe:
  """Scores a candidate at one size.

  Args:
    request: of the advice.
    candidate: the model.
    image_size: side in pixels.
    looked: from looking.look.
    most: images of training, and of validation, at most, stratified.
    mesh: devices.

  Raises:
    ValueError, FileNotFoundError: weights or images that cannot be read.
  """
  folds, classes = looked['folds'], looked['classes']
  counts = looked['counts']
  share = 1.0 if folds else min(1.0, most / counts['train'])
  some = 0 if folds else max(1, -(-most // classes))
  values = {
    'num_train_per_class': 0,
    'train_fraction': share,
    'data.num_validation_per_class': some,
    # None of them is looked at, unless it is trained on in another fold.
    'data.num_test_per_class': 0 if folds else 1,
    'data.folds': folds,
    'data.fold': 0 if folds else None,
    # As they are evaluated, and no larger.
    'data.train_size': image_size,
  }
  own = settings_of(request, candidate, image_size, values)
  dataset = decoding.load_seen(own, preparation.look_of_data(own))
  loaded = networks.load(own, 'student', dataset.class_names)
  step = make_eval_step(loaded.network, mesh)
  variables = sharding.replicate((loaded.params, loaded.model_state), mesh)

  def predict(split) -> evaluate.Predictions:
    found = batches.eval_batches(
      split, own.batch_size, **sharding.this_process()
    )
    return evaluate.predict(step, variables, found, mesh)

  # Compiles, so that what is timed is the network.
  predict(dataset.splits['train'].take(slice(0, own.batch_size)))
  seen, passes = {}, []
  # Others may use the machine too: the best pass, of several of few images.
  while sum(passes) < _SECONDS_TIMED:
    begun = time.monotonic()
    seen['train'] = predict(dataset.splits['train'])
    passes.append(time.monotonic() - begun)
  rest = ('validation', 'test') if folds else ('validation',)
  seen |= {name: predict(dataset.splits[name]) for name in rest}
  begun = time.monotonic()
  if folds:
    scored = _by_folds(request, dataset, seen, folds)
  else:
    scored = [_once(seen['train'], seen['validation'], classes)]
  rows = len(seen['train'].labels) * max(len(scored), 1)
  return Probe(
    model=str(candidate),
    image_size=image_size,
    accuracy=float(np.mean([accuracy for accuracy, _ in scored])),
    nll=float(np.mean([nll for _, nll in scored])),
    by_fold=tuple(nll for _, nll in scored) if folds else (),
    milliseconds=1000 * min(passes) / len(seen['train'].labels),
    images=sum(len(one.labels) for one in seen.values()),
    fit_seconds=(time.monotonic() - begun) / rows,
  )


def _once(
  train: evaluate.Predictions, validation: evaluate.Predictions, classes: int
) -> tuple[float, float]:
  """(accuracy, NLL) on validation of a probe of training images."""
  features = train.pre_logits[:, None]
  some = np.linspace(0, len(features) - 1, _MOST_CHOSEN_BY).astype(int)
  strength = _choose(
    features[np.unique(some)], train.labels[np.unique(some)], classes
  )
  head = logistic.fit(features, train.labels, classes, strength, logistic.ROUGH)
  return _score(head.logits(validation.pre_logits), validation.labels)


def _by_folds(
  request: Request,
  dataset: Dataset,
  seen: dict[str, evaluate.Predictions],
  folds: int,
) -> list[tuple[float, float]]:
  """(accuracy, NLL) for each fold, cross-validated on what is not its test."""
  indices = np.concatenate([one.indices for one in seen.values()])
  labels = np.concatenate([one.labels for one in seen.values()])
  features = np.concatenate([one.pre_logits for one in seen.values()])
  base = settings_of(request, request.students[0], 64)
  classes = len(dataset.class_names)
  found = []
  for number in range(folds):
    tested = sources.open_sources(
      base.dataset,
      data_dir=base.data.data_dir,
      cache_dir=base.data.cache_dir,
      labelling=decoding.labelling(base),
      fold=Fold(number, folds),
    ).splits['test']
    kept = np.flatnonzero(~np.isin(indices, tested.indices))
    found.append(_crossed(features[kept, None], labels[kept], classes))
  return found


def _crossed(
  features: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[float, float]:
  """(accuracy, NLL) by heads that did not see the images; [N, 1, D], [N]."""
  strength = _choose(features, labels, classes)
  inner = logistic.make_folds(labels, _INNER_FOLDS, 0)
  logits = np.zeros((len(labels), classes))
  for fold in range(_INNER_FOLDS):
    kept, out = inner != fold, inner == fold
    head = logistic.fit(
      features[kept], labels[kept], classes, strength, logistic.ROUGH
    )
    logits[out] = head.logits(features[out, 0])
  return _score(logits, labels)


def _choose(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
  folds = logistic.make_folds(labels, _INNER_FOLDS, 0)
  return logistic.choose(features, labels, folds, classes, _STRENGTHS)


def _score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  return metrics.top1(logits, labels), metrics.nll(logits, labels)
