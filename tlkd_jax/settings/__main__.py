"""Prints docs/configs.md, from the sections' keys.

python -m tlkd_jax.settings > docs/configs.md
"""

import dataclasses
from typing import Any

from tlkd_jax.runtime import command_line
from tlkd_jax.settings.make import make
from tlkd_jax.settings.networks import Teacher
from tlkd_jax.settings.rules import MOST_NAMES, Rule
from tlkd_jax.settings.top import Settings

_HEAD = """# Configuration keys

Made from `tlkd_jax/settings/` by `python -m tlkd_jax.settings`. `student.*`
stands for `teacher.*` too, but for members and member. Any key is set by
`--config.KEY=VALUE`; a wrong one is answered with the nearest that exist, a
wrong value with what is accepted.

## The run
"""
_TITLES = {
  'student': 'student and teacher',
  'study': 'study: configs/study.py alone',
}
_COLUMNS = """
| key | default | accepted | meaning |
| --- | --- | --- | --- |"""


def make_text() -> str:
  """The whole page."""
  settings = make('study')
  lines = [_HEAD.rstrip(), _COLUMNS, *_rows(settings, '')]
  for field in dataclasses.fields(Settings):
    if 'section' not in field.metadata:
      continue
    section, prefix = vars(settings)[field.name], f'{field.name}.'
    if isinstance(section, Teacher):
      # It follows the student, under one title.
      own = tuple(Teacher.__annotations__)
      lines += _rows(section, prefix, own)
      continue
    lines += ['', f'## {_TITLES.get(field.name, field.name)}', _COLUMNS]
    lines += _rows(section, prefix)
  return '\n'.join(lines) + '\n'


def _rows(
  section: Any, prefix: str, names: tuple[str, ...] | None = None
) -> list[str]:
  """A row for each key, or for each of `names`."""
  rows = []
  for field in dataclasses.fields(section):
    if 'rule' not in field.metadata or names and field.name not in names:
      continue
    # 'arm' alone differs between the files of configs/.
    value = vars(section)[field.name] if field.name != 'arm' else field.default
    cells = [
      f'`{prefix}{field.name}`',
      f'`{value!r}`',
      _accepted(field.metadata['rule']),
      field.metadata['meaning'],
    ]
    escaped = [cell.replace('|', '\\|') for cell in cells]
    rows.append(f'| {" | ".join(escaped)} |')
  return rows


def _accepted(rule: Rule) -> str:
  if not rule.names:
    return rule.words
  if len(rule.names) > MOST_NAMES:
    return rule.words + 'a name'
  return rule.words + ', '.join(f'`{name}`' for name in rule.names)


if __name__ == '__main__':
  with command_line.reader_may_leave():
    print(make_text(), end='')
