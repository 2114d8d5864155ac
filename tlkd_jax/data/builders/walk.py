"""The regular files of a folder, a zip or a tar: listed once, then read.

Nothing else walks folders or archives of images. A folder is entered once,
however many links lead to it; a fifo, a device or a socket is never opened; a
folder that cannot be read is an error and not an absence; nothing is unpacked
beside a spool that has no name.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import stat
import unicodedata
from collections.abc import Callable, Generator, Iterable
from typing import Any

from tlkd_jax.data import transforms

# Kept by systems and tools, in lower case: no data of anybody.
_SYSTEM = frozenset(
  ('__macosx', '@eadir', '@tmp', '@__thumb', '@recycle', '#recycle')
  + ('#snapshot', '~snapshot', '@recently-snapshot', '$recycle.bin')
  + ('recycler', 'system volume information', 'lost+found', '__pycache__')
  + ('thumbs.db', 'desktop.ini', 'network trash folder', 'temporary items')
)

# Hidden folders that tools are known to make; others may be a user's class.
_TOOLS = frozenset(
  ('.git', '.svn', '.hg', '.cache', '.venv', '.idea', '.vscode', '.tmp')
  + ('.ipynb_checkpoints', '.trash', '.trashes', '.trash-1000', '.snapshot')
  + ('.thumbnails', '.thumb', '.thumbs', '.tmb', '.xvpics', '.@__thumb')
  + ('.appledouble', '.spotlight-v100', '.fseventsd', '.temporaryitems')
  + ('.picasaoriginals', '.comments', '.dropbox.cache', '.dvc', '.huggingface')
)

# A file of more is taken for damage or an attack: it would fill the memory.
MAX_FILE_BYTES = 512 << 20

_SNIFFED = 32
_MOST_KINDS = 20

_CONTROLS = re.compile(r'[\x00-\x1f\x7f\x85\u2028\u2029]')

Parts = tuple[str, ...]


class DamagedError(ValueError):
  """A file's bytes cannot be had, whoever asks: it counts as a bad image."""


@dataclasses.dataclass(frozen=True)
class File:
  """One regular file.

  Attributes:
    name: from the root, with slashes; always encodable as UTF-8.
    size: in bytes, uncompressed.
    stamp: together with the size changes when the content does.
    origin: where its bytes are: a path, or a member of an archive.
    problem: why it cannot be read, '' if it can.
  """

  name: str
  size: int
  stamp: int
  origin: Any
  problem: str = ''

  @property
  def parts(self) -> Parts:
    """The name's folders and the last part."""
    return tuple(self.name.split('/'))


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """What is there and is not read: a file, or a folder with all in it."""

  name: str
  why: str


@dataclasses.dataclass
class Tree:
  """What a folder or an archive holds.

  Attributes:
    location: as the user gave it.
    kind: 'folder', 'zip' or 'tar'.
    read: (file, number of bytes, -1 for all) -> bytes; safe to call from
      threads. Raises DamagedError, and OSError if the file is out of reach.
    folders: all folders, the root is ().
    files: all regular files but those of systems, sorted by name.
    left_out: what else there is.
    hidden: images directly in hidden folders that no tool is known to make.
    links: links to folders that are counted where they are -> the target.
    notes: what a reader should know, one sentence each.
  """

  location: str
  kind: str
  read: Callable[[File, int], bytes]
  folders: set[Parts] = dataclasses.field(default_factory=lambda: {()})
  files: list[File] = dataclasses.field(default_factory=list)
  left_out: list[LeftOut] = dataclasses.field(default_factory=list)
  hidden: dict[Parts, int] = dataclasses.field(default_factory=dict)
  links: dict[Parts, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def open_folder(path: str | os.PathLike) -> Generator[Tree]:
  """The tree of a folder; see `archives.open_tree` for archives too.

  Raises:
    OSError: a folder in it cannot be read; the message names it.
  """
  tree = Tree(os.fspath(path), 'folder', read_file)
  _Walk(tree, pathlib.Path(path).expanduser()).run()
  tree.files.sort(key=lambda file: file.name)
  yield tree


def single(path: pathlib.Path) -> tuple[Tree, list[File]]:
  """One file, whatever its name, as a tree; the second is its only one.

  Raises:
    OSError: it cannot be looked at.
  """
  about = path.stat()
  size, changed = about.st_size, about.st_mtime_ns
  tree = Tree(os.fspath(path.parent), 'folder', read_file)
  tree.files.append(File(path.name, size, changed, os.fspath(path)))
  return tree, tree.files


def images(tree: Tree) -> tuple[list[File], list[LeftOut]]:
  """The image files of a tree, and everything else.

  They are told by how their names end, and by their first bytes where a name
  has no ending.

  Returns:
    (images sorted by name, what is left out, with the tree's own).
  """
  found, others = [], list(tree.left_out)
  for file in tree.files:
    last = file.parts[-1].lower()
    ending = os.path.splitext(last)[1]
    if ending in transforms.suffixes():
      found.append(file)
    elif ending in transforms.HEIF_SUFFIXES:
      hint = 'read after: pip install pillow-heif'
      others.append(LeftOut(file.name, f'{ending}, {hint}'))
    elif not ending and _is_image(tree, file):
      found.append(file)
    else:
      others.append(LeftOut(file.name, ending or 'no suffix, no image'))
  return found, others


def count_left_out(left_out: Iterable[LeftOut]) -> list[dict[str, Any]]:
  """What was left out by its kind: 'why', 'count' and one 'example'."""
  kinds: dict[str, dict[str, Any]] = {}
  for one in left_out:
    new = {'why': one.why, 'count': 0, 'example': one.name}
    kinds.setdefault(one.why, new)['count'] += 1
  ordered = sorted(kinds.values(), key=lambda kind: -kind['count'])
  shown, rest = ordered[:_MOST_KINDS], ordered[_MOST_KINDS:]
  if rest:
    count = sum(kind['count'] for kind in rest)
    shown.append(rest[0] | {'why': 'of other kinds', 'count': count})
  return shown


def read_image(tree: Tree, file: File) -> bytes:
  """The bytes of an image file, or in their place why there are none.

  `transforms.decode_image` makes a BadImageError of the reason, so that damage
  is named where bad images are.

  Raises:
    OSError: the file cannot be read now; the message names it.
  """
  if file.problem:
    return transforms.unreadable(file.problem)
  if file.size > MAX_FILE_BYTES:
    return transforms.unreadable(
      f'{file.size / 2**20:.0f} MiB; a file has at most '
      f'{MAX_FILE_BYTES >> 20} MiB'
    )
  try:
    return tree.read(file, -1)
  except DamagedError as error:
    return transforms.unreadable(str(error))


def is_system(name: str) -> bool:
  """Whether a file or folder is a system's and no data."""
  return name.lower() in _SYSTEM or name.startswith(('._', '.'))


def may_be_class(name: str) -> bool:
  """Whether a hidden folder may be meant as a class."""
  lower = name.lower()
  return lower.startswith('.') and lower not in _TOOLS


def looks_like_image(name: str) -> bool:
  """Whether a name ends as an image's does."""
  return os.path.splitext(name.lower())[1] in transforms.suffixes()


def _is_image(tree: Tree, file: File) -> bool:
  if file.problem or not file.size:
    return False
  try:
    return transforms.is_image(tree.read(file, _SNIFFED))
  except DamagedError:
    return False


def read_file(file: File, count: int = -1) -> bytes:
  """The first bytes of a file whose origin is a path; -1 is all.

  Raises:
    OSError: the message names the file.
  """
  try:
    with open(file.origin, 'rb') as stream:
      return stream.read(count)
  except OSError as error:
    raise _named(error, f'{file.origin} cannot be read') from error


def _named(error: OSError, what: str) -> OSError:
  """The same kind of error with a message that names the place."""
  return type(error)(f'{what}: {error.strerror or error}')


def printable(name: bytes) -> str:
  r"""A name from the system; control characters and no UTF-8 become \xNN."""
  text = name.decode('utf-8', 'backslashreplace')
  return _CONTROLS.sub(lambda found: f'\\x{ord(found[0]):02x}', text)


def composed(names: Iterable[str]) -> dict[str, str]:
  """Names -> the same with composed accents, which a Mac spreads.

  Splits are chosen by names. Those that would become one stay as they are.
  """
  found = {name: unicodedata.normalize('NFC', name) for name in names}
  count = collections.Counter(found.values())
  return {n: new if count[new] == 1 else n for n, new in found.items()}


def spellings(name: str) -> list[str]:
  """A name as it is, with composed accents and with spread ones."""
  forms = (unicodedata.normalize(form, name) for form in ('NFC', 'NFD'))
  return list(dict.fromkeys([name, *forms]))


class _Walk:
  """One walk through a folder: real folders first, then what links lead to."""

  def __init__(self, tree: Tree, root: pathlib.Path):
    self._tree = tree
    self._root = os.fspath(root)
    self._waiting: list[tuple[str, Parts]] = []
    self._seen: dict[tuple[int, int | str], str] = {}
    self._odd_names: list[str] = []

  def run(self) -> None:
    self._enter(self._root, ())
    while self._waiting:
      path, parts = self._waiting.pop(0)
      target = os.path.realpath(path)
      if _holds(target, os.path.realpath(os.path.dirname(path))):
        why = 'link to a folder that it lies in'
        name = '/'.join(parts)
        self._tree.left_out.append(LeftOut(f'{name}/', why))
      else:
        self._enter(path, parts)
    if self._odd_names:
      self._tree.notes.append(
        f'{len(self._odd_names)} names hold control characters or are not '
        f'UTF-8, such as {self._odd_names[0]}'
      )

  def _enter(self, path: str, parts: Parts) -> None:
    below = [(path, parts)]
    while below:
      path, parts = below.pop()
      name = '/'.join(parts)
      entries = _entries(path)
      about = os.stat(path)
      # Some network file systems give every folder the number 0.
      number = about.st_ino or os.path.realpath(path)
      known = self._seen.setdefault((about.st_dev, number), name)
      if known != name:
        why = 'link to a folder that is counted where it is'
        self._tree.left_out.append(LeftOut(f'{name}/', why))
        self._tree.links[parts] = known or '.'
        continue
      self._tree.folders.add(parts)
      shown = [printable(os.fsencode(entry.name)) for entry in entries]
      spelt = composed(shown)
      for entry, name in zip(entries, shown, strict=True):
        if name != entry.name:
          self._odd_names.append('/'.join((*parts, name)))
        name = spelt[name]
        if self._entry(entry, (*parts, name)):
          below.append((entry.path, (*parts, name)))

  def _entry(self, entry: os.DirEntry, parts: Parts) -> bool:
    """Sorts one entry in; returns whether it is a folder to be entered."""
    tree, name = self._tree, '/'.join(parts)
    is_folder = entry.is_dir(follow_symlinks=False)
    if is_system(parts[-1]):
      tree.left_out.append(
        LeftOut(name + '/' * is_folder, "hidden or a system's")
      )
      if is_folder and may_be_class(parts[-1]):
        held = sum(looks_like_image(e.name) for e in _entries(entry.path))
        tree.hidden[parts] = held
      return False
    if is_folder:
      return True
    try:
      about = entry.stat()
    except (FileNotFoundError, NotADirectoryError):
      tree.files.append(File(name, 0, -1, entry.path, 'a link to nothing'))
      return False
    except OSError as error:
      if not entry.is_symlink():
        raise _named(error, f'{entry.path} cannot be read') from error
      problem = f'a link to nothing ({error.strerror})'
      tree.files.append(File(name, 0, -1, entry.path, problem))
      return False
    if stat.S_ISDIR(about.st_mode):
      self._waiting.append((entry.path, parts))
    elif stat.S_ISREG(about.st_mode):
      size, changed = about.st_size, about.st_mtime_ns
      tree.files.append(File(name, size, changed, entry.path))
    else:
      tree.left_out.append(LeftOut(name, 'fifo, socket or device'))
    return False


def _entries(path: str) -> list[os.DirEntry]:
  try:
    with os.scandir(path) as found:
      return sorted(found, key=lambda entry: entry.name)
  except OSError as error:
    raise _named(error, f'folder {path} cannot be read') from error


def _holds(outer: str, inner: str) -> bool:
  return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)
