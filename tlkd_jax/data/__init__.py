"""Data sets as decoded uint8 arrays in train, validation and test splits.

    dataset = load_splits('digits', image_size=48, num_train_per_class=20)
    for batch in pipeline.eval_batches(dataset.splits['test'], 64): ...

A batch is {'image': uint8[B,H,W,3], 'label': int32[B], 'mask': float32[B],
'index': int64[B], 'view': int32[B]}. Train images are stored with a margin
around the `image_size` pixels that `augment.augment` crops on the device, and
larger than that where crops are enlarged; validation and test images have
exactly `image_size` pixels.

To add a data set, write a builder in `builders/` and a line in `kinds.py`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from tlkd_jax.data import decode, near_copies, subsets, transforms
from tlkd_jax.data import facts as _facts
from tlkd_jax.data import sources as _sources
from tlkd_jax.data.builders import arrays as _arrays
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.examples import Files, Fold, Look, Split
from tlkd_jax.data.index import Source
from tlkd_jax.data.kinds import DATASETS, located
from tlkd_jax.runtime.errors import as_user_errors

__all__ = [
  'DATASETS',
  'Dataset',
  'Fold',
  'Labelling',
  'Look',
  'Split',
  'load_splits',
  'located',
]

_EVAL_SALT = 'evaluation'
_FILES_LOOKED_AT = 64


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set ready for training.

  Attributes:
    name: as it was asked for.
    class_names: K names; label k is class_names[k].
    splits: 'train', 'validation' and 'test'.
    image_size: side of the images that the model shall see.
    flip_ok: whether a mirrored image keeps its class.
    skipped: split -> (name, reason) of each image that was left out.
    notes: what was decided about missing splits, one sentence each.
    facts: classes, counts, what was left out, exact copies; facts.collect.
    files: split -> what it was chosen from; {} if that is not known.
    look: how the images were cut; None if that is not known.
    others: the same examples in the same order, cut for networks that look
      otherwise.
  """

  name: str
  class_names: list[str]
  splits: dict[str, Split]
  image_size: int
  flip_ok: bool
  skipped: dict[str, list[tuple[str, str]]]
  notes: list[str]
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: dict[str, Files] = dataclasses.field(default_factory=dict)
  look: Look | None = None
  others: tuple['Dataset', ...] = ()

  def describe(self) -> str:
    """What it holds and what was left out, a line each."""
    return '\n  '.join(_facts.lines(self.name, self.facts, self.notes))

  @property
  def square(self) -> int:
    """Side of the training images, in pixels, at the scale of evaluation."""
    stored = self.splits['train'].images.shape[1]
    if self.look is None:
      return stored
    return min(
      stored, transforms.resize_size(self.look.image_size, self.look.crop)
    )

  def seen(self, look: Look | None) -> 'Dataset':
    """The images as a network of this look sees them; None takes these."""
    if look in (None, self.look):
      return self
    return next(other for other in self.others if other.look == look)

  @classmethod
  def from_arrays(
    cls,
    train: tuple[Any, Any],
    validation: tuple[Any, Any] | None = None,
    test: tuple[Any, Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = 'mine',
    image_size: int | None = None,
    cache_dir: str | os.PathLike | None = None,
  ) -> 'Dataset':
    """A data set of arrays in memory, for runs of this and later processes.

        mine = Dataset.from_arrays((images, labels), class_names=['cat', 'dog'])
        settings = tlkd_jax.make_settings(dataset=mine)

    The arrays are stored once in the cache folder, without loss. The settings
    of a run know them by `name` of what is returned, which ends in a digest of
    them: with other arrays it is another data set, and no run goes on with it.
    Sizes, crops and subsets are the settings' matter, as for images of a
    folder; a missing validation or test split is cut as it is there.

    Args:
      train: (images uint8[N, H, W, 3] in RGB, labels int[N] from 0 on).
      validation: likewise; None cuts it from train.
      test: likewise; without it validation is test, where there is one.
      class_names: label k is class_names[k]; None is '0', '1', ...
      name: a word of letters, digits and underscores, for people.
      image_size: side of the images that are returned; by default the short
        side of train's.
      cache_dir: as `data.cache_dir` of the settings of its runs.

    Returns:
      The data set with all its images, whose `name` is 'arrays:NAME-DIGEST'.

    Raises:
      UserError: a shape, a dtype, a label or a name that is not accepted, or a
        class that has too few images.
      RunError: it could not be stored.
    """
    splits = {'train': train, 'validation': validation, 'test': test}
    with as_user_errors():
      given = _arrays.check(name, splits, class_names)
      if image_size is None:
        image_size = min(given.splits['train'][0].shape[1:3])
      stored = _sources.store_arrays(given, cache_dir)
      return load_splits(stored, image_size=image_size, cache_dir=cache_dir)


def default_crop(name: str) -> float:
  """Share of the short side that the centre crop keeps of a data set."""
  return 1.0 if name == 'digits' else 0.875


def load_splits(
  name: str,
  *,
  image_size: int,
  num_train_per_class: int | None = None,
  train_fraction: float = 1.0,
  num_validation_per_class: int | None = None,
  num_test_per_class: int | None = None,
  seed: int = 0,
  on_bad_image: str = 'error',
  memory_budget_bytes: int = 4 << 30,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  crop_fraction: float | None = None,
  train_size: int | None = None,
  train_zoom: float = 1.0,
  interpolation: str = 'bicubic',
  labelling: Labelling | None = None,
  validation_fraction: float = 0.1,
  test_fraction: float = 0.2,
  fold: Fold | None = None,
  near_duplicates: bool = False,
  num_threads: int | None = None,
  listed: Callable[[np.ndarray], object] | None = None,
) -> Dataset:
  """Finds, subsets and decodes a data set.

  Evaluation images: short side to image_size / crop_fraction, centre crop to
  image_size. Train images: the same, but the crop is train_size.

  The train subset of n per class is contained in that of m > n at the same
  seed, likewise for fractions; validation and test depend on neither.

  Args:
    name: 'digits', 'folder:PATH' (a folder, a zip or a tar), 'csv:PATH',
      'imagefolder:PATH', 'parquet:PATH', the name of what `Dataset.from_arrays`
      gave, or a TFDS data set that `python -m tlkd_jax.data.prepare` has
      prepared.
    image_size: side of the images that the model shall see.
    num_train_per_class: so many train examples of each class, or None.
    train_fraction: this share of each class of train, in (0, 1].
    num_validation_per_class: at most so many validation examples of each class,
      always the same ones; for short runs.
    num_test_per_class: likewise, of test.
    seed: chooses the train subset.
    on_bad_image: 'error', or 'skip' to replace or leave out files that cannot
      be decoded.
    memory_budget_bytes: decoded data sets above this are memory-mapped.
    data_dir: where TFDS sets are prepared; by default as in TFDS.
    cache_dir: for own copies; by default in the user's cache folder.
    crop_fraction: share of the short side that the centre crop keeps; by
      default `default_crop(name)`.
    train_size: stored side of train images, at least image_size; by default
      image_size / crop_fraction, times train_zoom.
    train_zoom: at least 1, followed as far as the files have the pixels, by the
      headers of some of them.
    interpolation: a key of `transforms.INTERPOLATIONS`.
    labelling: how labels are found in tables and names; None is by usual names.
    validation_fraction: share of each class that becomes validation where
      the data set has none.
    test_fraction: the same for test.
    fold: is the test split, of data without splits of their own.
    near_duplicates: whether images that look alike are looked for across
      splits; see near_copies.
    num_threads: decoding threads, by default one for each core.
    listed: called with the training images of each class, int [K], once they
      are found and chosen and before any is decoded; what it raises ends this.

  Returns:
    The decoded data set.

  Raises:
    ValueError: unknown name, unusable classes, an impossible subset, a bad
      image with on_bad_image='error', a size out of range.
    FileNotFoundError: a folder that does not exist, a TFDS set that has not
      been prepared.
    OSError: no space for memory-mapped images.
  """
  if crop_fraction is None:
    crop_fraction = default_crop(name)
  look = Look(image_size, crop_fraction, interpolation)
  _check_look(look, train_size)
  found = _sources.open_sources(
    name,
    data_dir=data_dir,
    cache_dir=cache_dir,
    labelling=labelling,
    validation_fraction=validation_fraction,
    test_fraction=test_fraction,
    fold=fold,
  )
  choices = {
    'train': _choose_train(found, num_train_per_class, train_fraction, seed),
    'validation': _choose_eval(found, 'validation', num_validation_per_class),
    'test': _choose_eval(found, 'test', num_test_per_class),
  }
  if listed is not None:
    listed(choices['train'].counts)
  geometries = _geometries(look, train_size, train_zoom, found.splits['train'])
  mapped_in = _mapped_folder(
    name,
    sum(
      3 * choices[split].total() * geometries[split].size ** 2
      for split in choices
    ),
    memory_budget_bytes,
    cache_dir,
  )
  splits, skipped, rows = {}, {}, {}
  for split, choice in choices.items():
    source = found.splits[split]
    decoded = decode.decode(
      source,
      choice,
      geometries[split],
      description=f'{name} {split}',
      on_bad_image=on_bad_image,
      num_threads=num_threads,
      mapped_in=mapped_in,
    )
    splits[split] = _as_split(source, decoded)
    skipped[split], rows[split] = decoded.skipped, decoded.rows
  facts = _facts.collect(
    found, {s: split.labels for s, split in splits.items()}
  )
  if near_duplicates:
    facts['near_copies'] = near_copies.find(found.splits, rows, num_threads)
  return Dataset(
    name,
    found.class_names,
    splits,
    image_size,
    found.flip_ok,
    skipped,
    found.notes,
    facts,
    {
      split: Files(source.names, source.labels, source.digests)
      for split, source in found.splits.items()
    },
    look,
  )


def _mapped_folder(
  name: str,
  size: int,
  budget: int,
  cache_dir: str | os.PathLike | None,
) -> pathlib.Path | None:
  """The folder for memory-mapped images, or None if memory is enough."""
  if size <= budget:
    return None
  cache = pathlib.Path(cache_dir or _sources.default_cache_dir())
  folder = cache.expanduser() / 'decoded'
  logging.info(
    '%s: %.2f GB of decoded images exceed the memory budget of %.2f GB and '
    'are memory-mapped in %s',
    name,
    size / 1e9,
    budget / 1e9,
    folder,
  )
  return folder


def _check_look(look: Look, train_size: int | None) -> None:
  if look.image_size < 1:
    raise ValueError(f'image_size is {look.image_size}; it must be positive')
  if not 0 < look.crop <= 1:
    raise ValueError(f'crop_fraction is {look.crop}, not in (0, 1]')
  if look.interpolation not in transforms.INTERPOLATIONS:
    raise ValueError(
      f'interpolation is {look.interpolation!r}; accepted: '
      f'{", ".join(transforms.INTERPOLATIONS)}'
    )
  if train_size is not None and train_size < look.image_size:
    raise ValueError(
      f'train_size is {train_size}, less than image_size {look.image_size}'
    )


def _geometries(
  look: Look, train_size: int | None, train_zoom: float, source: Source
) -> dict[str, decode.Geometry]:
  """Of each split; `source` is that of train."""
  short_side = transforms.resize_size(look.image_size, look.crop)
  if train_size is None:
    train_size = round(short_side * train_zoom)
    if train_size > short_side:
      train_size = max(short_side, min(train_size, _usual_side(source)))
  evaluation = decode.Geometry(short_side, look.image_size, look.interpolation)
  return {
    'train': decode.Geometry(
      max(short_side, train_size), train_size, look.interpolation
    ),
    'validation': evaluation,
    'test': evaluation,
  }


def _usual_side(source: Source) -> int:
  """The median short side of some files of a split; 0 if none can be read.

  Of the split, not of a subset: every subset is stored alike.
  """
  rows = np.linspace(0, len(source.names) - 1, _FILES_LOOKED_AT).astype(int)
  sides = [
    transforms.short_side_of(source.read(row))
    for row in np.unique(rows).tolist()
  ]
  known = [side for side in sides if side is not None]
  return int(np.median(known)) if known else 0


def _choose_train(
  found: _sources.Sources,
  num_per_class: int | None,
  fraction: float,
  seed: int,
) -> decode.Choice:
  source, num_classes = found.splits['train'], len(found.class_names)
  orders = subsets.class_orders(
    source.names, source.labels, num_classes, f'subset-{seed}'
  )
  counts = subsets.subset_counts(
    np.asarray([order.size for order in orders]),
    found.class_names,
    num_per_class,
    fraction,
  )
  return decode.Choice(orders, counts, exact=num_per_class is not None)


def _choose_eval(
  found: _sources.Sources, split: str, num_per_class: int | None
) -> decode.Choice:
  source, num_classes = found.splits[split], len(found.class_names)
  choice = decode.whole(source, num_classes)
  if num_per_class is None:
    return choice
  orders = subsets.class_orders(
    source.names, source.labels, num_classes, _EVAL_SALT
  )
  return decode.Choice(orders, np.minimum(choice.counts, num_per_class))


def _as_split(source: Source, decoded: decode.Decoded) -> Split:
  decoded.images.flags.writeable = False
  return Split(
    decoded.images,
    source.labels[decoded.rows],
    source.indices[decoded.rows],
    [source.names[row] for row in decoded.rows.tolist()],
  )
