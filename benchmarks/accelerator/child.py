"""A part of the command, in a process of its own.

  python -m benchmarks.accelerator.child PART SECONDS RECORD [small]

Prints a JSON line for each row; see parts.py.
"""

import json
import pathlib
import sys
import time

from benchmarks.accelerator import parts, record


def main() -> None:
  """Runs the part for the rows that the record lacks."""
  name, seconds, path, *small = sys.argv[1:]
  stored = pathlib.Path(path)
  found = record.load(stored) if stored.is_file() else {'parts': {}}
  given = parts.Given(
    parts.SMALL if small else parts.LARGE,
    time.monotonic() + float(seconds),
    {r['key']: r for r in record.rows(found, name) if 'broken' not in r},
  )
  for row in parts.run(name, given):
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main()
