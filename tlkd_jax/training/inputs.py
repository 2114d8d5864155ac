"""From settings to batches: data sets, random views, what a step is given."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tlkd_jax import data
from tlkd_jax.data import (
  Look,
  pipeline,
  transforms,
  unlabelled,
)
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import defaults, logistic, networks, preparation, shares


def data_key(settings: Settings) -> str:
  """Two runs of one key have the same examples, whatever their looks."""
  return json.dumps(_examples(settings))


def load_dataset(
  settings: Settings, known: Mapping[Look, data.Dataset] | None = None
) -> data.Dataset:
  """Decodes the data set of a run, for each of its networks as it looks.

  Args:
    settings: of a run, or of 'compare'.
    known: what is decoded already, of settings with the same `data_key`.

  Returns:
    The images of the run's own network, with `others` for the rest.

  Raises:
    ValueError, FileNotFoundError: see data.load_splits, networks.look.
  """
  looks = networks.looks(settings)
  found = [
    (known or {}).get(look) or load_seen(settings, look, len(looks))
    for look in looks
  ]
  for other in found[1:]:
    for split, examples in other.splits.items():
      same = found[0].splits[split].indices
      if not np.array_equal(examples.indices, same):
        raise ValueError(
          f'{settings.dataset}: {split} was decoded twice, and other images '
          'could be read the second time; is something writing there?'
        )
  return dataclasses.replace(found[0], others=tuple(found[1:]))


def load_seen(
  settings: Settings, look: Look, shared_by: int = 1
) -> data.Dataset:
  """Decodes the data set of a run as a network of this look sees it.

  Args:
    settings: of the run.
    look: of the network.
    shared_by: so many looks share the memory that images may take.

  Raises:
    ValueError, FileNotFoundError: see data.load_splits.
  """
  options = _examples(settings)
  options['memory_budget_bytes'] //= shared_by
  options['train_size'] = _train_size(settings, look)
  return data.load_splits(
    **options | {'labelling': labelling(settings)},
    image_size=look.image_size,
    crop_fraction=look.crop,
    interpolation=look.interpolation,
  )


def _train_size(settings: Settings, look: Look) -> int | None:
  """At which a network of this look keeps training images, where it is said."""
  said = settings.data.train_size
  if said is None:
    return None
  own = preparation.look_of_data(settings)
  return round(said * _short_side(look) / _short_side(own))


def _short_side(look: Look) -> int:
  return transforms.resize_size(look.image_size, look.crop)


def _train_zoom(settings: Settings) -> float:
  """How much of the files' pixels random crops need, 1 for the whole image."""
  if settings.augment.crop != 'random_resized':
    return 1.0
  return float(np.mean(settings.augment.scale)) ** -0.5


def labelling(settings: Settings) -> data.Labelling:
  """What the settings say of how labels are found."""
  section = settings.data
  return data.Labelling(
    image_column=section.image_column,
    label_column=section.label_column,
    split_column=section.split_column,
    pattern=section.pattern,
  )


def _examples(settings: Settings) -> dict[str, Any]:
  """Which examples a run has, as JSON takes it."""
  section = settings.data
  return {
    'name': settings.dataset,
    'labelling': dataclasses.asdict(labelling(settings)),
    'num_train_per_class': defaults.per_class(
      settings.dataset, settings.num_train_per_class, settings.train_fraction
    )
    or None,
    'train_fraction': settings.train_fraction,
    'train_size': section.train_size,
    'train_zoom': _train_zoom(settings),
    'num_validation_per_class': section.num_validation_per_class or None,
    'num_test_per_class': section.num_test_per_class or None,
    'seed': settings.seed,
    'on_bad_image': section.on_bad_image,
    'near_duplicates': section.near_duplicates,
    'memory_budget_bytes': section.memory_budget_mib * 2**20,
    'data_dir': section.data_dir,
    'cache_dir': section.cache_dir,
  }


def where(settings: Settings) -> unlabelled.Where:
  """Where the data of a run lie."""
  section = settings.data
  return unlabelled.Where(
    section.data_dir, section.cache_dir, labelling(settings)
  )


def check_unlabelled(settings: Settings, dataset: data.Dataset) -> None:
  """Fails on unlabelled images that are not there; none is decoded.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.check.
  """
  if shares.learns_without_labels(settings):
    place = settings.distillation.unlabelled
    unlabelled.check(dataset, place, where(settings))


def folds_of(settings: Settings, labels: np.ndarray) -> np.ndarray:
  """The fold of each training image of a cross-fitted teacher; int32 [N].

  Raises:
    ValueError: see logistic.make_folds.
  """
  return logistic.make_folds(
    labels, settings.teacher.probe_folds, settings.seed
  )


def training_data(settings: Settings, dataset: data.Dataset) -> data.Dataset:
  """The data of one run, with the unlabelled images that it learns from.

  Of a teacher without a fold, the training images of the other folds.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.extend.
  """
  number = settings.teacher.without_fold
  if settings.arm == 'teacher' and number:
    labels = dataset.splits['train'].labels
    rows = np.flatnonzero(folds_of(settings, labels) != number - 1)
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
    where=where(settings),
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
