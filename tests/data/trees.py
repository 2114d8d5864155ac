"""Folders and archives written from a line of text, without real images.

'train/cat/*3 notes.txt' is three PNG names in train/cat and a text file. Only
names are looked at before decoding, so that a mark of PNG is enough.
"""

import io
import pathlib
import tarfile
import zipfile
from collections import Counter

from tlkd_jax.data.builders import archives, layout

PNG = b'\x89PNG\r\n\x1a\n'


def names(text: str) -> list[str]:
  """File names; a folder alone ends in a slash."""
  found = []
  for item in text.split():
    place, star, count = item.partition('*')
    if star:
      found += [f'{place}{i}.png' for i in range(int(count))]
    else:
      found.append(item)
  return found


def write(root: pathlib.Path, text: str) -> pathlib.Path:
  for name in names(text):
    path = root / name
    if name.endswith('/'):
      path.mkdir(parents=True, exist_ok=True)
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG + name.encode())
  return root


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path


def write_tar(
  path: pathlib.Path, members: dict[str, bytes], mode: str = 'w'
) -> pathlib.Path:
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def arranged(path: pathlib.Path) -> layout.Listing:
  with archives.open_tree(str(path)) as tree:
    listing = layout.arrange(tree)
    layout.check_classes(listing)
  return listing


def counts(listing: layout.Listing) -> dict[str, dict[str, int]]:
  return {
    split: {name: len(files) for name, files in classes.items()}
    for split, classes in listing.files.items()
  }


def left_out(listing: layout.Listing) -> Counter:
  return Counter(one.why for one in listing.left_out)
