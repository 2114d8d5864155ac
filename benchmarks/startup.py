"""How long from the command to its first step, and to the end of a short one?

  python -m benchmarks.startup [--rounds 3] [--against CHECKOUT] [--whole]

Fresh processes of the command line, each in turn with an empty compilation
cache (`cold`) and with the cache that it filled (`warm`), ended after the first
step; of `configs/kd.py:smoke` to its end, and with `--whole` of the quick start
(`configs/compare.py`, four minutes a process) too, once. Seconds on the clock,
and of the processor (`cpu`), which other work on the machine changes less.
With `--against` another checkout of the package is started in turn with this
one. The data are prepared before. Prints a JSON line for each configuration.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

_HERE = pathlib.Path(__file__).resolve().parent.parent
# The loop asks after each step whether to stop. What was sent to the devices
# then is awaited, and nothing is saved.
_TO_FIRST_STEP = """
import os, jax
from tlkd_jax import main
from tlkd_jax.training import signals
def leave(self, step):
  jax.block_until_ready(jax.live_arrays())
  os._exit(0)
signals.StopRequest.requested = leave
main.run()
"""
_TO_THE_END = 'from tlkd_jax import main; main.run()'


@dataclasses.dataclass(frozen=True)
class Start:
  """A configuration, and whether it is run to its end."""

  config: str
  to_the_end: bool


STARTS = (
  Start('configs/tl.py', to_the_end=False),
  Start('configs/kd.py:smoke', to_the_end=True),
)
QUICK_START = Start('configs/compare.py', to_the_end=True)


def time_process(
  start: Start, checkout: pathlib.Path, cache: pathlib.Path
) -> tuple[float, float]:
  """Seconds, and seconds of the processor, of one process.

  Args:
    start: what it does.
    checkout: of the package that it runs.
    cache: of compiled programs.

  Raises:
    RuntimeError: it failed; with the end of what it said.
  """
  program = _TO_THE_END if start.to_the_end else _TO_FIRST_STEP
  with (
    tempfile.TemporaryDirectory() as workdir,
    tempfile.TemporaryFile() as out,
  ):
    command = [sys.executable, '-c', program, f'--config={start.config}']
    command += [f'--workdir={workdir}', f'--compilation_cache={cache}']
    begun = time.perf_counter()
    process = subprocess.Popen(
      command,
      cwd=checkout,
      env=os.environ | {'PYTHONPATH': str(checkout)},
      stdout=out,
      stderr=subprocess.STDOUT,
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      out.seek(0)
      said = out.read().decode(errors='replace')[-2000:]
      raise RuntimeError(f'{start.config} in {checkout}: {said}')
  return seconds, used.ru_utime + used.ru_stime


def measure(
  start: Start, checkouts: dict[str, pathlib.Path], rounds: int, again: bool
) -> dict:
  """The row of a configuration.

  Args:
    start: what is started.
    checkouts: prefix of the row's fields -> checkout; each in turn.
    rounds: of a cold start and, with `again`, a warm one.
    again: whether there are warm ones.
  """
  taken: dict[str, list[tuple[float, float]]] = {}
  for _ in range(rounds):
    for prefix, checkout in checkouts.items():
      with tempfile.TemporaryDirectory() as cache:
        for kind in ('cold', 'warm')[: 1 + again]:
          found = time_process(start, checkout, pathlib.Path(cache))
          taken.setdefault(f'{prefix}{kind}', []).append(found)
  row = {
    'config': start.config,
    'until': 'its end' if start.to_the_end else 'the first step',
  }
  for name, pairs in taken.items():
    clock, processor = map(list, zip(*pairs, strict=True))
    row |= machine.summary(name, clock, 'seconds', 2)
    row |= machine.summary(f'{name}_cpu', processor, 'seconds', 2)
  for kind in ('cold', 'warm'):
    if f'against_{kind}' in taken:
      ratios = [
        ours[0] / theirs[0]
        for ours, theirs in zip(
          taken[kind], taken[f'against_{kind}'], strict=True
        )
      ]
      row[f'{kind}_ratio'] = round(statistics.median(ratios), 3)
  return row


def main() -> None:
  """Parses the command line and prints the rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--against', type=pathlib.Path, help='a checkout')
  parser.add_argument('--whole', action='store_true', help='the quick start')
  parser.add_argument('--config', help='this one alone, to its first step')
  arguments = parser.parse_args()
  checkouts = {'': _HERE}
  if arguments.against:
    checkouts['against_'] = arguments.against.resolve()
  starts = STARTS
  if arguments.config:
    starts = (Start(arguments.config, to_the_end=False),)
  with tempfile.TemporaryDirectory() as cache:
    time_process(
      Start('configs/tl.py:smoke', False), _HERE, pathlib.Path(cache)
    )
  for start in starts:
    row = measure(start, checkouts, arguments.rounds, again=True)
    print(json.dumps(row | machine.versions()), flush=True)
  if arguments.whole:
    row = measure(QUICK_START, checkouts, 1, again=False)
    print(json.dumps(row | machine.versions()), flush=True)


if __name__ == '__main__':
  main()
