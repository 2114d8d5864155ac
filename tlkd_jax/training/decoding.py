"""Which examples a run has, and their images as each network sees them."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tlkd_jax import data
from tlkd_jax.data import Fold, Look, transforms, unlabelled
from tlkd_jax.settings import Settings
from tlkd_jax.training import defaults, networks, preparation, shares


def data_key(settings: Settings) -> str:
  """Two runs of one key have the same examples, whatever their looks."""
  return json.dumps(_examples(settings))


def load_dataset(
  settings: Settings,
  known: Mapping[Look, data.Dataset] | None = None,
  listed: Callable[[np.ndarray], object] | None = None,
) -> data.Dataset:
  """Decodes the data set of a run, for each of its networks as it looks.

  Args:
    settings: of a run, or of 'compare'.
    known: what is decoded already, of settings with the same `data_key`.
    listed: see data.load_splits.

  Returns:
    The images of the run's own network, with `others` for the rest.

  Raises:
    ValueError, FileNotFoundError: see data.load_splits, networks.look.
  """
  looks = networks.looks(settings)
  found = [
    (known or {}).get(look) or load_seen(settings, look, len(looks), listed)
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
  settings: Settings,
  look: Look,
  shared_by: int = 1,
  listed: Callable[[np.ndarray], object] | None = None,
) -> data.Dataset:
  """Decodes the data set of a run as a network of this look sees it.

  Args:
    settings: of the run.
    look: of the network.
    shared_by: so many looks share the memory that images may take.
    listed: see data.load_splits.

  Raises:
    ValueError, FileNotFoundError: see data.load_splits.
  """
  options = _examples(settings)
  options['memory_budget_bytes'] //= shared_by
  options['train_size'] = _train_size(settings, look)
  return data.load_splits(
    **options | {'labelling': labelling(settings), 'fold': fold(settings)},
    image_size=look.image_size,
    crop_fraction=look.crop,
    interpolation=look.interpolation,
    listed=listed,
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


def fold(settings: Settings) -> Fold | None:
  """The fold that is a run's test; None where data are split once."""
  section = settings.data
  if not section.folds:
    return None
  number = section.fold
  if number is None:
    number = settings.seed % section.folds
  return Fold(number, section.folds)


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
    'fold': str(fold(settings)),
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
    section.data_dir, section.cache_dir, labelling(settings), fold(settings)
  )


def check_unlabelled(settings: Settings, dataset: data.Dataset) -> None:
  """Fails on unlabelled images that are not there; none is decoded.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.check.
  """
  if shares.learns_without_labels(settings):
    place = settings.distillation.unlabelled
    unlabelled.check(dataset, place, where(settings))
