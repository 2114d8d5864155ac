"""Command line: `python -m tlkd_jax.main --config configs/kd.py`.

Exit codes: 0 done, or stopped by SIGTERM with the state saved; 1 the run
failed; 2 a mistake in the command, the configuration or a file it names; 130
stopped at once by Ctrl-C.
"""

import logging as stdlib_logging
import os
import pathlib
import re
import signal
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from tlkd_jax import allocator
from tlkd_jax.errors import Interrupted, RunError, UserError, unknown_name

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/{compare,kd,tl,teacher}.py[:dataset=NAME,smoke]'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/ARM.'
)
_COMPARE = flags.DEFINE_bool(
  'compare', False, 'Run teacher, TL and TL+KD and print them side by side.'
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate', 'predict'], 'What to do.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'For evaluate and predict: the workdir of a run.'
)
_INPUT = flags.DEFINE_string(
  'input', None, 'For predict: an image file or a folder of images.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'For predict: a .csv or .jsonl file; default CSV on stdout.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0; needed off TPU and Slurm.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Several processes (jax.distributed).'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With coordinator')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With coordinator.')
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder of compiled programs; default in the user cache, "off" for none.',
)


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    _fail(f'unexpected arguments: {" ".join(argv[1:])}')
  _check_flags()
  # Until the loop of a run takes the signal over, there is nothing to save.
  signal.signal(signal.SIGTERM, _terminate)
  try:
    _start_jax()
    _run()
  except UserError as error:
    _fail(str(error))
  except RunError as error:
    _fail(str(error), code=1)
  except OSError as error:
    _fail(f'{error}; resume with the same command when it is mended', code=1)
  except Interrupted as stop:
    logging.warning('%s', stop)
  except KeyboardInterrupt:
    _fail('stopped at once; resume with the same command', code=130)


def _run() -> None:
  from tlkd_jax import arms, inference, sharding

  mesh = sharding.make_mesh()
  if _MODE.value == 'train':
    config = _CONFIG.value
    if _COMPARE.value:
      config = config.copy_and_resolve_references()
      config.arm = 'compare'
    workdir = pathlib.Path(_WORKDIR.value or f'runs/{config.arm}')
    summaries = arms.run(config, workdir, mesh)
    if sharding.is_lead():
      print(arms.table(summaries))
  elif _MODE.value == 'evaluate':
    table = inference.evaluate_run(_CHECKPOINT.value, mesh)
    if sharding.is_lead():
      print(table)
  else:
    inference.predict_images(
      _CHECKPOINT.value, _INPUT.value, _OUTPUT.value, mesh
    )


def _start_jax() -> None:
  """Devices, processes and the compilation cache, before anything compiles."""
  allocator.keep_freed_memory()
  import jax

  if _DISTRIBUTED.value:
    try:
      jax.distributed.initialize(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
      )
    except (ValueError, RuntimeError) as error:
      raise UserError(f'--distributed: {error}') from error
  if _CACHE.value != 'off':
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = _CACHE.value or os.path.join(home, 'tlkd_jax', 'compiled')
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _check_flags() -> None:
  needed = {
    'train': ('config',),
    'evaluate': ('checkpoint',),
    'predict': ('checkpoint', 'input'),
  }
  for name in needed[_MODE.value]:
    if flags.FLAGS[name].value is None:
      example = ', e.g. --config configs/compare.py' * (name == 'config')
      _fail(f'--mode={_MODE.value} needs --{name}{example}')


def _terminate(number, frame) -> None:
  raise Interrupted('stopped by SIGTERM; resume with the same command')


def _fail(message: str, code: int = 2) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(code)


def _start_logging() -> None:
  """Our messages with the time; of the libraries, errors only."""
  logging.set_verbosity(logging.INFO)
  package = os.path.dirname(os.path.abspath(__file__))
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: (
      record.pathname.startswith(package)
      # What Orbax cannot do, `checkpoints` says in one line.
      or record.levelno >= stdlib_logging.ERROR
      and '/orbax/' not in record.pathname
    )
  )
  handler.setFormatter(
    stdlib_logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S')
  )


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses all flags; a mistake is one message and exit code 2."""
  try:
    _check_keys(argv)
    return flags.FLAGS(argv)
  except (flags.Error, FileNotFoundError, TypeError, ValueError) as error:
    _fail(_original(error))


def _check_keys(argv: list[str]) -> None:
  """Checks --config and every --config.KEY.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a key that the configuration lacks.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, '', flag_values=values)
  values(argv, known_only=True)
  found = [re.match(r'--?(?:no)?config\.([^=]+)', a) for a in argv]
  given = [match.group(1) for match in found if match]
  if values.config is None:
    if given:
      raise ValueError(f'--config FILE must come with --config.{given[0]}')
    return
  file = values.config.partition(':')[0]
  if not os.path.isfile(file):
    raise FileNotFoundError(f'--config {file}: no such file')
  config = config_flags.ConfigFileFlagParser('config').parse(values.config)
  known = _keys(config.to_dict())
  for key in given:
    if key not in known:
      raise unknown_name('configuration key', key, known)


def _keys(section: dict, prefix: str = '') -> list[str]:
  keys = []
  for name, value in section.items():
    keys.append(prefix + name)
    if isinstance(value, dict):
      keys += _keys(value, f'{prefix}{name}.')
  return keys


def _original(error: BaseException) -> str:
  """The message without the traceback that ml_collections wraps it in."""
  while 'Error whilst parsing config file' in str(error) and error.__context__:
    error = error.__context__
  return str(error)


def run() -> None:
  """Entry point: a mistake of the user is a message, not a trace."""
  _start_logging()
  app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  run()
