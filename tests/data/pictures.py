"""Small folders of generated images."""

import io
import pathlib
import zlib

import numpy as np
from PIL import Image


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
