"""Decodes the chosen images of a split once, into one uint8 array.

The array is in memory, or a memory-mapped file in the cache folder that later
runs reuse.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable

import numpy as np
import PIL
from absl import logging

from tlkd_jax.data import transforms
from tlkd_jax.data.index import Source
from tlkd_jax.runtime import bars, locked, mapped, sealed

_IMAGES_PER_TASK = 16
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which examples to decode.

  Attributes:
    candidates: per class, its rows in the order in which they are taken.
    counts: int[K], how many whole images of each class are wanted.
    exact: whether it is an error if a class runs out of whole images.
  """

  candidates: list[np.ndarray]
  counts: np.ndarray
  exact: bool = False

  def total(self) -> int:
    """Number of wanted images."""
    return int(np.sum(self.counts))


@dataclasses.dataclass(frozen=True)
class Decoded:
  """Decoded images.

  Attributes:
    images: uint8[N, size, size, 3].
    rows: int64[N], the row of the source that each came from.
    skipped: (name, reason) of every image that could not be decoded.
  """

  images: np.ndarray
  rows: np.ndarray
  skipped: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Short side to `short_side`, then the central `size` x `size` pixels."""

  short_side: int
  size: int
  interpolation: str


def whole(source: Source, num_classes: int) -> Choice:
  """The choice of all examples."""
  candidates = [np.flatnonzero(source.labels == c) for c in range(num_classes)]
  return Choice(candidates, np.asarray([rows.size for rows in candidates]))


def decode(
  source: Source,
  choice: Choice,
  geometry: Geometry,
  *,
  description: str,
  on_bad_image: str = 'error',
  num_threads: int | None = None,
  mapped_in: pathlib.Path | None = None,
) -> Decoded:
  """Decodes a choice of a split's images.

  A bad image is replaced by the next candidate of its class, if there is one.

  Args:
    source: the split.
    choice: which images.
    geometry: size and resampling.
    description: what is decoded, for progress and messages.
    on_bad_image: 'error' or 'skip'.
    num_threads: decoding threads, by default one for each core.
    mapped_in: if given, the folder of the memory-mapped file.

  Returns:
    The images, in the order of the source except for replacements.

  Raises:
    ValueError: bad images with 'error' (they are named), a class without
      whole images, or too few for an exact choice.
    OSError: not enough disk space for the memory-mapped file.
  """
  if on_bad_image not in ('error', 'skip'):
    raise ValueError(
      f"on_bad_image is {on_bad_image!r}; accepted: 'error', 'skip'"
    )
  shape = (choice.total(), geometry.size, geometry.size, 3)

  def fill(images: np.ndarray) -> Decoded:
    return _fill(
      images, source, choice, geometry, description, on_bad_image, num_threads
    )

  if mapped_in is None:
    return fill(np.empty(shape, np.uint8))
  key = _key(source, choice, geometry)
  lock = mapped_in.parent / 'locks' / key
  locked.keep(lock.with_name(f'{key}.used'))
  with locked.in_turn(lock, f'decodes {description}') as alone:
    stored = _open_mapped(mapped_in, key)
    if stored is None:
      for left in mapped_in.glob(f'.{key}-*.npy') if alone else ():
        left.unlink(missing_ok=True)
      return _write_mapped(mapped_in, key, shape, fill)
  if stored.skipped and on_bad_image == 'error':
    raise ValueError(_bad_message(description, stored.skipped))
  return stored


def _fill(
  images: np.ndarray,
  source: Source,
  choice: Choice,
  geometry: Geometry,
  description: str,
  on_bad_image: str,
  num_threads: int | None,
) -> Decoded:
  taken = np.asarray(choice.counts, np.int64).copy()
  pending = np.sort(
    np.concatenate(
      [c[:n] for c, n in zip(choice.candidates, taken, strict=True)]
    )
  )
  kept, skipped = [], []
  filled = 0
  while pending.size:
    part = images[filled : filled + pending.size]
    reasons = _decode_rows(
      part, source, pending, geometry, description, num_threads
    )
    skipped += [
      (source.names[row], reason)
      for row, reason in zip(pending.tolist(), reasons, strict=True)
      if reason
    ]
    if skipped and on_bad_image == 'error':
      raise ValueError(_bad_message(description, skipped))
    good = np.flatnonzero([not reason for reason in reasons])
    # One by one and in place: a memory-mapped array may exceed the memory.
    for position, origin in enumerate(good.tolist()):
      if position != origin:
        part[position] = part[origin]
    kept.append(pending[good])
    filled += good.size
    failed = np.delete(pending, good)
    pending = _replacements(source, choice, taken, failed)
  rows = np.concatenate(kept) if kept else np.zeros(0, np.int64)
  _check_complete(source, choice, rows, description, len(skipped))
  if skipped:
    logging.warning('%s: left out %d bad images', description, len(skipped))
  return Decoded(images[:filled], rows, skipped)


def _replacements(
  source: Source,
  choice: Choice,
  taken: np.ndarray,
  failed: np.ndarray,
) -> np.ndarray:
  """The next candidates of the failed rows' classes; advances `taken`."""
  rows = []
  for label in source.labels[failed].tolist():
    if taken[label] < choice.candidates[label].size:
      rows.append(choice.candidates[label][taken[label]])
      taken[label] += 1
  return np.sort(np.asarray(rows, np.int64))


def _check_complete(
  source: Source,
  choice: Choice,
  rows: np.ndarray,
  description: str,
  num_skipped: int,
) -> None:
  got = np.bincount(source.labels[rows], minlength=len(choice.counts))
  needed = choice.counts if choice.exact else np.minimum(choice.counts, 1)
  short = np.flatnonzero(got < needed)
  if short.size:
    label = short[0]
    example = source.names[choice.candidates[label][0]]
    raise ValueError(
      f'{description}: without the {num_skipped} images that cannot be '
      f'decoded, the class of {example} has {got[label]} images of the '
      f'{needed[label]} needed'
    )


def _decode_rows(
  images: np.ndarray,
  source: Source,
  rows: np.ndarray,
  geometry: Geometry,
  description: str,
  num_threads: int | None,
) -> list[str]:
  """Decodes `rows` into `images`; returns a reason for each, '' if good."""

  def decode_some(start: int) -> list[str]:
    reasons = []
    for position in range(start, min(start + _IMAGES_PER_TASK, rows.size)):
      try:
        images[position] = transforms.load_square(
          source.read(int(rows[position])),
          short_side=geometry.short_side,
          size=geometry.size,
          interpolation=geometry.interpolation,
        )
        reasons.append('')
      except transforms.BadImageError as error:
        reasons.append(str(error))
    return reasons

  starts = range(0, rows.size, _IMAGES_PER_TASK)
  workers = num_threads or os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    tasks = pool.map(decode_some, starts)
    shown = bars.track(tasks, len(starts), f'decoding {description}')
    return [reason for reasons in shown for reason in reasons]


def _bad_message(description: str, skipped: list[tuple[str, str]]) -> str:
  listed = '; '.join(f'{name}: {why}' for name, why in skipped[:_LISTED])
  more = f' and {len(skipped) - _LISTED} more' * (len(skipped) > _LISTED)
  return (
    f'{description}: {len(skipped)} bad image(s): {listed}{more}. Remove them '
    "or set on_bad_image to 'skip'"
  )


def _key(source: Source, choice: Choice, geometry: Geometry) -> str:
  digest = hashlib.sha256()
  about = [source.fingerprint, geometry, choice.exact]
  about += [PIL.__version__, transforms.RULES]
  digest.update(repr(about).encode())
  digest.update(np.asarray(choice.counts, np.int64).tobytes())
  for rows in choice.candidates:
    digest.update(np.asarray(rows, np.int64).tobytes())
  return digest.hexdigest()[:24]


def _open_mapped(folder: pathlib.Path, key: str) -> Decoded | None:
  """What an earlier run decoded; None where there is nothing whole."""
  about, array_file = folder / f'{key}.json', folder / f'{key}.npy'
  if not about.exists():
    return None
  try:
    stored = sealed.read_json(about)
    images = np.load(array_file, mmap_mode='r')
    rows = np.asarray(stored['rows'], np.int64)
    skipped = [(name, reason) for name, reason in stored['skipped']]
    # Earlier versions wrote no digest.
    whole = stored.get('digest') in (None, mapped.digest(images))
  # What a damaged .npy raises depends on where the damage is.
  except Exception as error:
    logging.warning('%s is damaged (%s) and decoded again', array_file, error)
    return None
  if not whole:
    logging.warning('%s is damaged and decoded again', array_file)
    return None
  return Decoded(images[: rows.size], rows, skipped)


def _write_mapped(
  folder: pathlib.Path,
  key: str,
  shape: tuple[int, ...],
  fill: Callable[[np.ndarray], Decoded],
) -> Decoded:
  folder.mkdir(parents=True, exist_ok=True)
  array_file = folder / f'.{key}-{uuid.uuid4().hex}.npy'
  try:
    images = mapped.create(array_file, np.uint8, shape)
    decoded = fill(images)
    images.flush()
    stored = {'rows': decoded.rows.tolist(), 'skipped': decoded.skipped}
    stored['digest'] = mapped.digest(images)
    array_file.replace(folder / f'{key}.npy')
    sealed.write_text(folder / f'{key}.json', json.dumps(stored))
  finally:
    array_file.unlink(missing_ok=True)
  logging.info('decoded images are in %s', folder / f'{key}.npy')
  # Read only, and not looked through again.
  images = np.load(folder / f'{key}.npy', mmap_mode='r')
  return dataclasses.replace(decoded, images=images[: decoded.rows.size])
