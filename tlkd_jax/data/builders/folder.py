"""The TFDS builder of a listing: image files, unaltered, as records."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds

from tlkd_jax.data.builders.layout import Listing
from tlkd_jax.data.builders.walk import File

Item = TypeVar('Item')

# TFDS sorts a split in memory and without TensorFlow refuses more than 1000
# MiB, so larger splits are written as train, train_1, train_2 ...
MAX_PART_BYTES = 512 << 20


class FolderImages(tfds.core.GeneratorBasedBuilder):
  """The files of a `Listing`, unaltered, as array_record files."""

  # A change of what is read from a folder needs a new version.
  VERSION = tfds.core.Version('1.1.0')

  def __init__(self, listing: Listing, *, data_dir: str):
    """Creates the builder; needs neither network nor TensorFlow.

    Args:
      listing: what to store, from `layout.arrange`.
      data_dir: where the array_record files are written.
    """
    self._listing = listing
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return info(self, self._listing.class_names, 'Class folders of images.')

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      name: self._generate_examples(files)
      for split, classes in self._listing.files.items()
      for name, files in parts(
        split, _with_class(classes), lambda item: item[1].size
      ).items()
    }

  def _generate_examples(
    self, files: list[tuple[str, File, str]]
  ) -> Iterator[tuple[int, dict]]:
    for key, (name, file, class_name) in enumerate(files):
      image = self._listing.read(file)
      yield key, {'image': image, 'label': class_name, 'file_name': name}


def _with_class(
  classes: dict[str, list[tuple[str, File]]],
) -> Iterator[tuple[str, File, str]]:
  for class_name in sorted(classes):
    for name, file in classes[class_name]:
      yield name, file, class_name


def info(
  builder: tfds.core.DatasetBuilder, class_names: list[str], description: str
) -> tfds.core.DatasetInfo:
  """What a data set of image files with one label each says of itself."""
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(names=class_names),
    'file_name': tfds.features.Text(),
  }
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(features),
    supervised_keys=('image', 'label'),
    disable_shuffling=True,
  )


def parts(
  split: str, items: Iterable[Item], size_of: Callable[[Item], int]
) -> dict[str, list[Item]]:
  """Divides a split into named parts of bounded size, in order."""
  found, size = [[]], 0
  for item in items:
    if size + size_of(item) > MAX_PART_BYTES and found[-1]:
      found.append([])
      size = 0
    found[-1].append(item)
    size += size_of(item)
  names = [split, *(f'{split}_{i}' for i in range(1, len(found)))]
  return dict(zip(names, found, strict=True))
