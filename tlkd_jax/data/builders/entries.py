"""What zip and tar files have in common: names, what is left out, growth."""

import gzip
import lzma
import re
import zlib

from tlkd_jax.data.builders import walk
from tlkd_jax.data.builders.walk import File, LeftOut, Tree

# Archives of more than this much are refused if they are that much smaller
# than what they hold. Images are compressed already; blank BMP files reach 100.
_MAX_RATIO = 200
_FREE_BYTES = 1 << 30
ELSEWHERE = "a name that leads elsewhere, with '..'"
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def clean(name: str) -> str:
  """Folders as we name them; a final slash is kept."""
  name = name.replace('\\', '/')
  name = re.sub(r'^[A-Za-z]:(?=/)', '', name)
  name = walk.printable(name.encode('utf-8', 'surrogateescape'))
  parts = [p for p in name.split('/') if p not in ('', '.', '..')]
  return '/'.join(parts) + '/' * name.endswith('/')


def outside(names: list[str]) -> set[str]:
  """Names with '..' in an archive where others have none."""
  found = {name for name in names if '..' in re.split(r'[/\\]', name)}
  return found if len(found) < len(set(names)) else set()


def add(tree: Tree, file: File, is_folder: bool, odd: bool) -> None:
  """Sorts one member into a tree."""
  if not file.name:
    return
  parts = file.parts
  for depth, part in enumerate(parts, start=1):
    if not walk.is_system(part):
      continue
    name = '/'.join(parts[:depth])
    if depth < len(parts) or is_folder:
      name += '/'
      direct = depth == len(parts) - 1 and not is_folder
      if walk.may_be_class(part) and direct:
        held = tree.hidden.get(parts[:depth], 0)
        image = walk.looks_like_image(parts[-1])
        tree.hidden[parts[:depth]] = held + image
    tree.left_out.append(LeftOut(name, "hidden or a system's"))
    return
  above = parts if is_folder else parts[:-1]
  tree.folders.update(above[:depth] for depth in range(len(above) + 1))
  if is_folder:
    return
  if odd:
    tree.left_out.append(LeftOut(file.name, 'link or device in an archive'))
  else:
    tree.files.append(file)


def finish(tree: Tree, packed: int) -> None:
  """Keeps the last member of each name; refuses what grows too much."""
  last = {file.name: file for file in tree.files}
  twice = [file for file in tree.files if last[file.name] is not file]
  tree.left_out[:] = dict.fromkeys(tree.left_out)
  tree.left_out += [
    LeftOut(file.name, 'once more under the same name in the archive')
    for file in twice
  ]
  tree.files[:] = sorted(last.values(), key=lambda file: file.name)
  total = sum(
    file.size for file in tree.files if file.size <= walk.MAX_FILE_BYTES
  )
  check_ratio(tree.location, total, packed)


def check_ratio(path: str, unpacked: int, packed: int) -> None:
  """Raises ValueError for what grows as no archive of images does."""
  if unpacked > max(_FREE_BYTES, _MAX_RATIO * packed):
    raise ValueError(
      f'folder:{path}: {packed / 1e6:.1f} MB hold more than '
      f'{unpacked / 1e9:.1f} GB, {_MAX_RATIO} times as much or more: this is '
      'taken for an attack. If it is not, unpack it into a folder'
    )
