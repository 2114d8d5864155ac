"""Files of rows and columns: CSV, TSV, JSON lines, parquet.

Cells are texts in CSV and TSV, values of any kind elsewhere. A row that does
not fit the header is an error that names its line: read on, its label would be
another column's.
"""

import codecs
import csv
import dataclasses
import io
import json
import os
import re
from typing import Any

# How names of such files end, in lower case.
SUFFIXES = ('.csv', '.tsv', '.jsonl', '.ndjson', '.json', '.txt', '.parquet')

# The first that makes most columns of the header; a space only if no other
# makes two.
_DELIMITERS = (',', '\t', ';', '|')
_BOMS = {
  codecs.BOM_UTF8: 'utf-8-sig',
  codecs.BOM_UTF32_LE: 'utf-32',
  codecs.BOM_UTF32_BE: 'utf-32',
  codecs.BOM_UTF16_LE: 'utf-16',
  codecs.BOM_UTF16_BE: 'utf-16',
}
_OTHER_FILES = {
  b'PK\x03\x04': 'a zip or an Excel workbook; save it as CSV',
  b'\xd0\xcf\x11\xe0': 'an Excel workbook; save it as CSV',
  b'\x1f\x8b': 'compressed; unpack it first',
  b'version https://git-lfs': 'a pointer of Git LFS; run git lfs pull',
}
# A first line that names the delimiter to Excel.
_EXCEL = re.compile('sep=.', re.IGNORECASE)
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Table:
  """A table by columns.

  Attributes:
    where: what messages call it.
    columns: name -> N values; None where a row of JSON lacks the key.
    lines: N, the line of the file on which each row begins.
  """

  where: str
  columns: dict[str, list[Any]]
  lines: list[int]

  def __len__(self) -> int:
    return len(self.lines)


def read(where: str, name: str, data: bytes) -> Table:
  """Reads a table.

  Args:
    where: what messages shall call it.
    name: of the file; its ending and the first character tell the format.
    data: its bytes.

  Raises:
    ValueError: it is not such a file, or a row does not fit its header.
  """
  for start, what in _OTHER_FILES.items():
    if data.startswith(start):
      raise ValueError(f'{where} is {what}')
  ending = os.path.splitext(name.lower())[1]
  if ending == '.parquet' or data.startswith(b'PAR1'):
    return _read_parquet(where, data)
  text = _decode(where, data)
  if ending in ('.jsonl', '.ndjson', '.json') or text.lstrip()[:1] in (
    '{',
    '[',
  ):
    return _read_json(where, text)
  return _read_csv(where, text)


def _decode(where: str, data: bytes) -> str:
  encoding = next((e for b, e in _BOMS.items() if data.startswith(b)), 'utf-8')
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b'\n') + 1
    raise ValueError(
      f'{where}, line {line}: not text in {encoding.upper()}; save the file in '
      'UTF-8'
    ) from error
  if '\0' in text:
    raise ValueError(f'{where} is not text in UTF-8; save it in UTF-8')
  return text


def _read_csv(where: str, text: str) -> Table:
  lines = io.StringIO(text, newline='').readlines()
  start = next((n for n, line in enumerate(lines) if line.strip()), len(lines))
  delimiter = None
  if start < len(lines) and _EXCEL.fullmatch(lines[start].strip('\r\n')):
    delimiter = lines[start][4]
    start += 1
  if start >= len(lines):
    raise ValueError(f'{where} is empty; expected a line of column names')
  delimiter = delimiter or _delimiter(where, lines[start])
  rows = csv.reader(
    lines[start:], delimiter=delimiter, strict=True, skipinitialspace=True
  )
  header: list[str] = []
  found: list[list[str]] = []
  numbers, ragged = [], []
  begins = start + 1
  try:
    for row in rows:
      cells, line = [cell.strip() for cell in row], begins
      begins = start + rows.line_num + 1
      if not any(cells):
        continue
      if not header:
        header = cells
      elif len(cells) != len(header):
        ragged.append(line)
      else:
        found.append(cells)
        numbers.append(line)
  except csv.Error as error:
    raise ValueError(f'{where}, line {begins}: {error}') from error
  if ragged:
    raise ValueError(
      f'{where}: {len(header)} columns in the header ({", ".join(header)}), '
      f'another number in line {shown(ragged)}; a {delimiter!r} within a cell '
      'needs quotation marks around it'
    )
  _check_header(where, header)
  columns = [list(column) for column in zip(*found, strict=True)]
  named = dict(zip(header, columns or [[] for _ in header], strict=True))
  return Table(where, named, numbers)


def _delimiter(where: str, header: str) -> str:
  def count(delimiter: str) -> int:
    try:
      return len(next(csv.reader([header], delimiter=delimiter)))
    except csv.Error:
      return 0

  best = max(_DELIMITERS, key=count)
  if count(best) > 1:
    return best
  if count(' ') > 1:
    return ' '
  raise ValueError(
    f'{where}: one column only ({header.strip()!r}); expected a line of column '
    'names such as path,label'
  )


def _check_header(where: str, header: list[str]) -> None:
  twice = sorted({name for name in header if name and header.count(name) > 1})
  if twice:
    raise ValueError(f'{where}: column {shown(twice)} is there twice')


def _read_json(where: str, text: str) -> Table:
  """One object a line, or a list of them."""
  try:
    whole = json.loads(text)
  except ValueError:
    whole = None
  if isinstance(whole, list):
    rows, numbers = whole, list(range(1, len(whole) + 1))
    kind = 'item'
  else:
    rows, numbers, kind = [], [], 'line'
    for number, line in enumerate(io.StringIO(text), 1):
      if not line.strip():
        continue
      try:
        rows.append(json.loads(line))
      except ValueError as error:
        raise ValueError(
          f'{where}, line {number}: not JSON: {error}; expected an object a '
          'line'
        ) from error
      numbers.append(number)
  for row, number in zip(rows, numbers, strict=True):
    if not isinstance(row, dict):
      raise ValueError(
        f'{where}, {kind} {number}: {str(row)[:40]!r}; expected an object such '
        'as {"path": "1.jpg", "label": "cat"}'
      )
  names = dict.fromkeys(name for row in rows for name in row)
  columns = {name: [row.get(name) for row in rows] for name in names}
  if not rows:
    raise ValueError(f'{where} is empty; expected an object a line')
  return Table(where, columns, numbers)


def _read_parquet(where: str, data: bytes) -> Table:
  arrow = pyarrow(where)
  try:
    table = arrow.parquet.read_table(io.BytesIO(data))
  except arrow.ArrowException as error:
    raise ValueError(f'{where} is no parquet file: {error}') from error
  lines = list(range(1, table.num_rows + 1))
  return Table(where, table.to_pydict(), lines)


def pyarrow(where: str) -> Any:
  """The package, with its part for parquet.

  Raises:
    ValueError: it is not installed; the message says how to get it.
  """
  try:
    import pyarrow
    import pyarrow.parquet  # noqa: F401
  except ImportError as error:
    raise ValueError(
      f'{where}: parquet and arrow files need pyarrow: pip install pyarrow, or '
      "pip install 'tlkd_jax[parquet]'"
    ) from error
  return pyarrow


def shown(items: list[Any]) -> str:
  """The first of a list, and how many more."""
  more = f', ... ({len(items) - _SHOWN} more)' if len(items) > _SHOWN else ''
  return ', '.join(map(str, items[:_SHOWN])) + more
