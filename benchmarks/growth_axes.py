"""Axes of growth.py that make up what they are given."""

import functools
import pathlib
import tempfile
import time

import numpy as np

from benchmarks import growth_study

_ROUNDS = 3
# Of the images that are mapped, pixels.
_SIDE = 16
_AT_ONCE = 10_000


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


def of_page(count: int, places: int = 10) -> dict[str, list[float]]:
  """Seconds to draw the answer of so many cells and to write their page."""
  from tlkd_jax.answer import conclusions
  from tlkd_jax.answer.rows import indexed
  from tlkd_jax.report import html, markdown
  from tlkd_jax.study import pages, results

  rows = growth_study.rows(count, places)
  times: dict[str, list[float]] = {'answer': [], 'page': []}
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    found = indexed(results.with_answers(pathlib.Path(), rows))
    answer = conclusions.draw(found, 'kd', 'tl', ('top1', 'nll'), None)
    drawn = time.perf_counter()
    sections = pages.make_sections(found, answer)
    for page in (html.page, markdown.page):
      page(pages.TITLE, f'{count} runs', sections)
    times['answer'].append(drawn - start)
    times['page'].append(time.perf_counter() - drawn)
  return times


def of_places(count: int) -> dict[str, list[float]]:
  """The same where places grow, and not seeds, of which there are ten."""
  return of_page(count, max(5, count // 100 // 5 * 5))
