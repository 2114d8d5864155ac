"""Finds finished runs and reads what they stored.

Nothing here needs a model or the data: a run's config.json, summary.json,
metrics.jsonl, predictions/ and evaluation/ are all that is read.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tlkd_jax.answer.labels import LABELS, dataset_name
from tlkd_jax.answer.rows import size_in_words
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import origins
from tlkd_jax.training.metric_writers import read_rows

# Kind of a run that learns from images without labels, and who labels them.
_WITHOUT_A_TEACHER = {
  'self_training': "no teacher, but the student's own TL run labels the images "
  'without labels (distillation.self_training).',
  'fixmatch': 'no teacher; as it learns, its own answers to weakly augmented '
  'images without labels, where it is sure, are labels of strongly augmented '
  "ones (student.fit='fixmatch').",
}

# Files of evaluation/ without a step, which the one with features holds.
_WITH_FEATURES = ('qualitative', 'embedding')


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The workdir of one finished run.

  Attributes:
    path: the workdir.
    config: flat, 'section.key' -> value.
    summary: its summary.json.
  """

  path: pathlib.Path
  config: dict[str, Any]
  summary: dict[str, Any]

  @property
  def arm(self) -> str:
    """'teacher', 'tl' or 'kd'."""
    return self.config['arm']

  @property
  def kind(self) -> str:
    """Its arm, or what stands for it: 'self_training', 'fixmatch'."""
    if self.arm == 'kd' and 'self_training' in self.summary:
      return 'self_training'
    if self.arm == 'tl' and 'fixmatch' in self.summary:
      return 'fixmatch'
    return self.arm

  @property
  def label(self) -> str:
    """How the page calls it."""
    return LABELS[self.kind]

  @property
  def seed(self) -> int:
    """Of subset, order, augmentation and heads."""
    return int(self.config['seed'])

  @property
  def folds(self) -> int:
    """Of which the seed chose the one that it is tested on; 0 without."""
    chosen = self.config.get('data.fold') is None
    return int(self.config.get('data.folds', 0)) if chosen else 0

  @property
  def size(self) -> float:
    """Training images per class, or else their fraction; 0 is all."""
    count = int(self.config['num_train_per_class'])
    return float(count) if count or self.fraction == 1 else self.fraction

  @property
  def fraction(self) -> float:
    """Of the training images, after the choice per class."""
    return float(self.config['train_fraction'])

  @property
  def size_in_words(self) -> str:
    """Of the training set."""
    text = size_in_words(self.size)
    both = self.size >= 1 and self.fraction < 1
    return f'{self.fraction:g} of {text}' if both else text

  @property
  def dataset(self) -> str:
    """Name of the data set."""
    return dataset_name(self.config['dataset'])

  @property
  def num_train(self) -> int:
    """Training images."""
    return int(self.summary['num_train'])

  def predictions(self, split: str) -> Predictions | None:
    """Stored predictions: 'validation', 'test', 'teacher_test', ..."""
    path = self.path / 'predictions' / f'{split}.npz'
    return _predictions(path) if path.exists() else None

  def record(self, name: str) -> dict[str, Any] | None:
    """A JSON file of evaluation/, None where its suite has not run.

    Or ran before the run went on to another best step.
    """
    path = self.path / 'evaluation' / f'{name}.json'
    found = read_json(path) if path.exists() else None
    return found if found and self._is_of_best(name, found) else None

  def arrays(self, name: str) -> dict[str, np.ndarray] | None:
    """An .npz file of evaluation/, None as in `record`."""
    path = self.path / 'evaluation' / f'{name}.npz'
    found = records.read_arrays(path) if path.exists() else None
    return found if found and self._is_of_best(name, found) else None

  def _is_of_best(self, name: str, found: dict[str, Any]) -> bool:
    """Whether a file is of the best step, as far as it says."""
    features = self.path / 'evaluation' / 'features.npz'
    if name in _WITH_FEATURES and features.exists():
      found = records.read_arrays(features)
    step, best = found.get('step'), self.summary.get('best_step')
    return step is None or best is None or int(step) == best

  @property
  def made(self) -> dict[str, Any] | None:
    """By what it was made; None of a damaged cell, and of a run of long ago."""
    path = self.path / 'cell.json'
    if not path.exists():
      return self.summary.get('made')
    try:
      return read_json(path).get('made')
    except ValueError:
      return None

  def rows(self) -> list[dict[str, Any]]:
    """Rows of its metrics.jsonl."""
    return read_rows(self.path / 'metrics.jsonl')


@functools.lru_cache(maxsize=64)
def _predictions(path: pathlib.Path) -> Predictions:
  return evaluate.load(path)


def collect(
  paths: Iterable[str | pathlib.Path],
) -> tuple[list[RunFolder], list[str]]:
  """Reads runs and folders of runs.

  Returns:
    The finished runs, and what a reader must know of them, a sentence each.

  Raises:
    FileNotFoundError: a path that does not exist or holds no finished run.
    ValueError: every run has a damaged file.
  """
  found: dict[pathlib.Path, RunFolder] = {}
  notes, damaged = [], []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      raise FileNotFoundError(f'{path}: no such folder')
    folders = sorted(p.parent for p in path.rglob('config.json'))
    finished = [p for p in folders if is_finished(p)]
    if not finished:
      raise FileNotFoundError(
        f'{path} holds no finished run (config.json and summary.json)'
      )
    for folder in folders:
      if folder not in finished:
        notes.append(f'{folder} is not finished and was left out.')
    for place in finished:
      try:
        found[place.resolve()] = read_run(place)
      except ValueError as error:
        damaged.append(error)
        notes.append(f'{place} was left out: {error}.')
  if damaged and not found:
    raise damaged[0]
  for place, run in list(found.items()):
    if run.summary.get('without_labels') and len(found) > 1:
      del found[place]
      notes.append(
        f'{run.path} is a stage without labels, which other runs start from, '
        'and was left out.'
      )
  for run in found.values():
    cell = run.path / 'cell.json'
    try:
      read_json(cell)
    except FileNotFoundError:
      pass
    except ValueError as error:
      notes.append(f'{error}; by what it was made is not known.')
  notes += [
    f'What is called the teacher of {run.path} is its peer: it learned in the '
    'same run (distillation.mutual).'
    for run in found.values()
    if 'mutual' in run.summary
  ]
  for kind, words in _WITHOUT_A_TEACHER.items():
    named = [str(run.path) for run in found.values() if run.kind == kind]
    if named:
      are = 'is' if len(named) == 1 else 'are'
      notes.append(f'{", ".join(named)} {are} {LABELS[kind]}: {words}')
  return list(found.values()), notes


def is_finished(path: pathlib.Path) -> bool:
  """Whether a folder holds a finished run."""
  return all((path / f'{name}.json').exists() for name in ('config', 'summary'))


def read_run(path: pathlib.Path) -> RunFolder:
  """The finished run in a folder; ValueError for a damaged file."""
  config = flatten(origins.located(path, read_json(path / 'config.json')))
  return RunFolder(path, config, read_json(path / 'summary.json'))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON file; ValueError, with its name, if it is damaged."""
  found = sealed.read_json(path)
  if not isinstance(found, dict):
    raise ValueError(f'{path} is damaged: it holds no object')
  return found


def align(*found: Predictions) -> list[Predictions] | None:
  """Predictions in one order of the same examples; None if they differ."""
  order = np.argsort(found[0].indices, kind='stable')
  indices = found[0].indices[order]
  aligned = []
  for one in found:
    rows = np.argsort(one.indices, kind='stable')
    if not np.array_equal(one.indices[rows], indices):
      return None
    fields = dataclasses.asdict(one)
    aligned.append(Predictions(**{k: v[rows] for k, v in fields.items()}))
  if any(not np.array_equal(a.labels, aligned[0].labels) for a in aligned):
    return None
  return aligned
