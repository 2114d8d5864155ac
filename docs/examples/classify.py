"""Classifies images with a student in ONNX: onnxruntime and Pillow alone.

    python classify.py student.onnx photo.jpg more.png

For files of `python -m tlkd_jax.export --format onnx --with-preprocessing`.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str) -> np.ndarray:
  """An image file as uint8 [height, width, 3]: upright, over white, RGB."""
  image = ImageOps.exif_transpose(Image.open(path)).convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return np.asarray(Image.alpha_composite(white, image).convert('RGB'))


def main(model: str, *paths: str) -> None:
  """Prints the three most probable classes of each image."""
  session = onnxruntime.InferenceSession(
    model, providers=['CPUExecutionProvider']
  )
  for path in paths:
    probabilities, names = session.run(
      ['probabilities', 'names'], {'image': read(path)}
    )
    best = np.argsort(-probabilities)[:3]
    said = ', '.join(f'{names[k]} {probabilities[k]:.3f}' for k in best)
    print(f'{path}: {said}')


if __name__ == '__main__':
  main(*sys.argv[1:])
