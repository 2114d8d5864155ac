"""From settings to batches: data sets, random views, what a step is given."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from tlkd_jax import data
from tlkd_jax.data import augment, mixing, pipeline, unlabelled
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import checkpoints
from tlkd_jax.training.step import Mixing


def data_key(settings: Settings) -> str:
  """Two runs of one key have the same data, down to the pixel.

  Raises:
    FileNotFoundError, ValueError: a further teacher is not a finished run.
  """
  return json.dumps(_data_options(settings))


def load_dataset(settings: Settings) -> data.Dataset:
  """Decodes the data set of a run, large enough for all its networks."""
  options = _data_options(settings)
  labelling = data.Labelling(**options.pop('labelling'))
  return data.load_splits(labelling=labelling, **options)


def _data_options(settings: Settings) -> dict[str, Any]:
  """All that the settings say of the data, as JSON takes it."""
  more = [
    checkpoints.read_description(run).image_size
    for run in settings.distillation.more_teachers
  ]
  section = settings.data
  return {
    'name': settings.dataset,
    'image_size': max(settings.image_size, settings.teacher.image_size, *more),
    'crop_fraction': section.crop,
    'interpolation': section.interpolation,
    'labelling': {
      'image_column': section.image_column,
      'label_column': section.label_column,
      'split_column': section.split_column,
      'pattern': section.pattern,
    },
    'num_train_per_class': settings.num_train_per_class or None,
    'train_fraction': settings.train_fraction,
    'num_eval_per_class': section.num_eval_per_class or None,
    'seed': settings.seed,
    'on_bad_image': section.on_bad_image,
    'memory_budget_bytes': section.memory_budget_mib * 2**20,
    'data_dir': section.data_dir,
    'cache_dir': section.cache_dir,
  }


def training_data(settings: Settings, dataset: data.Dataset) -> data.Dataset:
  """The data of one run: under a teacher, unlabelled images too.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.extend.
  """
  place = settings.distillation.unlabelled
  if settings.arm != 'kd' or not place:
    return dataset
  return unlabelled.extend(
    dataset,
    place,
    crop_fraction=settings.data.crop,
    interpolation=settings.data.interpolation,
    on_bad_image=settings.data.on_bad_image,
  )


def make_augmentation(
  settings: Settings, dataset: data.Dataset
) -> functools.partial:
  """The random view of a run: (uint8 images, index, view) -> float images."""
  section = settings.augment
  flips = {'auto': dataset.flip_ok, 'on': True, 'off': False}
  return functools.partial(
    _draw_view,
    seed=settings.seed,
    image_size=dataset.image_size,
    crop=section.crop,
    scale=tuple(section.scale),
    ratio=tuple(section.ratio),
    flip=flips[section.flip],
    brightness=section.brightness,
    contrast=section.contrast,
    saturation=section.saturation,
    randaugment_ops=section.randaugment_ops,
    randaugment_magnitude=section.randaugment_magnitude,
  )


def _draw_view(images, index, view, *, seed, **options):
  return augment.augment(images, seed, index, view, **options)


def make_mixing(settings: Settings) -> Mixing | None:
  """Mixup and CutMix of a run, None without."""
  mixup, cutmix = settings.augment.mixup_alpha, settings.augment.cutmix_alpha
  if max(mixup, cutmix) == 0:
    return None
  return functools.partial(mixing.mix, mixup_alpha=mixup, cutmix_alpha=cutmix)


def is_balanced(settings: Settings) -> bool:
  """Whether a run draws classes equally often, rather than images."""
  return settings.data.balance == 'sampling'


def train_batches(
  settings: Settings,
  dataset: data.Dataset,
  num_steps: int,
  targets: Mapping[str, Callable],
):
  """The batches of a run, in an order that can be resumed exactly.

  Args:
    settings: of the run.
    dataset: from `training_data`.
    num_steps: length of the run.
    targets: name of a teacher -> its stored outputs, () where it is online.
  """
  views = 0 if settings.arm == 'teacher' else settings.targets.views
  return pipeline.train_iterator(
    dataset.splits['train'],
    batch_size=settings.batch_size,
    seed=settings.seed,
    num_batches=num_steps,
    num_views=views,
    balanced=is_balanced(settings),
    targets=targets,
    **sharding.this_process(),
  )


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
