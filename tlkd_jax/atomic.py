"""Files that are whole or not there."""

import os
import pathlib


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all; several processes may do it at once."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_text(text)
  temporary.replace(path)
