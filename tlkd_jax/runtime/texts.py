"""Names of strangers, such as classes and files, and times, for people."""

import re
import unicodedata

# Controls (and with them ends of lines), halves of pairs, what has no meaning
# yet, and what turns the direction of everything after it. What joins letters
# or emoji, or marks a direction, is part of names.
_ODD_KINDS = ('Cc', 'Cs', 'Cn', 'Zl', 'Zp')
_TURNS = frozenset('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')
_PLAIN = re.compile(r'[ -~]*')


def visible(text: str) -> str:
  r"""The text on one line, with \xNN, \uNNNN for what cannot be seen.

  A name that holds a newline breaks no table, and one that turns the direction
  of writing hides nothing of what stands around it.
  """
  if _PLAIN.fullmatch(text):
    return text
  return ''.join(escaped(c) if _is_odd(c) else c for c in text)


def escaped(character: str) -> str:
  r"""One character as \xNN, \uNNNN or \UNNNNNNNN."""
  code = ord(character)
  if code < 0x100:
    return f'\\x{code:02x}'
  return f'\\u{code:04x}' if code < 0x10000 else f'\\U{code:08x}'


def duration(seconds: float) -> str:
  """'89 s', '10 min', '2 h 30 min'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  if not hours:
    return f'{minutes} min'
  return f'{hours} h {minutes} min' if minutes else f'{hours} h'


def _is_odd(character: str) -> bool:
  kind = unicodedata.category(character)
  return kind in _ODD_KINDS or character in _TURNS
