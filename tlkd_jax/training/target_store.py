"""Teacher targets on disk: a file per view, whole or not at all.

A folder holds `fingerprint.json`, which says what its numbers are of, and per
view v `view<v>.npy` (memory-mapped, one row per example in the order of the
split) with its checksum in `view<v>.sum`. A view that is being filled is
`view<v>.part`, NaN where nothing was computed yet, and `view<v>.rows` has a
line for the rows of each write, `START COUNT CHECKSUM`, so that a killed fill
goes on where it stopped; it gets its final name when every row is there.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import scipy
from absl import logging

from tlkd_jax.runtime import locked, mapped
from tlkd_jax.runtime.atomic import replace_text, sweep_store

DTYPES = ('float16', 'float32')
_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a row holds.

  Attributes:
    widths: {'logits': K, 'pre_logits': D}, the outputs that are stored.
    dtype: 'float16' | 'float32'.
    top_k: of the logits only the k largest are stored, with their classes;
      0 stores all. The others come back as one value r each, the logarithm of
      their mean exponential,
          r = log(sum_{j not in top k} exp(z_j)) - log(K - k),
      so that at temperature 1 the k probabilities are exact and the remaining
      mass is exact and spread evenly. At a temperature T > 1 the remaining
      mass comes out too large (an even spread maximises sum p_j^(1/T)), the
      more so the larger T is and the less even the rest was.
  """

  widths: Mapping[str, int]
  dtype: str
  top_k: int = 0

  @property
  def row(self) -> np.dtype:
    """The structured dtype of a row."""
    fields: list[tuple] = []
    for name, width in self.widths.items():
      if name == 'logits' and self._cut:
        fields += [
          ('logits', self.dtype, (self.top_k,)),
          ('classes', np.uint32, (self.top_k,)),
          ('rest', self.dtype),
        ]
      else:
        fields.append((name, self.dtype, (width,)))
    return np.dtype(fields)

  @property
  def _cut(self) -> bool:
    return 0 < self.top_k < self.widths['logits']

  def encode(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """{'logits': [B, K], ...} as B rows.

    Raises:
      ValueError: a value is not finite, or beyond the range of the dtype.
    """
    rows = np.zeros(len(outputs['logits']), self.row)
    for name in self.widths:
      values = np.asarray(outputs[name], np.float32)
      self._check_range(name, values)
      if name == 'logits' and self._cut:
        order = np.argsort(-values, axis=1, kind='stable')
        top, others = np.split(order, [self.top_k], axis=1)
        rows['classes'] = top
        rest = np.take_along_axis(values, others, 1).astype(np.float64)
        rows['rest'] = scipy.special.logsumexp(rest, axis=1) - np.log(
          rest.shape[1]
        )
        values = np.take_along_axis(values, top, 1)
      rows[name] = values
    return rows

  def decode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """B rows as {'logits': float32 [B, K], ...}."""
    outputs = {name: np.asarray(rows[name], np.float32) for name in self.widths}
    if self._cut:
      shape = len(rows), self.widths['logits']
      rest = np.asarray(rows['rest'], np.float32)[:, None]
      logits = np.array(np.broadcast_to(rest, shape))
      classes = rows['classes'].astype(np.int64)
      np.put_along_axis(logits, classes, outputs['logits'], 1)
      outputs['logits'] = logits
    return outputs

  def _check_range(self, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
      raise ValueError(f"the teacher's {name} are not finite")
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest > float(np.finfo(self.dtype).max):
      raise ValueError(
        f"the teacher's {name} reach {largest:.4g}, more than {self.dtype} "
        'holds; set targets.dtype to "float32"'
      )


class Targets:
  """A teacher's outputs for V views of N examples; rows are read on demand."""

  def __init__(self, layout: Layout, views: list[np.ndarray]):
    self._layout = layout
    self._views = views

  def __call__(
    self, rows: np.ndarray, views: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Reads targets.

    Args:
      rows: int[B], positions in the split.
      views: int[B], which view of each.

    Returns:
      {'logits': float32 [B, K], ...}, the outputs of the layout.
    """
    found = np.empty(rows.size, self._layout.row)
    for view in np.unique(views):
      here = views == view
      found[here] = self._views[view][rows[here]]
    return self._layout.decode(found)


class Store:
  """The folder of one set of targets; only the lead process writes."""

  def __init__(
    self,
    root: pathlib.Path,
    fingerprint: Mapping[str, Any],
    layout: Layout,
    num_examples: int,
  ):
    """Names the folder, root/DIGEST; touches nothing.

    Args:
      root: folder of all sets of targets that are kept together.
      fingerprint: JSON-able; all that the numbers depend on.
      layout: of the rows.
      num_examples: N.
    """
    self._text = json.dumps(fingerprint, indent=1, sort_keys=True)
    digest = hashlib.blake2b(self._text.encode(), digest_size=8).hexdigest()
    self.folder = root / digest
    self._layout = layout
    self._size = num_examples

  @contextlib.contextmanager
  def claimed(self) -> Generator[None]:
    """Waits until no other run writes here; a killed run's claim is void."""
    locked.keep(self.folder / 'used')
    lock = self.folder / 'lock'
    with locked.in_turn(lock, f'fills {self.folder}') as alone:
      if alone:
        sweep_store(self.folder)
      yield

  def missing(self, num_views: int) -> list[int]:
    """Per view, the first row that is to be computed; N where none is.

    What is damaged or of something else is removed. One message says what is
    used or why it is not.
    """
    reasons = self._check_fingerprint()
    first = []
    for view in range(num_views):
      start, reason = self._check_view(view)
      first.append(start)
      reasons += [reason] if reason else []
    rows = sum(self._size - start for start in first)
    if not rows:
      logging.info('teacher targets of %s are used', self.folder)
    else:
      logging.info(
        'teacher targets: %d of %d are computed into %s%s',
        rows,
        self._size * num_views,
        self.folder,
        f' ({"; ".join(reasons)})' if reasons else '',
      )
    return first

  def write(self, view: int, start: int, rows: np.ndarray) -> None:
    """Stores rows start, start + 1, ... of a view that is being filled."""
    part = self._path(view, 'part')
    if not part.exists():
      self._create(part)
    stored = np.lib.format.open_memmap(part, mode='r+')
    stored[start : start + len(rows)] = rows
    stored.flush()
    check = mapped.digest(np.asarray(rows, stored.dtype))
    with self._path(view, 'rows').open('a') as lines:
      lines.write(f'{start} {len(rows)} {check}\n')

  def commit(self, view: int) -> None:
    """Gives a filled view its name."""
    part = self._path(view, 'part')
    stored = np.lib.format.open_memmap(part, mode='r')
    if _first_nan(stored) < self._size:
      raise AssertionError(f'{part} is not filled')
    replace_text(self._path(view, 'sum'), mapped.digest(stored))
    part.replace(self._path(view, 'npy'))
    self._path(view, 'rows').unlink(missing_ok=True)

  def open(self, num_views: int) -> Targets:
    """The targets, once all views are there.

    Raises:
      FileNotFoundError: this process does not see the lead's files.
    """
    views = []
    for view in range(num_views):
      path = self._path(view, 'npy')
      if not path.exists():
        raise FileNotFoundError(
          f'{path} is not here; targets.dir must be a folder that all '
          'processes share'
        )
      views.append(np.load(path, mmap_mode='r'))
    return Targets(self._layout, views)

  def _path(self, view: int, suffix: str) -> pathlib.Path:
    return self.folder / f'view{view}.{suffix}'

  def _check_fingerprint(self) -> list[str]:
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self.folder / 'fingerprint.json'
    if not path.exists():
      reasons = self._nearest()
    elif path.read_text(errors='replace') == self._text:
      return []
    else:
      reasons = [f'{path.name} is damaged or of something else']
    for old in self.folder.glob('view*'):
      old.unlink()
    replace_text(path, self._text)
    return reasons

  def _nearest(self) -> list[str]:
    """In what the most similar other targets of the same root differ."""
    wanted = json.loads(self._text)
    nearest: tuple[list[str], str] | None = None
    for path in sorted(self.folder.parent.glob('*/fingerprint.json')):
      try:
        other = json.loads(path.read_text())
        keys = [k for k in wanted | other if wanted.get(k) != other.get(k)]
      except (AttributeError, OSError, TypeError, ValueError):
        continue
      if nearest is None or len(keys) < len(nearest[0]):
        nearest = keys, path.parent.name
    if nearest is None:
      return []
    return [f'those of {nearest[1]} differ in {", ".join(nearest[0])}']

  def _check_view(self, view: int) -> tuple[int, str]:
    """The first row to compute, and what is wrong with the files."""
    path, part = self._path(view, 'npy'), self._path(view, 'part')
    if path.exists():
      stored = self._load(path)
      try:
        expected = self._path(view, 'sum').read_text()
      except (OSError, ValueError):
        expected = ''
      if stored is not None and mapped.digest(stored) == expected:
        return self._size, ''
      path.unlink()
      return 0, f'{path.name} was damaged'
    if part.exists():
      stored = self._load(part)
      if stored is not None:
        whole = min(_first_nan(stored), self._first_unwritten(view, stored))
        if whole == self._size:
          self.commit(view)
          return whole, ''
        return whole, f'{part.name} was not finished'
      part.unlink()
      return 0, f'{part.name} was damaged'
    return 0, ''

  def _first_unwritten(self, view: int, stored: np.ndarray) -> int:
    """The first row of a part that is not what was written there."""
    path = self._path(view, 'rows')
    text = path.read_text(errors='replace') if path.exists() else ''
    reached = 0
    for line in text.splitlines():
      match = re.fullmatch(r'(\d+) (\d+) ([0-9a-f]+)', line)
      if match is None:
        break
      start, count = int(match[1]), int(match[2])
      rows = stored[start : start + count]
      if start > reached or mapped.digest(rows) != match[3]:
        return min(start, reached)
      reached = max(reached, start + count)
    return reached

  def _load(self, path: pathlib.Path) -> np.ndarray | None:
    stored = mapped.load(path)
    if stored is None:
      return None
    right = stored.dtype == self._layout.row and stored.shape == (self._size,)
    return stored if right else None

  def _create(self, path: pathlib.Path) -> None:
    """A file of NaN; named only then, as what is not written reads as 0."""
    new = path.with_suffix('.new')
    stored = mapped.create(new, self._layout.row, (self._size,))
    empty = np.zeros((), self._layout.row)
    for name in _float_fields(empty.dtype):
      empty[name] = np.nan
    for start in range(0, self._size, _ROWS_AT_ONCE):
      stored[start : start + _ROWS_AT_ONCE] = empty
    stored.flush()
    new.replace(path)


def _float_fields(row: np.dtype) -> list[str]:
  return [name for name in row.names or () if name != 'classes']


def _first_nan(stored: np.ndarray) -> int:
  for start in range(0, len(stored), _ROWS_AT_ONCE):
    rows = stored[start : start + _ROWS_AT_ONCE]
    bad = np.zeros(len(rows), bool)
    for name in _float_fields(rows.dtype):
      bad |= np.isnan(rows[name].reshape(len(rows), -1)).any(1)
    if bad.any():
      return start + int(np.argmax(bad))
  return len(stored)
