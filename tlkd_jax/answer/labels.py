"""What pages, tables and folders call an arm and a data set."""

import pathlib
import re

# Arm, part of its protocol, or rival that learns from images without labels ->
# label.
LABELS = {
  'teacher': 'teacher',
  'probe': 'linear probe',
  'pretrain': 'stage without labels',
  'tl': 'TL',
  'kd': 'TL+KD',
  'self_training': 'self-training',
  'fixmatch': 'FixMatch',
}


# Kinds of data sets that are named by their file or folder.
_PATHS = ('folder', 'csv', 'imagefolder', 'parquet')


def dataset_name(dataset: str) -> str:
  """Short name of config.dataset: 'folder:data/trashnet.zip' is 'trashnet'.

  Of arrays it is their name with its digest, of a TFDS name what stands before
  its version.
  """
  kind, _, path = dataset.partition(':')
  if kind == 'arrays':
    return path
  return pathlib.Path(path).stem if kind in _PATHS else kind


def label_of_part(
  key: str, *, self_trained: bool = False, fixmatch: bool = False
) -> str:
  """A part's name for people."""
  if key == 'kd' and self_trained:
    return LABELS['self_training']
  if key == 'tl' and fixmatch:
    return LABELS['fixmatch']
  return LABELS.get(key, re.sub(r'(\d+)$', r' \1', key))
