"""Checkouts of the package that do the same in turn, in processes."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TypeVar

_HERE = pathlib.Path(__file__).resolve().parent.parent
T = TypeVar('T')


def named(against: pathlib.Path | None) -> dict[str, pathlib.Path]:
  """'' -> this checkout, and 'against' -> the other where there is one."""
  if against is None:
    return {'': _HERE}
  return {'': _HERE, 'against': against.resolve()}


def run_python(
  arguments: Sequence[str], checkout: pathlib.Path, folder: pathlib.Path
) -> str:
  """What Python prints, run in a folder with a checkout's package.

  Raises:
    RuntimeError: it failed; with the end of what it said.
  """
  done = subprocess.run(
    [sys.executable, *arguments],
    env=os.environ | {'PYTHONPATH': str(checkout)},
    cwd=folder,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f'{checkout}: {done.stderr[-2000:]}')
  return done.stdout


def in_turn(
  checkouts: dict[str, pathlib.Path],
  rounds: int,
  once: Callable[[pathlib.Path, pathlib.Path, int], T],
) -> dict[str, list[T]]:
  """What once(checkout, its folder, round) gives in every round, by name.

  Round 0 comes before them and fills caches: what it gives is dropped.
  """
  found: dict[str, list[T]] = {name: [] for name in checkouts}
  with tempfile.TemporaryDirectory() as folder:
    for number in range(rounds + 1):
      for name, checkout in checkouts.items():
        place = pathlib.Path(folder) / (name or 'here')
        place.mkdir(exist_ok=True)
        given = once(checkout, place, number)
        found[name] += [given] * (number > 0)
  return found
