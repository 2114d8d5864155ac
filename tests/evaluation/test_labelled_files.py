"""Predicted classes in files that every reader takes, whatever the names."""

import csv

import numpy as np
import pytest

from tests import strict
from tlkd_jax.evaluation import labelled_files

# What Excel, LibreOffice and Google's tables take for a formula.
FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠')


def make(class_names, files=('a.png', '=1+1.png')):
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.ones(len(class_names)), len(files))
  return labelled_files.make_rows(files, class_names, probabilities)


@pytest.mark.parametrize(
  ('names', 'columns'),
  [
    (['cat', 'dog'], ['cat', 'dog']),
    (['file', 'cat'], ['p(file)', 'cat']),
    (
      ['class', 'confidence', 'file'],
      ['p(class)', 'p(confidence)', 'p(file)'],
    ),
    (['Confidence', 'p(confidence)'], ['Confidence', 'p(confidence)']),
    (
      ['confidence', 'p(confidence)'],
      ['p(p(confidence))', 'p(confidence)'],
    ),
    (['File', 'CLASS', ' file'], ['File', 'CLASS', ' file']),
    (['file', 'p(file)'], ['p(p(file))', 'p(file)']),
    (['p(file)', 'file'], ['p(file)', 'p(p(file))']),
    (
      ['p(class)', 'class', 'p(p(class))'],
      ['p(class)', 'p(p(p(class)))', 'p(p(class))'],
    ),
    (['cat', 'cat', 'cat'], ['cat', 'p(cat)', 'p(p(cat))']),
  ],
)
def test_each_class_has_a_column_of_its_own(names, columns):
  assert labelled_files.class_columns(names) == columns
  (row, _) = make(names)
  assert list(row) == ['file', 'class', 'confidence', *columns]
  assert row['file'] == 'a.png' and row['class'] in names
  values = [row[column] for column in columns]
  assert row['class'] == names[int(np.argmax(values))]
  assert row['confidence'] == max(values)


def read(name: str, write) -> list[dict]:
  text = write(make([name, 'other']))
  if write is labelled_files.as_json_lines:
    return [strict.parse_json(line) for line in text.split('\n')[:-1]]
  return strict.parse_csv(text)


@pytest.mark.parametrize('name', strict.NAMES)
def test_csv_and_json_hold_the_same_rows(name):
  rows = make([name, 'other'])
  assert read(name, labelled_files.as_json_lines) == rows
  table = read(name, labelled_files.as_csv)
  for row, expected in zip(table, rows, strict=True):
    for column, value in row.items():
      assert not column.startswith(FORMULA)
      assert not value.startswith(FORMULA)
    plain = {_without(column): value for column, value in row.items()}
    assert plain.keys() == expected.keys()
    assert _without(row['class']) == expected['class']
    assert _without(row['file']) == expected['file']
    for column in list(expected)[2:]:
      assert float(plain[column]) == expected[column]


def _without(text: str) -> str:
  """What docs/outputs.md says that a reader does."""
  return text.removeprefix("'")


@pytest.mark.parametrize('start', FORMULA)
def test_no_text_is_a_formula_and_none_meets_another(start):
  names = [f'{start}x', f"'{start}x", f"''{start}x", 'x']
  (row, _) = strict.parse_csv(labelled_files.as_csv(make(names)))
  shown = list(row)[3:]
  assert shown == [f"'{names[0]}", f"'{names[1]}", f"'{names[2]}", 'x']


def test_numbers_are_numbers_and_texts_are_quoted():
  text = labelled_files.as_csv(make(['cat;=1', '12']))
  head, first, *_ = text.split('\n')
  assert head == '"file","class","confidence","cat;=1","12"'
  assert first.startswith('"a.png","') and not first.endswith('"')
  unquoted = csv.reader(text.splitlines(), quoting=csv.QUOTE_NONNUMERIC)
  _, row, _ = unquoted
  assert [type(cell) for cell in row] == [str, str, float, float, float]


@pytest.mark.parametrize('value', strict.NUMBERS)
def test_what_is_no_number_is_nothing(value):
  rows = labelled_files.make_rows(['a'], ['x', 'y'], np.array([[value, 0.5]]))
  (row,) = strict.parse_csv(labelled_files.as_csv(rows))
  assert row['x'] == '' and row['y'] == '0.5'
  line = strict.parse_json(labelled_files.as_json_lines(rows))
  assert line['x'] is None and line['y'] == 0.5
