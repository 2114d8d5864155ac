"""What frozen backbones say of images, on disk: rows by image, in whole files.

A folder is of one backbone and one way of drawing views. It holds
`fingerprint.json`, which says which, and for each view v files
`view<v>-<digest>.npy`, each named by the checksum of what it holds: rows with
the key of their image. A file is written once, whole or not at all; another
split, a subset or a fill that was stopped adds what it lacks in files of its
own. A file that is not what its name says is removed, and its rows are computed
again.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from absl import logging

from tlkd_jax.data import Split
from tlkd_jax.runtime import locked, mapped
from tlkd_jax.runtime.atomic import replace_text, replacing, sweep_store

KEY = 'image key'


def row_of(widths: Mapping[str, int], dtype: str) -> np.dtype:
  """The structured dtype of a row: its image's key, and the outputs.

  Args:
    widths: {'pre_logits': D, ...}.
    dtype: 'float16' | 'float32'.
  """
  outputs = [(name, dtype, (width,)) for name, width in widths.items()]
  return np.dtype([(KEY, np.uint64), *outputs])


def image_keys(split: Split, *, by_index: bool) -> np.ndarray:
  """A number for each image by its pixels; uint64 [N].

  Args:
    split: of one size of images.
    by_index: whether the image's number in its data set counts too, of which
      random views are drawn.
  """
  keys = []
  for image, index in zip(split.images, split.indices.tolist(), strict=True):
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8)
    if by_index:
      digest.update(b'%d' % index)
    keys.append(digest.digest())
  return np.frombuffer(b''.join(keys), np.uint64)


class View:
  """The rows of one view that are there, by key; they are read on demand."""

  def __init__(self, files: list[np.ndarray]):
    """Takes arrays of rows, in memory or memory-mapped."""
    self.files = files
    self._starts = np.cumsum([0, *map(len, files)])
    keys = [np.asarray(file[KEY]) for file in files]
    every = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
    self._order = np.argsort(every, kind='stable')
    self._sorted = every[self._order]

  def find(self, keys: np.ndarray) -> np.ndarray:
    """Where the rows of keys are; int [N], -1 where there is none."""
    if not self._sorted.size:
      return np.full(keys.size, -1)
    at = np.searchsorted(self._sorted, keys)
    at = np.minimum(at, self._sorted.size - 1)
    return np.where(self._sorted[at] == keys, self._order[at], -1)

  def take(self, places: np.ndarray) -> np.ndarray:
    """The rows at places from `find`, none of them -1."""
    which = np.searchsorted(self._starts, places, side='right') - 1
    found = np.empty(places.size, self.files[0].dtype)
    for number in np.unique(which):
      here = which == number
      inside = places[here] - self._starts[number]
      found[here] = self.files[number][inside]
    return found


class Store:
  """The folder of one backbone's features of one kind of views."""

  def __init__(
    self, root: pathlib.Path, fingerprint: Mapping[str, Any], row: np.dtype
  ):
    """Names the folder, root/DIGEST; touches nothing.

    Args:
      root: folder of all features that are kept together.
      fingerprint: JSON-able; all that a row depends on beside its image.
      row: from `row_of`.
    """
    self._text = json.dumps(fingerprint, indent=1, sort_keys=True)
    digest = hashlib.blake2b(self._text.encode(), digest_size=8).hexdigest()
    self.folder = root / digest
    self._row = row
    self._usable = True

  @contextlib.contextmanager
  def claimed(self) -> Generator[None]:
    """Waits until no other run writes here; a killed run's claim is void.

    Where nothing can be written a run goes on without the store.
    """
    locked.keep(self.folder / 'used')
    with contextlib.ExitStack() as stack:
      lock, what = self.folder / 'lock', f'fills {self.folder}'
      try:
        if stack.enter_context(locked.in_turn(lock, what)):
          sweep_store(self.folder)
        self._check_fingerprint()
      except OSError as error:
        self._give_up(error)
      yield

  def read(self, view: int) -> View:
    """What is there of a view; what is damaged is removed, with a warning."""
    files = []
    if not self._usable:
      return View(files)
    for path in sorted(self.folder.glob(f'view{view}-*.npy')):
      rows = self._load(path)
      if rows is None:
        logging.warning(
          'stored features: %s was damaged; it is computed again', path
        )
        path.unlink()
      else:
        files.append(rows)
    return View(files)

  def write(self, view: int, rows: np.ndarray) -> np.ndarray:
    """Adds rows to a view.

    Returns:
      The rows, memory-mapped; as they are where they cannot be written, which
      is a warning.
    """
    path = self.folder / f'view{view}-{mapped.digest(rows)}.npy'
    if not self._usable:
      return rows
    try:
      with replacing(path) as temporary, temporary.open('wb') as file:
        np.save(file, rows)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      self._give_up(error)
      return rows
    return np.load(path, mmap_mode='r')

  def _give_up(self, error: OSError) -> None:
    self._usable = False
    logging.warning(
      'features cannot be stored in %s (%s); this run keeps them in memory. '
      'targets.features_dir names another place',
      *(self.folder, error.strerror),
    )

  def _check_fingerprint(self) -> None:
    path = self.folder / 'fingerprint.json'
    if path.exists():
      if path.read_text(errors='replace') == self._text:
        return
      logging.warning(
        'stored features: %s is damaged or of something else; they are '
        'computed again',
        path,
      )
      for old in self.folder.glob('view*'):
        old.unlink()
    replace_text(path, self._text)

  def _load(self, path: pathlib.Path) -> np.ndarray | None:
    rows = mapped.load(path)
    if rows is None or rows.dtype != self._row or rows.ndim != 1:
      return None
    said = re.fullmatch(r'view\d+-([0-9a-f]+)\.npy', path.name)
    right = said is not None and mapped.digest(rows) == said[1]
    return rows if right else None
