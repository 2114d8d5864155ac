"""Data sets that several test files load."""

import pathlib

import pytest
from pictures import make_classes

from tlkd_jax.data import load_splits


@pytest.fixture(scope='session')
def data_cache(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def load(data_cache):
  """`load_splits` at 16 pixels with a cache folder of the test session."""

  def call(name, **options):
    options = {'image_size': 16, 'cache_dir': data_cache, **options}
    return load_splits(str(name), **options)

  return call


@pytest.fixture(scope='session')
def digits(load):
  """All digits at 16 pixels, which nobody changes."""
  return load('digits')


@pytest.fixture(scope='session')
def three_splits(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('three_splits')
  make_classes(root / 'train', {'cat': 12, 'dog': 9, 'owl': 20})
  make_classes(root / 'validation', {'cat': 3, 'dog': 3, 'owl': 3})
  make_classes(root / 'test', {'cat': 4, 'dog': 5, 'owl': 6})
  return root
