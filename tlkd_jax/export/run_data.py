"""A finished run's own images, as its student sees them in evaluation."""

import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from tlkd_jax.data import Dataset, Split
from tlkd_jax.export.student import Student
from tlkd_jax.settings import from_config
from tlkd_jax.training import (
  checkpoints,
  data_record,
  decoding,
  preparation,
  workdir,
)

# Of what is run at once: memory, and ranges do not depend on it.
BATCH = 16


def load(run: str | os.PathLike) -> Dataset:
  """Decodes the data of a run as the run did, checked against its record.

  Args:
    run: its workdir.

  Raises:
    FileNotFoundError: the data, or the run, are not there.
    ValueError: they are not those that the run began with.
  """
  folder = pathlib.Path(run)
  description = checkpoints.read_description(folder)
  settings = from_config(workdir.read(folder))
  try:
    dataset = decoding.load_seen(settings, description.look)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise FileNotFoundError(
      f'{folder} was trained on {settings.dataset}, whose images are needed '
      f'here and not found: {error}; put them back, or run this from the '
      'folder that the path is relative to'
    ) from error
  data_record.check(folder, data_record.of_labelled(dataset))
  theirs = list(description.class_names)
  if theirs != list(dataset.class_names):
    raise ValueError(
      f'{settings.dataset} has the classes {", ".join(dataset.class_names)}, '
      f'{folder} has {", ".join(theirs)}; accepted: the same in the same order'
    )
  return dataset


def calibration_images(
  student: Student, dataset: Dataset, count: int
) -> np.ndarray:
  """Training images, and no others, cut as in evaluation and normalised.

  Args:
    student: whose mean and standard deviation are taken.
    dataset: of its run.
    count: at most so many, drawn alike in every call.

  Returns:
    float32 [N, H, W, 3].

  Raises:
    ValueError: there are none.
  """
  train = dataset.splits['train']
  if not len(train):
    raise ValueError(
      f'{dataset.name} has no training images: a calibration set with no images'
    )
  rows = np.random.default_rng(0).permutation(len(train))[:count]
  rows.sort()
  as_evaluated = jax.jit(preparation.make_evaluated(dataset))
  parts = [
    np.asarray(as_evaluated(train.images[rows[start : start + BATCH]]))
    for start in range(0, rows.size, BATCH)
  ]
  return normalised(student, np.concatenate(parts))


def normalised(student: Student, images: np.ndarray) -> np.ndarray:
  """Images [N, H, W, 3] in 0..255 as the student takes them, float32."""
  spec = student.model.spec
  mean, std = (np.asarray(v, np.float32) for v in (spec.mean, spec.std))
  return (images.astype(np.float32) - mean) / std


def predictions(
  student: Student,
  split: Split,
  run: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Logits [N, K] of a split's images, in its order.

  Args:
    student: whose mean and standard deviation are taken.
    split: validation or test: images have the size of evaluation.
    run: normalised float32 images [B, H, W, 3] -> logits [B, K].
  """
  return np.concatenate(
    [
      np.asarray(run(normalised(student, images)))
      for images in _batches(split.images)
    ]
  )


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(images), BATCH):
    yield images[start : start + BATCH]
