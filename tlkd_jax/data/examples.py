"""The examples of one split, what they were chosen from, and how they look."""

import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Look:
  """How a network's images are cut from the files.

  Attributes:
    image_size: their side in pixels.
    crop: share of the short side that the centre crop keeps.
    interpolation: of resizing, a key of `transforms.INTERPOLATIONS`.
  """

  image_size: int
  crop: float
  interpolation: str

  def __str__(self) -> str:
    return f'{self.image_size} px, crop {self.crop:g}, {self.interpolation}'


@dataclasses.dataclass(frozen=True)
class Fold:
  """Which part of a set that is cut into folds is its test split.

  Attributes:
    number: from 0 on.
    count: of folds, at least 2.
  """

  number: int
  count: int

  def __str__(self) -> str:
    return f'fold {self.number} of {self.count}'


@dataclasses.dataclass(frozen=True)
class Split:
  """The decoded examples of one split.

  Attributes:
    images: uint8[N, S, S, 3], in memory or memory-mapped, read only.
    labels: int32[N].
    indices: int64[N], the number of each example in its whole split; no
      choice of subset changes it.
    names: N names, for instance relative file names.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  names: list[str]

  def __len__(self) -> int:
    return self.labels.size

  def take(self, rows: np.ndarray | slice) -> 'Split':
    """The examples at `rows`, in that order; of a slice without a copy."""
    chosen = np.arange(len(self))[rows].tolist()
    return Split(
      self.images[rows],
      self.labels[rows],
      self.indices[rows],
      [self.names[row] for row in chosen],
    )

  def fingerprint(self) -> str:
    """A digest of pixels, labels and indices."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(self.images.shape).encode())
    digest.update(self.labels.tobytes() + self.indices.tobytes())
    for start in range(0, len(self), 1024):
      digest.update(self.images[start : start + 1024].tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Files:
  """All examples of a split, chosen or not, by what tells them apart.

  Attributes:
    names: N names.
    labels: int32[N].
    digests: uint64[N], of the bytes of each file.
  """

  names: list[str]
  labels: np.ndarray
  digests: np.ndarray
