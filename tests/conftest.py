"""Strict defaults for every test: four CPU devices, no silent broadcasting."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder of shared data and golden fixtures; skips where absent."""
  path = _ROOT.parent / 'shared'
  if not (path / 'fixtures').is_dir():
    reason = f'shared fixtures are not at {os.path.relpath(path, _ROOT)}'
    pytest.skip(reason)
  return path


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory) -> pathlib.Path:
  """Prepared copies of the data sets that the tests train on."""
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def tiny_models():
  """tests/tiny.py's models are in MODELS."""
  from tests import tiny

  with tiny.registered():
    yield


@pytest.fixture(scope='session')
def compare_run(cache_dir, tmp_path_factory) -> pathlib.Path:
  """Workdir of a finished run of teacher, TL and TL+KD."""
  from tests import tiny
  from tlkd_jax import arms, sharding

  workdir = tmp_path_factory.mktemp('runs') / 'compare'
  with tiny.registered():
    config = tiny.make_config('compare', cache_dir)
    arms.run(config, workdir, sharding.make_mesh())
  return workdir


@pytest.fixture(scope='session')
def start_main(cache_dir, tmp_path_factory):
  """Starts the command line, tiny models included, in a process of its own."""
  compiled = tmp_path_factory.mktemp('compiled')

  def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
    flags = f'--xla_force_host_platform_device_count={devices}'
    return subprocess.Popen(
      [sys.executable, '-m', 'tests.tiny', f'--compilation_cache={compiled}']
      + list(arguments),
      cwd=_ROOT,
      env=os.environ | {'XLA_FLAGS': flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start
