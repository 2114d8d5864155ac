"""What the commands of the package share: flags, log, messages, exit codes.

Exit codes: 0 done, or a run or study stopped by SIGTERM or SIGHUP with what it
has saved; 1 the run failed; 2 a mistake in the command, the configuration or a
file it names; 130 stopped at once by Ctrl-C, 143 and 129 another command by
SIGTERM or SIGHUP; 141 who reads the output has left.
"""

import contextlib
import gc
import io
import logging as stdlib_logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Generator
from typing import NoReturn

from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from tlkd_jax.runtime import interrupts, peers
from tlkd_jax.runtime.errors import (
  Interrupted,
  RunError,
  UserError,
  unknown_name,
)
from tlkd_jax.runtime.paths import expanded

# Loggers of what brings devices to JAX.
_STARTING_DEVICES = (
  'jax._src.xla_bridge',
  'jax._src.hardware_utils',
  'jax._src.distributed',
  'jax._src.clusters',
  'jax_plugins',
)

# Those of absl that list every flag of every library stay its own.
_HELP = frozenset({'-h', '-?', '-help', '--help', '--helpshort'})


def run_command(
  main: Callable[[list[str]], None], flag: flags.FlagHolder
) -> None:
  """The entry point of a command with absl's flags.

  Args:
    main: takes the arguments that are no flags.
    flag: one of the command's own; help shows those of the same module.
  """
  start_logging()
  _collect_seldom()
  if isinstance(sys.stdout, io.TextIOWrapper):
    # A name that it cannot hold is no error.
    sys.stdout.reconfigure(errors='backslashreplace')
  with reader_may_leave():
    if not _HELP.isdisjoint(sys.argv[1:]):
      module = flags.FLAGS.find_module_defining_flag(flag.name)
      print(f'usage: {name()} [flags]\n{flags.FLAGS.module_help(module)}')
      sys.exit()
    app.run(main, flags_parser=parse_flags)


def _collect_seldom() -> None:
  """Lets tracing go on with fewer searches for garbage.

  It makes many small objects that stay; by Python's default a quarter of its
  time goes into looking at them again.
  """
  gc.set_threshold(50_000, *gc.get_threshold()[1:])


@contextlib.contextmanager
def reader_may_leave() -> Generator[None]:
  """Ends the process quietly where who reads its output reads no more.

  As with `python -m tlkd_jax.models | head`; the exit code is a shell's for
  SIGPIPE.
  """
  try:
    try:
      yield
    finally:
      # What is kept back would be written when the interpreter ends.
      print(end='', flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def name() -> str:
  """The command in use: 'tlkd-jax-study' or 'python -m tlkd_jax.study'."""
  spec = sys.modules['__main__'].__spec__
  if spec is None:
    return pathlib.Path(sys.argv[0]).stem
  return f'python -m {spec.name.removesuffix(".__main__")}'


def run_or_fail(work: Callable[[], None]) -> None:
  """Calls `work`; what goes wrong becomes a message and an exit code."""
  try:
    work()
  except UserError as error:
    fail(str(error))
  except RunError as error:
    fail(str(error), code=1)
  except BrokenPipeError:
    raise
  except MemoryError as error:
    what = f': {error}' if str(error) else ''
    fail(
      f'there is not enough memory{what}; a smaller batch_size, image_size or '
      'data.memory_budget_mib may help',
      code=1,
    )
  except OSError as error:
    fail(f'{error}; resume with the same command when it is mended', code=1)
  except Interrupted as stop:
    logging.warning('%s', stop)
  except KeyboardInterrupt:
    fail(interrupts.AT_ONCE, interrupts.EXIT_CODE)
  except Exception as error:
    peers.leave_if_lost(error)
    raise


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
  folder = os.path.expanduser(folder)
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def start_logging() -> None:
  """Our messages with the time; of the libraries, errors only.

  And what JAX warns of in starting devices, such as a GPU that it cannot use.
  """
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.addFilter(_is_shown)
  handler.setFormatter(
    stdlib_logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S')
  )


def _is_shown(record: stdlib_logging.LogRecord) -> bool:
  if record.name.startswith(_STARTING_DEVICES):
    return record.levelno >= stdlib_logging.WARNING
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  if record.pathname.startswith(package):
    return True
  # What Orbax cannot do, `checkpoints` says in one line.
  orbax = '/orbax/' in record.pathname
  return record.levelno >= stdlib_logging.ERROR and not orbax


def parse_flags(argv: list[str]) -> list[str]:
  """Parses all flags; a mistake is one message and exit code 2."""
  try:
    argv = _with_config_found(argv)
    _check_keys(argv)
    return flags.FLAGS(argv)
  except (flags.Error, FileNotFoundError, TypeError, ValueError) as error:
    fail(_original(error))


def find_config(value: str) -> str:
  """Where the FILE of `--config FILE[:ARG]` lies.

  Args:
    value: a file; or the name of one that the package brings, with or without
      `configs/` and `.py`, where no such file lies here; or a run, its folder
      or its config.json, without ARG.

  Returns:
    The value with the file's path.

  Raises:
    FileNotFoundError: none of these is there.
    ValueError: a run with ARG.
  """
  run = expanded(value)
  if run.suffix == '.json' and run.is_file():
    return _recorded(run)
  file, colon, arg = value.partition(':')
  path = expanded(file)
  if path.suffix == '.json' and path.is_file():
    raise ValueError(
      f'--config {value}: a recorded configuration takes no argument; set '
      'single keys with --config.KEY=VALUE'
    )
  if path.is_file():
    return f'{path}{colon}{arg}'
  own = {path.stem: path for path in _packaged_configs().glob('[!_]*.py')}
  *folders, stem = pathlib.PurePath(file.removesuffix('.py')).parts or ['']
  if stem in own and folders in ([], ['configs']):
    return f'{own[stem]}{colon}{arg}'
  if (run / 'config.json').is_file():
    return _recorded(run / 'config.json')
  raise FileNotFoundError(
    f'--config {file}: no such file here, no run with a config.json, nor a '
    f'configuration of the package: {", ".join(sorted(own))}'
  )


def _recorded(path: pathlib.Path) -> str:
  reader = pathlib.Path(__file__).resolve().parents[1] / 'settings/recorded.py'
  return f'{reader}:{path}'


def _packaged_configs() -> pathlib.Path:
  """In the package where it was installed, beside it in a checkout."""
  package = pathlib.Path(__file__).resolve().parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def _with_config_found(argv: list[str]) -> list[str]:
  """The arguments with the paths of `--config`."""
  found = list(argv)
  for i, argument in enumerate(argv):
    flag, equals, value = argument.partition('=')
    if flag not in ('-config', '--config'):
      continue
    if equals:
      found[i] = f'{flag}={find_config(value)}'
    elif i + 1 < len(argv):
      found[i + 1] = find_config(argv[i + 1])
  return found


def _check_keys(argv: list[str]) -> None:
  """Checks --config and every --config.KEY.

  Raises:
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
