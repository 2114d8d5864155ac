"""Strict defaults for every test: four CPU devices, no silent broadcasting."""

import os
import pathlib

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
