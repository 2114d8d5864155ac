"""What the data of a run were when it began, and whether they still are.

WORKDIR/data.json.gz holds the classes and every file of every split, used or
not, by name, class and digest of its bytes; unlabelled.json.gz the images that
are learned from without labels. A run goes on with these data alone, as with
others it would be neither the old run nor a new one.
"""

import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlkd_jax.data import Dataset, Files
from tlkd_jax.data.index import NO_DIGEST, Source
from tlkd_jax.data.unlabelled import NO_LABEL
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.atomic import replacing

LABELLED = 'data.json.gz'
UNLABELLED = 'unlabelled.json.gz'

_SHOWN = 3
_DAMAGED = (OSError, EOFError, zlib.error)

Record = dict[str, Any]


def of_labelled(dataset: Dataset) -> Record:
  """The record of a data set, from decoding.load_dataset."""
  return of_files(dataset.class_names, dataset.files)


def of_files(
  class_names: Sequence[str], files: Mapping[str, Files | Source]
) -> Record:
  """That of data of which nothing is decoded: split -> its files."""
  about = {
    split: {
      'names': found.names,
      'labels': found.labels.tolist(),
      'digests': found.digests.tolist(),
    }
    for split, found in files.items()
  }
  return {'classes': list(class_names), 'files': about}


def of_unlabelled(dataset: Dataset) -> Record:
  """That of the images without labels, from inputs.training_data."""
  train = dataset.splits['train']
  rows = np.flatnonzero(train.labels == NO_LABEL).tolist()
  digests = [
    hashlib.blake2b(train.images[row].tobytes(), digest_size=8).hexdigest()
    for row in rows
  ]
  files = {
    'names': [train.names[row] for row in rows],
    'labels': [0] * len(rows),
    'digests': digests,
  }
  return {'classes': [''], 'files': {'unlabelled': files}}


def check(workdir: pathlib.Path, record: Record, name: str = LABELLED) -> None:
  """Checks that the data are those of a run, where it has a record of them.

  Raises:
    ValueError: says what has changed, or that the record is damaged.
  """
  path = workdir / name
  if not path.exists():
    return
  try:
    lines = changes(json.loads(gzip.decompress(path.read_bytes())), record)
  except (*_DAMAGED, ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if lines:
    raise ValueError(
      f'the data are not those that {workdir} began with:\n  '
      + '\n  '.join(lines)
      + '\nput them back as they were, or use another --workdir; what is '
      'finished is evaluated on other data with --mode=evaluate --dataset'
    )


def write(workdir: pathlib.Path, record: Record, name: str = LABELLED) -> None:
  """Writes the record of a run unless there is one."""
  path = workdir / name
  if path.exists() or not sharding.is_lead():
    return
  with replacing(path) as temporary:
    text = json.dumps(record).encode()
    temporary.write_bytes(gzip.compress(text, mtime=0))


def classes(workdir: pathlib.Path) -> list[str] | None:
  """Names of a run's classes by label; None where it has no record.

  Raises:
    ValueError: the record is damaged.
  """
  path = workdir / LABELLED
  if not path.exists():
    return None
  try:
    record = json.loads(gzip.decompress(path.read_bytes()))
    return list(map(str, record['classes']))
  except (*_DAMAGED, ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def copies_of_training(workdir: pathlib.Path, dataset: Dataset) -> int:
  """Images of other data that are, byte for byte, a run's training images.

  0 where the run has no record.

  Raises:
    ValueError: the record is damaged.
  """
  learned = _recorded(workdir / LABELLED, 'train') or {}
  known = set(learned.values()) - {int(NO_DIGEST)}
  test = dataset.files['test'].digests.tolist()
  return sum(digest in known for digest in test)


def _recorded(path: pathlib.Path, split: str) -> dict[str, int] | None:
  """Name -> digest of the files of a split; None without a record.

  Raises:
    ValueError: the record is damaged.
  """
  if not path.exists():
    return None
  try:
    found = json.loads(gzip.decompress(path.read_bytes()))['files'][split]
    return dict(zip(found['names'], found['digests'], strict=True))
  except (*_DAMAGED, ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def check_taught(run: str, dataset: Dataset) -> None:
  """Refuses a finished run that learned from images of the test split.

  By names with the same bytes, and by bytes alone where they are not among the
  dataset's own training images too: names depend on the folder that was given,
  but exact copies within one data set are reported and kept. A run without a
  record is not refused.

  Args:
    run: workdir of a teacher, or of what a student starts from.
    dataset: of the run that it is for.

  Raises:
    ValueError: says how many, or that the record is damaged.
  """
  learned = _recorded(pathlib.Path(run).expanduser() / LABELLED, 'train')
  test = dataset.files.get('test')
  if learned is None or test is None:
    return
  own = dataset.files['train'].digests.tolist()
  taught = set(learned.values()) - {*own, int(NO_DIGEST)}
  pairs = zip(test.names, test.digests.tolist(), strict=True)
  count = sum(
    learned.get(name) == digest or digest in taught for name, digest in pairs
  )
  if count:
    raise ValueError(
      f'{run} learned from {count} of the {len(test.names)} images that are '
      'test here, so that its student would be taught them; accepted: a run of '
      'the same split (data.folds, data.fold and seed)'
    )


def changes(old: Record, new: Record) -> list[str]:
  """What differs between two records, in words, a line each."""
  lines = []
  before, now = old['classes'], new['classes']
  if before != now:
    said = [f'{len(before)} there, {len(now)} now']
    said += _named('new', [n for n in now if n not in set(before)])
    said += _named('gone', [n for n in before if n not in set(now)])
    lines.append(f'classes: {"; ".join(said)}')
    if len(said) == 1:
      lines[-1] = 'classes: the same in another order'
  for split in old['files'] | new['files']:
    said = _changes_of_files(_files(old, split), _files(new, split))
    if said:
      lines.append(f'{split}: {"; ".join(said)}')
  return lines


def _files(record: Record, split: str) -> dict[str, tuple[str, Any]]:
  """Name -> (class, digest), in the order of the split."""
  found = record['files'].get(split)
  if found is None:
    return {}
  names = [record['classes'][label] for label in found['labels']]
  about = zip(names, found['digests'], strict=True)
  return dict(zip(found['names'], about, strict=True))


def _changes_of_files(
  old: dict[str, tuple[str, Any]], new: dict[str, tuple[str, Any]]
) -> list[str]:
  shared = [name for name in new if name in old]
  moved = [
    f'{name} ({old[name][0]} there, {new[name][0]} now)'
    for name in shared
    if old[name][0] != new[name][0]
  ]
  said = _named('new', [name for name in new if name not in old])
  said += _named('gone', [name for name in old if name not in new])
  said += _named('of another class', moved)
  said += _named(
    'other bytes', [name for name in shared if old[name][1] != new[name][1]]
  )
  if said:
    return [f'{len(old)} images there, {len(new)} now', *said]
  return ['the same images in another order'] if [*old] != [*new] else []


def _named(what: str, names: list[str]) -> list[str]:
  """'5 new: a, b, c, ...', or nothing where there are none."""
  if not names:
    return []
  dots = ', ...' * (len(names) > _SHOWN)
  return [f'{len(names)} {what}: {", ".join(names[:_SHOWN])}{dots}']
