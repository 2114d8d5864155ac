"""From decoded images to the batches of a step."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tlkd_jax import data
from tlkd_jax.data import Look, pipeline, unlabelled
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import decoding, folds, shares


def training_data(settings: Settings, dataset: data.Dataset) -> data.Dataset:
  """The data of one run, with the unlabelled images that it learns from.

  Of a teacher without a fold, the training images of the other folds.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.extend.
  """
  number = settings.teacher.without_fold
  if settings.arm == 'teacher' and number:
    labels = dataset.splits['train'].labels
    rows = np.flatnonzero(folds.of_images(settings, labels) != number - 1)
    return _with_rows(dataset, rows)
  if not shares.learns_without_labels(settings):
    return dataset
  assert dataset.look is not None
  extended = unlabelled.extend(
    dataset,
    settings.distillation.unlabelled,
    crop_fraction=dataset.look.crop,
    interpolation=dataset.look.interpolation,
    on_bad_image=settings.data.on_bad_image,
    where=decoding.where(settings),
  )
  others = tuple(training_data(settings, other) for other in dataset.others)
  return dataclasses.replace(extended, others=others)


def _with_rows(dataset: data.Dataset, rows: np.ndarray) -> data.Dataset:
  splits = dataset.splits | {'train': dataset.splits['train'].take(rows)}
  others = tuple(_with_rows(other, rows) for other in dataset.others)
  return dataclasses.replace(dataset, splits=splits, others=others)


def is_balanced(settings: Settings) -> bool:
  """Whether a run draws classes equally often, rather than images."""
  return settings.data.balance == 'sampling'


def train_batches(
  settings: Settings,
  dataset: data.Dataset,
  num_steps: int,
  targets: Mapping[str, Callable],
  looks: Iterable[Look] = (),
):
  """The batches of a run, in an order that can be resumed exactly.

  Args:
    settings: of the run.
    dataset: from `training_data`.
    num_steps: length of the run.
    targets: name of a teacher -> its stored outputs, () where it is online.
    looks: of networks that see other images than the run's own.
  """
  views = 0 if settings.arm == 'teacher' else settings.targets.views
  if settings.distillation.teacher_view == 'clean':
    targets = {
      name: functools.partial(_of_first_view, stored)
      for name, stored in targets.items()
    }
  return pipeline.train_iterator(
    dataset.splits['train'],
    batch_size=settings.batch_size,
    seed=settings.seed_of_draws,
    num_batches=num_steps,
    num_views=views,
    balanced=is_balanced(settings),
    shares=shares.of_batch(settings),
    targets=targets,
    others={str(look): dataset.seen(look).splits['train'] for look in looks},
    **sharding.this_process(),
  )


def _of_first_view(stored: Callable, rows, views):
  """What a teacher says of images that it sees one way alone."""
  return stored(rows, np.zeros_like(views))


def one_ahead(batches, mesh: Mesh) -> Iterator[tuple[Any, Any]]:
  """(batch on the devices, where to go on after it).

  The next batch is sent before this one is used, so that it is there when the
  devices are done.
  """
  sent = (
    (sharding.shard_batch(batch, mesh), batches.get_state())
    for batch in batches
  )
  yield from ahead(sent)


def ahead(items: Iterator) -> Iterator:
  """The same items, each once the next one has been begun."""
  waiting: list = []
  for item in items:
    yield from waiting
    waiting = [item]
  yield from waiting
