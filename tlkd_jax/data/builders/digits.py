"""The embedded default: scikit-learn's 1,797 handwritten digits, 8 x 8.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998 (its test part), as shipped by scikit-learn.
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tlkd_jax.data import subsets

# The set comes without a split; this one is fixed and stratified.
_FRACTIONS = {'test': 0.2, 'validation': 0.15}
_MAX_INTENSITY = 16


class Digits(tfds.core.GeneratorBasedBuilder):
  """Ten classes of 8 x 8 greyscale PNGs in train, validation and test."""

  # A change of the split needs a new version: prepared files are kept.
  VERSION = tfds.core.Version('1.0.1')

  def __init__(self, *, data_dir: str):
    """Creates the builder; needs neither network nor TensorFlow.

    Args:
      data_dir: where the array_record files are written.
    """
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='1,797 real handwritten digits, 8 x 8 pixels.',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    # Here and not above: it takes seconds and is needed in the first run only.
    import sklearn.datasets

    images, labels = map(
      np.asarray, sklearn.datasets.load_digits(return_X_y=True)
    )
    names = [f'digit-{i:04d}' for i in range(labels.size)]
    class_names = [str(d) for d in range(10)]
    parts = subsets.cut(names, labels, class_names, _FRACTIONS, 'digits')
    scaled = np.rint(images * (255 / _MAX_INTENSITY)).astype(np.uint8)
    scaled = scaled.reshape(-1, 8, 8)
    return {
      part: self._generate_examples(scaled, labels, names, rows)
      for part, rows in parts.items()
    }

  def _generate_examples(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    rows: np.ndarray,
  ) -> Iterator[tuple[int, dict]]:
    for key, row in enumerate(rows.tolist()):
      png = io.BytesIO()
      Image.fromarray(images[row]).save(png, 'PNG')
      yield (
        key,
        {
          'image': png.getvalue(),
          'label': int(labels[row]),
          'file_name': names[row],
        },
      )
