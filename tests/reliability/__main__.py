"""Makes all injections and prints the table; exit code 1 where one is bad."""

import argparse
import os
import pathlib
import sys
import tempfile
import time

# Before JAX is imported, which reads it: compiling is most of the time.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false',
)

from tests import tiny
from tests.reliability import every, outcomes
from tests.reliability.runs import Place


def main() -> int:
  """Runs them."""
  parser = argparse.ArgumentParser(
    prog='python -m tests.reliability', description=__doc__
  )
  parser.add_argument('--long', action='store_true', help='half an hour')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', choices=every.KINDS, help='one kind alone')
  parser.add_argument('--soak_minutes', type=float, default=10.0)
  given = parser.parse_args()
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='reliability') as folder:
    root = pathlib.Path(folder)
    place = Place(
      root,
      given.long,
      given.seed,
      root / 'cache',
      root / 'compiled',
      given.soak_minutes if given.long else 0.0,
    )
    found: list[outcomes.Outcome] = []
    with tiny.registered():
      for name in [given.only] if given.only else every.KINDS:
        found += every.KINDS[name](place)
        minutes = (time.monotonic() - began) / 60
        print(f'{name}: done after {minutes:.1f} minutes', file=sys.stderr)
        for line in outcomes.bad(found):
          print(line, file=sys.stderr)
  print(outcomes.table(found))
  return bool(outcomes.bad(found))


if __name__ == '__main__':
  sys.exit(main())
