"""Lists the model variants: `python -m tlkd_jax.models [PATTERN]`.

PATTERN is a part of a name, with `*` for anything, e.g. `timm/*resnet`. Prints
parameters, multiply-adds per image and stages at the native size. Each model
is traced, not run: a fraction of a second for each, row by row. Without PATTERN
the licences of weights follow.
"""

import argparse
import fnmatch
from collections.abc import Iterator, Sequence

from tlkd_jax.models import MODELS
from tlkd_jax.models.describe import describe
from tlkd_jax.models.weights import licences
from tlkd_jax.runtime import command_line

_COLUMNS = '{:44}  {:34}  {:>10}  {:>9}  {:>4}  {}'


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table; `argv` None means the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m tlkd_jax.models',
    description='Lists the model variants with their costs.',
  )
  parser.add_argument(
    'pattern', nargs='?', default='', help='part of a name; * is anything'
  )
  pattern = parser.parse_args(argv).pattern
  groups = list(matching(pattern))
  if not groups:
    parser.error(f'no model has {pattern!r} in its name')
  header = ('model', 'also', 'parameters', 'MACs', 'size', 'stages, h x w x c')
  print(_COLUMNS.format(*header))
  for name, *others in groups:
    print(_row(name, others), flush=True)
  if not pattern:
    print('\nLicences of weights, by who publishes them:')
    for line in licences.lines():
      print(f'  {line}')


def matching(pattern: str) -> Iterator[list[str]]:
  """Names that mean one variant, for each variant the pattern matches.

  The first is the shortest one, e.g. ['resnet18', 'torchvision/resnet18'].
  """
  groups: dict[int, list[str]] = {}
  for name in sorted(MODELS, key=lambda name: (len(name), name)):
    groups.setdefault(id(MODELS[name]), []).append(name)
  for names in sorted(groups.values()):
    if any(fnmatch.fnmatchcase(name, f'*{pattern}*') for name in names):
      yield names


def _row(name: str, others: list[str]) -> str:
  figures = describe(name)
  stages = ('x'.join(map(str, s)) for s in figures.stages.values())
  return _COLUMNS.format(
    name,
    ', '.join(others),
    f'{figures.parameters / 1e6:.2f} M',
    f'{figures.macs / 1e9:.3f} G',
    figures.native_size,
    '  '.join(stages),
  )


if __name__ == '__main__':
  with command_line.reader_may_leave():
    main()
