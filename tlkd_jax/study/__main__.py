"""Command line: `python -m tlkd_jax.study --config configs/study.py`."""

import os
import pathlib
import signal
import sys
import threading
import time

from absl import flags
from ml_collections.config_flags import config_flags

from tlkd_jax.runtime import allocator, command_line, interrupts
from tlkd_jax.runtime.command_line import fail
from tlkd_jax.runtime.errors import RunError, as_user_errors
from tlkd_jax.runtime.paths import expanded

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/study.py[:dataset=NAME,arms=all|grid,smoke]'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/study', 'Folder of the study; the same command resumes it.'
)
_JOBS = flags.DEFINE_integer(
  'jobs', 1, 'Processes that run cells side by side on this machine.', 1
)
_SHARD = flags.DEFINE_string(
  'shard', '1/1', 'I/N: part I of N, when N machines share the folder.'
)
_ONLY_REPORT = flags.DEFINE_bool(
  'only_report', False, 'Run nothing: results and report of what is finished.'
)
_UNTIL = flags.DEFINE_enum(
  'until', None, ['sure'], 'sure: seeds are added until the answer is.'
)
_BUDGET = flags.DEFINE_float(
  'budget_minutes', None, 'With --until: no seed begins that ends after it.', 0
)
_MAX_SEEDS = flags.DEFINE_integer(
  'max_seeds', None, 'With --until: fewer seeds than study.max_seeds.'
)
_NOISE = flags.DEFINE_bool(
  'noise', False, 'One cell a place again, on one core and on two: STUDY/noise.'
)
_NOISE_CORES = flags.DEFINE_integer('noise_cores', None, 'Given by --noise.')
_STUDENTS = flags.DEFINE_string(
  'students', None, 'a,b,c: every arm with each of these, under one teacher.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  None,
  'Folder of compiled programs; default in the user cache, "off" for none.',
)
_WORKER = flags.DEFINE_string('worker', None, 'I/N, given by --jobs.')
_PARENT = flags.DEFINE_integer('parent', None, 'Given by --jobs.')
_DEADLINE = flags.DEFINE_float('deadline', None, 'Given by --jobs.')
# Between two looks whether the parent is there.
_LOOK_SECONDS = 1.0


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    fail(f'unexpected arguments: {" ".join(argv[1:])}')
  if _CONFIG.value is None:
    fail('--config is needed, e.g. --config configs/study.py')
  if _ONLY_REPORT.value and flags.FLAGS['jobs'].present:
    fail('--jobs is not read with --only_report, which runs nothing')
  for name in ('budget_minutes', 'max_seeds'):
    if _UNTIL.value is None and flags.FLAGS[name].present:
      fail(f'--{name} is read with --until=sure alone')
  if _UNTIL.value and _ONLY_REPORT.value:
    fail('--until is not read with --only_report, which runs nothing')
  if _NOISE.value:
    for name in ('only_report', 'until', 'jobs', 'shard'):
      if flags.FLAGS[name].present:
        fail(f'--{name} is not read with --noise, which runs nothing else')
  if _UNTIL.value and _SHARD.value != '1/1':
    fail(
      '--until=sure adds a seed when every cell is finished, and machines that '
      'share a folder would wait for each other; accepted: --jobs, or --shard '
      'with --config.study.seeds=N'
    )
  command_line.run_or_fail(_study)


def _study() -> None:
  interrupts.resumable()
  if _PARENT.value is not None:
    _end_with_parent(_PARENT.value)
  allocator.keep_freed_memory()
  if _NOISE.value:
    _noise()
    return
  if not _ONLY_REPORT.value:
    _keep_to_cores()
  if not _WORKER.value and _JOBS.value > 1:
    import jax

    # This process only looks on; the devices belong to the workers.
    jax.config.update('jax_platforms', 'cpu')
  command_line.use_compilation_cache(_CACHE.value)
  from tlkd_jax.study import conduct

  with as_user_errors():
    root = expanded(_WORKDIR.value)
    part = _parse_shard(_SHARD.value)
    config = _config()
    end = _end(config)
    conduct.known(config, root, end)
  looks_on = bool(_WORKER.value) or _ONLY_REPORT.value
  with conduct.alone(root, part, wanted=not looks_on):
    with as_user_errors():
      if looks_on:
        root.mkdir(parents=True, exist_ok=True)
      else:
        conduct.prepare(config, root, end)
    if not _ONLY_REPORT.value:
      _run(config, root, part, end)
      if not _WORKER.value:
        conduct.time_predictions(config, root, end)
  if _WORKER.value:
    return
  rows, answer = conduct.write(config, root)
  if rows:
    print(answer)
    print(f'The report: {root / "index.html"}')
  conduct.check_complete(config, root, part, end, ran=not _ONLY_REPORT.value)


def _end_with_parent(parent: int) -> None:
  """Asks this process to stop when the one that started it is gone.

  Its id is told, not asked for: it may be gone before the first line here.
  """

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()


def _noise() -> None:
  """Runs cells again in a process for each number of cores, then the pages."""
  from tlkd_jax.runtime import devices
  from tlkd_jax.study import workers

  study = _CONFIG.value.get('study')
  cores = _NOISE_CORES.value
  if cores and not devices.has_card():
    with as_user_errors():
      workers.keep_to_share(0, 1, cores)
  command_line.use_compilation_cache(_CACHE.value)
  if not cores:
    import jax

    # This process only looks on; the devices belong to the others.
    jax.config.update('jax_platforms', 'cpu')
  from tlkd_jax.study import conduct

  root = expanded(_WORKDIR.value)
  with as_user_errors():
    config = _config()
    if cores:
      conduct.run_noise(config, root)
      return
    conduct.check_noise(config, root)
    counts = study.noise_cores[:1] if devices.has_card() else study.noise_cores
    for count in counts:
      workers.check_cores(1, count)
  for count in counts:
    told = [*_same_command(), f'--noise_cores={count}']
    codes = workers.wait([workers.start(told)], lambda: None)
    if any(codes):
      raise RunError(f'the runs on {count} cores ended with codes {codes}')
  conduct.write(config, root)
  print(conduct.noise_in_words(config, root))
  print(f'The report: {root / "index.html"}')


def _config():
  """The settings of the study, with the arms of all its students."""
  from tlkd_jax import settings
  from tlkd_jax.study import students

  config = settings.from_config(_CONFIG.value)
  if _STUDENTS.value is None:
    return config
  return students.with_students(config, students.parse(_STUDENTS.value))


def _same_command() -> list[str]:
  """Of Python, to run this command again.

  As this process was started, under whatever module's name; for a console
  command from where it is installed, not from the folder it is called in.
  """
  spec = sys.modules['__main__'].__spec__
  how = ['-m', spec.name] if spec else ['-P', '-m', 'tlkd_jax.study']
  return [*how, *sys.argv[1:]]


def _keep_to_cores() -> None:
  """A cell has the cores that the study says, whatever runs beside it."""
  from tlkd_jax.study import workers

  study = _CONFIG.value.get('study')
  if study is None:
    return
  index, count = 0, _JOBS.value
  if _WORKER.value:
    index, count = map(int, _WORKER.value.split('/'))
  with as_user_errors():
    if _WORKER.value or count == 1:
      workers.keep_to_share(index, count, study.cores)
    else:
      workers.check_cores(count, study.cores)


def _end(config):
  """Of --until; None without it."""
  from tlkd_jax.study import until

  if _UNTIL.value is None:
    return None
  deadline = _DEADLINE.value
  if deadline is None and _BUDGET.value is not None:
    deadline = time.time() + 60 * _BUDGET.value
  return until.make(config, _MAX_SEEDS.value, deadline, _JOBS.value)


def _run(config, root: pathlib.Path, part: tuple[int, int], end) -> None:
  from tlkd_jax.study import conduct, workers

  if _WORKER.value or _JOBS.value == 1:
    worker = _WORKER.value is not None
    conduct.run_part(config, root, part, worker=worker, end=end)
    return
  shard = workers.shard_of(conduct.known(config, root, end), *part)
  workers.forget_failures(shard, root)
  report = conduct.make_report(config, root, part, _JOBS.value, end)
  told = _same_command()
  if end is not None and end.deadline is not None:
    told.append(f'--deadline={end.deadline}')
  started = workers.spawn(root, _JOBS.value, told)
  codes = workers.wait(started, report)
  report()
  if any(codes):
    raise RunError(
      f'workers ended with codes {codes}; see {root}/logs; the same command '
      'goes on'
    )


def _parse_shard(text: str) -> tuple[int, int]:
  index, slash, count = text.partition('/')
  if slash and index.isdigit() and count.isdigit():
    if 1 <= int(index) <= int(count):
      return int(index) - 1, int(count)
  raise ValueError(f'--shard {text!r}; it is I/N with 1 <= I <= N, e.g. 1/2')


def run() -> None:
  """Entry point: a mistake of the user is a message, not a trace."""
  command_line.run_command(main, _CONFIG)


if __name__ == '__main__':
  run()
