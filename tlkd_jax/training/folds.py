"""Heads of which each did not see a part of the images.

Of an image that a cross-fitted teacher was fitted to, the head of its fold
speaks, which never saw it; of any other image, the mean of the heads.
"""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax.data import Split
from tlkd_jax.evaluation import records
from tlkd_jax.models.functional import Tree
from tlkd_jax.settings import Settings
from tlkd_jax.training import logistic
from tlkd_jax.training.logistic import Head

Array = jax.Array

_FILE = 'folds.npz'


def write(
  workdir: pathlib.Path, heads: list[Head], split: Split, folds: np.ndarray
) -> None:
  """Writes the heads of F folds, and the fold of each image of a split."""
  arrays = {
    'kernel': np.stack([head.kernel for head in heads]),
    'bias': np.stack([head.bias for head in heads]),
    'image': image_keys(split),
    'fold': folds,
  }
  records.write_arrays(workdir / _FILE, arrays)


def read(
  run: str | pathlib.Path, order: np.ndarray | None
) -> dict[str, np.ndarray] | None:
  """What `write` wrote; None of a run that is not cross-fitted.

  Args:
    run: its workdir.
    order: from finished.class_order.

  Raises:
    ValueError: the file is damaged.
  """
  path = pathlib.Path(run).expanduser() / _FILE
  if not path.exists():
    return None
  try:
    found = records.read_arrays(path, ('kernel', 'bias', 'image', 'fold'))
  except Exception as error:
    raise ValueError(f'damaged file {path}: {error}') from error
  if order is not None:
    found |= {name: found[name][..., order] for name in ('kernel', 'bias')}
  return found


def image_keys(split: Split) -> np.ndarray:
  """A number for each image that tells it from others; uint64 [N]."""
  keys = [
    hashlib.blake2b(f'{index} {name}'.encode(), digest_size=8).digest()
    for index, name in zip(split.indices.tolist(), split.names, strict=True)
  ]
  return np.frombuffer(b''.join(keys), np.uint64)


def place(found: dict[str, np.ndarray], split: Split) -> Tree:
  """What the step reads of the folds, for the images of a split.

  Returns:
    {'kernel': float32 [F + 1, D, K], 'bias': [F + 1, K], the mean last;
    'index': int32 [N], ascending; 'fold': int32 [N], F where the image is in
    none}.
  """
  num_folds = found['kernel'].shape[0]
  known = dict(
    zip(found['image'].tolist(), found['fold'].tolist(), strict=True)
  )
  folds = [known.get(key, num_folds) for key in image_keys(split).tolist()]
  order = np.argsort(split.indices)

  def with_mean(values):
    return np.concatenate([values, values.mean(axis=0, keepdims=True)])

  return {
    'kernel': with_mean(found['kernel']),
    'bias': with_mean(found['bias']),
    'index': split.indices[order].astype(np.int32),
    'fold': np.asarray(folds, np.int32)[order],
  }


def logits(placed: Tree, pre_logits: Array, index: Array) -> Array:
  """[B, K] of the heads that did not see these images.

  Args:
    placed: from `place`.
    pre_logits: [B, D].
    index: int [B], of the images in their split.
  """
  last = placed['index'].size - 1
  at = jnp.minimum(jnp.searchsorted(placed['index'], index), last)
  there = placed['index'][at] == index
  fold = jnp.where(there, placed['fold'][at], placed['kernel'].shape[0] - 1)
  said = jnp.einsum('bd,fdk->bfk', pre_logits, placed['kernel'])
  said = said + placed['bias'][None]
  return jnp.take_along_axis(said, fold[:, None, None], axis=1)[:, 0]


def of_images(settings: Settings, labels: np.ndarray) -> np.ndarray:
  """The fold of each training image of a cross-fitted teacher; int32 [N].

  Raises:
    ValueError: see logistic.make_folds.
  """
  return logistic.make_folds(
    labels, settings.teacher.probe_folds, settings.seed
  )
