"""Command line: `python -m tlkd_jax.main --config configs/kd.py`.

Exit codes: 0 done, or stopped by SIGTERM with the state saved; 1 the run
failed; 2 a mistake in the command, the configuration or a file it names.
"""

import logging as stdlib_logging
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

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
  _start_jax()
  from tlkd_jax import arms, inference, sharding
  from tlkd_jax.errors import RunError, UserError
  from tlkd_jax.train import Interrupted

  try:
    mesh = sharding.make_mesh()
    if _MODE.value == 'train':
      config = _config(arms.ARMS)
      workdir = pathlib.Path(_WORKDIR.value or f'runs/{config.arm}')
      summaries = arms.run(config, workdir, mesh)
      if sharding.is_lead():
        print(arms.table(summaries))
    elif _MODE.value == 'evaluate':
      print(inference.evaluate_run(_required(_CHECKPOINT, 'checkpoint'), mesh))
    else:
      inference.predict_images(
        _required(_CHECKPOINT, 'checkpoint'),
        _required(_INPUT, 'input'),
        _OUTPUT.value,
        mesh,
      )
  except UserError as error:
    _fail(str(error))
  except RunError as error:
    _fail(str(error), code=1)
  except Interrupted as stop:
    logging.warning('%s', stop)


def _start_jax() -> None:
  """Devices, processes and the compilation cache, before anything compiles."""
  import jax

  if _DISTRIBUTED.value:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  if _CACHE.value != 'off':
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = _CACHE.value or os.path.join(home, 'tlkd_jax', 'compiled')
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _config(arms: tuple[str, ...]):
  config = _CONFIG.value
  if config is None:
    _fail('--config is needed, e.g. --config configs/compare.py')
  if _COMPARE.value:
    config = config.copy_and_resolve_references()
    config.arm = 'compare'
  return config


def _required(flag, name: str) -> str:
  if not flag.value:
    _fail(f'--mode={_MODE.value} needs --{name}')
  return flag.value


def _fail(message: str, code: int = 2) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(code)


def _start_logging() -> None:
  """Our messages with the time; of the libraries, warnings and worse."""
  logging.set_verbosity(logging.INFO)
  package = os.path.dirname(os.path.abspath(__file__))
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: (
      record.levelno >= stdlib_logging.WARNING
      or record.pathname.startswith(package)
    )
  )
  handler.setFormatter(
    stdlib_logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S')
  )


def run() -> None:
  """Entry point: a bad flag or configuration key is a message, not a trace."""
  _start_logging()
  try:
    app.run(main)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    _fail(str(error))


if __name__ == '__main__':
  run()
