"""What a key of the configuration accepts, and how a section checks itself.

A section is a frozen dataclass whose fields are made by `key`: default, meaning
and rule stand in one place. Its `__post_init__` calls `settle`.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from tlkd_jax.runtime.errors import nearest, unknown_name
from tlkd_jax.runtime.paths import expanded

# A longer list of names is not read.
MOST_NAMES = 12
# Of float32, in which numbers are computed with; and of int32.
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_MOST = 2**31 - 1


class WrongSettings(ValueError):
  """Values of a configuration that are not accepted, one line for each.

  Attributes:
    problems: the lines, each beginning with the key.
  """

  def __init__(self, problems: list[str]):
    super().__init__('\n'.join(problems))
    self.problems = problems


@dataclasses.dataclass(frozen=True)
class Rule:
  """What one key accepts.

  Attributes:
    kind: type of an accepted value: bool, int, float, str, tuple or dict.
    accept: value -> the value that is kept; raises ValueError or TypeError for
      one that is not accepted.
    words: what is accepted, for messages and the page of keys; stands before
      `names`, if there are any.
    names: what a text may be, () if it is free.
    optional: whether None is accepted too.
    record: class of the values of a dict, None if they are of any kind.
  """

  kind: type
  accept: Callable[[Any], Any]
  words: str = ''
  names: Collection[str] = ()
  optional: bool = False
  record: type | None = None


def flag() -> Rule:
  """True or False."""

  def accept(value):
    if not isinstance(value, bool):
      raise TypeError
    return value

  return Rule(bool, accept, 'true or false')


def whole(least: int = 0, most: int | None = None, *, zero=False) -> Rule:
  """An int in least..most; with `zero`, 0 beside them.

  Without `most` it is one that int32 holds.
  """

  def accept(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
      raise TypeError
    value = int(value)
    inside = least <= value <= (_MOST if most is None else most)
    if not (inside or zero and value == 0):
      raise ValueError
    return value

  words = f'a whole number >= {least}'
  if most is not None:
    words = f'a whole number in [{least}, {most}]'
  return Rule(int, accept, words + ', or 0' * zero)


def number(
  low: float = 0.0,
  high: float = math.inf,
  *,
  above: bool = False,
  below: bool = False,
) -> Rule:
  """A finite number in low..high, without `low` if above, `high` if below.

  What float32 would make infinite, or 0 of another number, is not accepted.
  """

  def accept(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      raise TypeError
    value = float(value)
    if not math.isfinite(value) or abs(value) > _LARGEST:
      raise ValueError
    if 0 < abs(value) < _SMALLEST:
      raise ValueError
    if value < low or value > high:
      raise ValueError
    if (above and value == low) or (below and value == high):
      raise ValueError
    return value

  if high == math.inf:
    words = f'a number {">" if above else ">="} {low:g}'
  else:
    left, right = '(' if above else '[', ')' if below else ']'
    words = f'a number in {left}{low:g}, {high:g}{right}'
  return Rule(float, accept, words)


def text(*, empty: bool = False, start: str = '') -> Rule:
  """Any text that begins with `start`; with `empty`, '' too."""

  def accept(value):
    if not isinstance(value, str):
      raise TypeError
    if value == '' and empty:
      return value
    if not value.startswith(start) or len(value) <= len(start):
      raise ValueError
    return value

  words = f"a text like '{start}...'" if start else 'a text'
  return Rule(str, accept, words + " or ''" * empty)


def location(*, empty: bool = False, start: str = '') -> Rule:
  """A text that is or may be a path, or KIND:PATH: `~` becomes a home."""
  plain = text(empty=empty, start=start)

  def accept(value):
    value = plain.accept(value)
    kind, tilde, path = value.partition('~')
    if not tilde or not re.fullmatch(r'(\w+:)?', kind):
      return value
    return f'{kind}{expanded(tilde + path)}'

  return dataclasses.replace(plain, accept=accept)


def one_of(names: Collection[str]) -> Rule:
  """A text of `names`, which may be a dict that grows later."""

  def accept(value):
    if not isinstance(value, str):
      raise TypeError
    if value not in names:
      raise ValueError
    return value

  return Rule(str, accept, names=names)


def optional(rule: Rule) -> Rule:
  """None, which a command line gives as a text, or what the rule accepts."""

  def accept(value):
    return None if value is None or value == 'None' else rule.accept(value)

  words = 'None, or one of: ' if rule.names else f'{rule.words}, or None'
  return dataclasses.replace(rule, accept=accept, words=words, optional=True)


def several(rule: Rule, *, empty: bool = True) -> Rule:
  """A tuple (or list) of what the rule accepts."""

  def accept(value):
    if not isinstance(value, tuple | list):
      raise TypeError
    if not (value or empty):
      raise ValueError
    return tuple(rule.accept(item) for item in value)

  words = 'a tuple of: ' if rule.names else f'a tuple, each {rule.words}'
  return Rule(tuple, accept, words, rule.names)


def interval(rule: Rule) -> Rule:
  """A tuple of two numbers that the rule accepts, the first not the larger."""

  def accept(value):
    first, second = several(rule).accept(value)
    if first > second:
      raise ValueError
    return first, second

  return Rule(
    tuple, accept, f'two numbers, the smaller first, each {rule.words}'
  )


def mapping() -> Rule:
  """A dict with texts for keys; the section looks at its values itself."""

  def accept(value):
    if not isinstance(value, Mapping) or not all(
      isinstance(name, str) for name in value
    ):
      raise TypeError
    return dict(value)

  return Rule(dict, accept, 'a dict')


def records(kind: type) -> Rule:
  """A dict of texts to records, or to the dicts that they are built from."""
  return dataclasses.replace(mapping(), record=kind)


def key(default: Any, meaning: str, rule: Rule) -> Any:
  """A field of a section: one key of the configuration."""
  metadata = {'meaning': meaning, 'rule': rule}
  if isinstance(default, dict):
    return dataclasses.field(
      default_factory=lambda: dict(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, *, absent: bool = False) -> Any:
  """A field that is a section with its defaults; if absent, None."""
  metadata = {'section': kind}
  if absent:
    return dataclasses.field(default=None, metadata=metadata)
  return dataclasses.field(default_factory=kind, metadata=metadata)


def problem(place: str, value: Any, rule: Rule) -> str:
  """The line about a value that a rule does not accept."""
  line = f'{place} is {value!r}; accepted: '
  names = list(rule.names)
  if not names:
    return line + rule.words
  wrong = value
  if isinstance(value, tuple | list):
    wrong = next((item for item in value if item not in names), '')
  near = nearest(str(wrong), names)
  if len(names) > MOST_NAMES:
    more = len(names) - MOST_NAMES
    names = [*sorted(names)[:MOST_NAMES], f'... ({more} more)']
  line += rule.words + ', '.join(names)
  return line + (f'; did you mean {", ".join(near)}?' if near else '')


def checked(
  kind: type, values: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[str]]:
  """Checks values of a section's own keys.

  Args:
    kind: the section's class.
    values: key -> value; sections in it are passed over.
    place: the section's name, '' for the run itself.

  Returns:
    (key -> converted value of those accepted, one line for each other).
  """
  kept, problems = {}, []
  for field in dataclasses.fields(kind):
    if 'rule' not in field.metadata or field.name not in values:
      continue
    rule, value = field.metadata['rule'], values[field.name]
    where = _join(place, field.name)
    try:
      kept[field.name] = rule.accept(value)
    except (TypeError, ValueError):
      problems.append(problem(where, value, rule))
      continue
    if rule.record is not None:
      kept[field.name], wrong = _build_each(rule.record, value, where)
      problems += wrong
  return kept, problems


def build(kind: type, values: Any, place: str) -> tuple[Any, list[str]]:
  """A record from nested values, or what is wrong with them.

  Args:
    kind: the record's class.
    values: key -> value, or a record of that class; keys that are missing have
      their defaults.
    place: the record's name, '' for the run itself.

  Returns:
    (the record or None, one line for each wrong key or value).
  """
  if isinstance(values, kind):
    values = vars(values)
  if not isinstance(values, Mapping):
    return None, [f'{place} is {values!r}; accepted: a dict of its keys']
  known = keys_of(kind, place)
  fields = {field.name: field for field in dataclasses.fields(kind)}
  problems = [
    str(unknown_name('configuration key', _join(place, name), known))
    for name in values
    if name not in fields
  ]
  own, wrong = checked(kind, values, place)
  problems += wrong
  for name, field in fields.items():
    inner = field.metadata.get('section')
    if inner is None or name not in values:
      continue
    if values[name] is None and field.default is None:
      continue
    own[name], wrong = build(inner, values[name], _join(place, name))
    problems += wrong
  if problems:
    return None, problems
  try:
    return kind(**own), []
  except WrongSettings as error:
    return None, error.problems


def keys_of(kind: type, place: str = '') -> list[str]:
  """Dotted keys of a section and of those in it."""
  found = []
  for field in dataclasses.fields(kind):
    name, inner = _join(place, field.name), field.metadata.get('section')
    found += [name] if inner is None else [name, *keys_of(inner, name)]
  return found


def settle(record: Any, place: str) -> list[str]:
  """Checks a section's keys and keeps them in their types, from inside it.

  Returns:
    One line for each wrong value.
  """
  kept, problems = checked(type(record), vars(record), place)
  for field in dataclasses.fields(record):
    inner, value = field.metadata.get('section'), vars(record)[field.name]
    absent = value is None and field.default is None
    if inner is not None and not (absent or isinstance(value, inner)):
      where, words = _join(place, field.name), f'settings.{inner.__name__}'
      problems.append(f'{where} is {value!r}; accepted: {words}')
  for name, value in kept.items():
    object.__setattr__(record, name, value)
  return problems


def _build_each(
  kind: type, values: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[str]]:
  found, problems = {}, []
  for name, value in values.items():
    found[name], wrong = build(kind, value, _join(place, name))
    problems += wrong
  return found, problems


def _join(place: str, name: str) -> str:
  return f'{place}.{name}' if place else name


def refuse(problems: list[str]) -> None:
  """Raises WrongSettings if there are problems."""
  if problems:
    raise WrongSettings(problems)
