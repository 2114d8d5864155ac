"""Which parquet and arrow files a folder holds, and of which split each is.

Splits are told by the names of files or folders, as Hugging Face's hub and
`save_to_disk` write them.
"""

import collections
import dataclasses
import os
import pathlib
import re

from tlkd_jax.data.builders import headers, walk
from tlkd_jax.data.builders.tables import shown
from tlkd_jax.data.builders.walk import File, LeftOut

_ENDINGS = ('.parquet', '.arrow')
_SHARD = re.compile(r'(.*?)-?(\d{5})-of-(\d{5})(-[0-9a-f]+)?')


@dataclasses.dataclass(frozen=True)
class _Place:
  """What the name of a file says.

  Attributes:
    split: None if nothing.
    rest: what else the name says; of one data set all say the same.
  """

  split: str | None
  rest: tuple[str, ...]


def listed(
  where: str, root: pathlib.Path
) -> tuple[list[tuple[File, str | None]], list[LeftOut]]:
  """The files with their splits, and what is left out.

  Args:
    where: the data set's name, for messages.
    root: a file, or a folder in which they are searched for.

  Raises:
    ValueError: there are none, some are missing, or they are of several data
      sets.
  """
  if root.is_file():
    about = root.stat()
    file = File(root.name, about.st_size, about.st_mtime_ns, str(root))
    return [(file, None)], []
  with walk.open_folder(root) as tree:
    found = [
      file
      for file in tree.files
      if os.path.splitext(file.name.lower())[1] in _ENDINGS
      # What `map` of Hugging Face's datasets keeps beside the data.
      and not file.parts[-1].startswith('cache-')
    ]
  if not found:
    raise ValueError(f'{where}: no file that ends in {" or ".join(_ENDINGS)}')
  _check_shards(where, found)
  places = {file.name: _place(file) for file in found}
  of_split = [file for file in found if places[file.name].split]
  left_out = []
  if of_split:
    left_out = [
      LeftOut(file.name, 'its name is of no known split')
      for file in found
      if not places[file.name].split
    ]
    found = of_split
  several = sorted({'/'.join(places[file.name].rest) for file in found})
  if len(several) > 1:
    raise ValueError(
      f'{where}: several data sets, {shown([s or "." for s in several])}; give '
      'the folder of one'
    )
  return [(file, places[file.name].split) for file in found], left_out


def _place(file: File) -> _Place:
  """Reads 'data/train-00000-of-00002', 'train/0000', 'a/cifar10-test'."""
  *folders, last = file.parts
  stem = os.path.splitext(last)[0]
  shard = _SHARD.fullmatch(stem)
  stem = shard.group(1) if shard else stem
  split, rest = None, []
  before, _, ending = stem.rpartition('-')
  if headers.read_split(stem):
    split = stem
  elif headers.read_split(ending):
    split, rest = ending, [before]
  for name in reversed(folders):
    if split is None and headers.read_split(name):
      split = name
    else:
      rest.append(name)
  return _Place(split, tuple(reversed(rest)))


def _check_shards(where: str, files: list[File]) -> None:
  """Of 00000-of-00002 and its fellows none may be missing."""
  found = collections.defaultdict(set)
  for file in files:
    stem, ending = os.path.splitext(file.parts[-1])
    shard = _SHARD.fullmatch(stem)
    if shard:
      place = (*file.parts[:-1], shard.group(1), shard.group(3), ending)
      found[place].add(int(shard.group(2)))
  for (*folders, stem, total, ending), numbers in sorted(found.items()):
    lacking = sorted(set(range(int(total))) - numbers)
    if lacking:
      start = f'{stem}-' if stem else ''
      names = [f'{start}{n:05}-of-{total}{ending}' for n in lacking]
      place = '/'.join(folders)
      raise ValueError(
        f'{where}: {shown(names)} {"are" if len(names) > 1 else "is"} missing'
        + f' in {place}/' * bool(place)
      )
