"""What a row keeps of a cell's predictions: what pages need, and no more."""

import pathlib
from typing import Any

import numpy as np

from tlkd_jax.answer.rows import Answers, make_answers, pack
from tlkd_jax.evaluation import (
  calibration,
  evaluate,
  metrics,
  records,
  reliability,
)
from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.training import data_record

# A confusion matrix of more classes is no table to commit.
_MOST_CLASSES = 50


def measure(folder: pathlib.Path) -> dict[str, Any]:
  """Of a finished cell's folder.

  Returns:
    `validation` and `test`, metric -> value (None for NaN); of test after
    temperature scaling on validation too, 'NAME_scaled'. `temperature`.
    `hits`, which test images it got right, packed; `agreed`, at which it
    answered as its teacher, packed, where that answered. `confusion`, counts
    by true and predicted class, and `classes`, their names, of few classes.
    `reliability`: of test, `before` temperature scaling and `after` it, what
    diagrams are added up from.
  """
  validation, test = (_load(folder, s) for s in ('validation', 'test'))
  both = validation.logits, validation.labels, test.logits, test.labels
  temperature = calibration.fit_temperature(*both[:2])
  scaled = test.logits.astype(np.float64) / temperature
  found: dict[str, Any] = {
    'validation': metrics.compute_metrics(*both[:2]),
    'test': metrics.compute_metrics(*both[2:])
    | calibration.scaled_metrics(*both),
    'temperature': temperature,
    'hits': pack(make_answers(test.logits, test.labels, test.indices)),
    'reliability': {
      'before': _sums(test.logits, test.labels),
      'after': _sums(scaled, test.labels),
    },
  }
  if (folder / 'predictions' / 'teacher_test.npz').exists():
    agreed = _agreed(test, _load(folder, 'teacher_test'))
    if agreed is not None:
      found['agreed'] = pack(agreed)
  if test.logits.shape[1] <= _MOST_CLASSES:
    found['confusion'] = metrics.confusion_matrix(*both[2:])
    names = data_record.classes(folder)
    if names is not None:
      found['classes'] = names
  return records.plain(found)


def _sums(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
  found = reliability.top_label_sums(logits, labels)
  # Counts are whole, and so many digits are more than a picture shows.
  return {
    name: [round(float(value), 6) for value in values]
    for name, values in found.items()
  }


def _load(folder: pathlib.Path, split: str) -> Predictions:
  return evaluate.load(folder / 'predictions' / f'{split}.npz')


def _agreed(test: Predictions, teacher: Predictions) -> Answers | None:
  if not np.array_equal(test.indices, teacher.indices):
    return None
  said = teacher.logits.argmax(axis=-1)
  of_images = make_answers(test.logits, test.labels, test.indices).images
  as_teacher = make_answers(test.logits, said, test.indices)
  return Answers(of_images, as_teacher.right)
