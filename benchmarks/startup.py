"""How long from the command to the end of the first step?

  python -m benchmarks.startup [--config configs/tl.py --rounds 3]

Starts the command line in fresh processes that stop after their first step:
once with an empty compilation cache (`cold_seconds`), then with the cache that
this filled (`warm_seconds`, median with minimum and maximum). The data set is
prepared before. Prints one JSON line; the target is 12 s warm on two cores for
the default configuration.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

# Ends the process when the first step is done; the loop's own question, asked
# after each step, is where a run can be stopped.
_PROGRAM = """
import os, sys
from tlkd_jax import main, signals
signals.StopRequest.requested = lambda self, step: True
main.run()
"""


def time_run(config: str, cache: pathlib.Path, folder: pathlib.Path) -> float:
  """Seconds of a process that takes one step, fetches its loss and saves it."""
  workdir = tempfile.mkdtemp(dir=folder)
  command = [sys.executable, '-c', _PROGRAM, f'--config={config}']
  command += [f'--workdir={workdir}', f'--compilation_cache={cache}']
  start = time.perf_counter()
  subprocess.run(command, check=True, capture_output=True)
  return time.perf_counter() - start


def main() -> None:
  """Parses the command line and prints the row."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/tl.py')
  parser.add_argument('--rounds', type=int, default=3)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    time_run('configs/tl.py:smoke', folder / 'other', folder)
    cold = time_run(arguments.config, folder / 'cache', folder)
    warm = [
      time_run(arguments.config, folder / 'cache', folder)
      for _ in range(arguments.rounds)
    ]
  row = {
    'config': arguments.config,
    'cold_seconds': round(cold, 2),
  }
  row |= machine.summary('warm', warm, 'seconds', 2)
  print(json.dumps(row | machine.versions()))


if __name__ == '__main__':
  main()
