"""What does the training loop add to the jitted step?

  python -m benchmarks.loop_overhead [--image-sizes 64 128 --steps 40]

Runs the loop of tlkd_jax/training/loop.py (batches from Grain, transfer to the
device, metrics fetched every log_every_steps, progress, no evaluation, nothing
saved) and the bare step on batches that are on the device already, in turn in
one process, which read the step from the compilation cache. Prints one JSON
line for each size: medians with minimum and maximum in milliseconds per step,
and `ratio`, the median over the rounds of loop / bare (aim: 1.03).
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax

from benchmarks import machine
from tlkd_jax import settings
from tlkd_jax.runtime import allocator, sharding
from tlkd_jax.runtime.errors import Interrupted
from tlkd_jax.training import decoding, inputs, loop
from tlkd_jax.training.checkpoints import Checkpoints
from tlkd_jax.training.progress import Progress


class _StopAt:
  """A stop request at one step, in place of a signal's."""

  def __init__(self, step: int):
    self._step = step

  def requested(self, step: int) -> bool:
    """Whether to stop now."""
    return step == self._step


class _Nowhere:
  """Checkpoints and metrics that are not written."""

  def save(self, state, progress) -> None:
    """Does nothing."""

  def write(self, step, split, values) -> None:
    """Does nothing."""

  def latest_step(self) -> None:
    """There is none."""


def make_run(model: str, image_size: int, batch_size: int, folder: str):
  """A TL run on digits that never evaluates; (run, function of a new state)."""
  config = settings.with_values(
    settings.make('tl', student=model),
    {
      'student.weights': 'scratch',
      'image_size': image_size,
      'batch_size': batch_size,
      'num_steps': 10**6,
      'eval_every_steps': 10**6,
      'memory_check': False,
    },
  )
  dataset = decoding.load_dataset(config)
  workdir = pathlib.Path(folder)
  run = loop.set_up(config, workdir, dataset, sharding.make_mesh())
  checkpoints = Checkpoints(workdir, 1)
  return run, lambda: loop._start(run, checkpoints)[0]


def batches_of(run):
  """The batches of a run, from the first on."""
  return inputs.train_batches(run.settings, run.dataset, run.num_steps, {})


def time_loop(run, state, steps: int) -> float:
  """Seconds of `steps` steps in the loop."""
  batches = batches_of(run)
  shown = Progress('benchmark', 0, steps)
  nowhere = _Nowhere()
  parts = loop.Position(), nowhere, batches, nowhere, shown, _StopAt(steps)
  start = time.perf_counter()
  try:
    loop._steps(run, state, *parts)
  except Interrupted:
    spent = time.perf_counter() - start
  finally:
    batches.close()
    shown.close()
  return spent


def time_bare(run, state, steps: int) -> float:
  """Seconds of `steps` jitted steps on batches that are on the device."""
  constants = loop.make_constants(run)
  batches = batches_of(run)
  ready = [sharding.shard_batch(next(batches), run.mesh) for _ in range(4)]
  batches.close()
  jax.block_until_ready((state, constants, ready))
  start = time.perf_counter()
  for number in range(steps):
    state, metrics = run.step(state, constants, ready[number % len(ready)])
  jax.block_until_ready((state, metrics))
  return time.perf_counter() - start


def measure(
  model: str, image_size: int, batch_size: int, steps: int, rounds: int
) -> dict:
  """One row, of this process."""
  allocator.keep_freed_memory()
  with tempfile.TemporaryDirectory() as folder:
    run, start = make_run(model, image_size, batch_size, folder)
    sides = {'loop': time_loop, 'bare': time_bare}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
      side(run, start(), 2)
    for _ in range(rounds):
      for name, side in sides.items():
        times[name].append(1e3 * side(run, start(), steps) / steps)
  row: dict = {'model': model, 'image_size': image_size}
  row |= {'batch_size': batch_size, 'steps': steps, 'rounds': rounds}
  for name, values in times.items():
    row |= machine.summary(name, values, digits=2)
  pairs = zip(times['loop'], times['bare'], strict=True)
  ratios = [looped / bare for looped, bare in pairs]
  row['ratio'] = round(statistics.median(ratios), 3)
  row['ratio_min_max'] = [round(min(ratios), 3), round(max(ratios), 3)]
  return row | machine.versions()


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='efficientnet_lite0')
  parser.add_argument('--image-sizes', type=int, nargs='+', default=[64, 128])
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--steps', type=int, default=40)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  names = ('model', 'batch_size', 'steps', 'rounds')
  own = {name: getattr(arguments, name) for name in names}
  if arguments.alone:
    (size,) = arguments.image_sizes
    print(json.dumps(measure(image_size=size, **own)))
    return
  command = [sys.executable, '-m', 'benchmarks.loop_overhead', '--alone']
  for name, value in own.items():
    command += [f'--{name.replace("_", "-")}', str(value)]
  for size in arguments.image_sizes:
    sized = [*command, '--image-sizes', str(size)]
    short = [*sized, '--steps', '1', '--rounds', '1']
    print(machine.run_compiled(sized, short).splitlines()[-1], flush=True)


if __name__ == '__main__':
  main()
