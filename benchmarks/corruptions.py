"""How much faster are our corruptions than the `imagecorruptions` package?

  python -m benchmarks.corruptions --reference-python ENV/bin/python

The package needs old libraries, so it runs in an environment of its own:
`pip install imagecorruptions "scikit-image<0.20" "numpy<1.24" opencv-python`
on Python 3.9. Both sides corrupt the same 224-pixel crops of photographs, cell
by cell (19 corruptions, 5 severities) in turns within one run; medians of the
rounds count. Compilation is left out on our side, the first call on the other.
`--reference-processes 2` gives the package a process per core.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from sklearn.datasets import load_sample_images

from benchmarks import machine
from tlkd_jax.evaluation.corruptions import (
  CORRUPTION_SETS,
  SEVERITIES,
  corrupt_batch,
  corruption_keys,
)

_WORKER = pathlib.Path(__file__).with_name('corruptions_reference.py')
_SIZE = 224


class Reference:
  """Processes of the reference environment that time single cells."""

  def __init__(self, python: str, images: np.ndarray, processes: int):
    self._file = tempfile.NamedTemporaryFile(suffix='.npy')
    np.save(self._file, images)
    self._file.flush()
    self._images = len(images) * processes
    self._workers = [
      subprocess.Popen(
        [python, '-W', 'ignore', str(_WORKER), self._file.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
      for _ in range(processes)
    ]

  def milliseconds(self, name: str, severity: int) -> float:
    """Time per image, the processes running side by side."""
    for worker in self._workers:
      worker.stdin.write(json.dumps([name, severity]) + '\n')
      worker.stdin.flush()
    seconds = max(float(worker.stdout.readline()) for worker in self._workers)
    return 1e3 * seconds / self._images

  def close(self) -> None:
    """Ends the processes."""
    for worker in self._workers:
      worker.stdin.close()
      worker.wait()
    self._file.close()


def photographs(count: int) -> np.ndarray:
  """Crops of scikit-learn's two sample photographs, uint8[N, 224, 224, 3]."""
  rng = np.random.default_rng(0)
  pictures = load_sample_images().images
  crops = []
  for i in range(count):
    picture = pictures[i % len(pictures)]
    top = rng.integers(picture.shape[0] - _SIZE)
    left = rng.integers(picture.shape[1] - _SIZE)
    crops.append(picture[top : top + _SIZE, left : left + _SIZE])
  return np.stack(crops)


def our_milliseconds(name: str, images, severity: int, keys) -> float:
  """Time per image of one call of the compiled function."""
  start = time.perf_counter()
  jax.block_until_ready(corrupt_batch(name, images, severity, keys))
  return 1e3 * (time.perf_counter() - start) / len(images)


def measure_cell(name, severity, images, reference, rounds):
  """Returns (ms of [reference, ours][round], seconds of the first call)."""
  keys = corruption_keys(0, range(len(images)), name, severity)
  start = time.perf_counter()
  our_milliseconds(name, images, severity, keys)
  compilation = time.perf_counter() - start
  theirs, ours = [], []
  for _ in range(rounds):
    theirs.append(reference.milliseconds(name, severity))
    ours.append(our_milliseconds(name, images, severity, keys))
  return np.array([theirs, ours]), compilation


def main():
  """Measures every cell in turns and prints a table and one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--reference-python', default=sys.executable)
  parser.add_argument('--reference-processes', type=int, default=1)
  parser.add_argument('--reference-images', type=int, default=2)
  parser.add_argument('--images', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  images = photographs(args.images)
  reference = Reference(
    args.reference_python,
    images[: args.reference_images],
    args.reference_processes,
  )
  device_images = jax.device_put(images)
  cells, ratios = {}, {}
  compilation = 0.0
  print(f'{"ms per image, mean of 5":24s}{"reference":>10s}{"ours":>8s}')
  for name in CORRUPTION_SETS['imagenet-c-like']:
    for severity in SEVERITIES:
      cells[name, severity], spent = measure_cell(
        name, severity, device_images, reference, args.rounds
      )
      compilation += spent
    mean = np.median(np.mean([cells[name, s] for s in SEVERITIES], 0), -1)
    ratios[name] = round(mean[0] / mean[1], 2)
    print(
      f'{name:24s}{mean[0]:10.2f}{mean[1]:8.2f}{ratios[name]:8.1f}x', flush=True
    )
  reference.close()
  total = np.mean(list(cells.values()), axis=0)
  rest = np.mean([v for k, v in cells.items() if k[0] != 'glass_blur'], axis=0)
  row = {}
  for side, times in zip(('reference', 'our'), total, strict=True):
    row |= machine.summary(side, list(1e3 / times), 'images_per_second')
  for name, (theirs, ours) in (
    ('times_as_fast', total),
    ('times_as_fast_without_glass_blur', rest),
  ):
    row[name] = round(np.median(theirs / ours), 1)
  row |= {
    'times_as_fast_by_corruption': ratios,
    'compilation_seconds_left_out': round(compilation, 1),
    'device': str(jax.devices()[0]),
    'reference_processes': args.reference_processes,
    'load_average': round(os.getloadavg()[0], 1),
  }
  print(json.dumps(row | machine.versions()))


if __name__ == '__main__':
  main()
