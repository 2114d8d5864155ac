"""What pages, tables and folders call an arm and a data set."""

import pathlib

# Arm, or part of its protocol -> label.
LABELS = {
  'teacher': 'teacher',
  'probe': 'linear probe',
  'tl': 'TL',
  'kd': 'TL+KD',
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
