"""Folders and archives with what should not be in them."""

import contextlib
import io
import os
import pathlib
import signal
import stat
import tarfile
import tempfile
from collections.abc import Callable, Generator

from tests.data import trees
from tests.reliability import runs
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import Place

_KIND = 'odd folders and archives'
_PETS = {'unsplit': {'cat': 3, 'dog': 3}}
_SPLIT = {'train': {'cat': 3, 'dog': 3}, 'test': {'cat': 1, 'dog': 1}}
_SECONDS = 20
_NOBODY = 65534


class TooLongError(BaseException):
  """No reader catches it."""


def inject(place: Place) -> list[Outcome]:
  """Each odd thing, as an owner reads it, and folders that he may not read."""
  return runs.together(place, [_odd_things, _unreadable, _archives])


def _too_long(*_) -> None:
  raise TooLongError


def _read(what: str, path: pathlib.Path, expected: dict, named: str):
  """What becomes of it: the images that are there, or a message."""
  before = signal.signal(signal.SIGALRM, _too_long)
  signal.alarm(_SECONDS)
  try:
    found = trees.counts(trees.arranged(path))
  except TooLongError:
    return Outcome(_KIND, 'hang', what)
  except (OSError, ValueError) as error:
    clear = bool(named) and named in str(error)
    result = 'refused' if clear else 'traceback'
    return Outcome(_KIND, result, f'{what}: {error!r}')
  # Whatever it is, it is counted.
  except Exception as error:
    return Outcome(_KIND, 'traceback', f'{what}: {error!r}')
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  same = found == expected and not named
  return Outcome(_KIND, 'survived' if same else 'wrong', f'{what}: {found}')


def _link(target: str) -> Callable:
  return lambda path: path.symlink_to(target)


def _two_links(path: pathlib.Path) -> None:
  path.symlink_to('.')
  path.with_name('again').symlink_to('.')


def _device(path: pathlib.Path) -> None:
  with contextlib.suppress(PermissionError):
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _folder(path: pathlib.Path) -> None:
  path.mkdir()


_ODD: dict[str, Callable] = {
  'cat/up': _link('..'),
  'cat/self': _two_links,
  'up': _link('..'),
  'root': _link('/'),
  'cat/more': _link('../dog'),
  'cat/pipe.png': os.mkfifo,
  'cat/zero.png': _link('/dev/zero'),
  'cat/device.png': _device,
  'cat/d.png': _folder,
  'cat/.hidden.png': lambda path: path.write_bytes(trees.PNG),
  '__MACOSX': _folder,
}


def _odd_things(place: Place) -> list[Outcome]:
  found = []
  for number, (name, make) in enumerate(_ODD.items()):
    root = trees.write(place.root / f'odd{number}', 'cat/*3 dog/*3')
    make(root / name)
    found.append(_read(name, root, _PETS, ''))
  root = trees.write(place.root / 'odd-links', 'train/cat/*3 train/dog/*3')
  (root / 'test').symlink_to('train')
  found.append(_read('test as train', root, {}, 'test/ is a link to train/'))
  root = trees.write(place.root / 'odd-bytes', 'cat/*3 dog/*3')
  os.rename(root / 'dog', os.path.join(os.fsencode(root), b'caf\xe9'))
  expected = {'unsplit': {'cat': 3, r'caf\xe9': 3}}
  found.append(_read('a name that is no UTF-8', root, expected, ''))
  return found


@contextlib.contextmanager
def _as_nobody() -> Generator[None]:
  """Without root's right to read everything."""
  if os.geteuid() != 0:
    yield
    return
  os.seteuid(_NOBODY)
  try:
    yield
  finally:
    os.seteuid(0)


def _unreadable(place: Place) -> list[Outcome]:
  """Not in the folder of this process, which nobody else may read."""
  found = []
  text = 'train/cat/*3 train/dog/*3 test/cat/*1 test/dog/*1'
  for name in ('', 'train/cat', 'train', 'test', 'test/dog'):
    with tempfile.TemporaryDirectory(dir='/tmp') as folder:
      os.chmod(folder, 0o755)
      root = trees.write(pathlib.Path(folder) / 'data', text)
      # Loads what reading takes, which only its owner may read.
      trees.arranged(root)
      mode = (root / name).stat().st_mode
      if name:
        (root / name).chmod(0o000)
      with _as_nobody():
        named = f'{name} cannot be read' if name else ''
        found.append(_read(f'unreadable {name}', root, _SPLIT, named))
      (root / name).chmod(mode)
  return found


def _archives(place: Place) -> list[Outcome]:
  """Members that lead elsewhere, and that are no files."""
  members = {
    f'{c}/{n}.png': trees.PNG + c.encode()
    for c in ('cat', 'dog')
    for n in '012'
  }
  found, folder = [], place.root / 'odd-archives'
  folder.mkdir()
  for name in (
    '/etc/cat/x.png',
    '../cat/x.png',
    'C:\\x.png',
    'cat/../../x.png',
  ):
    path = folder / f'{len(found)}.zip'
    trees.write_zip(path, members | {name: trees.PNG})
    found.append(_anything(f'zip with {name}', path))
  path = folder / 'links.tar'
  with tarfile.open(path, 'w') as archive:
    for name, data in members.items():
      about = tarfile.TarInfo(name)
      about.size = len(data)
      archive.addfile(about, io.BytesIO(data))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
      about = tarfile.TarInfo(f'cat/{kind!r}.png')
      about.type, about.linkname = kind, '/etc/passwd'
      archive.addfile(about)
  found.append(_read('tar with links and devices', path, _PETS, ''))
  return found


def _anything(what: str, path: pathlib.Path) -> Outcome:
  """Read without a file outside, or refused with its name."""
  one = _read(what, path, {}, path.name)
  if one.result == 'wrong':
    # Read: whose member led elsewhere is a name like others or left out.
    return Outcome(_KIND, 'survived', one.what)
  return one
