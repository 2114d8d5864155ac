"""What do the C library's leftovers of compilation cost the steps after it?

  python -m benchmarks.allocators [--preload libtcmalloc_minimal.so.4]

Times the step of a run (digits at 128 px, batch 32, one step in flight) in
processes of their own: with glibc under the settings of tlkd_jax/allocator.py
and with another allocator preloaded, where the process compiled the step and
where it read it from the compilation cache; these four in turn, twice. Prints
one JSON line for each: medians with minimum and maximum in milliseconds of a
step and of sending it, and the peak memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import jax

from benchmarks import loop_overhead, machine
from tlkd_jax.runtime import allocator, sharding
from tlkd_jax.training import loop as train
from tlkd_jax.training import memory

_WARM_UP = 3


def measure(model: str, image_size: int, steps: int) -> dict:
  """Milliseconds of the steps of this process, and its peak memory."""
  allocator.keep_freed_memory()
  with tempfile.TemporaryDirectory() as folder:
    run, start = loop_overhead.make_run(model, image_size, 32, folder)
    constants = train.make_constants(run)
    batches = train._train_batches(run, train._Progress())
    batch = sharding.shard_batch(next(batches), run.mesh)
    batches.close()
    state = start()
    memory.check(run.step, (state, constants), batch, run.mesh)
    times: dict[str, list[float]] = {'send': [], 'step': []}
    for _ in range(_WARM_UP + steps):
      began = time.perf_counter()
      state, metrics = run.step(state, constants, batch)
      times['send'].append(1e3 * (time.perf_counter() - began))
      jax.block_until_ready((state, metrics))
      times['step'].append(1e3 * (time.perf_counter() - began))
  # Kilobytes on Linux.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  kept = {name: values[_WARM_UP:] for name, values in times.items()}
  return kept | {'peak_mib': peak // 1024}


def run_alone(command: list[str], preload: str, cache: str) -> dict:
  """`measure` in a process of its own."""
  variables = {'LD_PRELOAD': preload, 'JAX_COMPILATION_CACHE_DIR': cache}
  done = subprocess.run(
    command, env=os.environ | variables, check=True, capture_output=True
  )
  # The loader goes on without a library that it does not find.
  if b'cannot be preloaded' in done.stderr:
    raise SystemExit(f'--preload {preload}: no such library')
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='efficientnet_lite0')
  parser.add_argument('--image-size', type=int, default=128)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--preload', default='libtcmalloc_minimal.so.4')
  parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  own = arguments.model, arguments.image_size, arguments.steps
  if arguments.alone:
    print(json.dumps(measure(*own)))
    return
  command = [sys.executable, '-m', 'benchmarks.allocators', '--alone']
  for name, value in zip(('model', 'image-size', 'steps'), own, strict=True):
    command += [f'--{name}', str(value)]
  runs: dict[tuple[str, str], list[dict]] = {}
  for _ in range(arguments.rounds):
    for preload in ('', arguments.preload):
      with tempfile.TemporaryDirectory() as cache:
        for step in ('compiled', 'from the cache'):
          case = preload or 'glibc', step
          runs.setdefault(case, []).append(run_alone(command, preload, cache))
  for (name, step), found in runs.items():
    row = {'allocator': name, 'step is': step}
    for part in ('send', 'step'):
      row |= machine.summary(part, sum((run[part] for run in found), []))
    row['peak_mib'] = max(run['peak_mib'] for run in found)
    print(json.dumps(row | machine.versions()), flush=True)


if __name__ == '__main__':
  main()
