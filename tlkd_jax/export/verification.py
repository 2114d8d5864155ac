"""An exported file against its run, image by image.

On the run's own test images the answers are compared with the predictions that
the run has stored; on other data with what the run's network says now.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from tlkd_jax import inference
from tlkd_jax.data import Source, other, sources, transforms
from tlkd_jax.evaluation import evaluate
from tlkd_jax.evaluation.predictions import softmax
from tlkd_jax.export import preprocessing, reading
from tlkd_jax.export.student import load_student
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.texts import visible
from tlkd_jax.settings import Settings, from_config
from tlkd_jax.training import data_record, decoding, other_data, workdir
from tlkd_jax.training.descriptions import Description

# Images at once, for the network of the run.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Verified:
  """How a file compares with its run.

  Attributes:
    file: that was run.
    runner: what ran it, with its threads.
    data: which images.
    reference: what it is compared with.
    count: of images.
    accuracy: of the file's answers.
    reference_accuracy: of the reference.
    agreement: share of images that both give one class.
    largest_difference: of probabilities.
    at: name of that image.
    milliseconds: median of an image, in batches of one.
    milliseconds_range: of them the 5th and 95th percentile.
  """

  file: str
  runner: str
  data: str
  reference: str
  count: int
  accuracy: float
  reference_accuracy: float
  agreement: float
  largest_difference: float
  at: str
  milliseconds: float
  milliseconds_range: tuple[float, float]

  def __str__(self) -> str:
    low, high = self.milliseconds_range
    alike = round(self.agreement * self.count)
    return '\n'.join(
      (
        f'{self.file}: {self.count} {self.data}, beside {self.reference}',
        f'  accuracy {self.accuracy:.4f}, there {self.reference_accuracy:.4f}',
        f'  same class {alike} of {self.count} ({self.agreement:.2%})',
        f'  largest difference of probabilities {self.largest_difference:.2e} '
        f'({visible(self.at)})',
        f'  {self.milliseconds:.2f} ms an image, median (5 % to 95 %: '
        f'{low:.2f} to {high:.2f}), batches of 1, {self.runner}',
      )
    )


def verify(
  file: pathlib.Path, folder: pathlib.Path, data: str | None = None
) -> list[Verified]:
  """Runs an exported file on a run's test images, or on other data.

  Args:
    file: what an export wrote.
    folder: workdir of the run.
    data: other labelled data, as in the settings; None are the run's own test
      images.

  Returns:
    One for a file, up to two for a folder.

  Raises:
    FileNotFoundError: no such file, run or data.
    ValueError: the file is not of this run, see reading.read; or the data have
      a class that it does not know, an image that cannot be read, or are not
      those of the run any more.
  """
  student = load_student(folder)
  settings = from_config(workdir.read(folder))
  files = reading.read(file, student)
  if data is None or other_data.is_own(data, settings):
    images = _own(folder, settings)
  else:
    images = _other(data, settings, student.description)
  predictor = None
  if images.stored is None:
    predictor = inference.load_predictor(folder, sharding.make_mesh())
  compared = [_Comparison(each) for each in files]
  for names, labels, pictures, logits in _chunks(images, settings):
    squares = [preprocessing.square(student.description, p) for p in pictures]
    if predictor is None:
      expected = softmax(logits)
    else:
      expected = predictor.probabilities(squares)
    for comparison in compared:
      given = pictures if comparison.file.whole_images else squares
      comparison.add(names, labels, given, expected)
  return [comparison.result(images) for comparison in compared]


@dataclasses.dataclass(frozen=True)
class _Images:
  """Labelled images, undecoded.

  Attributes:
    source: of them.
    labels: int [N], in the order of the run's classes.
    stored: logits [N, K] that the run has stored; None of other data.
    what: they are, in words.
    reference: what is compared with, in words.
  """

  source: Source
  labels: np.ndarray
  stored: np.ndarray | None
  what: str
  reference: str


def _own(folder: pathlib.Path, settings: Settings) -> _Images:
  """The test images that a run was tested on, with its predictions."""
  section = settings.data
  found = sources.open_sources(
    settings.dataset,
    data_dir=section.data_dir,
    cache_dir=section.cache_dir,
    labelling=decoding.labelling(settings),
    fold=decoding.fold(settings),
  )
  record = data_record.of_files(found.class_names, found.splits)
  data_record.check(folder, record)
  source, what = found.splits['test'], 'test images of the run'
  path = folder / 'predictions' / 'test.npz'
  if not path.exists():
    return _Images(source, source.labels, None, what, _NOW)
  stored = evaluate.load(path)
  place = {index: row for row, index in enumerate(source.indices.tolist())}
  rows = np.asarray([place.get(i, -1) for i in stored.indices.tolist()])
  source = source.take(rows) if (rows >= 0).all() else None
  if source is None or not np.array_equal(source.labels, stored.labels):
    raise ValueError(
      f'{path} is of other images than the test images of {settings.dataset} '
      'are now'
    )
  logits = stored.logits
  return _Images(source, source.labels, logits, what, 'its stored predictions')


_NOW = 'what its network says now'


def _other(name: str, settings: Settings, description: Description) -> _Images:
  section = settings.data
  alike = name.partition(':')[0] == settings.dataset.partition(':')[0]
  found = sources.open_test(
    name,
    data_dir=section.data_dir,
    cache_dir=section.cache_dir,
    labelling=decoding.labelling(settings) if alike else None,
  )
  own = list(description.class_names)
  other.check_classes(name, found.class_names, own)
  places = np.asarray([own.index(each) for each in found.class_names])
  source = found.splits['test']
  what = f'images of {visible(name)} ({"; ".join(found.notes)})'
  return _Images(source, places[source.labels], None, what, _NOW)


def _chunks(
  images: _Images, settings: Settings
) -> Iterator[tuple[list[str], np.ndarray, list[np.ndarray], np.ndarray]]:
  """Names, labels, decoded images and stored logits, some at a time."""
  source, skip = images.source, settings.data.on_bad_image == 'skip'
  pictures = _decoded(source, skip)
  while some := list(itertools.islice(pictures, _CHUNK)):
    rows = np.asarray([row for row, _ in some])
    names = [source.names[row] for row in rows.tolist()]
    logits = np.empty(0) if images.stored is None else images.stored[rows]
    yield names, images.labels[rows], [each for _, each in some], logits


def _decoded(source: Source, skip: bool) -> Iterator[tuple[int, np.ndarray]]:
  """(row, uint8 [H, W, 3]) of each image that can be read."""
  for row, name in enumerate(source.names):
    try:
      yield row, np.asarray(transforms.decode_image(source.read(row)))
    except transforms.BadImageError as error:
      if not skip:
        raise ValueError(f'{visible(name)}: {error}') from error
      logging.warning('left out, %s: %s', visible(name), error)


class _Comparison:
  """Of one file: what was found so far."""

  def __init__(self, file: reading.Exported):
    self.file = file
    self._names: list[str] = []
    self._seconds: list[float] = []
    self._rows: list[tuple[bool, bool, bool, float]] = []

  def add(
    self,
    names: Sequence[str],
    labels: np.ndarray,
    images: Sequence[np.ndarray],
    expected: np.ndarray,
  ) -> None:
    """Runs the file on images, one by one."""
    if not self._names:
      # The first call compiles, or makes room.
      self.file.run(images[0])
    for label, image, wanted in zip(labels, images, expected, strict=True):
      start = time.perf_counter()
      found = self.file.run(image)
      self._seconds.append(time.perf_counter() - start)
      found = self.file.as_probabilities(found)
      best, theirs = int(found.argmax()), int(wanted.argmax())
      difference = float(np.abs(found - wanted).max())
      self._rows.append(
        (best == label, theirs == label, best == theirs, difference)
      )
    self._names.extend(names)

  def result(self, images: _Images) -> Verified:
    """The comparison of all images.

    Raises:
      ValueError: there was none.
    """
    if not self._rows:
      raise ValueError(f'none of the {images.what} could be read')
    columns = np.asarray(self._rows, np.float64).T
    accuracy, reference, agreement = columns[:3].mean(axis=1).tolist()
    worst = int(columns[3].argmax())
    times = 1000 * np.asarray(self._seconds)
    low, high = np.percentile(times, (5, 95)).tolist()
    return Verified(
      file=str(self.file.path),
      runner=self.file.runner,
      data=images.what,
      reference=images.reference,
      count=len(self._rows),
      accuracy=accuracy,
      reference_accuracy=reference,
      agreement=agreement,
      largest_difference=float(columns[3][worst]),
      at=self._names[worst],
      milliseconds=float(np.median(times)),
      milliseconds_range=(low, high),
    )
