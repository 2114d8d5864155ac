"""Finds a data set by name and gives its splits as raw, undecoded records.

`digits`, images of a user (`folder:PATH` and other kinds) and the arrays of a
program are written once as array_record files into the cache folder; any other
name is a TFDS data set that `python -m tlkd_jax.data.prepare` wrote. All are
then read the same way, without TensorFlow.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tlkd_jax.data import prepared, subsets
from tlkd_jax.data.builders import arrays
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.examples import Fold
from tlkd_jax.data.index import NO_DIGEST, Source, open_split
from tlkd_jax.data.kinds import DATASETS, IN_PARTS, Asked, check_used
from tlkd_jax.runtime.errors import nearest

# Sets whose meaning a left-right flip destroys.
_NOT_FLIPPABLE = frozenset(
  ('digits', 'mnist', 'emnist', 'kmnist', 'omniglot', 'svhn_cropped')
  + ('cmaterdb', 'mnist_corrupted', 'visual_domain_decathlon')
)


# name[/config][:version]
_TFDS_NAME = re.compile(r'\w+(/[\w.-]+)?(:[\w.*]+)?')


@dataclasses.dataclass(frozen=True)
class Sources:
  """A data set, undecoded.

  Attributes:
    class_names: K names; label k is class_names[k].
    splits: 'train', 'validation' and 'test'.
    flip_ok: whether a mirrored image keeps its class.
    notes: what was decided about splits, one sentence each.
    left_out: what its folder holds and is not read; walk.count_left_out.
    given: the splits that it has of its own; 'unsplit' where it has none.
  """

  class_names: list[str]
  splits: dict[str, Source]
  flip_ok: bool
  notes: list[str]
  left_out: list[dict[str, Any]]
  given: tuple[str, ...] = ()


def default_cache_dir() -> pathlib.Path:
  """`tlkd_jax` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'tlkd_jax'


def default_data_dir() -> pathlib.Path:
  """$TFDS_DATA_DIR or ~/tensorflow_datasets, as in TFDS itself."""
  given = os.environ.get('TFDS_DATA_DIR')
  return pathlib.Path(given or pathlib.Path.home() / 'tensorflow_datasets')


def store_arrays(
  given: arrays.Arrays, cache_dir: str | os.PathLike | None = None
) -> str:
  """Writes arrays into the cache folder unless they are there.

  Args:
    given: from `arrays.check`.
    cache_dir: `default_cache_dir` if None.

  Returns:
    The data set's name, which `open_sources` takes: 'arrays:KEY'.
  """
  cache = pathlib.Path(cache_dir or default_cache_dir()).expanduser()
  prepared.once(
    cache,
    f'arrays-{given.key}',
    lambda data_dir: arrays.ArrayImages(given, data_dir=data_dir),
  )
  return f'arrays:{given.key}'


def open_sources(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
  validation_fraction: float = 0.1,
  test_fraction: float = 0.2,
  fold: Fold | None = None,
) -> Sources:
  """Opens a data set's three splits.

  A missing validation split is cut from train; a set with a validation split
  but none for test uses it as test and cuts another validation split from
  train; a set with train alone is cut in three, or by folds. Exact copies of
  a class are cut into one split.

  Args:
    name: 'digits', 'KIND:PATH' with a key of DATASETS, or a prepared TFDS name.
    data_dir: where TFDS sets are prepared; `default_data_dir` if None.
    cache_dir: where own copies are kept; `default_cache_dir` if None.
    labelling: how labels are found; None is by usual names.
    validation_fraction: share of each class cut for validation, if needed.
    test_fraction: share of each class cut for test, if needed.
    fold: is test in its place; another tenth is cut from the other folds.

  Returns:
    The opened data set.

  Raises:
    ValueError: unknown name (the nearest are offered), or a data set that
      cannot be used for classification.
    FileNotFoundError: a folder that does not exist, a TFDS set that has not
      been prepared.
  """
  builder, class_names, found = _open(name, data_dir, cache_dir, labelling)
  if fold is None:
    splits, notes = _complete(
      found, class_names, validation_fraction, test_fraction
    )
  else:
    splits, notes = _folded(name, found, class_names, validation_fraction, fold)
  left_out, more = prepared.read_beside(builder)
  _check_labels(name, splits, class_names)
  flip_ok = builder.info.name not in _NOT_FLIPPABLE
  return Sources(
    list(class_names),
    splits,
    flip_ok,
    [*more, *notes],
    left_out,
    tuple(found),
  )


def open_test(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
  labelling: Labelling | None = None,
) -> Sources:
  """Opens what a data set has for a test alone, of which nothing is trained.

  That is its test split, else its validation split, else all its images.

  Args:
    name: as of `open_sources`.
    data_dir: likewise.
    cache_dir: likewise.
    labelling: likewise.

  Returns:
    The data set with the one split 'test', and a note on what that is.

  Raises:
    ValueError, FileNotFoundError: as `open_sources`.
  """
  builder, class_names, found = _open(
    name, data_dir, cache_dir, labelling, for_test=True
  )
  split = next(s for s in ('test', 'validation', *found) if s in found)
  source = found[split]
  if source.labels.min(initial=0) < 0:
    raise ValueError(f'data set {name!r}: split {split} is not labelled')
  rest = [other for other in found if other != split]
  what = f'its split {split}' if rest else 'all its images'
  note = f'{what}; {", ".join(rest)} is left out' if rest else what
  left_out, more = prepared.read_beside(builder)
  flip_ok = builder.info.name not in _NOT_FLIPPABLE
  notes = [*more, note]
  return Sources(list(class_names), {'test': source}, flip_ok, notes, left_out)


def open_unlabelled(
  name: str,
  split: str,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
) -> Source:
  """Opens the images of one split of a TFDS data set; labels are not read.

  Args:
    name: of a prepared data set, whose images need no labels.
    split: as the data set calls it.
    data_dir: as of `open_sources`.
    cache_dir: likewise.

  Raises:
    ValueError: no such data set or split, or one without images.
    FileNotFoundError: it has not been prepared.
  """
  cache = pathlib.Path(cache_dir or default_cache_dir()).expanduser()
  builder = _open_tfds(name, pathlib.Path(data_dir or default_data_dir()))
  if split not in builder.info.splits:
    raise ValueError(
      f'data set {name!r} has no split {split!r}; accepted: '
      f'{", ".join(builder.info.splits)}'
    )
  keys = [
    key
    for key, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  ]
  if not keys:
    raise ValueError(f'data set {name!r} has no images: no Image feature')
  key = 'image' if 'image' in keys else keys[0]
  return open_split(builder, [split], key, None, cache)


def _open(
  name: str,
  data_dir: str | os.PathLike | None,
  cache_dir: str | os.PathLike | None,
  labelling: Labelling | None,
  *,
  for_test: bool = False,
):
  """The builder of a data set, its class names, its own splits."""
  kind, _, path = name.partition(':')
  cache = pathlib.Path(cache_dir or default_cache_dir()).expanduser()
  labelling = labelling or Labelling()
  check_used(name, labelling)
  if kind in DATASETS:
    builder = DATASETS[kind](Asked(path, cache, labelling, for_test))
  else:
    builder = _open_tfds(name, pathlib.Path(data_dir or default_data_dir()))
  image_key, label_key = _find_keys(name, builder.info)
  found = {
    split: open_split(builder, parts, image_key, label_key, cache)
    for split, parts in _own_splits(name, builder.info, for_test).items()
  }
  return builder, builder.info.features[label_key].names, found


def _open_tfds(name: str, data_dir: pathlib.Path):
  data_dir = data_dir.expanduser()
  if data_dir.is_dir() and _TFDS_NAME.fullmatch(name):
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
      return tfds.core.read_only_builder.builder_from_files(
        name, data_dir=str(data_dir)
      )
  check_tfds_name(name)
  raise FileNotFoundError(
    f'data set {name!r} is not prepared in {data_dir}; run: python -m '
    f'tlkd_jax.data.prepare --dataset {name} --data_dir {data_dir}'
  )


def check_tfds_name(name: str) -> None:
  """Raises ValueError, with the nearest names, if TFDS does not know `name`.

  A config or version, as in 'name/config:1.0.0', is not checked.
  """
  known = tfds.list_builders(with_community_datasets=False)
  kind = name.partition('/')[0].partition(':')[0]
  if kind not in known or not _TFDS_NAME.fullmatch(name):
    near = nearest(kind, {*DATASETS, *known})
    hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
    raise ValueError(
      f'unknown data set {name!r}.{hint} Accepted: digits, folder:PATH, '
      'csv:PATH, imagefolder:PATH, parquet:PATH or the name of a TFDS data set.'
    )


def _find_keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
  """Names of the image and the label feature."""
  keys = info.supervised_keys
  image_key, label_key = (keys or ('image', 'label'))[:2]
  features = dict(info.features.items())
  if not (
    isinstance(image_key, str)
    and isinstance(label_key, str)
    and isinstance(features.get(image_key), tfds.features.Image)
    and isinstance(features.get(label_key), tfds.features.ClassLabel)
  ):
    raise ValueError(
      f'data set {name!r} is not for image classification: it needs an Image '
      f'and a ClassLabel feature, it has {features}'
    )
  return image_key, label_key


def _own_splits(
  name: str, info: tfds.core.DatasetInfo, for_test: bool
) -> dict[str, list[str]]:
  """Which TFDS splits, in which order, make up each of our splits."""
  available = list(info.splits)
  if info.name in IN_PARTS:
    parts = {}
    for split in sorted(available, key=lambda split: (len(split), split)):
      parts.setdefault(split.partition('_')[0], []).append(split)
    return parts
  used = ('train', 'validation', 'test')
  found = {split: [split] for split in used if split in available}
  if not found or 'train' not in found and not for_test:
    raise ValueError(f'data set {name!r} has no train split: {available}')
  return found


def _complete(
  found: dict[str, Source],
  class_names: list[str],
  validation_fraction: float,
  test_fraction: float,
) -> tuple[dict[str, Source], list[str]]:
  """Makes three splits of those that exist; see `open_sources`."""
  splits, notes = dict(found), []
  whole = splits.pop('unsplit', None) or splits['train']
  if 'test' not in splits and 'validation' in splits:
    splits['test'] = splits.pop('validation')
    notes.append('no test split: its validation split is used as test')
  fractions = {}
  if 'test' not in splits:
    fractions['test'] = test_fraction
  if 'validation' not in splits:
    fractions['validation'] = validation_fraction
  if fractions:
    for part, fraction in fractions.items():
      if not 0 < fraction < 1:
        raise ValueError(f'{part}_fraction is {fraction}, not in (0, 1)')
    parts = subsets.cut(
      *(whole.names, whole.labels, class_names, fractions),
      digests=whole.digests,
    )
    cuts = ' and '.join(
      f'{part} ({parts[part].size} images)' for part in fractions
    )
    known = np.stack([whole.digests, whole.labels.astype(np.uint64)])
    known = known[:, whole.digests != NO_DIGEST]
    copies = known.shape[1] > np.unique(known, axis=1).shape[1]
    together = ', exact copies of a class kept together' if copies else ''
    number = whole.labels.size
    notes.append(f'{cuts} cut from its {number} training images{together}')
    splits.update((part, whole.take(rows)) for part, rows in parts.items())
  return {s: splits[s] for s in ('train', 'validation', 'test')}, notes


def _folded(
  name: str,
  found: dict[str, Source],
  class_names: list[str],
  validation_fraction: float,
  fold: Fold,
) -> tuple[dict[str, Source], list[str]]:
  """The three splits of a fold; every image is in test in one of the folds.

  Images that were given for a test, or for validation, stay what they are: a
  set that has some is refused.
  """
  given = [split for split in found if split not in ('train', 'unsplit')]
  if given:
    raise ValueError(
      f'data.folds is {fold.count}, and {name} has a split '
      f'{" and ".join(given)} of its own, which folds would mix with the rest; '
      'accepted: data.folds=0, or data without splits, such as its folder of '
      'training images alone'
    )
  (whole,) = found.values()
  given_once = whole.names, whole.labels, class_names
  fold_of = subsets.cut_folds(*given_once, fold.count, whole.digests)
  rest = whole.take(np.flatnonzero(fold_of != fold.number))
  parts = subsets.cut(
    *(rest.names, rest.labels, class_names),
    {'validation': validation_fraction},
    digests=rest.digests,
  )
  splits = {split: rest.take(rows) for split, rows in parts.items()}
  splits['test'] = whole.take(np.flatnonzero(fold_of == fold.number))
  note = (
    f'{fold} of its {whole.labels.size} images is test '
    f'({len(splits["test"].names)} images); validation '
    f'({len(splits["validation"].names)}) is cut from the other folds'
  )
  return {s: splits[s] for s in ('train', 'validation', 'test')}, [note]


def _check_labels(
  name: str, splits: dict[str, Source], class_names: list[str]
) -> None:
  trained = np.bincount(
    np.maximum(splits['train'].labels, 0), minlength=len(class_names)
  )
  for split, source in splits.items():
    if source.labels.min(initial=0) < 0:
      raise ValueError(f'data set {name!r}: split {split} is not labelled')
    present = np.bincount(source.labels, minlength=len(class_names))
    lacking = [class_names[c] for c in np.flatnonzero(present * (trained == 0))]
    if lacking:
      raise ValueError(
        f'data set {name!r}: class {", ".join(map(repr, lacking))} is in '
        f'{split} but train has no image of it'
      )
  empty = [class_names[c] for c in np.flatnonzero(trained == 0)]
  if empty:
    raise ValueError(
      f'data set {name!r}: class {", ".join(map(repr, empty))} has no image '
      'in train'
    )
