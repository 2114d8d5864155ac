"""Which of the installed fonts have the letters of a text."""

import functools
import unicodedata
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager, ft2font

# Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and signs.
FIRST = 'DejaVu Sans'
# Where several fonts have the same letters, plain ones come first.
_PLAIN = ('Noto Sans', 'Source Han Sans', 'WenQuanYi', 'Arial', 'PingFang')


def families(text: str) -> list[str]:
  """The fonts to draw a text with, in the order in which they are asked."""
  return [FIRST, *_further(_lacking(text))]


def undrawable(text: str) -> set[str]:
  """The characters of a text that no installed font has."""
  lacking = _lacking(text)
  for family in _further(lacking):
    lacking -= {c for c in lacking if ord(c) in _letters(_paths()[family])}
  return set(lacking)


def _lacking(text: Iterable[str]) -> frozenset[str]:
  """Characters that the first font lacks."""
  own = _letters(_paths()[FIRST])
  return frozenset(c for c in text if ord(c) not in own and not _is_silent(c))


def _is_silent(character: str) -> bool:
  """Whether a character has no picture of its own, as what joins others."""
  kind = unicodedata.category(character)
  return kind == 'Cf' or 0xFE00 <= ord(character) <= 0xFE0F


@functools.lru_cache(maxsize=256)
def _further(lacking: frozenset[str]) -> tuple[str, ...]:
  """The fewest fonts that have all of these characters that any font has."""
  found: list[str] = []
  left = {ord(c) for c in lacking}
  while left:
    best = max(
      sorted(_paths(), key=lambda name: not name.startswith(_PLAIN)),
      key=lambda name: len(left & _letters(_paths()[name])),
    )
    if not left & _letters(_paths()[best]):
      break
    left -= _letters(_paths()[best])
    found.append(best)
  return tuple(found)


@functools.cache
def _paths() -> dict[str, str]:
  """Family -> the file of its upright letters of usual weight."""
  found: dict[str, str] = {}
  # A browser knows those of the system; what matplotlib brings besides is for
  # formulas, or draws boxes.
  own = matplotlib.get_data_path()
  for entry in font_manager.fontManager.ttflist:
    usual = entry.weight in (400, 'normal', 'regular', 'book')
    upright = entry.style == 'normal' and entry.variant == 'normal'
    if upright and usual and (entry.name == FIRST or own not in entry.fname):
      found.setdefault(entry.name, entry.fname)
  return dict(sorted(found.items()))


@functools.cache
def _letters(path: str) -> frozenset[int]:
  """The code points that a font has a picture of."""
  try:
    return frozenset(ft2font.FT2Font(path).get_charmap())
  # A font that cannot be read serves nobody.
  except (OSError, RuntimeError):
    return frozenset()
