"""Does anything grow faster than the work? Time and memory against size.

  python -m benchmarks.growth [--quick] [--axis images] [--plot growth.png]

Each point is a process of its own. Axes:
  images   preparing, decoding and one epoch of batches of 32-pixel JPEGs
  pixels   a TL+KD step (Lite0 under Lite0) against the pixels of an image
  batch    the same against the batch
  classes  the same against the classes, and the metrics of 2,000 predictions
  mapped   writing, digesting and serving 16-pixel images that a file holds; its
           memory is this process's own, which must stay the same
  runs     what a study does besides training: claims and state of its cells
  page     the answer of a study of so many cells, seed after seed at ten
           places, and its page
  places   the same with ten seeds at ever more places
Steps are measured where their program came from the compilation cache, so that
the peak memory is not the compiler's.
Each time is the median of three or five, the point has minimum and maximum too.
For each time the exponent e of size ** e is fitted to the upper half of the
points, in logarithms: below 1 where a constant part dominates; above 1.05 is
super-linear. The exponent of the process's peak memory, most of which is
constant, is that of its increments. Prints one JSON line. About 40 minutes on
two idle cores, `--quick` six.
"""

import argparse
import functools
import json
import math
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import growth_axes, machine

# axis: (sizes, quick sizes).
AXES = {
  'images': ((1000, 5000, 20_000, 50_000), (500, 1500, 4000)),
  'mapped': ((10_000, 100_000, 1_000_000), (5000, 10_000, 20_000)),
  'pixels': ((32, 64, 96, 128, 192, 256, 384, 512), (32, 64, 96)),
  'batch': ((8, 16, 32, 64, 128), (4, 8, 16)),
  'classes': ((10, 100, 1000, 10_000, 21_841), (10, 100, 1000)),
  'runs': ((100, 1000, 10_000), (20, 80, 320)),
  'page': ((100, 1000, 10_000), (100, 200, 400)),
  'places': ((500, 1000, 10_000), (500, 1000, 1500)),
}
_COMPILING = ('pixels', 'batch', 'classes')
_SUPER_LINEAR = 1.05
_ROUNDS = 3


def of_images(count: int) -> dict[str, list[float]]:
  """Seconds to prepare, decode and serve `count` images, three times."""
  from benchmarks.input_pipeline import seconds, write_images
  from tlkd_jax.data import load_splits, pipeline, sources

  times = {'prepare': [], 'decode': [], 'epoch': []}
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    write_images(root / 'images.zip', count, 32)
    name = f'folder:{root / "images.zip"}'
    for number in range(_ROUNDS):
      cache = root / f'cache{number}'
      prepare = functools.partial(sources.open_sources, name, cache_dir=cache)
      times['prepare'].append(seconds(prepare))
      start = time.perf_counter()
      dataset = load_splits(name, image_size=32, cache_dir=cache)
      times['decode'].append(time.perf_counter() - start)
      train = dataset.splits['train']
      epoch = functools.partial(list, pipeline.eval_batches(train, 128))
      times['epoch'].append(seconds(epoch))
      # Two at once would count as the peak.
      del dataset, train, epoch
  return times


def of_step(size: int, batch: int, classes: int) -> dict[str, list[float]]:
  """Seconds of five TL+KD steps."""
  from benchmarks import scaling
  from tlkd_jax.runtime import allocator, sharding

  allocator.keep_freed_memory()
  name = 'efficientnet_lite0'
  pair = scaling.Pair(name, name, size, batch, classes)
  _, times = scaling.run(pair, sharding.make_mesh(), batch, 6)
  return {'step': times[1:]}


def of_classes(classes: int) -> dict[str, list[float]]:
  """A step, and every metric of a split of 2,000 predictions."""
  import numpy as np

  from benchmarks.input_pipeline import seconds
  from tlkd_jax.evaluation.metrics import compute_metrics

  result = of_step(32, 16, classes)
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2000, classes)).astype(np.float32)
  labels = rng.integers(0, classes, 2000)
  result['metrics'] = [
    seconds(lambda: compute_metrics(logits, labels)) for _ in range(_ROUNDS)
  ]
  return result


def of_runs(count: int) -> dict[str, list[float]]:
  """Seconds of a study's bookkeeping for `count` cells that train nothing."""
  return {'bookkeeping': [_bookkeeping(count) for _ in range(_ROUNDS)]}


def _bookkeeping(count: int) -> float:
  from configs import study
  from tlkd_jax import settings
  from tlkd_jax.evaluation import records
  from tlkd_jax.study import cells, matrix, workers

  config = settings.from_config(study.get_config())
  config = settings.with_values(config, {'study.run_arms': ('tl', 'kd')})
  seeds = -(-count * config.study.seeds // len(matrix.make_matrix(config)))
  config = settings.with_values(config, {'study.seeds': seeds})
  start = time.perf_counter()
  shard = matrix.make_matrix(config)[:count]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)

    def run(cell):
      path = cells.folder_of(root, cell) / 'cell.json'
      records.write_json(path, {'validation': {}})

    workers.work(shard, root, run, lambda: None)
    done = set(workers.states(shard, root).values())
  assert done == {'done'}, done
  return time.perf_counter() - start


def point(axis: str, size: int) -> dict:
  """One measurement, in this process."""
  functions = {
    'images': of_images,
    'pixels': lambda side: of_step(side, 16, 10),
    'batch': lambda batch: of_step(64, batch, 10),
    'classes': of_classes,
    'mapped': growth_axes.of_mapped,
    'runs': of_runs,
    'page': growth_axes.of_page,
    'places': growth_axes.of_places,
  }
  values = functions[axis](size)
  if axis == 'mapped':
    # What the file holds counts as resident too.
    peak = growth_axes.anonymous_mib()
  else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return {
    'size': size,
    'seconds': {k: round(statistics.median(v), 5) for k, v in values.items()},
    'min_max': {
      k: [round(min(v), 5), round(max(v), 5)] for k, v in values.items()
    },
    'peak_mib': round(peak),
  }


def _alone(command: list[str], compiling: bool) -> dict:
  """The point that a process of its own prints."""
  if compiling:
    output = machine.run_compiled(command)
  else:
    output = subprocess.run(
      command, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
  return json.loads(output.splitlines()[-1])


def exponent(sizes: list[float], values: list[float]) -> float:
  """Least-squares slope of log(value) over log(size), upper half of sizes."""
  kept = max(2, math.ceil(len(sizes) / 2))
  return _slope(sizes[-kept:], values[-kept:])


def marginal_exponent(sizes: list[float], values: list[float]) -> float | None:
  """The exponent of what grows on top of a constant of unknown size.

  The cost of one more, (v2 - v1) / (n2 - n1), goes as n ** (e - 1). None
  where fewer than two intervals grow.
  """
  middles, rates = [], []
  for i in range(len(sizes) - 1):
    rate = (values[i + 1] - values[i]) / (sizes[i + 1] - sizes[i])
    if rate > 0:
      middles.append(math.sqrt(sizes[i] * sizes[i + 1]))
      rates.append(rate)
  return round(1 + _slope(middles, rates), 2) if len(rates) > 1 else None


def _slope(sizes: list[float], values: list[float]) -> float:
  xs, ys = [math.log(s) for s in sizes], [math.log(v) for v in values]
  mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
  top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
  return round(top / sum((x - mean_x) ** 2 for x in xs), 2)


def summarize(axis: str, points: list[dict]) -> dict:
  """The points with their exponents."""
  sizes = [p['size'] ** 2 if axis == 'pixels' else p['size'] for p in points]
  exponents = {
    name: exponent(sizes, [p['seconds'][name] for p in points])
    for name in points[0]['seconds']
  }
  memory = marginal_exponent(sizes, [p['peak_mib'] for p in points])
  if memory is not None:
    exponents['memory'] = memory
  return {
    'points': points,
    'exponents': exponents,
    'super_linear': [k for k, e in exponents.items() if e > _SUPER_LINEAR],
  }


def plot(axes: dict[str, dict], path: str) -> None:
  """One panel per axis, seconds and MiB in logarithmic scales."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, panels = pyplot.subplots(
    1, len(axes), figsize=(3.4 * len(axes), 3.6), squeeze=False
  )
  for panel, (axis, result) in zip(panels[0], axes.items(), strict=True):
    sizes = [p['size'] for p in result['points']]
    for name in result['points'][0]['seconds']:
      values = [p['seconds'][name] for p in result['points']]
      label = f'{name}, s (e = {result["exponents"][name]})'
      panel.loglog(sizes, values, marker='o', label=label)
    memory = [p['peak_mib'] for p in result['points']]
    panel.loglog(sizes, memory, 'k--', marker='x', label='peak, MiB')
    panel.set_xlabel('side, pixels' if axis == 'pixels' else axis)
    panel.set_xticks(sizes, [f'{size:,}' for size in sizes])
    panel.xaxis.set_minor_locator(pyplot.NullLocator())
    panel.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.28))
  figure.tight_layout()
  figure.savefig(path, dpi=110, bbox_inches='tight')


def main() -> None:
  """Measures the axes and prints the JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--axis', choices=AXES, action='append')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--plot', metavar='FILE')
  parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.child:
    axis, size = arguments.child
    print(json.dumps(point(axis, int(size))))
    return
  results = {}
  for axis in arguments.axis or AXES:
    points = []
    for size in AXES[axis][arguments.quick]:
      command = [sys.executable, '-m', 'benchmarks.growth', '--child', axis]
      points.append(_alone([*command, str(size)], axis in _COMPILING))
      print(f'{axis} {points[-1]}', file=sys.stderr, flush=True)
    results[axis] = summarize(axis, points)
  row = {'benchmark': 'growth', 'quick': arguments.quick, 'axes': results}
  row['largest_exponent'] = max(
    e for result in results.values() for e in result['exponents'].values()
  )
  print(json.dumps(row | machine.versions()))
  if arguments.plot:
    plot(results, arguments.plot)


if __name__ == '__main__':
  main()
