"""Files that are whole or not there."""

import contextlib
import glob
import os
import pathlib
import re
import secrets
import time
from collections.abc import Generator, Iterable

import numpy as np

from tlkd_jax.runtime import interrupts

# Earlier versions named the process alone.
_TEMPORARY = re.compile(r'.+\.\d+(-[0-9a-f]{8})?\.tmp')
# What was not written to for so long, nobody writes.
STALE_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Generator[pathlib.Path]:
  """A temporary file that becomes `path` unless something is raised.

  Several processes may do it at once. What was raised leaves nothing behind; a
  kill leaves the temporary file, which `sweep` or a later write removes.
  """
  # Processes of two containers may have one number.
  own = f'{os.getpid()}-{secrets.token_hex(4)}'
  temporary = path.with_name(f'{path.name}.{own}.tmp')
  for left in path.parent.glob(f'{glob.escape(path.name)}.*.tmp'):
    if _TEMPORARY.fullmatch(left.name):
      _remove_stale(left)
  try:
    with interrupts.undone(temporary.unlink):
      yield temporary
      temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def sweep(folder: pathlib.Path) -> None:
  """Removes what killed writes left in a run's folder.

  Of a folder that nobody else writes to; not deeper than files are written.
  """
  for place in ('.', '.sums', '*/.sums', 'predictions', 'evaluation'):
    _sweep(folder.glob(f'{place}/*.tmp'))


def sweep_store(folder: pathlib.Path) -> None:
  """The same of a folder of files without folders, alone in it too."""
  with contextlib.suppress(OSError):
    _sweep(folder.glob('*.tmp'))


def _sweep(paths: Iterable[pathlib.Path]) -> None:
  for path in paths:
    if _TEMPORARY.fullmatch(path.name):
      path.unlink(missing_ok=True)


def _remove_stale(temporary: pathlib.Path) -> None:
  with contextlib.suppress(OSError):
    if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
      temporary.unlink()


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def replace_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a compressed .npz whole or not at all; its folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary, temporary.open('wb') as file:
    np.savez_compressed(file, **arrays)
