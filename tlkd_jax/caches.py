"""What the caches hold, and removes of it what is made again.

    python -m tlkd_jax.caches [FOLDER ...]
    python -m tlkd_jax.caches [FOLDER ...] --clear KIND[,KIND] [--unused_days N]

A FOLDER is one of data.cache_dir, of targets.dir or targets.features_dir, or a
teacher's run with its `targets`; without one it is that of the user. Caches
grow without a bound. Nothing that a living process uses is removed: each holds
a lock on what it uses (runtime/locked.py).
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence

from tlkd_jax.data.sources import default_cache_dir
from tlkd_jax.runtime import command_line, locked
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.runtime.paths import expanded

# What is removed is made again, at the cost that is named.
KINDS = {
  'features': 'what frozen backbones say of images: their forward passes',
  'targets': "teachers' stored outputs: their forward passes",
  'decoded': 'decoded images, memory-mapped: decoding',
  'prepared': 'copies of data sets: reading them again',
  'index': 'names, labels and digests of copies: reading these',
  'compiled': 'compiled programs: compiling',
  'arrays': 'copies of Dataset.from_arrays: only whoever has the arrays',
}
_KEY = r'[0-9a-f]{24}'
_STORE = re.compile(r'[0-9a-f]{16}')
# Files of a folder of targets or features; others are not touched.
_STORED = ('view*', 'fingerprint.json', 'fingerprint.json.*.tmp', 'lock')
_PROGRAM = re.compile(r'.+-[0-9a-f]{64}-(cache|atime)')
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Entry:
  """Of a cache, what is used and removed together.

  Attributes:
    kind: a name in KINDS.
    paths: files and folders.
    lock: the file that who uses it keeps; None where each reads it in one go.
    folder: removed with them where nothing else is in it.
  """

  kind: str
  paths: tuple[pathlib.Path, ...]
  lock: pathlib.Path | None = None
  folder: pathlib.Path | None = None

  def size(self) -> int:
    """In bytes."""
    return sum(path.stat().st_size for path in self._files())

  def last_used(self) -> float:
    """When somebody began to use it, or wrote it; seconds since the epoch."""
    files = [*self._files(), *([self.lock] if self.lock else [])]
    return max((p.stat().st_mtime for p in files if p.exists()), default=0.0)

  def is_in_use(self) -> bool:
    """Whether a living process keeps it."""
    if self.lock is None or not self.lock.exists():
      return False
    with locked.unused(self.lock) as free:
      return not free

  def remove(self) -> bool:
    """Removes it; False where it is in use."""
    with contextlib.ExitStack() as stack:
      if self.lock is not None and not stack.enter_context(
        locked.unused(self.lock)
      ):
        return False
      for path in self.paths:
        if path.is_dir():
          # First out of the way: a kill leaves a whole copy or none.
          aside = path.with_name(f'.{path.name}-{uuid.uuid4().hex}')
          shutil.rmtree(path.rename(aside))
        else:
          path.unlink(missing_ok=True)
      if self.lock is not None:
        self.lock.unlink(missing_ok=True)
      if self.folder is not None:
        with contextlib.suppress(OSError):
          self.folder.rmdir()
    return True

  def _files(self) -> list[pathlib.Path]:
    found = [p for path in self.paths for p in (path, *path.rglob('*'))]
    # One that another command removes meanwhile is none.
    return [path for path in found if path.is_file()]


def entries(folder: pathlib.Path) -> list[Entry]:
  """All that the caches in a folder hold."""
  return [
    *_stores(folder),
    *_decoded(folder),
    *_copies(folder),
    *(
      Entry('index', (path,))
      for path in _named(folder / 'index', rf'{_KEY}\.npz')
    ),
    *(
      Entry('compiled', (path,))
      for path in _named(folder / 'compiled', _PROGRAM.pattern)
    ),
  ]


def _named(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """What has such a name; nothing that is not ours."""
  if not folder.is_dir():
    return []
  return sorted(p for p in folder.iterdir() if re.fullmatch(pattern, p.name))


def _stores(folder: pathlib.Path) -> Iterator[Entry]:
  for root in (folder, folder / 'features', folder / 'targets'):
    for store in _named(root, _STORE.pattern):
      paths = [p for pattern in _STORED for p in sorted(store.glob(pattern))]
      # Each file of features is named by its checksum.
      shared = any(re.match(r'view\d+-', path.name) for path in paths)
      kind = 'features' if shared or root.name == 'features' else 'targets'
      if (store / 'fingerprint.json').exists():
        yield Entry(kind, tuple(paths), store / 'used', store)


def _decoded(folder: pathlib.Path) -> Iterator[Entry]:
  root = folder / 'decoded'
  keys = {path.stem for path in _named(root, rf'{_KEY}\.(json|npy)')}
  for key in sorted(keys):
    # What is known of the images goes before them.
    paths = [root / f'{key}.json', root / f'{key}.npy']
    paths += [*(root / '.sums').glob(f'{key}.*'), *root.glob(f'.{key}-*.npy')]
    found = tuple(path for path in paths if path.exists())
    yield Entry('decoded', found, _lock(folder, key))


def _copies(folder: pathlib.Path) -> Iterator[Entry]:
  for copy in _named(folder / 'prepared', r'[^.].*'):
    if any(copy.glob('*/*/dataset_info.json')):
      kind = 'arrays' if copy.name.startswith('arrays-') else 'prepared'
      yield Entry(kind, (copy,), _lock(folder, copy.name))


def _lock(folder: pathlib.Path, key: str) -> pathlib.Path:
  return folder / 'locks' / f'{key}.used'


def table(folder: pathlib.Path, found: Sequence[Entry]) -> str:
  """A line for each kind that is there."""
  rows = []
  for kind in KINDS:
    several = [entry for entry in found if entry.kind == kind]
    if several:
      size = sum(entry.size() for entry in several)
      used = sum(entry.is_in_use() for entry in several)
      days = (time.time() - min(e.last_used() for e in several)) / _DAY
      rows.append(
        f'  {kind:10}{len(several):8}{size / 1e6:12.1f}{used:9}'
        f'{max(days, 0.0):18.0f}  {KINDS[kind]}'
      )
  if not rows:
    return f'{folder}: nothing'
  head = (
    f'  {"kind":10}{"entries":>8}{"MB":>12}{"in use":>9}'
    f'{"oldest use, days":>18}  what it is, and what making it again takes'
  )
  return '\n'.join([str(folder), head, *rows])


def clear(
  found: Sequence[Entry], kinds: Sequence[str], unused_days: float
) -> str:
  """Removes what is not in use; returns what to tell the user.

  Args:
    found: from `entries`.
    kinds: names in KINDS.
    unused_days: what was used since then stays.
  """
  before = time.time() - unused_days * _DAY
  wanted = [entry for entry in found if entry.kind in kinds]
  gone, size = 0, 0
  for entry in wanted:
    # A clock that was set back is no reason to keep what is to go whenever.
    old = not unused_days or entry.last_used() <= before
    bytes_of_it = entry.size()
    if old and entry.remove():
      gone, size = gone + 1, size + bytes_of_it
  text = f'{gone} removed, {size / 1e6:.1f} MB'
  left = len(wanted) - gone
  return text + (f'; {left} in use, or used since, stay' if left else '')


def main(argv: Sequence[str] | None = None) -> None:
  """The command; `argv` None means the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m tlkd_jax.caches',
    description='Lists what the caches hold, and removes what is not in use.',
  )
  parser.add_argument(
    'folders',
    nargs='*',
    metavar='FOLDER',
    help=f'of caches or of a teacher with stored targets; default '
    f'{default_cache_dir()}',
  )
  parser.add_argument(
    '--clear', metavar='KIND[,KIND]', help=f'of {", ".join(KINDS)}'
  )
  parser.add_argument(
    '--unused_days',
    '--unused-days',
    type=float,
    default=None,
    help='of --clear: what was used since then stays; default 0',
  )
  given = parser.parse_args(argv)
  kinds = given.clear.split(',') if given.clear is not None else []
  for kind in kinds:
    if kind not in KINDS:
      parser.error(str(unknown_name('kind of cache', kind, KINDS)))
  if given.unused_days is not None and not kinds:
    parser.error('--unused_days is of --clear KIND')
  if not (given.unused_days or 0.0) >= 0:
    parser.error(f'--unused_days is {given.unused_days}; accepted: 0 or more')
  try:
    for name in given.folders or [default_cache_dir()]:
      folder = expanded(name)
      if given.folders and not folder.is_dir():
        parser.error(f'{folder}: no such folder')
      found = entries(folder)
      print(table(folder, found))
      if kinds:
        print(f'  {clear(found, kinds, given.unused_days or 0.0)}')
  except ValueError as error:
    parser.error(str(error))
  except OSError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  with command_line.reader_may_leave():
    main()
