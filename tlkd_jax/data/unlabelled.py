"""Images without classes, for a teacher to label while a student learns."""

import dataclasses
import hashlib
import pathlib

import numpy as np
from absl import logging

from tlkd_jax.data import (
  Dataset,
  Split,
  decode,
  default_crop,
  facts,
  transforms,
)
from tlkd_jax.data.builders import archives, walk
from tlkd_jax.data.index import NO_DIGEST, Source

NO_LABEL = -1


def extend(
  dataset: Dataset,
  place: str,
  *,
  crop_fraction: float | None = None,
  interpolation: str = 'bicubic',
  on_bad_image: str = 'error',
) -> Dataset:
  """Adds a folder's images, with label -1, to the training images.

  Both are held in memory together. Sub-folders are searched; their names mean
  nothing. An archive will do as well.

  Args:
    dataset: as load_splits gives it.
    place: 'folder:PATH'.
    crop_fraction: as in load_splits.
    interpolation: likewise.
    on_bad_image: likewise.

  Returns:
    The data set with a longer train split and a note on it.

  Raises:
    ValueError: `place` is no folder of images, or an image is bad.
    FileNotFoundError: there is no such folder.
  """
  kind, _, path = place.partition(':')
  if kind != 'folder' or not path:
    raise ValueError(
      f"distillation.unlabelled is {place!r}; accepted: 'folder:PATH'"
    )
  train = dataset.splits['train']
  crop = crop_fraction or default_crop(dataset.name)
  short_side = transforms.resize_size(dataset.image_size, crop)
  side = train.images.shape[1]
  geometry = decode.Geometry(max(short_side, side), side, interpolation)
  if not pathlib.Path(path).expanduser().exists():
    raise FileNotFoundError(f'distillation.unlabelled: no folder {path}')
  with archives.open_tree(path) as tree:
    source = _source(tree, int(train.indices.max()) + 1)
    decoded = decode.decode(
      source,
      decode.whole(source, 1),
      geometry,
      description=f'{place} without labels',
      on_bad_image=on_bad_image,
    )
  images = np.concatenate([train.images, decoded.images])
  images.flags.writeable = False
  count = len(decoded.images)
  split = Split(
    images,
    np.concatenate([train.labels, np.full(count, NO_LABEL, np.int32)]),
    np.concatenate([train.indices, source.indices[decoded.rows]]),
    train.names + [source.names[row] for row in decoded.rows.tolist()],
  )
  note = f'{count} images of {place} are learned from without labels'
  return dataclasses.replace(
    dataset,
    splits=dataset.splits | {'train': split},
    skipped=dataset.skipped | {'unlabelled': decoded.skipped},
    notes=[*dataset.notes, note],
  )


def _source(tree: walk.Tree, first_index: int) -> Source:
  files, left_out = walk.images(tree)
  if not files:
    raise ValueError(
      f'distillation.unlabelled: no images in {tree.location}; looked for '
      f'files ending in {transforms.ENDINGS}'
    )
  kinds = walk.count_left_out(left_out)
  for line in facts.left_out_lines(kinds):
    logging.info('distillation.unlabelled: left out %s', line)
  digest = hashlib.sha256(tree.location.encode('utf-8', 'replace'))
  for file in files:
    digest.update(f'{file.name}:{file.size}:{file.stamp}'.encode())
  return Source(
    [file.name for file in files],
    np.zeros(len(files), np.int32),
    first_index + np.arange(len(files), dtype=np.int64),
    lambda position: walk.read_image(tree, files[position]),
    digest.hexdigest(),
    np.full(len(files), NO_DIGEST, np.uint64),
  )
