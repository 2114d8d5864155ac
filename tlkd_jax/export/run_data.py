"""A finished run's own images, as its student sees them in evaluation."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """A model beside the float32 one that it was made of, on the same images.

  Attributes:
    float_top1: share of images that the float32 model has right.
    top1: likewise, of the other.
    agreement: share of images of which both say the same class.
    count: images.
  """

  float_top1: float
  top1: float
  agreement: float
  count: int

  @property
  def drop(self) -> float:
    """What the other costs."""
    return self.float_top1 - self.top1

  def record(self, name: str) -> dict[str, Any]:
    """For FILE.json; `name` is what the other is called."""
    return {
      'images': self.count,
      'float_top1': self.float_top1,
      f'{name}_top1': self.top1,
      'agreement': self.agreement,
    }

  def said(self, out: pathlib.Path, name: str) -> str:
    """For the user."""
    same = round(self.agreement * self.count)
    return (
      f'{out}: validation accuracy {self.float_top1:.4f} in float, '
      f'{self.top1:.4f} in {name}, the same class for {same} of {self.count} '
      'images'
    )


def compare(
  expected: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> Accuracy:
  """Of float32 logits [N, K] and those of the other model, labels int [N]."""
  ours, theirs = logits.argmax(-1), expected.argmax(-1)
  return Accuracy(
    float_top1=float(np.mean(theirs == labels)),
    top1=float(np.mean(ours == labels)),
    agreement=float(np.mean(ours == theirs)),
    count=len(labels),
  )


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
  return student.normalised(np.concatenate(parts))


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
  parts = []
  for start in range(0, len(split), BATCH):
    images = student.normalised(split.images[start : start + BATCH])
    # All of one shape: what is compiled for it is so once.
    padded = np.zeros((BATCH, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    parts.append(np.asarray(run(padded))[: len(images)])
  return np.concatenate(parts)
