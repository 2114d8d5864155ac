"""What the sections share: the pair on show, its predictions, its paths."""

import dataclasses
import os
import pathlib

import numpy as np

from tlkd_jax.answer.labels import LABELS
from tlkd_jax.evaluation import qualitative
from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.report import runs
from tlkd_jax.report.blocks import Text
from tlkd_jax.report.pairing import Pair
from tlkd_jax.report.runs import RunFolder


@dataclasses.dataclass(frozen=True)
class Context:
  """One pair and the folder that the report is written to.

  Attributes:
    pair: TL, TL+KD, their teacher if known.
    out: folder of the report; paths are shown relative to it.
    test: arm -> predictions on test, examples in one order.
    validation: arm -> predictions on validation, likewise.
    class_names: by label.
  """

  pair: Pair
  out: pathlib.Path
  test: dict[str, Predictions]
  validation: dict[str, Predictions]
  class_names: list[str]

  @property
  def named(self) -> dict[str, str]:
    """Arm -> what the page calls it."""
    return {
      'teacher': LABELS['teacher'],
      'tl': self.pair.tl.label,
      'kd': self.pair.kd.label,
    }

  @property
  def arms(self) -> list[str]:
    """Arms with predictions on test: 'teacher', 'tl', 'kd'."""
    return list(self.test)

  @property
  def labels(self) -> np.ndarray:
    """True classes of the test images, int [N]."""
    return self.test['tl'].labels

  def run(self, arm: str) -> RunFolder | None:
    """The run of an arm; None for a teacher known by its answers alone.

    So is one whose own run had other test images: what it stored is of those.
    """
    if arm != 'teacher':
      return {'tl': self.pair.tl, 'kd': self.pair.kd}[arm]
    teacher = self.pair.teacher
    if teacher is None or not _same_images(self.pair.tl, teacher):
      return None
    return teacher

  def describe(self) -> str:
    """Says which pair the sections are about."""
    shown = ' and '.join(
      f'{relative(run.path, self.out)} ({run.label})'
      for run in (self.pair.tl, self.pair.kd)
    )
    return f'From here on one pair is shown: {shown}, seed {self.pair.tl.seed}.'

  def source(self, *names: str, arms: list[str] | None = None) -> str:
    """Paths of files of the arms' runs, relative to the report."""
    pair = self.pair
    own = {'tl': pair.tl, 'kd': pair.kd, 'teacher': pair.teacher}
    found = [own[arm] for arm in arms or self.arms]
    if pair.teacher is None and 'teacher' in (arms or self.arms):
      found = [run for run in found if run] or [pair.kd]
    paths = [relative(run.path, self.out) for run in found if run]
    files = names[0] if len(names) == 1 else '{' + ','.join(names) + '}'
    return ', '.join(f'{path}/{files}' for path in paths)


def open_pair(pair: Pair, out: pathlib.Path) -> Context:
  """Reads a pair's predictions.

  Raises:
    ValueError: predictions are missing, or TL and TL+KD were measured on
      different examples.
  """
  stored = {
    split: _aligned(pair, split, pair.tl.predictions(split))
    for split in ('test', 'validation')
  }
  return Context(
    pair, out, stored['test'], stored['validation'], _class_names(pair, stored)
  )


def _aligned(pair, split, tl) -> dict[str, Predictions]:
  kd = pair.kd.predictions(split)
  if tl is None or kd is None:
    missing = pair.tl.path if tl is None else pair.kd.path
    raise ValueError(
      f'{missing} has no predictions/{split}.npz; make it with '
      f'{command(missing, "clean")}'
    )
  both = runs.align(tl, kd)
  if both is None:
    raise ValueError(
      f'{pair.tl.path} and {pair.kd.path} were measured on different {split} '
      'examples and cannot be compared'
    )
  teacher = pair.kd.predictions(f'teacher_{split}')
  if pair.kd.kind == 'self_training':
    # A TL run of the same student, and of the same seed the one beside it.
    teacher = None
  elif teacher is None and pair.teacher is not None:
    # Of its own run, where its classes may have another order.
    names = [_names_of(run) for run in (pair.tl, pair.teacher)]
    if None in names or names[0] == names[1]:
      teacher = pair.teacher.predictions(split)
  three = runs.align(tl, kd, teacher) if teacher is not None else None
  if three is None or three[2].logits.shape != three[0].logits.shape:
    return {'tl': both[0], 'kd': both[1]}
  return {'teacher': three[2], 'tl': three[0], 'kd': three[1]}


def _class_names(pair: Pair, stored) -> list[str]:
  """By label, in the order of the students' answers.

  A teacher may have them in another order, and is matched by name.
  """
  teacher = [pair.teacher] if pair.teacher else []
  for run in (pair.tl, pair.kd, *teacher):
    found = _names_of(run)
    if found is not None:
      return found
  return [str(k) for k in range(stored['test']['tl'].logits.shape[1])]


def _names_of(run: RunFolder) -> list[str] | None:
  """Class names of a run in its own order; None where no file says them."""
  best = run.path / 'checkpoints' / 'best'
  for path in best.glob('*/record/metadata'):
    return list(runs.read_json(path)['class_names'])
  clean = run.record('clean')
  if clean and 'per_class' in clean['test']:
    return list(clean['test']['per_class']['class'])
  return None


def _same_images(tl: RunFolder, teacher: RunFolder) -> bool:
  """Whether two runs were tested on the same images, as far as they say.

  One may have fewer of them; those of one index are of one class.
  """
  own, theirs = tl.predictions('test'), teacher.predictions('test')
  if own is None or theirs is None:
    return True
  _, i, j = np.intersect1d(own.indices, theirs.indices, return_indices=True)
  if not i.size:
    return False
  classes: list[np.ndarray] = [own.labels[i], theirs.labels[j]]
  names = _names_of(tl), _names_of(teacher)
  if names[0] is not None and names[1] is not None:
    classes = [np.asarray(n)[k] for n, k in zip(names, classes, strict=True)]
  return np.array_equal(*classes)


def relative(path: pathlib.Path, out: pathlib.Path) -> str:
  """A path as seen from the report's folder, with forward slashes."""
  return pathlib.PurePath(os.path.relpath(path, out)).as_posix()


def command(path: pathlib.Path, suite: str) -> str:
  """The command that fills a part of a run's evaluation folder."""
  return (
    f'`python -m tlkd_jax.main --mode=evaluate --checkpoint {path} '
    f'--suite={suite}`'
  )


def missing(context: Context, suite: str, what: str) -> Text:
  """Says that a suite has not run for every arm, and how to run it."""
  present = [run for run in context.pair.runs if run]
  folder = pathlib.Path(os.path.commonpath([run.path for run in present]))
  return Text(
    f'{what} is not here yet for every arm. It is filled by '
    + command(folder, suite),
    'missing',
  )


def read_images(context: Context) -> dict[int, bytes]:
  """Index -> JPEG of the test images that any arm stored."""
  for run in map(context.run, ('teacher', 'tl', 'kd')):
    path = run.path / 'evaluation' / 'images.npz' if run else None
    if path is not None and path.exists():
      return qualitative.unpack_images(path)
  return {}
