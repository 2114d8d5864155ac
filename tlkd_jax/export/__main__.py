"""The command that takes a fine-tuned student out of the package.

    python -m tlkd_jax.export --checkpoint RUN --format safetensors --out FILE

Formats: `safetensors`, `onnx`, `stablehlo`, and `hub`, a folder. FILE.json
beside it says what a user of the weights must know: architecture, classes,
preprocessing. Every file is read back and compared before the command succeeds.

    python -m tlkd_jax.export --checkpoint RUN --verify FILE

runs such a file on the run's test images. See docs/export.md.
"""

import argparse
import dataclasses
import sys

from absl import logging

from tlkd_jax.export import (
  DEFAULT_OPSET,
  FORMAT_NAMES,
  OPSETS,
  export_run,
  verify_export,
)
from tlkd_jax.export.options import DTYPES, METHODS, SCHEMES, Int8
from tlkd_jax.runtime import command_line
from tlkd_jax.runtime.errors import RunError, UserError


def main(argv: list[str] | None = None) -> None:
  """The command; exits with 2 on a user's mistake, 1 on a failed check."""
  parser = argparse.ArgumentParser(
    prog=command_line.name(), description="Exports a run's student."
  )
  parser.add_argument('--checkpoint', required=True, help='workdir of a run')
  parser.add_argument('--format', choices=FORMAT_NAMES)
  parser.add_argument('--out', help='the file, e.g. a.onnx; of hub a folder')
  parser.add_argument(
    '--fold-norm',
    action='store_true',
    help='fuse branches; in onnx and stablehlo, BatchNorm into convolutions',
  )
  parser.add_argument(
    '--opset',
    type=int,
    help=f'operators of an onnx file, {OPSETS[0]} to {OPSETS[-1]}; default '
    f'{DEFAULT_OPSET}',
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', *DTYPES),
    help='of the weights; float16 in a safetensors or onnx file, bfloat16 in '
    'a safetensors file',
  )
  parser.add_argument(
    '--with-preprocessing',
    action='store_true',
    help='an onnx file takes a uint8 image of any size and gives probabilities',
  )
  parser.add_argument(
    '--push', help='of hub: ORGANISATION/NAME to upload the folder to'
  )
  parser.add_argument(
    '--verify',
    metavar='FILE',
    help='instead of an export: run what one wrote against its run',
  )
  parser.add_argument(
    '--data',
    help='of --verify: other labelled data, e.g. folder:PATH; default: the '
    "run's own test images, with its stored predictions",
  )
  _add_quantization(parser)
  given = sys.argv[1:] if argv is None else argv
  flags = parser.parse_args([_hyphened(argument) for argument in given])
  _check_together(parser, flags)
  try:
    result = _verify(flags) if flags.verify else _export(flags)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except (OSError, RunError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)
  print(result)


def _add_quantization(parser: argparse.ArgumentParser) -> None:
  """Adds the options of --quantize; those that are not given are None."""
  group = parser.add_argument_group('int8, for an onnx file')
  group.add_argument('--quantize', choices=SCHEMES)
  group.add_argument(
    '--calibration-images',
    type=int,
    help='training images that set the ranges of activations; default '
    f'{Int8.calibration_images}',
  )
  group.add_argument(
    '--calibration-method',
    choices=METHODS,
    help=f'how they do; default {Int8.calibration_method}',
  )
  group.add_argument(
    '--symmetric',
    action='store_true',
    default=None,
    help='activations around 0, for devices that need it; slower on CPU',
  )
  group.add_argument(
    '--max-accuracy-drop',
    type=float,
    help='refused where validation accuracy falls by more; default '
    f'{Int8.max_accuracy_drop}, one point',
  )
  group.add_argument(
    '--max-float-layers',
    type=int,
    help='layers that may stay in float to hold it; default '
    f'{Int8.max_float_layers}',
  )


def _quantize(flags: argparse.Namespace) -> Int8 | None:
  """What the options of --quantize say.

  Raises:
    UserError: one of them is there without it.
  """
  given = {
    field.name: value
    for field in dataclasses.fields(Int8)
    if (value := vars(flags)[field.name]) is not None
  }
  if flags.quantize is not None:
    return SCHEMES[flags.quantize](**given)
  if given:
    names = [f'--{name.replace("_", "-")}' for name in given]
    raise UserError(
      f'{", ".join(names)}: accepted with --quantize {" or ".join(SCHEMES)}'
    )
  return None


def _hyphened(argument: str) -> str:
  """--fold_norm as --fold-norm: other commands' flags have underscores."""
  name, sign, value = argument.partition('=')
  if name.startswith('--'):
    name = name.replace('_', '-')
  return f'{name}{sign}{value}'


def _check_together(
  parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> None:
  """Ends with a message where flags do not go together."""
  if flags.verify is None:
    lacking = [f'--{k}' for k in ('format', 'out') if not vars(flags)[k]]
    if lacking:
      parser.error(
        f'{" and ".join(lacking)} must be given; or --verify FILE alone'
      )
    if flags.data is not None:
      parser.error('--data is of --verify FILE')
    return
  given = [
    f'--{name.replace("_", "-")}'
    for name, value in vars(flags).items()
    if name not in ('checkpoint', 'verify', 'data')
    and value not in (None, False)
  ]
  if given:
    parser.error(f'--verify exports nothing, and reads no {", ".join(given)}')


def _verify(flags: argparse.Namespace) -> str:
  found = verify_export(flags.verify, flags.checkpoint, flags.data)
  return '\n'.join(map(str, found))


def _export(flags: argparse.Namespace) -> str:
  return export_run(
    flags.checkpoint,
    flags.format,
    flags.out,
    fold_norm=flags.fold_norm,
    opset=flags.opset,
    quantize=_quantize(flags),
    dtype=flags.dtype,
    with_preprocessing=flags.with_preprocessing,
    push=flags.push,
  )


def run() -> None:
  """Entry point."""
  # Here, so that callers of `main` keep their own log level.
  logging.set_verbosity(logging.ERROR)
  with command_line.reader_may_leave():
    main()


if __name__ == '__main__':
  run()
