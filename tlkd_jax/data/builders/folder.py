"""The TFDS builder of a listing: image files, unaltered, as records."""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from tlkd_jax.data.builders.layout import Listing, check_classes
from tlkd_jax.data.builders.walk import File

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

    Raises:
      ValueError: as `layout.check_classes`.
    """
    self._listing = listing
    self._class_names = check_classes(listing)
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=self._class_names),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Class folders of images.',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      name: self._generate_examples(files)
      for split, classes in self._listing.files.items()
      for name, files in _parts(split, classes).items()
    }

  def _generate_examples(
    self, files: list[tuple[str, File, str]]
  ) -> Iterator[tuple[int, dict]]:
    for key, (name, file, class_name) in enumerate(files):
      image = self._listing.read(file)
      yield key, {'image': image, 'label': class_name, 'file_name': name}


def _parts(split: str, classes: dict[str, list[tuple[str, File]]]):
  """Divides a split into named parts of bounded size, in order."""
  parts, size = [[]], 0
  for class_name in sorted(classes):
    for name, file in classes[class_name]:
      if size + file.size > MAX_PART_BYTES and parts[-1]:
        parts.append([])
        size = 0
      parts[-1].append((name, file, class_name))
      size += file.size
  names = [split, *(f'{split}_{i}' for i in range(1, len(parts)))]
  return dict(zip(names, parts, strict=True))
