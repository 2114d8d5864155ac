"""Parsers that take what the standards allow and nothing else."""

import csv
import io
import json

import html5lib

# Names of classes that break what was written for plain ones.
NAMES = (
  'file',
  'class',
  'confidence',
  '=1+1',
  "=cmd|' /C calc'!A0",
  '+a',
  '-a',
  '@a',
  '\ta',
  '\ra',
  '<b>x',
  '</script><script>alert(1)</script>',
  '" onload="alert(1)',
  '猫',
  'किताब',
  'a\nb',
  'a|b',
  '"',
  "'",
  '`',
  '``a` *b* _c_ [d](e)',
  '$x_$',
  '\\',
  '👩\u200d🔬',
  '\u202egnp.exe',
  '\x1b[31m',
  'a,b;c',
  '#010203',
  ' ',
  '',
)
NUMBERS = (float('nan'), float('inf'), float('-inf'))


def parse_json(text: str):
  """Refuses NaN, Infinity and a key that stands twice."""

  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  def unique(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), keys
    return dict(pairs)

  return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def parse_html(text: str):
  """Refuses what a browser would have to guess."""
  return html5lib.HTMLParser(strict=True).parse(text)


def parse_csv(text: str) -> list[dict[str, str]]:
  """Refuses a column that stands twice, and rows of another length."""
  head, *rows = csv.reader(io.StringIO(text, newline=''), strict=True)
  assert len(set(head)) == len(head), head
  return [dict(zip(head, row, strict=True)) for row in rows]
