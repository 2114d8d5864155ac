"""Small folders of generated images."""

import io
import pathlib
import zlib

import numpy as np
import pytest
from PIL import Image

from tlkd_jax.data import load_splits


def picture(name: str, size: tuple[int, int] = (20, 14)) -> Image.Image:
  """A smooth RGB picture (width, height) that its name determines."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
  return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
  data = io.BytesIO()
  image.save(data, file_format, **options)
  return data.getvalue()


def make_classes(root: pathlib.Path, counts: dict[str, int]) -> None:
  """Writes `counts[class]` PNGs into `root/class/`."""
  for class_name, count in counts.items():
    folder = root / class_name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      name = f'{root.name}-{class_name}-{i}'
      (folder / f'{i:03d}.png').write_bytes(encode(picture(name), 'PNG'))


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
def three_splits(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('three_splits')
  make_classes(root / 'train', {'cat': 12, 'dog': 9, 'owl': 20})
  make_classes(root / 'validation', {'cat': 3, 'dog': 3, 'owl': 3})
  make_classes(root / 'test', {'cat': 4, 'dog': 5, 'owl': 6})
  return root
