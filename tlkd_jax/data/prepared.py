"""Copies of data sets in the cache folder: written once, read by all runs."""

import contextlib
import glob
import hashlib
import io
import json
import pathlib
import re
import shutil
import uuid
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from tlkd_jax.data.builders import folder, labelled, layout, walk
from tlkd_jax.data.builders.labels import Labelled
from tlkd_jax.runtime import locked, sealed

# Beside the records: what the folder held that is not in them.
_BESIDE = 'folder.json'
_SUMS = 'sums.json'


def once(cache_dir: pathlib.Path, key: str, make_builder):
  """Writes a builder's files unless an earlier run did."""
  final = cache_dir / 'prepared' / key
  lock = cache_dir / 'locks' / key
  _keep(final)
  with locked.in_turn(lock, f'makes {final}') as alone:
    if alone:
      for left in final.parent.glob(f'.{glob.escape(key)}-*'):
        shutil.rmtree(left, ignore_errors=True)
    if final.is_dir() and (name := _damaged(final)):
      logging.warning('%s is damaged, and %s is made again', name, final)
      shutil.rmtree(final)
    if not final.is_dir():
      _make(final, make_builder)
  return make_builder(str(final))


def _keep(copy: pathlib.Path) -> None:
  locks = copy.parents[1] / 'locks'
  locked.keep(locks / f'{copy.name}.used')


def _make(final: pathlib.Path, make_builder) -> None:
  # Written aside and renamed: a run that dies half-way leaves no part, nor do
  # two at once where they cannot wait for each other.
  aside = final.with_name(f'.{final.name}-{uuid.uuid4().hex}')
  logging.info('Preparing %s in %s', final.name, final)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      make_builder(str(aside)).download_and_prepare()
    _write_sums(aside)
    aside.rename(final)
  except RuntimeError as error:
    # So say array_record's own writers, such as of a full disk.
    first = str(error).partition('; writing ')[0]
    raise OSError(f'{final} could not be written: {first}') from error
  except OSError:
    if not final.is_dir():
      raise
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _write_sums(copy: pathlib.Path) -> None:
  sealed.write_text(copy / _SUMS, json.dumps(_sums(copy)))


def _sums(copy: pathlib.Path) -> dict[str, str | int]:
  """File -> its digest, or its size where its own format has checksums."""
  found: dict[str, str | int] = {}
  for path in sorted(copy.rglob('*')):
    name, size = path.relative_to(copy).as_posix(), path.stat().st_size
    if path.is_file() and path.parent not in (copy, copy / sealed.FOLDER):
      if '.array_record' in name or '.tfrecord' in name:
        found[name] = size
      else:
        found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
  return found


def _damaged(copy: pathlib.Path) -> str | None:
  """A file of a copy that is not as it was written; None where all are.

  A copy of an earlier version, which has no digests, is taken as it is.
  """
  path = copy / _SUMS
  if not path.exists():
    return None
  try:
    expected = sealed.read_json(path)
  except ValueError:
    return _SUMS
  found = _sums(copy)
  wrong = [name for name in expected if found.get(name) != expected[name]]
  return wrong[0] if wrong else None


def from_listing(listing: layout.Listing, cache_dir: pathlib.Path, key: str):
  """The prepared TFDS builder of a listing.

  Args:
    listing: images with splits and classes.
    cache_dir: where own copies are kept.
    key: the copy's name, another one for other images.
  """
  return _with_beside(
    listing,
    f'folder:{listing.location}',
    cache_dir,
    key,
    lambda data_dir: folder.FolderImages(listing, data_dir=data_dir),
  )


def from_labelled(found: Labelled, cache_dir: pathlib.Path, key: str):
  """The same of images that a table or their names label."""
  return _with_beside(
    found,
    found.where,
    cache_dir,
    key,
    lambda data_dir: labelled.LabelledImages(found, data_dir=data_dir),
  )


def _with_beside(
  found: layout.Listing | Labelled,
  where: str,
  cache_dir: pathlib.Path,
  key: str,
  make_builder,
):
  path = cache_dir / 'prepared' / key / _BESIDE
  if not path.parent.is_dir():
    _check_space(cache_dir, found.num_bytes, where)
  builder = once(cache_dir, key, make_builder)
  beside = {
    'left_out': walk.count_left_out(found.left_out),
    'notes': found.notes,
  }
  text = json.dumps(beside)
  # The copy may be older than a file beside the images.
  if _stored_beside(path) != beside:
    sealed.write_text(path, text)
  return builder


def _check_space(cache_dir: pathlib.Path, needed: int, where: str) -> None:
  cache_dir.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(cache_dir).free
  if needed > free:
    raise OSError(
      f'{cache_dir}: {needed / 1e9:.1f} GB are needed for a copy of '
      f'{where} and {free / 1e9:.1f} GB are free; choose another folder with '
      'data.cache_dir'
    )


def read_beside(builder) -> tuple[list[dict[str, Any]], list[str]]:
  """(what was left out, notes) of a prepared copy, nothing where none is."""
  path = pathlib.Path(builder.data_path).parents[1] / _BESIDE
  stored = _stored_beside(path) or {'left_out': [], 'notes': []}
  return stored['left_out'], stored['notes']


def is_whole(copy: pathlib.Path) -> bool:
  """Whether a copy is there, undamaged, with what was said of its folder.

  One that is there is from then on in use.
  """
  if copy.is_dir():
    _keep(copy)
  return _stored_beside(copy / _BESIDE) is not None and not _damaged(copy)


def _stored_beside(path: pathlib.Path) -> dict[str, Any] | None:
  """None where there is none, or a damaged one."""
  try:
    stored = sealed.read_json(path)
  except (FileNotFoundError, ValueError):
    return None
  whole = isinstance(stored, dict) and {'left_out', 'notes'} <= stored.keys()
  return stored if whole else None


def open_copy(name: str, copy: pathlib.Path):
  """The builder, of that TFDS name, of a copy that is there."""
  _keep(copy)
  return tfds.core.read_only_builder.builder_from_files(
    name, data_dir=str(copy)
  )


def plain_name(path: pathlib.Path) -> str:
  """A folder's name as part of a file name."""
  return re.sub(r'[^A-Za-z0-9_.-]+', '_', path.resolve().stem)[:40]
