"""What the commands of the package share: flags, log, messages, exit codes.

Exit codes: 0 done, or stopped by SIGTERM with the state saved; 1 the run
failed; 2 a mistake in the command, the configuration or a file it names; 130
stopped at once by Ctrl-C.
"""

import logging as stdlib_logging
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging
from ml_collections.config_flags import config_flags

from tlkd_jax.runtime.errors import (
  Interrupted,
  RunError,
  UserError,
  unknown_name,
)


def run_or_fail(work: Callable[[], None]) -> None:
  """Calls `work`; what goes wrong becomes a message and an exit code."""
  # Until the loop of a run takes the signal over, there is nothing to save.
  signal.signal(signal.SIGTERM, _terminate)
  try:
    work()
  except UserError as error:
    fail(str(error))
  except RunError as error:
    fail(str(error), code=1)
  except OSError as error:
    fail(f'{error}; resume with the same command when it is mended', code=1)
  except Interrupted as stop:
    logging.warning('%s', stop)
  except KeyboardInterrupt:
    fail('stopped at once; resume with the same command', code=130)


def fail(message: str, code: int = 2) -> NoReturn:
  """Prints the message and exits."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(code)


def use_compilation_cache(folder: str | None) -> None:
  """Keeps compiled programs in a folder; None is the default, 'off' none."""
  import jax

  if folder == 'off':
    return
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = folder or os.path.join(home, 'tlkd_jax', 'compiled')
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def start_logging() -> None:
  """Our messages with the time; of the libraries, errors only."""
  logging.set_verbosity(logging.INFO)
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


def parse_flags(argv: list[str]) -> list[str]:
  """Parses all flags; a mistake is one message and exit code 2."""
  try:
    _check_keys(argv)
    return flags.FLAGS(argv)
  except (flags.Error, FileNotFoundError, TypeError, ValueError) as error:
    fail(_original(error))


def _terminate(number, frame) -> None:
  raise Interrupted('stopped by SIGTERM; resume with the same command')


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
