"""Images of a split that look like images of an earlier one.

Two images look alike where their averages over 16 x 16 fields, without their
means, correlate by more than 0.995 in RGB. That finds other sizes, formats and
compressions of a picture; not a crop, a rotation or one without its colours.
Of 3.2 million pairs of TrashNet's photographs five are above it: its three
exact copies, and twice two shots of one object. No two digits are.
"""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from tlkd_jax.data import transforms
from tlkd_jax.data.index import NO_DIGEST, Source
from tlkd_jax.runtime import bars

CORRELATION = 0.995

_FIELDS = 16
# Standard deviation, in 256 grey levels, of an image that shows nothing.
_FLAT = 1.0
_AT_ONCE = 1 << 24


def find(
  splits: Mapping[str, Source],
  used: Mapping[str, np.ndarray],
  num_threads: int | None = None,
) -> list[dict[str, Any]]:
  """Images that are no exact copies and look like those of earlier splits.

  All are decoded once more. It takes 3 KB an image, and a product of 768
  numbers for each pair.

  Args:
    splits: 'train', 'validation', 'test'.
    used: split -> int64[N], rows of images that can be decoded.
    num_threads: decoding threads, by default as many as the library thinks.

  Returns:
    For each split that has some: 'split', their 'count', and an 'example' of
    two names.
  """
  known = np.zeros((0, 3 * _FIELDS**2), np.float32)
  names: list[str] = []
  exact: set[int] = set()
  found = []
  for split, rows in used.items():
    source = splits[split].take(rows)
    vectors = _vectors(source, f'near copies, {split}', num_threads)
    likeness, partner = _nearest(vectors, known)
    copies = np.isin(source.digests, np.asarray([*exact], np.uint64))
    alike = (likeness > CORRELATION) & ~copies
    if alike.any():
      one = int(alike.argmax())
      found.append(
        {
          'split': split,
          'count': int(alike.sum()),
          'example': [source.names[one], names[partner[one]]],
        }
      )
    known, names = np.concatenate([known, vectors]), names + source.names
    exact |= set(source.digests.tolist()) - {NO_DIGEST}
  return found


def _vectors(
  source: Source, description: str, num_threads: int | None
) -> np.ndarray:
  """float32[N, 768] of length 1, or 0 of an image that shows nothing."""

  def vector(row: int) -> np.ndarray:
    image = transforms.decode_image(source.read(row))
    # Whatever its shape: cut, two sizes of one image would be cut unequally.
    small = image.resize((_FIELDS, _FIELDS), Image.Resampling.BOX)
    value = np.asarray(small, np.float32).ravel()
    value -= value.mean()
    flat = value.std() < _FLAT
    return np.zeros_like(value) if flat else value / np.linalg.norm(value)

  number = len(source.names)
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    made = pool.map(vector, range(number))
    return np.stack([*bars.track(made, number, description)])


def _nearest(
  vectors: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(largest product, its row of `known`) for each vector; 0 without any."""
  likeness = np.zeros(len(vectors), np.float32)
  partner = np.zeros(len(vectors), np.int64)
  step = max(1, _AT_ONCE // max(1, len(known)))
  for start in range(0, len(vectors) if len(known) else 0, step):
    rows = slice(start, start + step)
    products = vectors[rows] @ known.T
    partner[rows] = products.argmax(1)
    likeness[rows] = products.max(1)
  return likeness, partner
