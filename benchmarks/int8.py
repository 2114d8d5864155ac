"""int8 against float in ONNX Runtime, and what takes the time.

  python -m benchmarks.int8 --models efficientnet_lite0 mobilenet_v2
  python -m benchmarks.int8 --files student.onnx student_int8.onnx

The first needs no run: it exports a student of each name with fresh weights,
float with folded norms and int8, since time does not depend on the values; the
second takes two files of tlkd_jax.export. Prints one JSON line for each pair
and batch size: milliseconds a call, medians with minimum and maximum over
rounds in which both take turns, `ratio`, the median over the rounds of float /
int8 (aim at batch 1: 1.5), sizes, threads, and the share of each operator in
the time of both, by ONNX Runtime's own profiler.
"""

import argparse
import collections
import importlib.metadata
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from tlkd_jax import models
from tlkd_jax.data import Dataset, Split
from tlkd_jax.export import formats, onnx
from tlkd_jax.export import student as students
from tlkd_jax.export.options import Int8
from tlkd_jax.training import descriptions

# A shorter measurement would be of the clock.
_LEAST_SECONDS = 0.02
_CLASSES = ('a', 'b', 'c', 'd', 'e', 'f')


def make_files(
  name: str, image_size: int, folder: pathlib.Path
) -> tuple[pathlib.Path, pathlib.Path]:
  """The float and the int8 file of a model with fresh weights."""
  model = models.create_model(name, num_classes=len(_CLASSES))
  params, state = jax.device_get(model.init(jax.random.key(0)))
  description = descriptions.Description(
    model=name,
    num_classes=len(_CLASSES),
    class_names=_CLASSES,
    image_size=image_size,
    crop=1.0,
    interpolation='bicubic',
    dataset='noise',
    arm='tl',
    compute_dtype='float32',
    step=0,
  )
  student = students.folded(students.Student(model, params, state, description))
  files = folder / f'{name}.onnx', folder / f'{name}_int8.onnx'
  formats.write(student, 'onnx', files[0])
  noise = _noise(image_size)
  options = Int8(max_accuracy_drop=1.0)
  formats.write_quantized(student, files[1], options, noise)
  return files


def _noise(image_size: int, count: int = 32) -> Dataset:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, image_size, image_size, 3))
  rows = np.arange(count)
  split = Split(
    images.astype(np.uint8),
    (rows % len(_CLASSES)).astype(np.int32),
    rows,
    [str(row) for row in rows],
  )
  splits = dict.fromkeys(('train', 'validation', 'test'), split)
  return Dataset('noise', list(_CLASSES), splits, image_size, True, {}, [])


def session(path: pathlib.Path, threads: int, profile: str = '') -> Any:
  """A session on the CPU; with a `profile`, that writes PROFILE_DATE.json."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  if profile:
    options.enable_profiling = True
    options.profile_file_prefix = profile
  return onnxruntime.InferenceSession(
    str(path), options, providers=['CPUExecutionProvider']
  )


def milliseconds(run: Any, feed: dict[str, np.ndarray], calls: int) -> float:
  """Of one call, over some in a row."""
  start = time.perf_counter()
  for _ in range(calls):
    run.run(None, feed)
  return (time.perf_counter() - start) / calls * 1e3


def measure(
  files: tuple[pathlib.Path, pathlib.Path],
  batch: int,
  threads: int,
  rounds: int,
) -> dict[str, Any]:
  """One row: both files in turn on the same images."""
  names = 'float', 'int8'
  sessions = [session(path, threads) for path in files]
  feed = images(sessions[0], batch)
  calls = []
  for one in sessions:
    milliseconds(one, feed, 3)
    once = milliseconds(one, feed, 3) / 1e3
    calls.append(max(1, round(_LEAST_SECONDS / once)))
  times: dict[str, list[float]] = {name: [] for name in names}
  for number in range(rounds):
    # Neither is always the first.
    order = (0, 1) if number % 2 == 0 else (1, 0)
    for which in order:
      found = milliseconds(sessions[which], feed, calls[which])
      times[names[which]].append(found)
  ratios = [a / b for a, b in zip(*times.values(), strict=True)]
  row: dict[str, Any] = {
    'batch': batch,
    'threads': threads,
    'rounds': rounds,
    'pixels': feed[onnx.INPUT].shape[-1],
  }
  for name, path in zip(names, files, strict=True):
    row |= machine.summary(name, times[name], digits=3)
    row[f'{name}_mb'] = round(path.stat().st_size / 1e6, 2)
    row[f'{name}_shares'] = shares(path, feed, threads)
  row['ratio'] = round(statistics.median(ratios), 2)
  row['ratio_min_max'] = [round(min(ratios), 2), round(max(ratios), 2)]
  return row


def images(one: Any, batch: int) -> dict[str, np.ndarray]:
  """Noise [batch, 3, H, W] of the size that a session takes."""
  (given,) = one.get_inputs()
  shape = (batch, *given.shape[1:])
  values = np.random.default_rng(0).normal(size=shape)
  return {given.name: values.astype(np.float32)}


def shares(
  path: pathlib.Path, feed: dict[str, np.ndarray], threads: int
) -> dict[str, float]:
  """Operator -> its share of the time of all, the largest first."""
  with tempfile.TemporaryDirectory() as folder:
    one = session(path, threads, f'{folder}/profile')
    for _ in range(10):
      one.run(None, feed)
    events = json.loads(pathlib.Path(one.end_profiling()).read_text())
  return shares_of(events)


def shares_of(events: list[dict[str, Any]]) -> dict[str, float]:
  """The same of what the profiler wrote."""
  spent: collections.Counter[str] = collections.Counter()
  for event in events:
    if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
      spent[event['args']['op_name']] += event['dur']
  total = max(1, spent.total())
  return {name: round(n / total, 3) for name, n in spent.most_common()}


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--models', nargs='+', default=[])
  parser.add_argument('--files', nargs=2, type=pathlib.Path)
  parser.add_argument('--image-size', type=int, default=224)
  parser.add_argument('--batches', nargs='+', type=int, default=[1, 32])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=21)
  flags = parser.parse_args()
  about = machine.versions()
  about['versions']['onnxruntime'] = importlib.metadata.version('onnxruntime')
  with tempfile.TemporaryDirectory() as made:
    pairs = {
      name: make_files(name, flags.image_size, pathlib.Path(made))
      for name in flags.models
    }
    if flags.files:
      pairs[flags.files[1].name] = tuple(flags.files)
    for name, files in pairs.items():
      for batch in flags.batches:
        row = measure(files, batch, flags.threads, flags.rounds)
        print(json.dumps({'model': name} | row | about), flush=True)


if __name__ == '__main__':
  main()
