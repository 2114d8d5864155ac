"""Lists the model variants: `python -m tlkd_jax.models [PATTERN]`.

PATTERN is a part of a name, with `*` for anything, e.g. `timm/*resnet`. Prints
parameters, multiply-adds per image and stages at the native size. Each model
is traced, not run: a fraction of a second for each, row by row. Without PATTERN
the licences of weights follow.

    python -m tlkd_jax.models [PATTERN] --table [--markdown] [--measure]

has the licence of the published weights in place of the stages. `--measure`
adds what a batch of 1 and of 32 takes on this machine; it compiles each model
twice and runs it, so give a PATTERN.
"""

import argparse
import fnmatch
import os
from collections.abc import Iterator, Sequence

import jax

from tlkd_jax.models import MODELS
from tlkd_jax.models.describe import Description, describe
from tlkd_jax.models.serving import BATCHES, milliseconds
from tlkd_jax.models.weights import licences
from tlkd_jax.runtime import command_line

_COLUMNS = '{:44}  {:34}  {:>10}  {:>9}  {:>4}  {}'
_TABLE = '{:44}  {:>10}  {:>9}  {:>4}  {}'
_MEASURED = '{:44}  {:>10}  {:>9}  {:>4}  {:>9}  {:>9}  {}'


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table; `argv` None means the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m tlkd_jax.models',
    description='Lists the model variants with their costs.',
  )
  parser.add_argument(
    'pattern', nargs='?', default='', help='part of a name; * is anything'
  )
  parser.add_argument(
    '--table', action='store_true', help='with the licences of the weights'
  )
  parser.add_argument(
    '--markdown', action='store_true', help='the table as Markdown'
  )
  parser.add_argument(
    '--measure',
    action='store_true',
    help='the table with milliseconds a batch of 1 and of 32 on this machine',
  )
  options = parser.parse_args(argv)
  groups = list(matching(options.pattern))
  if not groups:
    parser.error(f'no model has {options.pattern!r} in its name')
  if options.table or options.markdown or options.measure:
    _print_table([names[0] for names in groups], options)
    return
  header = ('model', 'also', 'parameters', 'MACs', 'size', 'stages, h x w x c')
  print(_COLUMNS.format(*header))
  for name, *others in groups:
    print(_row(name, others), flush=True)
  if not options.pattern:
    print('\nLicences of weights, by who publishes them:')
    for line in licences.lines():
      print(f'  {line}')


def _print_table(names: Sequence[str], options: argparse.Namespace) -> None:
  batches = BATCHES if options.measure else ()
  header = ['model', 'parameters', 'MACs', 'size']
  header += [f'ms of {batch}' for batch in batches]
  header += ['licence of its weights']
  form = _MEASURED if options.measure else _TABLE
  if options.markdown:
    form = '| ' + ' | '.join(['{}'] * len(header)) + ' |'
  print(form.format(*header))
  if options.markdown:
    rules = ['---', *['---:'] * (len(header) - 2), '---']
    print(form.format(*rules))
  for name in names:
    figures = describe(name)
    taken = [f'{milliseconds(name, batch):.1f}' for batch in batches]
    row = [name, *_figures(figures), *taken, figures.licence or 'not known']
    print(form.format(*row), flush=True)
  if options.measure:
    print(
      f'\nMilliseconds a batch of {" and of ".join(map(str, batches))} images, '
      f'float32, medians; {jax.devices()[0].device_kind}, {os.cpu_count()} '
      'cores.'
    )


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
    *_figures(figures),
    '  '.join(stages),
  )


def _figures(figures: Description) -> tuple[str, str, int]:
  """Parameters, multiply-adds and size."""
  return (
    f'{figures.parameters / 1e6:.2f} M',
    f'{figures.macs / 1e9:.3f} G',
    figures.native_size,
  )


if __name__ == '__main__':
  with command_line.reader_may_leave():
    main()
