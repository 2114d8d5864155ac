"""Images without classes, to be learned from beside those with.

They come from a folder, from a TFDS split, or are the rest of the training
images, of which the labelled subset was chosen. No label of theirs is read.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import re

import numpy as np
from absl import logging

from tlkd_jax.data import (
  Dataset,
  Fold,
  Labelling,
  Split,
  decode,
  default_crop,
  facts,
  sources,
  transforms,
)
from tlkd_jax.data.builders import archives, walk
from tlkd_jax.data.index import NO_DIGEST, Source, digest_of

NO_LABEL = -1
REST = 'rest'

# NAME[/CONFIG][:VERSION] of TFDS, then a split, which begins with a letter.
_TFDS = re.compile(
  r'tfds:(?P<name>\w+(?:/[\w.-]+)?(?::[\d.*]+)?)(?::(?P<split>[A-Za-z]\w*))?'
)
_TFDS_SPLIT = 'train'


@dataclasses.dataclass(frozen=True)
class Where:
  """Where data sets lie and how they are read, as of load_splits."""

  data_dir: str | os.PathLike | None = None
  cache_dir: str | os.PathLike | None = None
  labelling: Labelling | None = None
  fold: Fold | None = None


def is_place(place: str) -> bool:
  """Whether a text has the form of a place of images."""
  kind, _, path = place.partition(':')
  if place == REST or kind == 'folder' and path:
    return True
  return _TFDS.fullmatch(place) is not None


def check(dataset: Dataset, place: str, where: Where) -> None:
  """Fails on a place that has no images, before anything is decoded.

  Args:
    dataset: as load_splits gives it.
    place: as in `extend`.
    where: likewise.

  Raises:
    ValueError, FileNotFoundError: see `extend`.
  """
  if place == REST and dataset.files:
    _check_rest(len(dataset.files['train'].names), dataset)
  elif place.startswith('folder:'):
    _existing(place)
  elif place != REST:
    _tfds_source(place, 0, where)


def extend(
  dataset: Dataset,
  place: str,
  *,
  crop_fraction: float | None = None,
  interpolation: str = 'bicubic',
  on_bad_image: str = 'error',
  where: Where | None = None,
) -> Dataset:
  """Adds images, with label -1, to the training images.

  Both are held in memory together. Exact copies of images of validation or test
  are left out, but for 'rest', whose copies are facts of the data set.

  Args:
    dataset: as load_splits gives it.
    place: 'rest', the data set's other training images; 'folder:PATH', whose
      sub-folders are searched and mean nothing, or an archive;
      'tfds:NAME[:SPLIT]', by default of the split train.
    crop_fraction: as in load_splits.
    interpolation: likewise.
    on_bad_image: likewise.
    where: of the data set, for 'rest', and of TFDS sets.

  Returns:
    The data set with a longer train split and a note on it.

  Raises:
    ValueError: `place` has no images or none but copies, or is none, or an
      image is bad.
    FileNotFoundError: there is no such folder, or no such prepared set.
  """
  where, train = where or Where(), dataset.splits['train']
  if not is_place(place):
    raise ValueError(
      f"distillation.unlabelled is {place!r}; accepted: 'rest', 'folder:PATH' "
      "or 'tfds:NAME:SPLIT'"
    )
  size = train.images.shape[1]
  crop = crop_fraction or default_crop(dataset.name)
  short_side = transforms.resize_size(dataset.image_size, crop)
  geometry = decode.Geometry(max(short_side, size), size, interpolation)
  first_index = int(train.indices.max()) + 1

  def added(source: Source) -> Dataset:
    said = ''
    if place != REST:
      source, said = _without_copies(dataset, place, source)
    decoded = decode.decode(
      source,
      decode.whole(source, 1),
      geometry,
      description=f'{place} without labels',
      on_bad_image=on_bad_image,
    )
    return _joined(dataset, place, source, decoded, said)

  if place == REST:
    return added(_rest(dataset, where))
  if place.startswith('folder:'):
    with archives.open_tree(_existing(place)) as tree:
      return added(_folder_source(tree, first_index))
  return added(_tfds_source(place, first_index, where))


def _without_copies(
  dataset: Dataset, place: str, source: Source
) -> tuple[Source, str]:
  """Without exact copies of validation and test; what to say of copies."""
  of_split = {
    split: np.isin(source.digests, files.digests)
    & (source.digests != NO_DIGEST)
    for split, files in dataset.files.items()
  }
  none = np.zeros(len(source.names), bool)
  evaluated = of_split.get('validation', none) | of_split.get('test', none)
  left_out, said = int(evaluated.sum()), ''
  if left_out and evaluated.all():
    raise ValueError(
      f'distillation.unlabelled: all {left_out} images of {place} are exact '
      'copies of images of validation or test'
    )
  trained = int((of_split.get('train', none) & ~evaluated).sum())
  if trained:
    said += f'; {trained} of them are exact copies of images of train'
  if left_out:
    said += (
      f'; {left_out} others are left out: exact copies of images of validation '
      'or test'
    )
    source = source.take(np.flatnonzero(~evaluated))
  return source, said


def _joined(
  dataset: Dataset,
  place: str,
  source: Source,
  decoded: decode.Decoded,
  said: str,
) -> Dataset:
  train, count = dataset.splits['train'], len(decoded.images)
  images = np.concatenate([train.images, decoded.images])
  images.flags.writeable = False
  split = Split(
    images,
    np.concatenate([train.labels, np.full(count, NO_LABEL, np.int32)]),
    np.concatenate([train.indices, source.indices[decoded.rows]]),
    train.names + [source.names[row] for row in decoded.rows.tolist()],
  )
  whose = 'the rest of train' if place == REST else place
  note = f'{count} images of {whose} are learned from without labels{said}'
  if said:
    logging.info('%s', note)
  return dataclasses.replace(
    dataset,
    splits=dataset.splits | {'train': split},
    skipped=dataset.skipped | {'unlabelled': decoded.skipped},
    notes=[*dataset.notes, note],
  )


def _rest(dataset: Dataset, where: Where) -> Source:
  """The training images that the subset left, without their labels."""
  whole = sources.open_sources(
    dataset.name,
    data_dir=where.data_dir,
    cache_dir=where.cache_dir,
    labelling=where.labelling,
    fold=where.fold,
  ).splits['train']
  _check_rest(len(whole.names), dataset)
  hidden = dataclasses.replace(whole, labels=np.zeros_like(whole.labels))
  chosen = dataset.splits['train'].indices
  return hidden.take(np.flatnonzero(~np.isin(whole.indices, chosen)))


def _check_rest(count: int, dataset: Dataset) -> None:
  if count <= len(dataset.splits['train']):
    raise ValueError(
      f"distillation.unlabelled is 'rest', and all {count} training images of "
      f'{dataset.name} are labelled ones; choose fewer with '
      'num_train_per_class or train_fraction'
    )


def _tfds_source(place: str, first_index: int, where: Where) -> Source:
  found = _TFDS.fullmatch(place)
  assert found is not None
  try:
    source = sources.open_unlabelled(
      found['name'],
      found['split'] or _TFDS_SPLIT,
      data_dir=where.data_dir,
      cache_dir=where.cache_dir,
    )
  except (ValueError, FileNotFoundError) as error:
    raise type(error)(f'distillation.unlabelled: {error}') from error
  return dataclasses.replace(source, indices=source.indices + first_index)


def _existing(place: str) -> str:
  path = place.partition(':')[2]
  if not pathlib.Path(path).expanduser().exists():
    raise FileNotFoundError(f'distillation.unlabelled: no folder {path}')
  return path


def _folder_source(tree: walk.Tree, first_index: int) -> Source:
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
  logging.info(
    'distillation.unlabelled: reads %d images of %s, to know copies of those '
    'of validation and test',
    *(len(files), tree.location),
  )
  with concurrent.futures.ThreadPoolExecutor() as pool:
    of_bytes = list(
      pool.map(lambda file: digest_of(walk.read_image(tree, file)), files)
    )
  return Source(
    [file.name for file in files],
    np.zeros(len(files), np.int32),
    first_index + np.arange(len(files), dtype=np.int64),
    lambda position: walk.read_image(tree, files[position]),
    digest.hexdigest(),
    np.asarray(of_bytes, np.uint64),
  )
