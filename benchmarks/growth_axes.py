"""Two axes of growth.py that make up what they are given."""

import functools
import pathlib
import tempfile
import time

import numpy as np

_ROUNDS = 3
# Of the images that are mapped, pixels.
_SIDE = 16
_AT_ONCE = 10_000
# Places and arms of the made-up study; its seeds grow.
_DATA = ('a', 'b', 'c', 'd')
_SIZES = (10, 20, 50)
_ARMS = {'tl': 0.5, 'kd': 0.52, 'teacher': 0.9}
_TESTED = 200


def of_mapped(count: int) -> dict[str, list[float]]:
  """Seconds to write, digest and serve `count` images that a file holds."""
  from tlkd_jax.data import pipeline
  from tlkd_jax.data.examples import Split
  from tlkd_jax.runtime import mapped

  times: dict[str, list[float]] = {'write': [], 'digest': [], 'epoch': []}
  times['first batch'] = []

  def timed(name, function):
    start = time.perf_counter()
    function()
    times[name].append(time.perf_counter() - start)

  pixels = np.random.default_rng(0).integers(
    0, 256, (_AT_ONCE, _SIDE, _SIDE, 3), np.uint8
  )

  def write(images):
    for start in range(0, count, _AT_ONCE):
      images[start : start + _AT_ONCE] = pixels[: count - start]

  def serve(batches):
    for _ in batches:
      pass

  for _ in range(_ROUNDS):
    with tempfile.TemporaryDirectory() as folder:
      shape = count, _SIDE, _SIDE, 3
      images = mapped.create(pathlib.Path(folder) / 'x.npy', np.uint8, shape)
      timed('write', functools.partial(write, images))
      labels = np.arange(count, dtype=np.int32) % 10
      split = Split(images, labels, np.arange(count), [''] * count)
      timed('digest', split.fingerprint)
      epoch = pipeline.eval_batches(split, 128)
      timed('epoch', functools.partial(serve, epoch))
      batches = pipeline.train_iterator(split, 128, 0)
      timed('first batch', functools.partial(next, batches))
      batches.close()
      del images, split, epoch, batches
  return times


def anonymous_mib() -> float:
  """Memory of this process without what files hold, MiB (Linux)."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('RssAnon:'):
      return int(line.split()[1]) / 1024
  raise OSError('/proc/self/status has no RssAnon')


def of_page(count: int) -> dict[str, list[float]]:
  """Seconds to draw the answer of so many cells and to write their page."""
  from tlkd_jax.answer import conclusions
  from tlkd_jax.report import html, markdown
  from tlkd_jax.study import pages

  rows = invented(count)
  times: dict[str, list[float]] = {'answer': [], 'page': []}
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    answer = conclusions.draw(rows, 'kd', 'tl', ('top1', 'nll'), None)
    drawn = time.perf_counter()
    sections = pages.make_sections(rows, answer)
    for page in (html.page, markdown.page):
      page(pages.TITLE, f'{count} runs', sections)
    times['answer'].append(drawn - start)
    times['page'].append(time.perf_counter() - drawn)
  return times


def invented(count: int) -> list:
  """Rows of a study as in results.json, with answers, seed after seed."""
  from tlkd_jax.answer.rows import Answers

  rng = np.random.default_rng(0)
  rows = []
  for number in range(count):
    place, arm = divmod(number, len(_ARMS))
    seed, place = divmod(place, len(_DATA) * len(_SIZES))
    arm = list(_ARMS)[arm]
    data, size = _DATA[place % len(_DATA)], _SIZES[place // len(_DATA)]
    right = rng.random(_TESTED) < _ARMS[arm] + 0.01 * (seed % 5)
    top1 = float(right.mean())
    rows.append(
      {
        'dataset': data,
        'size': size,
        'arm': arm,
        'seed': seed,
        'trial': {},
        'label': arm,
        'kind': arm,
        'changes': {},
        'teachers': ['teacher'] if arm == 'kd' else [],
        'model': 'tiny',
        'num_train': 10 * size,
        'test': {'top1': top1, 'nll': 1 - top1, 'teacher_agreement': 0.75},
        'validation': {'top1': top1},
        'curve': [[5, 1.0, top1 / 2], [10, 2.0, top1]],
        'train_images': 320,
        'teacher_images': 320 * (arm == 'kd'),
        'seconds': 10.0,
        'chosen': True,
        'trials': 1,
        'folder': f'cells/{data}/{size}/{arm}/seed{seed}',
        'answers': Answers(data, right),
      }
    )
  return rows
