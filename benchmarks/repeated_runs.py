"""What costs a run that follows one of its kind in the same process?

  python -m benchmarks.repeated_runs [--runs 4] [--against CHECKOUT]

So a study's worker runs cells of other seeds. A process runs
`configs/kd.py:smoke` (a probed teacher, then TL+KD) with seed after seed; its
few steps on few images leave what comes before and after the steps of any run.
The compilation cache was filled by a process before. With `--against` another
checkout of the package does the same in turn. Prints a JSON line for each
checkout: seconds of the first run and of a later one, medians, on the clock
(`wall`) and of the processor (`cpu`), which other work changes less.
"""

import argparse
import json
import pathlib
import statistics

from benchmarks import checkouts as turns
from benchmarks import machine

_RUNS = """
import json, pathlib, sys, time
import jax
from tlkd_jax import arms, settings
from tlkd_jax.runtime import allocator, sharding
folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
jax.config.update('jax_compilation_cache_dir', str(folder / 'compiled'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
allocator.keep_freed_memory()
given = settings.make('kd', smoke=True)
for seed in range(count):
  begun = time.perf_counter(), time.process_time()
  one = settings.with_values(given, {'seed': seed})
  arms.run(one, folder / str(time.time_ns()), sharding.make_mesh())
  print(json.dumps([
    time.perf_counter() - begun[0], time.process_time() - begun[1]
  ]), flush=True)
"""


def run_several(
  checkout: pathlib.Path, folder: pathlib.Path, count: int
) -> list[list[float]]:
  """[seconds on the clock, of the processor] of so many runs of a process.

  Args:
    checkout: of the package.
    folder: of runs and compiled programs.
    count: of runs.

  Raises:
    RuntimeError: it failed; with the end of what it said.
  """
  said = turns.run_python(
    ['-c', _RUNS, str(folder), str(count)], checkout, folder
  )
  # Tables of results are printed too.
  lines = [x for x in said.splitlines() if x.startswith('[')]
  return [json.loads(line) for line in lines]


def measure(
  checkouts: dict[str, pathlib.Path], runs: int, rounds: int
) -> list[dict]:
  """A row for each checkout, by name; these take turns."""

  def once(checkout, folder, number):
    return run_several(checkout, folder, runs if number else 1)

  found = turns.in_turn(checkouts, rounds, once)
  rows = []
  for name, rounds_of in found.items():
    row: dict = {'checkout': name or 'this', **machine.versions()}
    for place, kind in enumerate(('wall', 'cpu')):
      first = [times[0][place] for times in rounds_of]
      later = [each[place] for times in rounds_of for each in times[1:]]
      row[f'first_{kind}_seconds'] = round(statistics.median(first), 2)
      row[f'later_{kind}_seconds'] = round(statistics.median(later), 2)
    rows.append(row)
  return rows


def main() -> None:
  """Prints a JSON line for each checkout."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--runs', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--against', type=pathlib.Path)
  arguments = parser.parse_args()
  checkouts = turns.named(arguments.against)
  for row in measure(checkouts, arguments.runs, arguments.rounds):
    print(json.dumps(row))


if __name__ == '__main__':
  main()
