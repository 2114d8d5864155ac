"""Paths as people write them."""

import os
import pathlib


def expanded(path: str | os.PathLike) -> pathlib.Path:
  """The path with a leading `~` or `~NAME` as a home folder.

  A shell does not expand what stands after a `=`, as in --workdir=~/run.

  Raises:
    ValueError: there is no such home.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    home = pathlib.Path(path).parts[0]
    raise ValueError(
      f'{os.fspath(path)}: no home folder {home} is known; a folder of that '
      f'name is ./{home}'
    ) from error
