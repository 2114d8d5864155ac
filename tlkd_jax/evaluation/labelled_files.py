"""Files of predicted classes, whatever the classes and images are called.

The columns are `file`, `class`, `confidence`, the probability of that class,
then the probability of each class under its name. A class that is called as one
of the first three, or as another's column, has the column `p(NAME)`.

In CSV a text that begins with one of = + - @, a tab, a carriage return or a
line feed, which spreadsheets take for a formula, or with an apostrophe, has an
apostrophe before it; without the first apostrophe every text is as it was.
Texts are quoted, numbers are not. JSON lines hold every text as it is.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlkd_jax.evaluation import records

_FIRST = ('file', 'class', 'confidence')
# The full-width forms are the same to spreadsheets.
_FORMULA = tuple("=+-@\t\r\n'＝＋－＠")
_DIGITS = 6

Row = dict[str, Any]


def make_rows(
  names: Sequence[str],
  class_names: Sequence[str],
  probabilities: np.ndarray,
) -> list[Row]:
  """A row for each image: column -> text or number.

  Args:
    names: N, of the images.
    class_names: K.
    probabilities: float [N, K].
  """
  columns = class_columns(class_names)
  rows = []
  for name, each in zip(names, probabilities, strict=True):
    rounded = [round(float(p), _DIGITS) for p in each]
    best = int(each.argmax())
    first = (name, class_names[best], rounded[best])
    cells = zip((*_FIRST, *columns), (*first, *rounded), strict=True)
    rows.append(dict(cells))
  return rows


def class_columns(class_names: Sequence[str]) -> list[str]:
  """The column of each class; no two are the same, nor one of the first."""
  taken = {*_FIRST, *class_names}
  seen = set(_FIRST)
  columns = []
  for name in class_names:
    if name in seen:
      while name in taken:
        name = f'p({name})'
      taken.add(name)
    seen.add(name)
    columns.append(name)
  return columns


def as_csv(rows: Sequence[Row]) -> str:
  """Rows of one set of columns, with a line of headings."""
  text = io.StringIO(newline='')
  writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator='\n')
  writer.writerow(map(_no_formula, rows[0]))
  for row in rows:
    plain = records.plain(row)
    writer.writerow(map(_no_formula, plain.values()))
  return text.getvalue()


def as_json_lines(rows: Sequence[Row]) -> str:
  """An object on each line."""
  return ''.join(records.dumps(row) + '\n' for row in rows)


def _no_formula(value: Any) -> Any:
  if isinstance(value, str) and value.startswith(_FORMULA):
    return f"'{value}"
  return value
