"""`python -m tlkd_jax.report RUN [RUN ...] --out report/`."""

import argparse
import sys

from tlkd_jax.report import REPLICATES
from tlkd_jax.runtime import command_line


def main(argv: list[str] | None = None) -> int:
  """Writes the report; returns the exit code, 2 for a mistake of the user."""
  parser = argparse.ArgumentParser(
    prog=command_line.name(),
    description="One self-contained page from finished runs: a compare run's "
    "workdir, a study's folder, or single runs.",
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='folders of runs')
  parser.add_argument('--out', default='report', help='folder to write to')
  parser.add_argument(
    '--replicates',
    type=int,
    default=REPLICATES,
    help='bootstrap resamples',
  )
  args = parser.parse_args(argv)
  if args.replicates < 1:
    parser.error(f'--replicates is {args.replicates}; accepted: at least 1')
  # Here and not above: `--help` need not wait for what draws.
  from tlkd_jax.report import page

  try:
    index = page.write(args.runs, args.out, args.replicates)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{index} ({index.stat().st_size / 1e6:.1f} MB)')
  return 0


def run() -> None:
  """Entry point."""
  with command_line.reader_may_leave():
    sys.exit(main())


if __name__ == '__main__':
  run()
