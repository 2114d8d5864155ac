"""How long a study takes, of two checkouts of the package in turn.

  python -m benchmarks.study_speed --data trashnet.zip --against CHECKOUT

Its cells are those of TrashNet's published places (64 px, 20 images a class, a
fine-tuned teacher, TL, TL with smoothed labels, TL+KD, 100 steps), two at a
time on a core each. Compiled programs are read from a cache that a study of one
seed filled before. Prints a JSON line for each checkout.
"""

import argparse
import json
import pathlib
import statistics
import time

from benchmarks import checkouts as turns
from benchmarks import machine


def run_study(
  checkout: pathlib.Path, folder: pathlib.Path, data: pathlib.Path, seeds: int
) -> float:
  """Seconds of a study of so many seeds, from the command to its end.

  Args:
    checkout: of the package.
    folder: of the study and of compiled programs.
    data: archive of TrashNet.
    seeds: how many.

  Raises:
    RuntimeError: it failed; with the end of what it said.
  """
  place = f'{checkout}/configs/study.py:dataset=folder:{data}'
  begun = time.perf_counter()
  turns.run_python(
    ['-m', 'tlkd_jax.study', f'--config={place}', '--jobs=2']
    + [f'--workdir={folder}/{time.time_ns()}']
    + [f'--compilation_cache={folder}/compiled']
    + ['--config.study.sizes=(20,)', f'--config.study.seeds={seeds}']
    + ["--config.study.run_arms=('tl','tl_label_smoothing','kd')"],
    checkout,
    folder,
  )
  return time.perf_counter() - begun


def measure(
  checkouts: dict[str, pathlib.Path],
  data: pathlib.Path,
  seeds: int,
  rounds: int,
) -> list[dict]:
  """A row for each checkout, by name; these take turns."""

  def once(checkout, folder, number):
    return run_study(checkout, folder, data, seeds if number else 1)

  found = turns.in_turn(checkouts, rounds, once)
  return [
    {
      'checkout': name or 'this',
      'seeds': seeds,
      'seconds': round(statistics.median(times), 1),
      'each': [round(one, 1) for one in times],
      **machine.versions(),
    }
    for name, times in found.items()
  ]


def main() -> None:
  """Prints a JSON line for each checkout."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--against', type=pathlib.Path)
  arguments = parser.parse_args()
  checkouts = turns.named(arguments.against)
  data = arguments.data.resolve()
  for row in measure(checkouts, data, arguments.seeds, arguments.rounds):
    print(json.dumps(row))


if __name__ == '__main__':
  main()
