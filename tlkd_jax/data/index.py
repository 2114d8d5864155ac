"""A split undecoded: names, labels and digests of its files, and their bytes.

They take a pass over the records, so they are kept in the cache folder.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from tlkd_jax.data import transforms
from tlkd_jax.runtime.atomic import replace_arrays

_RECORDS_AT_ONCE = 256

# The digest of a file that could not be read, so that it is like no other.
NO_DIGEST = 0


@dataclasses.dataclass(frozen=True)
class Source:
  """One split, undecoded.

  Attributes:
    names: name of each example, unique within the data set.
    labels: int32[N].
    indices: int64[N], a number for each example that no subset changes.
    read: position -> the bytes of that image file; safe to call from threads.
    fingerprint: identifies the content.
    digests: uint64[N], of the bytes of each image file; NO_DIGEST for none.
  """

  names: list[str]
  labels: np.ndarray
  indices: np.ndarray
  read: Callable[[int], bytes]
  fingerprint: str
  digests: np.ndarray

  def take(self, rows: np.ndarray) -> 'Source':
    """Returns the examples at `rows`, in that order."""
    rows = np.asarray(rows, np.int64)
    kept = rows.tolist()
    digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes())
    return Source(
      [self.names[row] for row in kept],
      self.labels[rows],
      self.indices[rows],
      lambda position: self.read(kept[position]),
      digest.hexdigest(),
      self.digests[rows],
    )


def open_split(
  builder,
  parts: list[str],
  image_key: str,
  label_key: str | None,
  cache: pathlib.Path,
) -> Source:
  """Reads labels and names of a split; images stay undecoded.

  Without a `label_key` no label is read, and all are 0.
  """
  images = {
    key: tfds.decode.SkipDecoding()
    for key, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }
  split = '+'.join(parts)
  try:
    records = builder.as_data_source(split=split, decoders=images)
  except NotImplementedError as error:
    raise ValueError(
      f'data set {builder.info.full_name!r} in {builder.data_path} is not '
      'stored as array_record; prepare it again into another folder with '
      'python -m tlkd_jax.data.prepare'
    ) from error
  info_file = pathlib.Path(builder.data_path) / 'dataset_info.json'
  identity = f'{info_file.resolve()} {info_file.stat().st_mtime_ns} {split}'
  if label_key is None:
    identity += ' without labels'
  fingerprint = hashlib.sha256(identity.encode()).hexdigest()
  index = cache / 'index' / f'{fingerprint[:24]}.npz'
  names, labels, digests = _read_index(
    lambda rows: _records(records, rows, builder),
    len(records),
    split,
    image_key,
    label_key,
    index,
  )
  return Source(
    names,
    labels,
    np.arange(labels.size, dtype=np.int64),
    lambda position: _records(records, [position], builder)[0][image_key],
    fingerprint,
    digests,
  )


def _records(records, rows: list[int], builder) -> list[dict]:
  """Records of a copy.

  Raises:
    ValueError: their checksums are wrong.
  """
  try:
    # For several array_record starts threads, which take longer than to read.
    if len(rows) == 1:
      return [records[rows[0]]]
    return records.__getitems__(rows)
  except RuntimeError as error:
    raise ValueError(
      f'{builder.data_path} is damaged ({error}); delete it, and it is made '
      'again'
    ) from error


def _read_index(
  read: Callable[[list[int]], list[dict]],
  count: int,
  split: str,
  image_key: str,
  label_key: str | None,
  index: pathlib.Path,
):
  """Names, labels and digests, from `index` if an earlier run wrote it."""
  if index.exists():
    try:
      # Opened here: numpy leaves a damaged file open.
      with (
        index.open('rb') as file,
        np.load(file, allow_pickle=False) as stored,
      ):
        arrays_of_it = [stored[key] for key in ('names', 'labels', 'digests')]
      if {array.shape for array in arrays_of_it} == {(count,)}:
        return arrays_of_it[0].tolist(), *arrays_of_it[1:]
    # What a damaged .npz raises depends on where the damage is.
    except Exception as error:
      logging.warning('%s is damaged (%s) and made again', index, error)
  names, labels, digests = [], [], []
  for start in range(0, count, _RECORDS_AT_ONCE):
    stop = min(start + _RECORDS_AT_ONCE, count)
    for record in read(list(range(start, stop))):
      names.append(_name(record, f'{split}-{len(names):07d}'))
      labels.append(0 if label_key is None else record[label_key])
      digests.append(digest_of(record[image_key]))
  label_array = np.asarray(labels, np.int32)
  digest_array = np.asarray(digests, np.uint64)
  replace_arrays(
    index,
    {
      'names': np.asarray(names, np.str_),
      'labels': label_array,
      'digests': digest_array,
    },
  )
  return names, label_array, digest_array


def digest_of(data: bytes) -> int:
  """The digest of an image file's bytes; NO_DIGEST where there are none."""
  if not data or transforms.is_unreadable(data):
    return NO_DIGEST
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')


def _name(record: dict, default: str) -> str:
  name = record.get('file_name', default)
  if isinstance(name, bytes):
    return name.decode('utf-8', 'surrogateescape')
  return name if isinstance(name, str) else default
