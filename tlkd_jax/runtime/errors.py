"""Errors that are shown to the user as one message, without a traceback."""

import contextlib
import difflib
from collections.abc import Generator, Iterable

# A longer list is not read.
_MOST_SHOWN = 40


class UserError(Exception):
  """A mistake the user can mend: `main` prints it and exits with code 2."""


class RunError(Exception):
  """A run cannot go on; nothing saved is lost. `main` exits with code 1."""


class Interrupted(Exception):
  """A run was asked to stop; what it saved is enough to resume."""


@contextlib.contextmanager
def as_user_errors() -> Generator[None]:
  """Turns the input errors of what it encloses into `UserError`.

  Used around set-up only: a ValueError there is about a name, a file or a
  value of the configuration; one from the training loop would be our bug. Any
  other OSError (a full disk) becomes a `RunError`.
  """
  try:
    yield
  except (
    ValueError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
  ) as error:
    raise UserError(str(error)) from error
  except OSError as error:
    raise RunError(str(error)) from error


def listed(names: Iterable[str], most: int = 8) -> str:
  """Names for a message, the rest of many counted."""
  names = list(names)
  more = f', ... ({len(names) - most} more)' if len(names) > most else ''
  return ', '.join(name[:200] for name in names[:most]) + more


def nearest(name: str, known: Iterable[str]) -> list[str]:
  """Known names that look like one that is not: three at most, best first."""
  return difflib.get_close_matches(name, _in_order(known), n=3, cutoff=0.4)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
  """The error for a name that is not in a dict, with the nearest that are."""
  known = _in_order(known)
  near = nearest(name, known)
  if near:
    return ValueError(
      f'unknown {kind} {name!r}: did you mean {", ".join(near)}?'
    )
  shown, more = known[:_MOST_SHOWN], len(known) - _MOST_SHOWN
  dots = f', ... ({more} more)' if more > 0 else ''
  return ValueError(
    f'unknown {kind} {name!r}: known are {", ".join(shown)}{dots}'
  )


def _in_order(names: Iterable[str]) -> list[str]:
  """Sections before what is in them."""
  return sorted(names, key=lambda name: (name.count('.'), name))
