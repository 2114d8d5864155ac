"""Seeds of one cell: one program for several, or a process for each?

  python -m benchmarks.many_seeds [--image-sizes 32 64 96 --seeds 2 4]

A study runs its seeds side by side, each in a process on one core. The other
way is one process on all cores whose step is `jax.vmap` of the training step
over the seeds' states and batches. Both run TL's own step (frozen BatchNorm,
augmentation, AdamW, batches of 32) of scratch weights, in turn and each while
the other waits; a side of more seeds than cores has a process a core, and what
one does is counted. Prints one JSON line for each size and number of seeds:
images a second, medians with minimum and maximum, and `ratio`, one program /
processes. Compilation is left out. A few minutes on two idle cores.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import loop_overhead, machine
from tlkd_jax.runtime import allocator, sharding
from tlkd_jax.training import loop


def make(model: str, image_size: int, batch_size: int, seeds: int):
  """(step, state, constants, batch) of one seed, or stacked of several.

  The seeds begin with equal weights and have batches of their own.
  """
  with tempfile.TemporaryDirectory() as folder:
    run, start = loop_overhead.make_run(model, image_size, batch_size, folder)
    constants, state = loop.make_constants(run), start()
  batches = loop_overhead.batches_of(run)
  own = [sharding.shard_batch(next(batches), run.mesh) for _ in range(seeds)]
  batches.close()
  if seeds == 1:
    return run.step, state, constants, own[0]
  batch = jax.tree.map(lambda *parts: jnp.stack(parts), *own)
  state = jax.tree.map(lambda leaf: jnp.stack([leaf] * seeds), state)
  step = jax.jit(jax.vmap(run.step, (0, None, 0)), donate_argnums=0)
  return step, state, constants, batch


def serve(arguments: argparse.Namespace) -> None:
  """Runs steps for each line of standard input; prints the seconds."""
  os.sched_setaffinity(0, arguments.cores)
  allocator.keep_freed_memory()
  (size,), (seeds,) = arguments.image_sizes, arguments.seeds
  step, state, constants, batch = make(
    arguments.model, size, arguments.batch_size, seeds
  )
  for _ in range(2):
    state, metrics = step(state, constants, batch)
  jax.block_until_ready((state, metrics))
  print('ready', flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
      state, metrics = step(state, constants, batch)
    jax.block_until_ready((state, metrics))
    print(time.perf_counter() - began, flush=True)


@contextlib.contextmanager
def started(arguments, size: int, seeds: int, cores: list[int]):
  """A process that serves, compiled."""
  command = [
    *(sys.executable, '-m', 'benchmarks.many_seeds', '--serve'),
    *('--model', arguments.model, '--image-sizes', str(size)),
    *('--batch-size', str(arguments.batch_size), '--seeds', str(seeds)),
    *('--cores', *map(str, cores)),
  ]
  process = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  try:
    if process.stdout.readline() != 'ready\n':
      raise RuntimeError(f'ended with code {process.wait()}: {command}')
    yield process
  finally:
    process.stdin.close()
    process.wait()


def run_all_of(processes: list[subprocess.Popen], steps: int) -> list[float]:
  """Seconds of each, run side by side."""
  for process in processes:
    process.stdin.write(f'{steps}\n')
    process.stdin.flush()
  return [float(process.stdout.readline()) for process in processes]


def measure(arguments, size: int, seeds: int) -> dict:
  """One row."""
  cores = sorted(os.sched_getaffinity(0))
  batch, steps = arguments.batch_size, arguments.steps
  with contextlib.ExitStack() as stack:
    alone = [
      stack.enter_context(started(arguments, size, 1, [core]))
      for core in cores[:seeds]
    ]
    one = stack.enter_context(started(arguments, size, seeds, cores))
    rates: dict[str, list[float]] = {'processes': [], 'program': []}
    for _ in range(arguments.rounds):
      seconds = run_all_of(alone, steps)
      rates['processes'].append(batch * steps * sum(1 / s for s in seconds))
      (took,) = run_all_of([one], steps)
      rates['program'].append(seeds * batch * steps / took)
  row = {'model': arguments.model, 'image_size': size, 'seeds': seeds}
  for name, values in rates.items():
    row |= machine.summary(name, values, 'images_s')
  ratios = [p / q for p, q in zip(*reversed(rates.values()), strict=True)]
  return row | {'ratio': round(statistics.median(ratios), 3)}


def main() -> None:
  """Prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='efficientnet_lite0')
  parser.add_argument(
    '--image-sizes', type=int, nargs='+', default=[32, 64, 96]
  )
  parser.add_argument('--seeds', type=int, nargs='+', default=[2, 4])
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--cores', type=int, nargs='+', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    serve(arguments)
    return
  for size in arguments.image_sizes:
    for seeds in arguments.seeds:
      row = measure(arguments, size, seeds)
      print(json.dumps(row | machine.versions()), flush=True)


if __name__ == '__main__':
  main()
