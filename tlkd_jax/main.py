"""Command line: `python -m tlkd_jax.main --config configs/kd.py`.

Exit codes are those of `command_line`.
"""

from absl import flags
from ml_collections.config_flags import config_flags

from tlkd_jax.runtime import allocator, command_line, interrupts
from tlkd_jax.runtime.command_line import fail
from tlkd_jax.runtime.errors import UserError, as_user_errors
from tlkd_jax.runtime.paths import expanded

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
  'checkpoint',
  None,
  'For evaluate and predict: the workdir of a run; evaluate takes a folder of '
  'runs too.',
)
# Named here, not imported: flags are parsed before anything heavy is loaded.
_SUITES = ('clean', 'calibration', 'corruptions', 'ood', 'qualitative', 'all')
_SUITE = flags.DEFINE_enum(
  'suite', 'clean', _SUITES, 'For evaluate: what to fill in RUN/evaluation.'
)
_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'For evaluate: other labelled data than the own of the run, such as '
  'folder:PATH; classes are matched by name. Fills RUN/evaluation/on_NAME.',
)
_OOD_DATASET = flags.DEFINE_string(
  'ood_dataset',
  None,
  'For the suite ood: the other data set; default digits, and for runs on '
  'digits crops of two photographs.',
)
_MAX_IMAGES = flags.DEFINE_integer(
  'max_images',
  0,
  'For corruptions, ood and qualitative: at most so many test images, the '
  'same ones for every run; 0 is all.',
  lower_bound=0,
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


# Mode -> the flags that it reads; all others are for every mode.
_READ = {
  'train': {'config', 'workdir', 'compare'},
  'evaluate': {'checkpoint', 'suite', 'dataset', 'ood_dataset', 'max_images'},
  'predict': {'checkpoint', 'input', 'output'},
}
# What to do instead, where that is not plain.
_INSTEAD = {
  ('train', 'checkpoint'): 'a run is resumed by its --workdir, and started '
  'from another one with --config.student.checkpoint',
  ('train', 'dataset'): 'data to train on are --config FILE:dataset=NAME',
  ('evaluate', 'config'): "what is evaluated is --checkpoint's own "
  'configuration, and --dataset names other data',
  ('evaluate', 'workdir'): 'the run is named by --checkpoint',
  ('evaluate', 'input'): 'images with labels are named by --dataset, others '
  'are for --mode=predict',
  ('predict', 'config'): "what predicts is --checkpoint's own configuration",
  ('predict', 'workdir'): 'the run is named by --checkpoint',
  ('predict', 'dataset'): 'images are named by --input',
}
# Suites of evaluate that read a flag.
_SUITES_READING = {
  'ood_dataset': ('ood', 'all'),
  'max_images': ('corruptions', 'ood', 'qualitative', 'all'),
  'dataset': ('clean',),
}


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    fail(f'unexpected arguments: {" ".join(argv[1:])}')
  _check_flags()
  command_line.run_or_fail(_start_and_run)


def _start_and_run() -> None:
  if _MODE.value == 'train':
    interrupts.resumable()
  _start_jax()
  _run()


def _run() -> None:
  from tlkd_jax import arms, evaluating, inference, protocols
  from tlkd_jax.runtime import sharding
  from tlkd_jax.settings import from_config, with_values

  mesh = sharding.make_mesh()
  if _MODE.value == 'train':
    with as_user_errors():
      settings = from_config(_CONFIG.value)
      if _COMPARE.value:
        settings = with_values(settings, {'arm': 'compare'})
      workdir = expanded(_WORKDIR.value or f'runs/{settings.arm}')
    summaries = arms.run(settings, workdir, mesh)
    if sharding.is_lead():
      print(arms.table(summaries, protocols.folders(settings, workdir)))
  elif _MODE.value == 'evaluate':
    table = evaluating.evaluate_run(
      _CHECKPOINT.value,
      mesh,
      suite=_SUITE.value,
      ood_dataset=_OOD_DATASET.value,
      max_images=_MAX_IMAGES.value,
      dataset=_DATASET.value,
    )
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
  command_line.use_compilation_cache(_CACHE.value)


def _check_flags() -> None:
  mode = _MODE.value
  for name in sorted(set().union(*_READ.values()) - _READ[mode]):
    if flags.FLAGS[name].present:
      others = [f'--mode={m}' for m in _READ if name in _READ[m]]
      instead = _INSTEAD.get((mode, name), f'it is for {" and ".join(others)}')
      fail(f'--{name} is not read with --mode={mode}: {instead}')
  for name, suites in _SUITES_READING.items():
    if flags.FLAGS[name].present and _SUITE.value not in suites:
      fail(
        f'--{name} is not read by --suite={_SUITE.value}; it is for '
        f'--suite={" and --suite=".join(suites)}'
      )
  for name in ('coordinator', 'num_processes', 'process_id'):
    if flags.FLAGS[name].present and not _DISTRIBUTED.value:
      fail(f'--{name} is not read without --distributed')
  needed = {
    'train': ('config',),
    'evaluate': ('checkpoint',),
    'predict': ('checkpoint', 'input'),
  }
  for name in needed[mode]:
    if flags.FLAGS[name].value is None:
      example = ', e.g. --config configs/compare.py' * (name == 'config')
      fail(f'--mode={mode} needs --{name}{example}')


def run() -> None:
  """Entry point: a mistake of the user is a message, not a trace."""
  command_line.run_command(main, _CONFIG)


if __name__ == '__main__':
  run()
