"""Writes a data set as array_record files, once.

    python -m tlkd_jax.data.prepare --dataset oxford_flowers102

With `--digest_at=SIDE` it says a digest of the decoded arrays, which tells
whether others have the same images.

Most TFDS data sets need TensorFlow for this step, and only for this step:

    pip install 'tensorflow-cpu>=2.21'

The files may be prepared on another machine or in another environment and
copied; training reads them without TensorFlow.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import flags, logging

from tlkd_jax.data import facts, load_splits, sources
from tlkd_jax.data.builders import patterns
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.kinds import Asked
from tlkd_jax.runtime import command_line

# main has a flag of this name too, and a process may load both.
_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'digits, folder:PATH, csv:PATH, imagefolder:PATH, parquet:PATH or a TFDS '
  'name; must be given.',
  allow_override=True,
)
_IMAGE_COLUMN = flags.DEFINE_string(
  'image_column', None, 'As data.image_column of a run.'
)
_LABEL_COLUMN = flags.DEFINE_string(
  'label_column', None, 'As data.label_column of a run.'
)
_SPLIT_COLUMN = flags.DEFINE_string(
  'split_column', None, 'As data.split_column of a run.'
)
_PATTERN = flags.DEFINE_string('pattern', None, 'As data.pattern of a run.')
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where TFDS sets are written; by default as in TFDS.'
)
_DIGEST_AT = flags.DEFINE_integer(
  'digest_at',
  None,
  'Also decode it for networks of this side, in pixels, and print a digest of '
  'the arrays of each split: the same for all who have the same images.',
  lower_bound=8,
)
_CACHE_DIR = flags.DEFINE_string(
  'cache_dir', None, 'Where digits and folders are written.'
)

_HOW_TO_GET_TENSORFLOW = (
  "pip install 'tlkd_jax[tfds]' (or pip install 'tensorflow-cpu>=2.21'); it "
  'can share the environment, and it is not needed again once the data set is '
  'prepared'
)


def prepare(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
) -> pathlib.Path:
  """Prepares a data set unless it is prepared already.

  Args:
    name: 'digits', 'folder:PATH' or another own kind, or a TFDS name, also with
      a config, as in 'name/config'.
    data_dir: where TFDS sets are written; `sources.default_data_dir` if None.
    cache_dir: where own sets are written; `sources.default_cache_dir` if None.
    labelling: how labels are found; None is by usual names.

  Returns:
    The folder of the files.

  Raises:
    ValueError: an unknown name, or a data set that cannot be used.
    FileNotFoundError: an archive that must be downloaded by hand is missing.
    ModuleNotFoundError: the step needs TensorFlow, which is not installed.
  """
  kind, _, path = name.partition(':')
  if kind in sources.DATASETS:
    cache = pathlib.Path(cache_dir or sources.default_cache_dir())
    builder = sources.DATASETS[kind](
      Asked(path, cache.expanduser(), labelling or Labelling())
    )
    return pathlib.Path(builder.data_path)
  target = pathlib.Path(data_dir or sources.default_data_dir()).expanduser()
  sources.check_tfds_name(name)
  by_hand = None
  try:
    builder = tfds.builder(
      name, data_dir=str(target), file_format='array_record'
    )
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    builder.download_and_prepare()
  # TFDS wraps the missing import in errors of its own while it extracts.
  except Exception as error:
    # So TFDS says that a folder for downloads by hand is empty.
    if by_hand and isinstance(error, AssertionError):
      raise FileNotFoundError(
        f'{name!r} must be downloaded by hand: {error}'
      ) from error
    if not _lacks_tensorflow(error):
      raise
    raise ModuleNotFoundError(
      f'preparing {name!r} needs TensorFlow: {_HOW_TO_GET_TENSORFLOW}',
      name='tensorflow',
    ) from error
  return pathlib.Path(builder.data_path)


def describe(
  name: str,
  *,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
) -> list[str]:
  """What an own data set holds, in lines, as each run of it begins.

  Args:
    name: as in `prepare`, no TFDS name.
    cache_dir: likewise.
    labelling: likewise.

  Raises:
    ValueError: a class has too few images for the splits that are missing.
  """
  found = sources.open_sources(name, cache_dir=cache_dir, labelling=labelling)
  labels = {split: source.labels for split, source in found.splits.items()}
  return facts.lines(name, facts.collect(found, labels), found.notes)


def digests(
  name: str,
  image_size: int,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
) -> list[str]:
  """Digests of all images of each split as they are decoded, in lines.

  Of pixels, labels and order; training images are kept with the margin of the
  crop, as a run without random resized crops has them.

  Args:
    name: of a prepared data set.
    image_size: side in pixels that networks would see.
    data_dir: as in `prepare`.
    cache_dir: likewise.
    labelling: likewise.

  Raises:
    ValueError, FileNotFoundError: as load_splits.
  """
  dataset = load_splits(
    name,
    image_size=image_size,
    data_dir=data_dir,
    cache_dir=cache_dir,
    labelling=labelling,
  )
  return [
    f'{split} at {image_size} px: {len(found)} images, {found.fingerprint()}'
    for split, found in dataset.splits.items()
  ]


def _lacks_tensorflow(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, ModuleNotFoundError):
      return (error.name or '').partition('.')[0] == 'tensorflow'
    error = error.__cause__ or error.__context__
  return False


def main(argv: Sequence[str]) -> None:
  """Prepares the data set of the flags; exits with 2 on a user's mistake."""
  del argv
  name = _DATASET.value
  if not name:
    print('error: --dataset NAME must be given', file=sys.stderr)
    sys.exit(2)
  own = name.partition(':')[0] in sources.DATASETS
  if not own and importlib.util.find_spec('tensorflow') is None:
    # Said before the download, though some sets can do without.
    logging.warning(
      'TensorFlow is not installed. Most TFDS data sets need it to be '
      'prepared: %s',
      _HOW_TO_GET_TENSORFLOW,
    )
  try:
    own_options = {'cache_dir': _CACHE_DIR.value, 'labelling': _labelling()}
    described = describe(name, **own_options) if own else []
    folder = prepare(name, data_dir=_DATA_DIR.value, **own_options)
    summed = []
    if _DIGEST_AT.value:
      places = {'data_dir': _DATA_DIR.value, **own_options}
      summed = digests(name, _DIGEST_AT.value, **places)
  except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    print(f'error: {name} could not be written: {error}', file=sys.stderr)
    sys.exit(1)
  if described or summed:
    print('\n  '.join([*described, *summed]))
  print(f'{name} is prepared in {folder}')


def _labelling() -> Labelling:
  if _PATTERN.value is not None:
    patterns.compile_pattern(_PATTERN.value)
  return Labelling(
    image_column=_IMAGE_COLUMN.value,
    label_column=_LABEL_COLUMN.value,
    split_column=_SPLIT_COLUMN.value,
    pattern=_PATTERN.value,
  )


def run() -> None:
  """Entry point."""
  command_line.run_command(main, _DATASET)


if __name__ == '__main__':
  run()
