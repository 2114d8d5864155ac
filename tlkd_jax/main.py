"""Command line: `python -m tlkd_jax.main --config configs/kd.py`.

Exit codes are those of `command_line`.
"""

from absl import flags
from ml_collections.config_flags import config_flags

from tlkd_jax.runtime import allocator, command_line, flag_rules, interrupts
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
_SUITES = 'clean calibration corruptions ood qualitative all cost'.split()
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


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    fail(f'unexpected arguments: {" ".join(argv[1:])}')
  flag_rules.check(_MODE.value, _SUITE.value, _DISTRIBUTED.value)
  command_line.run_or_fail(_start_and_run)


def _start_and_run() -> None:
  if _MODE.value == 'train':
    interrupts.resumable()
  _start_jax()
  _run()


def _run() -> None:
  from tlkd_jax.runtime import sharding

  mesh = sharding.make_mesh()
  if _MODE.value == 'train':
    from tlkd_jax import arms, protocols
    from tlkd_jax.report import closing
    from tlkd_jax.settings import from_config, with_values

    with as_user_errors():
      settings = from_config(_CONFIG.value)
      if _COMPARE.value:
        settings = with_values(settings, {'arm': 'compare'})
      workdir = expanded(_WORKDIR.value or f'runs/{settings.arm}')
    summaries = arms.run(settings, workdir, mesh)
    if sharding.is_lead():
      print(closing.table(summaries, protocols.folders(settings, workdir)))
  elif _SUITE.value == 'cost':
    from tlkd_jax.export import serving

    if sharding.is_lead():
      print(serving.measure_runs(_CHECKPOINT.value))
  elif _MODE.value == 'evaluate':
    from tlkd_jax import evaluating

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
    from tlkd_jax import inference

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


def run() -> None:
  """Entry point: a mistake of the user is a message, not a trace."""
  command_line.run_command(main, _CONFIG)


if __name__ == '__main__':
  run()
