"""The `corruptions` suite: a run's predictions on degraded test images.

RUN/evaluation/corruptions/NAME_SEVERITY.npz holds one cell (logits, labels,
indices); `none_0` the images as they are, with what tells them from others. An
interrupted suite computes only the cells that are missing. Images, corruptions
and keys depend on the data and how they are cut alone, so all runs on one data
set whose networks look alike answer to the same corrupted images.
"""

import hashlib
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from tlkd_jax.data import Split
from tlkd_jax.evaluation import (
  corruptions,
  fidelity,
  metrics,
  records,
  robustness,
)
from tlkd_jax.evaluation.subject import Subject, best_step
from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.errors import as_user_errors

NAMES = tuple(
  name for names in corruptions.CORRUPTION_GROUPS.values() for name in names
)
CLEAN = ('none', 0)
# ImageNet-C averages over these 15; the others are reported beside them.
STANDARD = tuple(
  name
  for group in ('noise', 'blur', 'weather', 'digital')
  for name in corruptions.CORRUPTION_GROUPS[group]
)
_SEED = 0
_METRICS = ('top1', 'nll', 'ece')
Cell = tuple[str, int]
Arrays = dict[str, np.ndarray]


def run(subject: Subject, names=NAMES) -> str:
  """Fills the missing cells, writes corruptions.json, returns a summary."""
  split = subject.sample()
  cells = [CLEAN] + [(n, s) for n in names for s in corruptions.SEVERITIES]
  missing = [cell for cell in cells if not _valid(subject, split, cell)]
  shown = _Shown(subject.workdir, len(cells), len(cells) - len(missing))
  try:
    for cell in missing:
      shown.start(cell)
      _fill(subject, split, cell)
      shown.finish(cell)
  finally:
    shown.close()
  with as_user_errors():
    summary = summarize(subject.workdir, subject.teacher)
  size = subject.dataset.image_size
  summary = {
    'step': subject.step,
    'dataset': subject.dataset.name,
    'split': 'test',
    'images_of_split': len(subject.dataset.splits['test']),
    'image_size': size,
    'severities_from': corruptions.describe_table(size, size),
    'notes': 'ImageNet-C-like: frost is procedural, lengths are scaled. The '
    "camera corruptions are this project's own.",
    'seed': _SEED,
  } | summary
  if sharding.is_lead():
    records.write_json(subject.folder / 'corruptions.json', summary)
  return _text(subject, summary)


def cell_path(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """Where a run keeps a cell."""
  folder = workdir / 'evaluation' / 'corruptions'
  return folder / f'{cell[0]}_{cell[1]}.npz'


def read_cells(workdir: pathlib.Path) -> dict[Cell, Arrays]:
  """The cells of a run that answer as its clean one; {} before the suite ran.

  Those of another step or of other images are of an earlier call, and all are
  where the run went on after it to another best step.

  Raises:
    ValueError: a cell, or the run's summary, is damaged.
  """
  found = {}
  for name in (CLEAN[0], *NAMES):
    for severity in (0, *corruptions.SEVERITIES):
      path = cell_path(workdir, (name, severity))
      if path.exists():
        found[name, severity] = records.read_arrays(path)
  clean = found.get(CLEAN)
  if clean is None or best_step(workdir) not in (None, int(clean['step'])):
    return {}
  return {
    cell: stored
    for cell, stored in found.items()
    if _agree(stored, clean, 'step', 'indices')
  }


def complete(cells: dict[Cell, Any]) -> list[str]:
  """Names of the corruptions with all severities."""
  return [
    name
    for name in NAMES
    if all((name, severity) in cells for severity in corruptions.SEVERITIES)
  ]


def same_images(a: Arrays, b: Arrays) -> bool:
  """Whether two runs answer to the same pixels, in the same classes.

  Args:
    a: the clean cell of a run.
    b: of another. Those of earlier versions are told apart by labels alone.
  """
  return _agree(a, b, 'indices', 'labels', 'image_size', 'pixels', 'classes')


def same_examples(a: Arrays, b: Arrays) -> bool:
  """Likewise, but the images may be cut as each network looks at them."""
  if not _agree(a, b, 'indices', 'labels', 'classes'):
    return False
  return not _agree(a, b, 'image_size', 'look') or _agree(a, b, 'pixels')


def _agree(a: Arrays, b: Arrays, *names: str) -> bool:
  """Whether two cells do not differ in what both say."""
  return all(np.array_equal(a[n], b[n]) for n in names if n in a and n in b)


def summarize(
  workdir: pathlib.Path, teacher: pathlib.Path | None = None
) -> dict[str, Any]:
  """Metrics by corruption and severity, from the stored cells.

  Args:
    workdir: of a run with at least its clean cell.
    teacher: workdir of a run whose cells are compared, as far as it has any
      and they are of the same images.

  Returns:
    `count`, `clean` (metrics of the same images uncorrupted), `corruptions`:
    name -> `group` and lists over severities 1 to 5: `top1`, `nll`, `ece`,
    `agreement_with_clean` (same answer as to the clean image) and
    `teacher_agreement` (None without the teacher's cells);
    `mean_corrupted_error` by group and of ImageNet-C's 15 (`standard`).
  """
  cells = read_cells(workdir)
  teachers = read_cells(teacher) if teacher else {}
  clean = cells[CLEAN]
  if CLEAN in teachers and not same_images(clean, teachers[CLEAN]):
    teachers = {}
  table: dict[str, dict] = {}
  for name in complete(cells):
    rows = [
      _measure(cells[name, s], clean, teachers.get((name, s)))
      for s in corruptions.SEVERITIES
    ]
    lists = {key: [row[key] for row in rows] for key in rows[0]}
    table[name] = {'group': _group(name), **lists}
  errors = {name: 1 - np.array(row['top1']) for name, row in table.items()}
  groups = corruptions.CORRUPTION_GROUPS | {'standard': STANDARD}
  return {
    'count': len(clean['labels']),
    'clean': _measure(clean, clean, teachers.get(CLEAN)),
    'corruptions': table,
    'mean_corrupted_error': {
      group: robustness.mean_corrupted_error(errors, names)
      for group, names in groups.items()
    },
  }


def _measure(cell, clean, teacher) -> dict[str, Any]:
  logits, labels = cell['logits'], cell['labels']
  row: dict[str, Any] = {
    n: metrics.METRICS[n](logits, labels) for n in _METRICS
  }
  row['agreement_with_clean'] = fidelity.agreement(logits, clean['logits'])
  row['teacher_agreement'] = None
  if teacher is not None:
    row['teacher_agreement'] = fidelity.agreement(logits, teacher['logits'])
  return row


def _group(name: str) -> str:
  groups = corruptions.CORRUPTION_GROUPS.items()
  return next(group for group, names in groups if name in names)


def _valid(subject: Subject, split: Split, cell: Cell) -> bool:
  """Whether a stored cell is whole, and of these images and this model."""
  path = cell_path(subject.workdir, cell)
  if not path.exists():
    return False
  try:
    stored = records.read_arrays(path)
  except ValueError as error:
    logging.warning('%s, and measured again', error)
    return False
  return (
    int(stored['step']) == subject.step
    and int(stored['image_size']) == subject.dataset.image_size
    and np.array_equal(stored['indices'], split.indices)
  )


def _fill(subject: Subject, split: Split, cell: Cell) -> None:
  def corrupt(batch):
    if cell == CLEAN:
      return batch
    # Padding has the index -1, and no key.
    indices = np.maximum(batch['index'], 0)
    keys = corruptions.corruption_keys(_SEED, indices, *cell)
    name, severity = cell
    images = jnp.asarray(batch['image'])
    changed = corruptions.corrupt_batch(name, images, severity, keys)
    return batch | {'image': np.asarray(changed)}

  found = subject.predict(split, corrupt)
  if sharding.is_lead():
    arrays = {
      'logits': found.logits,
      'labels': found.labels,
      'indices': found.indices,
      'image_size': np.asarray(subject.dataset.image_size),
      'step': np.asarray(subject.step),
    }
    if cell == CLEAN:
      arrays |= _identity(subject, split)
    records.write_arrays(cell_path(subject.workdir, cell), arrays)


def _identity(subject: Subject, split: Split) -> Arrays:
  """What tells a split's images from others: their indices only count them."""
  pixels = hashlib.blake2b(repr(split.images.shape).encode(), digest_size=16)
  # One by one: they may be mapped from a file larger than the memory.
  for image in split.images:
    pixels.update(np.ascontiguousarray(image))
  names = repr(list(subject.dataset.class_names)).encode()
  classes = hashlib.blake2b(names, digest_size=16)
  return {
    'pixels': np.asarray(pixels.hexdigest()),
    'classes': np.asarray(classes.hexdigest()),
    'look': np.asarray(str(subject.network.look)),
  }


class _Shown:
  """Corruption, severity and time left: a bar, or lines in a log."""

  def __init__(self, workdir: pathlib.Path, total: int, done: int):
    lead = sharding.is_lead()
    bar = lead and bars.wanted()
    self._lines = lead and not bar
    self._total, self._done, self._first = total, done, done
    self._began = time.monotonic()
    if done and lead:
      logging.info('%s: %d of %d cells are there', workdir, done, total)
    self._bar = bars.tqdm(
      total=total, initial=done, disable=not bar, unit='cell', desc=workdir.name
    )

  def start(self, cell: Cell) -> None:
    self._bar.set_postfix_str(f'{cell[0]}, severity {cell[1]}')

  def finish(self, cell: Cell) -> None:
    self._done += 1
    self._bar.update()
    if self._lines:
      spent = time.monotonic() - self._began
      each = spent / (self._done - self._first)
      logging.info(
        '%s, severity %d: %d/%d, %.0f s left',
        *cell,
        self._done,
        self._total,
        each * (self._total - self._done),
      )

  def close(self) -> None:
    self._bar.close()


def _text(subject: Subject, summary: dict[str, Any]) -> str:
  errors = summary['mean_corrupted_error']
  shown = ', '.join(
    f'{group} {value:.3f}' for group, value in errors.items() if value == value
  )
  return (
    f'{subject.model}: error {1 - summary["clean"]["top1"]:.3f} clean; mean '
    f'corrupted error: {shown} ({summary["count"]} images; '
    f'{summary["severities_from"]})'
  )
