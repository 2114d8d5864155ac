"""Paths as people write them."""

import os
import pathlib


def expanded(path: str | os.PathLike) -> pathlib.Path:
  """The path with a leading `~` or `~NAME` as a home folder.

  A shell does not expand what stands after a `=`, as in --workdir=~/run.

  Raises:
    ValueError: there is no such home.
  """
  text = os.fspath(path)
  found = os.path.expanduser(text)
  if text.startswith('~') and found == text:
    home = text.partition('/')[0]
    raise ValueError(
      f'{text}: no home folder {home} is known; a folder of that name is '
      f'./{home}'
    )
  return pathlib.Path(found)
