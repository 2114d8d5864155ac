"""What a report is made of, independent of how it is written down."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph; kind 'p', 'lead' (the answer) or 'missing'."""

  text: str
  kind: str = 'p'


@dataclasses.dataclass(frozen=True)
class Table:
  """Numbers with their origin.

  Attributes:
    title: says what the table holds.
    columns: headings.
    rows: strings, numbers, None (not measured).
    source: files that the numbers come from, relative to the report.
    note: how to read it.
  """

  title: str
  columns: list[str]
  rows: list[list[Any]]
  source: str
  note: str = ''


def named_table(
  title: str,
  rows: Sequence[Mapping[str, Any]],
  source: str,
  note: str = '',
) -> Table:
  """A table of named rows, column -> cell, so that no cell can shift.

  Args:
    title: says what the table holds.
    rows: all with the columns of the first, in whatever order; without a row
      the table has no column either.
    source: as of Table.
    note: as of Table.

  Raises:
    ValueError: a row lacks a column, or has one that the first lacks.
  """
  columns = list(rows[0]) if rows else []
  for number, row in enumerate(rows):
    if row.keys() != rows[0].keys():
      odd = ', '.join(map(repr, sorted(row.keys() ^ rows[0].keys())))
      raise ValueError(
        f'table {title!r}: row {number} differs from row 0 in {odd}'
      )
  cells = [[row[column] for column in columns] for row in rows]
  return Table(title, columns, cells, source, note)


@dataclasses.dataclass(frozen=True)
class Figure:
  """Panels side by side, with the numbers that they show.

  Attributes:
    title: what is shown.
    panels: SVG texts.
    alt: the message in words, for those who cannot see it.
    data: the numbers drawn.
    legend: (label, colour, dash pattern) of the lines, may be empty.
    narrow: panels may be small, because there are many.
    note: how to read it.
  """

  title: str
  panels: list[str]
  alt: str
  data: Table
  legend: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
  narrow: bool = False
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Picture:
  """JPEGs that belong together, with one caption."""

  images: list[tuple[bytes, str]]
  caption: str


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Pictures, where they come from, and numbers that belong to them."""

  title: str
  pictures: list[Picture]
  source: str
  note: str = ''
  data: Table | None = None


Block = Text | Table | Figure | Gallery


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with its blocks; `key` is unique."""

  key: str
  title: str
  blocks: list[Block]


_CODE = re.compile(r'`([^`]+)`')


def spans(text: str) -> Iterator[tuple[str, bool]]:
  """The parts of a text, and whether each stood between backticks."""
  end = 0
  for found in _CODE.finditer(text):
    yield text[end : found.start()], False
    yield found.group(1), True
    end = found.end()
  yield text[end:], False


def show(value: Any, signed: bool = False) -> str:
  """A cell as text: three decimals, more for small numbers, '–' for none."""
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return '–'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    size = abs(value)
    if size >= 1000:
      text = f'{value:,.0f}'
    elif size >= 100:
      text = f'{value:.1f}'
    elif size >= 0.001 or size == 0:
      text = f'{value:.3f}'
    else:
      text = f'{value:.2g}'
    return f'+{text}' if signed and value > 0 else text
  if isinstance(value, int):
    return f'{value:,}'
  return str(value)


def interval(low: float, high: float) -> str:
  """'+0.010 to +0.030', or '–' where either is undefined."""
  if math.isnan(low) or math.isnan(high):
    return '–'
  return f'{show(low, signed=True)} to {show(high, signed=True)}'
