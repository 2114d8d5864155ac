"""How fast does the input path run on its own?

  python -m benchmarks.input_pipeline [--jpegs 10000 --small 50000]

Two generated data sets: large JPEGs trained at 224 pixels and small ones at
32. For each, in images per second: `prepare` (zip to array_record, the first
run only), `decode` (once per run, all cores), `train` and `eval` (batches from
the decoded arrays, nothing else running), and `augment` (crop, flip and
colours, jitted, on the default device). `step` is what fine-tuning consumes:
EfficientNet-Lite0 with frozen BatchNorm, the fastest of five steps of 32;
`times_step` is `train` / `step`. All of them in turn, three rounds: prints one
JSON line, medians with minimum and maximum.
"""

import argparse
import io
import itertools
import json
import pathlib
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from benchmarks import machine, train_step
from tlkd_jax.data import augment, load_splits, pipeline, sources
from tlkd_jax.runtime import allocator

_CLASSES = 10
_DISTINCT = 64


def write_images(path: pathlib.Path, count: int, size: int) -> None:
  """Writes a zip of `count` JPEGs in class folders, 64 distinct pictures."""
  rng = np.random.default_rng(0)
  pictures = []
  for _ in range(_DISTINCT):
    coarse = rng.integers(0, 256, (size // 4, size // 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size * 4 // 3, size))
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=90)
    pictures.append(data.getvalue())
  with zipfile.ZipFile(path, 'w') as archive:
    for i in range(count):
      name = f'class{i % _CLASSES}/{i:06d}.jpg'
      archive.writestr(name, pictures[i % _DISTINCT])


def seconds(function: Callable) -> float:
  """Wall-clock time of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def rate_of_batches(batches, batch_size: int, steps: int) -> float:
  """Images per second over `steps` batches, the first left out."""
  iterator = iter(batches)
  next(iterator)
  spent = seconds(lambda: list(itertools.islice(iterator, steps)))
  return batch_size * steps / spent


def rate_of_augmentation(split, image_size: int, batch_size: int) -> float:
  """Images per second of the jitted augmentation, median of ten calls."""
  draw = jax.jit(
    lambda images, index, view: augment.augment(
      images,
      0,
      index,
      view,
      image_size=image_size,
      brightness=0.2,
      contrast=0.2,
      saturation=0.2,
    )
  )
  images = split.images[:batch_size]
  index = np.arange(len(images))
  view = np.zeros(len(images), np.int32)
  draw(images, index, view).block_until_ready()
  spent = [
    seconds(lambda: draw(images, index, view).block_until_ready())
    for _ in range(10)
  ]
  return len(images) / float(np.median(spent))


def make_step(image_size: int, batch_size: int = 32) -> Callable:
  """A function that takes a training step on images that are there."""
  images = np.zeros((batch_size, image_size, image_size, 3), np.float32)
  labels = np.zeros(batch_size, np.int32)
  sides = train_step.ours('efficientnet_lite0', image_size, images, labels)
  return sides['frozen_step']


def one_round(name: str, cache: pathlib.Path, image_size: int, batch_size: int):
  """{part: images per second} of a data set that is not prepared yet."""
  prepare = seconds(lambda: sources.open_sources(name, cache_dir=cache))
  open_again = seconds(lambda: sources.open_sources(name, cache_dir=cache))
  start = time.perf_counter()
  dataset = load_splits(name, image_size=image_size, cache_dir=cache)
  decode = time.perf_counter() - start - open_again
  count = sum(map(len, dataset.splits.values()))
  train, test = dataset.splits['train'], dataset.splits['test']
  steps = max(1, min(200, len(train) // batch_size))
  batches = pipeline.train_iterator(train, batch_size, 0)
  rates = {
    'prepare': count / prepare,
    'decode': count / decode,
    'train': rate_of_batches(batches, batch_size, steps),
    'eval': rate_of_batches(
      pipeline.eval_batches(test, batch_size),
      batch_size,
      max(1, len(test) // batch_size - 1),
    ),
    'augment': rate_of_augmentation(train, image_size, batch_size),
  }
  batches.close()
  return rates


def measure(count: int, image_size: int, stored_size: int, args):
  """Rates of one generated data set, as a dict."""
  rates: dict[str, list[float]] = {}
  step, batch = make_step(image_size), 32
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    write_images(root / 'images.zip', count, stored_size)
    for number in range(args.rounds):
      found = one_round(
        f'folder:{root / "images.zip"}',
        root / f'cache{number}',
        image_size,
        args.batch_size,
      )
      found['step'] = batch / min([seconds(step) for _ in range(7)][2:])
      for part, rate in found.items():
        rates.setdefault(part, []).append(rate)
  middle = {part: statistics.median(values) for part, values in rates.items()}
  return {
    'images': count,
    'image_size': image_size,
    'images_per_second': {part: round(rate) for part, rate in middle.items()},
    'min_max': {
      part: [round(min(values)), round(max(values))]
      for part, values in rates.items()
    },
    'times_step': round(middle['train'] / middle['step'], 1),
  }


def main() -> None:
  """Measures both data sets and prints one JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--jpegs', type=int, default=10_000)
  parser.add_argument('--small', type=int, default=50_000)
  parser.add_argument('--batch-size', type=int, default=128)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  allocator.keep_freed_memory()
  result = {
    'benchmark': 'input_pipeline',
    'device': jax.devices()[0].platform,
    'batch_size': args.batch_size,
    'large': measure(args.jpegs, 224, 256, args),
    'small': measure(args.small, 32, 32, args),
  }
  print(json.dumps(result | machine.versions()))


if __name__ == '__main__':
  main()
