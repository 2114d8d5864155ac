"""Files that are whole or not there."""

import os
import pathlib

import numpy as np


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all; several processes may do it at once."""
  temporary = _beside(path)
  temporary.write_text(text)
  temporary.replace(path)


def replace_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a compressed .npz like `replace_text`; its folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _beside(path)
  with temporary.open('wb') as file:
    np.savez_compressed(file, **arrays)
  temporary.replace(path)


def _beside(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.{os.getpid()}.tmp')
