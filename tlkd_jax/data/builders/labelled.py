"""The TFDS builder of labelled images: their bytes, unaltered, as records."""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from tlkd_jax.data.builders import folder
from tlkd_jax.data.builders.labels import Example, Labelled


class LabelledImages(tfds.core.GeneratorBasedBuilder):
  """The images of a `Labelled` as array_record files, in its order."""

  # A change of what is read from a table needs a new version.
  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, labelled: Labelled, *, data_dir: str):
    """Creates the builder; needs neither network nor TensorFlow.

    Args:
      labelled: what to store.
      data_dir: where the array_record files are written.
    """
    self._labelled = labelled
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    description = 'Images with labels from a table.'
    return folder.info(self, self._labelled.class_names, description)

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      name: self._generate_examples(examples)
      for split, whole in self._labelled.splits.items()
      for name, examples in folder.parts(
        split, whole, lambda example: example.file.size
      ).items()
    }

  def _generate_examples(
    self, examples: list[Example]
  ) -> Iterator[tuple[int, dict]]:
    images = self._labelled.read(example.file for example in examples)
    for key, (one, image) in enumerate(zip(examples, images, strict=True)):
      yield key, {'image': image, 'label': one.label, 'file_name': one.name}
