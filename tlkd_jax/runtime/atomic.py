"""Files that are whole or not there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from tlkd_jax.runtime import interrupts


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary file that becomes `path` unless something is raised.

  Several processes may do it at once. What was raised leaves nothing behind.
  """
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with interrupts.undone(temporary.unlink):
      yield temporary
      temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def replace_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a compressed .npz whole or not at all; its folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary, temporary.open('wb') as file:
    np.savez_compressed(file, **arrays)
