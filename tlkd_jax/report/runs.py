"""Finds finished runs, reads what they stored, and says which belong together.

Nothing here needs a model or the data: a run's config.json, summary.json,
metrics.jsonl, predictions/ and evaluation/ are all that is read.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.training.metric_writers import read_rows

LABELS = {'teacher': 'teacher', 'tl': 'TL', 'kd': 'TL+KD'}

# Keys in which a TL and a TL+KD run may differ and still be a pair.
_BETWEEN_ARMS = ('arm', 'seed', 'distillation.', 'teacher.', 'targets.')
# Keys that change how a run is done, not what it finds.
_INCIDENTAL = (
  'data.cache_dir',
  'data.data_dir',
  'data.memory_budget_mib',
  'log_every_steps',
  'keep_checkpoints',
  'student.checkpoint',
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run.

  Attributes:
    path: its workdir.
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
  def label(self) -> str:
    """How the page calls its arm."""
    return LABELS[self.arm]

  @property
  def seed(self) -> int:
    """Of subset, order, augmentation and heads."""
    return int(self.config['seed'])

  @property
  def size(self) -> str:
    """Of the training set, in words."""
    count = self.config['num_train_per_class']
    fraction = self.config['train_fraction']
    text = f'{count} per class' if count else 'all images'
    return text if fraction == 1 else f'{fraction:g} of {text}'

  @property
  def dataset(self) -> str:
    """Name of the data set; of a folder its last part."""
    kind, _, path = self.config['dataset'].partition(':')
    return pathlib.Path(path).name if path else kind

  def predictions(self, split: str) -> Predictions | None:
    """Stored predictions: 'validation', 'test', 'teacher_test', ..."""
    path = self.path / 'predictions' / f'{split}.npz'
    return _predictions(path) if path.exists() else None

  def record(self, name: str) -> dict[str, Any] | None:
    """A JSON file of evaluation/, None where its suite has not run."""
    path = self.path / 'evaluation' / f'{name}.json'
    return read_json(path) if path.exists() else None

  def arrays(self, name: str) -> dict[str, np.ndarray] | None:
    """An .npz file of evaluation/, None where its suite has not run."""
    path = self.path / 'evaluation' / f'{name}.npz'
    return records.read_arrays(path) if path.exists() else None

  def rows(self) -> list[dict[str, Any]]:
    """Rows of its metrics.jsonl."""
    return read_rows(self.path / 'metrics.jsonl')


@functools.lru_cache(maxsize=64)
def _predictions(path: pathlib.Path) -> Predictions:
  return evaluate.load(path)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A TL and a TL+KD run of one seed, with the teacher if it is at hand."""

  tl: Run
  kd: Run
  teacher: Run | None

  @property
  def arms(self) -> list[Run]:
    """Teacher, if there, TL and TL+KD."""
    first = [self.teacher] if self.teacher else []
    return [*first, self.tl, self.kd]


@dataclasses.dataclass(frozen=True)
class Setting:
  """Pairs that differ in nothing but their seed.

  Attributes:
    title: data set, size and whatever else tells it from other settings.
    dataset: name of the data set.
    size: of the training set, in words.
    num_train: training images of the first pair.
    variant: what tells its TL+KD from others on the same data, '' if nothing.
    pairs: by seed.
  """

  title: str
  dataset: str
  size: str
  num_train: int
  variant: str
  pairs: list[Pair]


@dataclasses.dataclass(frozen=True)
class Collection:
  """All runs of a report.

  Attributes:
    runs: finished ones.
    settings: where TL and TL+KD can be paired.
    notes: what was left out and why, one sentence each.
  """

  runs: list[Run]
  settings: list[Setting]
  notes: list[str]


def collect(paths: Iterable[str | pathlib.Path]) -> Collection:
  """Reads runs and folders of runs.

  Raises:
    FileNotFoundError: a path that does not exist or holds no finished run.
    ValueError: a damaged file.
  """
  runs: dict[pathlib.Path, Run] = {}
  notes = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      raise FileNotFoundError(f'{path}: no such folder')
    folders = sorted(p.parent for p in path.rglob('config.json'))
    found = [p for p in folders if (p / 'summary.json').exists()]
    if not found:
      raise FileNotFoundError(
        f'{path} holds no finished run (config.json and summary.json)'
      )
    for folder in folders:
      if folder not in found:
        notes.append(f'{folder} is not finished and was left out.')
    runs |= {p.resolve(): _read_run(p) for p in found}
  kept = list(runs.values())
  notes += [
    f'What is called the teacher of {run.path} is its peer: it learned in the '
    'same run (distillation.mutual).'
    for run in kept
    if 'mutual' in run.summary
  ]
  settings = _settings(kept, notes)
  return Collection(kept, settings, notes)


def _read_run(path: pathlib.Path) -> Run:
  config = read_json(path / 'config.json')
  return Run(path, dict(_flat(config)), read_json(path / 'summary.json'))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON file; ValueError, with its name, if it is damaged."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def _flat(tree: dict[str, Any], prefix: str = ''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _settings(runs: Sequence[Run], notes: list[str]) -> list[Setting]:
  """Pairs of equal configuration, but for what makes the arm."""
  by_key: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    if run.arm != 'teacher':
      arms = by_key.setdefault(_key(run), {'tl': [], 'kd': []})
      arms[run.arm].append(run)
  kept = {key: arms for key, arms in by_key.items() if all(arms.values())}
  for key, arms in by_key.items():
    if key not in kept:
      alone = (arms['tl'] or arms['kd'])[0]
      notes.append(
        f'{alone.path} has no partner: a TL and a TL+KD run are paired where '
        'their configurations differ only in the arm.'
      )
  firsts = [arms['tl'][0] for arms in kept.values()]
  telling = _telling(firsts, ('arm', 'seed', *_INCIDENTAL))
  settings = []
  for arms in kept.values():
    variants: dict[str, list[Run]] = {}
    kd_telling = _telling(arms['kd'], ('seed', 'teacher.checkpoint'))
    for run in sorted(arms['kd'], key=lambda r: (r.seed, str(r.path))):
      variants.setdefault(_values(run, kd_telling), []).append(run)
    for variant, kd_runs in variants.items():
      setting = _setting(variant, kd_runs, arms['tl'], runs, telling, notes)
      if setting.pairs:
        settings.append(setting)
  return settings


def _setting(variant, kd_runs, tl_runs, runs, telling, notes) -> Setting:
  pairs, by_seed = [], {}
  for run in tl_runs:
    if by_seed.setdefault(run.seed, run) is not run:
      notes.append(f'{run.path} repeats seed {run.seed} and was left out.')
  seen = set()
  for kd in kd_runs:
    if kd.seed in seen:
      notes.append(f'{kd.path} repeats seed {kd.seed} and was left out.')
    elif kd.seed not in by_seed:
      notes.append(f'{kd.path} has no TL run of seed {kd.seed}.')
    else:
      pairs.append(Pair(by_seed[kd.seed], kd, _teacher_of(kd, runs)))
    seen.add(kd.seed)
  first = kd_runs[0]
  fixed = ('dataset', 'num_train_per_class', 'train_fraction')
  others = _values(first, [key for key in telling if key not in fixed])
  parts = [first.dataset, first.size, others, variant]
  return Setting(
    ', '.join(part for part in parts if part),
    first.dataset,
    first.size,
    int(first.summary['num_train']),
    ', '.join(part for part in (others, variant) if part),
    pairs,
  )


def _key(run: Run) -> str:
  kept = {
    key: value
    for key, value in sorted(run.config.items())
    if not key.startswith(_BETWEEN_ARMS) and key not in _INCIDENTAL
  }
  return json.dumps(kept)


def _telling(runs: Sequence[Run], ignored: Sequence[str]) -> list[str]:
  """Keys in which runs differ."""
  keys = sorted({key for run in runs for key in run.config})
  values = {
    key: {json.dumps(run.config.get(key)) for run in runs} for key in keys
  }
  return [k for k in keys if len(values[k]) > 1 and k not in ignored]


def _values(run: Run, keys: Sequence[str]) -> str:
  return ', '.join(f'{k}={run.config.get(k)}' for k in keys)


def _teacher_of(kd: Run, runs: Sequence[Run]) -> Run | None:
  """The teacher's own run: by its stored path, else beside or inside.

  A peer has none: it learned in the run itself.
  """
  if 'mutual' in kd.summary:
    return None
  named = kd.config['teacher.checkpoint']
  places = [kd.path / 'teacher', kd.path.parent / 'teacher']
  if named:
    places.insert(0, pathlib.Path(named))
  known = {run.path.resolve(): run for run in runs if run.arm == 'teacher'}
  for place in places:
    if place.resolve() in known:
      return known[place.resolve()]
    if (place / 'summary.json').exists() and (place / 'config.json').exists():
      run = _read_run(place)
      if run.arm == 'teacher':
        return run
  return None


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
