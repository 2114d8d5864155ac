"""Records that say when they are damaged.

Beside a file F lies `.sums/F.blake2b`, the digest of its bytes. What another
tool or an earlier version wrote has none and is taken as it is.
"""

import hashlib
import json
import pathlib
from typing import Any

from tlkd_jax.runtime.atomic import replace_text, replacing

FOLDER = '.sums'


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all, and its digest after it.

  A kill between the two leaves a file that nothing is known of; a write that
  fails, as on a full disk, what was there and its digest.
  """
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')
    unseal(path)
  seal(path)


def seal(path: pathlib.Path) -> None:
  """Writes the digest of a file that will not change any more."""
  digest = place_of(path)
  digest.parent.mkdir(exist_ok=True)
  replace_text(digest, _digest(path.read_bytes()))


def unseal(path: pathlib.Path) -> None:
  """Forgets the digest of a file that is about to change."""
  place_of(path).unlink(missing_ok=True)


def read_text(path: pathlib.Path) -> str:
  """Reads what `write_text` wrote, or any other file in UTF-8.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is no longer what was written, or no UTF-8.
  """
  content = read_bytes(path)
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def read_bytes(path: pathlib.Path) -> bytes:
  """What a file holds, compared with its digest where there is one.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is no longer what was written.
  """
  content = path.read_bytes()
  digest = place_of(path)
  if digest.exists():
    expected = digest.read_text(errors='replace').strip()
    if expected != _digest(content):
      raise ValueError(
        f'{path} is damaged: its bytes are not those that were written, by '
        f'{digest}. Take it from a copy; if it was changed on purpose, delete '
        'the digest'
      )
  return content


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged; the message names it.
  """
  text = read_text(path)
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError(f'{path} is damaged: nested without end') from error
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def place_of(path: pathlib.Path) -> pathlib.Path:
  """The file that holds a file's digest."""
  return path.parent / FOLDER / f'{path.name}.blake2b'


def _digest(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest()
