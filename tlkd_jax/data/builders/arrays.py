"""Arrays that a program holds, stored so that later processes find them.

Pixels are kept as PNG files, which lose nothing.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tlkd_jax.data.builders.folder import MAX_PART_BYTES

_NAME = re.compile(r'[A-Za-z]\w*')


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Images and labels that fit together.

  Attributes:
    name: a word, for people.
    class_names: K names; label k is class_names[k].
    splits: 'train' and any of 'validation' and 'test' -> (images uint8[N, H,
      W, 3], labels int64[N]).
  """

  name: str
  class_names: list[str]
  splits: dict[str, tuple[np.ndarray, np.ndarray]]

  @property
  def key(self) -> str:
    """The name, and a digest of everything that is stored."""
    digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=6)
    for split, (images, labels) in self.splits.items():
      digest.update(f'{split}{images.shape}'.encode() + labels.tobytes())
      # One by one: a view of a larger array would be copied whole.
      for image in images:
        digest.update(np.ascontiguousarray(image))
    return f'{self.name}-{digest.hexdigest()}'


def check(
  name: str,
  splits: Mapping[str, Any],
  class_names: Sequence[str] | None = None,
) -> Arrays:
  """What a program gave, if it is usable.

  Args:
    name: a word of letters, digits and underscores.
    splits: split -> (images, labels); None where there is none.
    class_names: None is '0', '1', ... as far as the labels go.

  Raises:
    ValueError: anything else than `Arrays` describes; the message names it.
  """
  if not _NAME.fullmatch(name):
    raise ValueError(
      f'name is {name!r}; accepted: a word of letters, digits and underscores, '
      'a letter first'
    )
  found = {
    split: _check_split(split, pair)
    for split, pair in splits.items()
    if pair is not None
  }
  most = 1 + max(int(labels.max()) for _, labels in found.values())
  if class_names is None:
    class_names = [str(number) for number in range(most)]
  _check_names(class_names)
  for split, (_, labels) in found.items():
    low, high = labels.min(), labels.max()
    if low < 0 or high >= len(class_names):
      raise ValueError(
        f'labels of {split} go from {low} to {high}; accepted: 0 to '
        f'{len(class_names) - 1}, one for each of the {len(class_names)} '
        'class names'
      )
  return Arrays(name, list(class_names), found)


def _check_split(split: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise ValueError(
      f'{split} is a {type(pair).__name__}; accepted: a pair (images, labels)'
    )
  images, labels = map(np.asarray, pair)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'images of {split} are {images.dtype}{list(images.shape)}; accepted: '
      'uint8[N, H, W, 3], RGB from 0 to 255'
    )
  if 0 in images.shape:
    raise ValueError(f'images of {split} are {list(images.shape)}: no pixel')
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'labels of {split} are {labels.dtype}; accepted: whole numbers'
    )
  if labels.shape != images.shape[:1]:
    raise ValueError(
      f'labels of {split} are {list(labels.shape)} beside {len(images)} '
      f'images; accepted: [{len(images)}], one for each'
    )
  return images, labels.astype(np.int64)


def _check_names(names: Sequence[str]) -> None:
  if isinstance(names, Set | Mapping):
    raise ValueError(
      f'class_names is a {type(names).__name__}, which does not say which name '
      'is of which label; accepted: a list'
    )
  plain = not isinstance(names, str) and all(
    isinstance(name, str) and name and name == ' '.join(name.split())
    for name in names
  )
  if not plain or not 2 <= len(names) == len(set(names)):
    raise ValueError(
      f'class_names is {names!r}; accepted: two different names or more, '
      'without spaces around them'
    )


class ArrayImages(tfds.core.GeneratorBasedBuilder):
  """`Arrays` as array_record files."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, arrays: Arrays, *, data_dir: str):
    """Creates the builder; needs neither network nor TensorFlow.

    Args:
      arrays: what to store, from `check`.
      data_dir: where the array_record files are written.
    """
    self._arrays = arrays
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    names = self._arrays.class_names
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=names),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Arrays of a program.',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    generators = {}
    for split, (images, labels) in self._arrays.splits.items():
      each = max(1, MAX_PART_BYTES // images[0].nbytes)
      for number, start in enumerate(range(0, len(labels), each)):
        part = f'{split}_{number}' if number else split
        rows = range(start, min(start + each, len(labels)))
        generators[part] = self._generate_examples(split, rows)
    return generators

  def _generate_examples(
    self, split: str, rows: range
  ) -> Iterator[tuple[int, dict]]:
    images, labels = self._arrays.splits[split]
    for row in rows:
      png = io.BytesIO()
      Image.fromarray(images[row]).save(png, 'PNG', compress_level=1)
      yield (
        row,
        {
          'image': png.getvalue(),
          'label': int(labels[row]),
          'file_name': f'{split}/{row:07d}',
        },
      )
