"""Strict defaults for every test: four CPU devices, no silent broadcasting."""

import fcntl
import gc
import os
import pathlib
import signal
import subprocess
import sys

# Compiling is most of the time of a test; here values count, not speed. The
# older emitters compile the small programs of the tests three times as fast.
# Before JAX is imported, which reads it.
os.environ['XLA_FLAGS'] = ' '.join(
  (
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
    os.environ.get('XLA_FLAGS', ''),
  )
)

import jax
import pytest

from tlkd_jax.report import plots
from tlkd_jax.runtime import allocator

# Under nohup, and in the background of a shell, they are ignored, in every
# process that a test starts too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
allocator.keep_freed_memory()
jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Of each operation, for profilers; a tenth of the time to lower a program.
jax.config.update('jax_traceback_in_locations_limit', 0)
# Tracing makes many small objects that stay: by default a tenth of the time
# goes into looking at them again.
gc.set_threshold(50_000, 20, 20)

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
  """What was imported stays: no collection of garbage looks at it again."""
  gc.collect()
  gc.freeze()


def pytest_sessionfinish() -> None:
  """Pytest collects garbage five times over at its end."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder of shared data and golden fixtures; skips where absent."""
  path = _ROOT.parent / 'shared'
  if not (path / 'fixtures').is_dir():
    reason = f'shared fixtures are not at {os.path.relpath(path, _ROOT)}'
    pytest.skip(reason)
  return path


@pytest.fixture(scope='session')
def session_dir(tmp_path_factory) -> pathlib.Path:
  """A folder that all workers of this session share."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session', autouse=True)
def shared_programs(session_dir) -> None:
  """What one test compiled the others read, in all workers of this session."""
  jax.config.update('jax_compilation_cache_dir', str(session_dir / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(scope='session', autouse=True)
def figures_are_not_laid_out() -> None:
  """What is drawn counts: to keep texts apart takes longer than to draw."""
  plots._STYLE['figure.constrained_layout.use'] = False


@pytest.fixture(scope='session')
def cache_dir(session_dir) -> pathlib.Path:
  """Prepared copies of the data sets that the tests train on."""
  return session_dir / 'data_cache'


@pytest.fixture
def tiny_models():
  """tests/tiny.py's models are in MODELS."""
  from tests import tiny

  with tiny.registered():
    yield


@pytest.fixture(scope='session')
def compare_run(cache_dir, session_dir) -> pathlib.Path:
  """Workdir of a finished run of teacher, TL and TL+KD."""
  from tests import tiny
  from tlkd_jax import arms
  from tlkd_jax.runtime import sharding

  workdir = session_dir / 'compare_run'
  with (session_dir / 'compare_run.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / 'kd' / 'summary.json').exists():
      with tiny.registered():
        config = tiny.make_config('compare', cache_dir)
        arms.run(config, workdir, sharding.make_mesh())
  return workdir


@pytest.fixture(scope='session')
def start_main(session_dir):
  """Starts the command line, tiny models included, in a process of its own."""
  compiled = session_dir / 'compiled'

  def start(
    *arguments: str, devices: int = 1, output: int = subprocess.PIPE
  ) -> subprocess.Popen:
    flags = (
      f'{os.environ["XLA_FLAGS"]} '
      f'--xla_force_host_platform_device_count={devices}'
    )
    return subprocess.Popen(
      [sys.executable, '-m', 'tests.tiny', f'--compilation_cache={compiled}']
      + list(arguments),
      cwd=_ROOT,
      env=os.environ | {'XLA_FLAGS': flags},
      stdout=output,
      stderr=output,
      text=True,
    )

  return start
