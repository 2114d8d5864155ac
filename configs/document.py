"""docs/configs.md, from the keys and comments of configs/base.py.

python -m configs.document > docs/configs.md
"""

import pathlib
import re

from configs import base

_ASSIGNED = re.compile(r'  (\w+)((?:\.\w+)+) = (.*)$')
# Variables of base.py that are not called like their section.
_SECTIONS = {'config': ('',), 'model': ('student.', 'teacher.')}
_TITLES = {
  '': 'The run',
  'student': 'student and teacher',
  'study': 'study: configs/study.py alone',
}


def read_comments(text: str) -> dict[str, str]:
  """Key -> its comment; a line without one shares that of the line above."""
  found: dict[str, str] = {}
  above: list[str] = []
  last = ''
  for line in text.partition('def _smoke')[0].splitlines():
    match = _ASSIGNED.match(line)
    if match is None:
      note = re.match(r'  # (.*)$', line)
      above = [*above, note.group(1)] if note else []
      continue
    variable, path, rest = match.groups()
    _, hash_sign, trailing = rest.partition('  # ')
    last = trailing if hash_sign else ' '.join(above) or last
    above = []
    for prefix in _SECTIONS.get(variable, (f'{variable}.',)):
      found.setdefault(prefix + path[1:], last)
  return found


def make_text() -> str:
  """The whole page."""
  comments = read_comments(pathlib.Path(base.__file__).read_text())
  rows: dict[str, list[str]] = {}
  config = base.get_base(None, 'study')
  config.arm = 'kd'
  for key, value in _leaves(config):
    section = key.rpartition('.')[0].partition('.')[0]
    shared = section == 'teacher' and f'student.{key[8:]}' in comments
    if shared and key != 'teacher.name':
      continue
    place = {'teacher': 'student'}.get(section, section)
    line = f'| `{key}` | `{value!r}` | {_comment(comments, key)} |'
    rows.setdefault(place, []).append(line)
  lines = [
    '# Configuration keys',
    '',
    'Made from `configs/base.py` by `python -m configs.document`; the defaults',
    'are those of `configs/kd.py`. `student.*` stands for `teacher.*` too. Any',
    'key is set by `--config.KEY=VALUE`; a wrong one is answered with the',
    'nearest that exist.',
  ]
  for place, found in rows.items():
    lines += ['', f'## {_TITLES.get(place, place)}', '']
    lines += ['| key | default | meaning |', '| --- | --- | --- |', *found]
  return '\n'.join(lines) + '\n'


def _comment(comments: dict[str, str], key: str) -> str:
  while key and key not in comments:
    key = key.rpartition('.')[0]
  return comments[key].replace('|', '\\|')


def _leaves(section, prefix: str = ''):
  for key, value in section.items():
    if hasattr(value, 'items') and (len(value) or key == 'options'):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value if not hasattr(value, 'items') else {}


if __name__ == '__main__':
  print(make_text(), end='')
