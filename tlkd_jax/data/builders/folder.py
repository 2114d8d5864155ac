"""A user's own images: a folder, or a zip of one, of class folders.

Two layouts:

    ROOT/train/<class>/...  ROOT/validation/<class>/...  ROOT/test/<class>/...
    ROOT/<class>/...

In the first, validation or test may be missing; in the second both are cut
from the whole. What is missing is cut by a stable hash of the file's relative
name, so that adding an image moves next to nothing.
"""

import dataclasses
import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from tlkd_jax.data.transforms import SUFFIXES

_SPLIT_FOLDERS = {
  'train': 'train',
  'training': 'train',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
  'dev': 'validation',
  'test': 'test',
  'testing': 'test',
}

# TFDS sorts a split in memory and without TensorFlow refuses more than 1000
# MiB, so larger splits are written as train, train_1, train_2 ...
MAX_PART_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Listing:
  """The image files of a folder or zip.

  Attributes:
    location: the path as the user gave it.
    prefix: the folders, with a final slash, in which the layout lies.
    files: split -> class -> sorted [(name after the prefix, size in bytes)];
      the one split 'unsplit' if there are class folders only.
    fingerprint: changes whenever a file is added, removed or altered.
  """

  location: str
  prefix: str
  files: dict[str, dict[str, list[tuple[str, int]]]]
  fingerprint: str


def list_images(path: str) -> Listing:
  """Lists a folder or zip without reading the images.

  Args:
    path: of a folder or of a .zip file.

  Returns:
    The listing; class folders without images have an empty list.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
    ValueError: if it is neither a folder nor a zip, or has no class folders.
  """
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise FileNotFoundError(f'folder:{path}: no such folder or zip file')
  if root.is_dir():
    folders, entries = _walk(root)
  elif zipfile.is_zipfile(root):
    folders, entries = _walk_zip(root)
  else:
    raise ValueError(f'folder:{path}: neither a folder nor a zip file')
  digest = hashlib.sha256(repr(sorted(entries)).encode('utf-8', 'replace'))
  top = _layout_root(folders)
  files = _group(path, folders, entries, top)
  prefix = ''.join(f'{folder}/' for folder in top)
  return Listing(path, prefix, files, digest.hexdigest()[:16])


def _is_hidden(parts: tuple[str, ...]) -> bool:
  return any(part.startswith('.') or part == '__MACOSX' for part in parts)


def _walk(root: pathlib.Path):
  folders, entries = set(), []
  for folder, subfolders, names in os.walk(root, followlinks=True):
    subfolders[:] = sorted(s for s in subfolders if not _is_hidden((s,)))
    relative = pathlib.Path(folder).relative_to(root)
    folders.add(relative.parts)
    for name in names:
      if name.startswith('.') or not name.lower().endswith(SUFFIXES):
        continue
      status = os.stat(os.path.join(folder, name))
      full = (relative / name).as_posix()
      entries.append((full, status.st_size, status.st_mtime_ns))
  return folders, entries


def _walk_zip(path: pathlib.Path):
  folders, entries = set(), []
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      parts = tuple(info.filename.strip('/').split('/'))
      if _is_hidden(parts):
        continue
      above = parts if info.is_dir() else parts[:-1]
      folders.update(above[:depth] for depth in range(len(above) + 1))
      if not info.is_dir() and parts[-1].lower().endswith(SUFFIXES):
        entries.append((info.filename, info.file_size, info.CRC))
  return folders, entries


def _children(folders: set[tuple[str, ...]], above: tuple[str, ...]):
  depth = len(above) + 1
  return sorted(f[-1] for f in folders if len(f) == depth and f[:-1] == above)


def _layout_root(folders: set[tuple[str, ...]]) -> tuple[str, ...]:
  # A zip usually wraps everything in one folder of its own name.
  top = ()
  while len(_children(folders, top)) == 1 and not _has_splits(folders, top):
    top = (*top, _children(folders, top)[0])
  return top


def _group(path: str, folders: set, entries: list, top: tuple[str, ...]):
  """Sorts files into split -> class -> files."""
  if _has_splits(folders, top):
    found = [c for c in _children(folders, top) if c in _SPLIT_FOLDERS]
    found = [c for c in found if _children(folders, (*top, c))]
    prefixes = {_SPLIT_FOLDERS[c]: (*top, c) for c in found}
    if len(prefixes) < len(found):
      raise ValueError(f'folder:{path}: {found} name one split twice')
  else:
    prefixes = {'unsplit': top}
  files = {
    split: {c: [] for c in _children(folders, prefix)}
    for split, prefix in prefixes.items()
  }
  by_prefix = {prefix: split for split, prefix in prefixes.items()}
  depth = len(next(iter(by_prefix)))
  for full_name, size, _ in sorted(entries):
    parts = tuple(full_name.split('/'))
    split = by_prefix.get(parts[:depth])
    if split and len(parts) > depth + 1:
      name = '/'.join(parts[len(top) :])
      files[split][parts[depth]].append((name, size))
  if not any(files.values()):
    raise ValueError(
      f'folder:{path}: no class folders; expected train/<class>/<image> or '
      f'<class>/<image>, images ending in {", ".join(SUFFIXES)}'
    )
  return files


def _has_splits(folders: set, top: tuple[str, ...]) -> bool:
  # A class may itself be called "train": a split folder has class folders.
  return any(
    c in _SPLIT_FOLDERS and _children(folders, (*top, c))
    for c in _children(folders, top)
  )


def check_classes(listing: Listing) -> list[str]:
  """Returns the sorted class names after checking every split against train.

  Raises:
    ValueError: if train is missing or has fewer than two classes, a class
      folder is empty, or another split has a class that train lacks.
  """
  where = f'folder:{listing.location}'
  main = 'unsplit' if 'unsplit' in listing.files else 'train'
  if main not in listing.files:
    raise ValueError(
      f'{where}: has {sorted(listing.files)} but no train/ folder'
    )
  class_names = sorted(listing.files[main])
  for split, classes in listing.files.items():
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
      raise ValueError(
        f'{where}: class {", ".join(map(repr, unknown))} is in {split} but '
        f'not in train, which has {", ".join(map(repr, class_names))}'
      )
    empty = sorted(c for c, files in classes.items() if not files)
    if empty:
      place = '' if split == 'unsplit' else f' in {split}'
      raise ValueError(
        f'{where}: class {", ".join(map(repr, empty))}{place} holds no '
        f'images (files ending in {", ".join(SUFFIXES)})'
      )
  if len(class_names) < 2:
    raise ValueError(f'{where}: one class only ({class_names[0]!r})')
  return class_names


class FolderImages(tfds.core.GeneratorBasedBuilder):
  """The files of a `Listing`, unaltered, as array_record files."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, listing: Listing, *, data_dir: str):
    """Creates the builder; needs neither network nor TensorFlow.

    Args:
      listing: what to store, from `list_images`.
      data_dir: where the array_record files are written.

    Raises:
      ValueError: as `check_classes`.
    """
    self._listing = listing
    self._class_names = check_classes(listing)
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=self._class_names),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Class folders of images.',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    root = pathlib.Path(self._listing.location).expanduser()
    return {
      name: self._generate_examples(root, files)
      for split, classes in self._listing.files.items()
      for name, files in _parts(split, classes).items()
    }

  def _generate_examples(
    self, root: pathlib.Path, files: list[tuple[str, str]]
  ) -> Iterator[tuple[int, dict]]:
    archive = None if root.is_dir() else zipfile.ZipFile(root)
    for key, (name, class_name) in enumerate(files):
      full_name = self._listing.prefix + name
      yield (
        key,
        {
          'image': (
            _read_member(archive, full_name)
            if archive
            else (root / full_name).read_bytes()
          ),
          'label': class_name,
          'file_name': name.encode('utf-8', 'surrogateescape'),
        },
      )
    if archive:
      archive.close()


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  try:
    return archive.read(name)
  except (zipfile.BadZipFile, zlib.error, EOFError):
    return b''  # no image, so it is named when it comes to decoding


def _parts(split: str, classes: dict[str, list[tuple[str, int]]]):
  """Divides a split into named parts of bounded size, in order."""
  parts, size = [[]], 0
  for class_name in sorted(classes):
    for name, file_size in classes[class_name]:
      if size + file_size > MAX_PART_BYTES and parts[-1]:
        parts.append([])
        size = 0
      parts[-1].append((name, class_name))
      size += file_size
  names = [split, *(f'{split}_{i}' for i in range(1, len(parts)))]
  return dict(zip(names, parts, strict=True))
