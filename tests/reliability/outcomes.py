"""What became of each injection, and the table of them."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

KINDS = ('survived', 'refused', 'lost', 'wrong', 'traceback', 'hang')
BAD = ('lost', 'wrong', 'traceback', 'hang')
_TITLES = {'refused': 'refused clearly', 'wrong': 'silently wrong'}
_TRACE = 'Traceback (most recent call last)'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Of one injection.

  Attributes:
    kind: a row of the table.
    result: one of KINDS.
    what: was injected, and what came of it, where it is bad.
  """

  kind: str
  result: str
  what: str = ''


def of_process(code: int | None, error: str, differs: Sequence[str]) -> str:
  """The result of a command.

  Args:
    code: it ended with; None where it did not end in its time.
    error: its standard error.
    differs: in what its results are not as they should be, where it says that
      all is well.
  """
  if code is None:
    return 'hang'
  if _TRACE in error or code < 0 or code >= 128:
    return 'traceback'
  if code:
    return 'refused' if 'error: ' in error else 'traceback'
  return 'wrong' if differs else 'survived'


def of_reading(error: BaseException | None, named: str, same: bool) -> str:
  """The result of reading a file.

  Args:
    error: what was raised; None where something was read.
    named: what its message must hold.
    same: whether what was read is what was written.
  """
  if error is None:
    return 'survived' if same else 'wrong'
  clear = isinstance(error, ValueError) and named in str(error)
  return 'refused' if clear else 'traceback'


def table(found: Iterable[Outcome]) -> str:
  """Markdown: a line for each kind, and their sum."""
  counts: dict[str, collections.Counter] = {}
  for one in found:
    counts.setdefault(one.kind, collections.Counter())[one.result] += 1
  counts['all'] = sum(counts.values(), collections.Counter())
  lines = [['kind', 'injected', *(_TITLES.get(k, k) for k in KINDS)]]
  lines.append(['---'] * len(lines[0]))
  for kind, by_result in counts.items():
    numbers = [by_result.total(), *(by_result[k] for k in KINDS)]
    lines.append([kind, *map(str, numbers)])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def bad(found: Iterable[Outcome]) -> list[str]:
  """What must not be, a line each."""
  return [
    f'{one.kind}: {one.result}: {one.what}'
    for one in found
    if one.result in BAD
  ]
