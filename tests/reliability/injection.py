"""Names that would be markup, formulas or columns, where they are written."""

import csv
import io
import json

import numpy as np

from tests import strict
from tests.reliability.outcomes import Outcome
from tests.reliability.runs import Place
from tests.report import synthetic, test_browser
from tlkd_jax.evaluation import labelled_files
from tlkd_jax.report import page

_FORMULA = tuple('=+-@\t\r\n＝＋－＠')


def inject(place: Place) -> list[Outcome]:
  """Each name as class and as file in tables; all of them on a page."""
  found = [_in_tables(name) for name in strict.NAMES]
  found += _on_pages(place)
  return found


def _judged(kind: str, what: str, check) -> Outcome:
  try:
    check()
  except AssertionError as error:
    return Outcome(kind, 'wrong', f'{what!r}: {error}')
  except Exception as error:
    return Outcome(kind, 'traceback', f'{what!r}: {error!r}')
  return Outcome(kind, 'survived', what)


def _in_tables(name: str) -> Outcome:
  """As a class beside `plain`, and as the name of an image."""

  def check():
    probabilities = np.asarray([[0.75, 0.25], [0.25, 0.75]])
    rows = labelled_files.make_rows(
      [name, 'b.png'], [name, 'plain'], probabilities
    )
    for row in rows:
      assert len(row) == 5 and row['confidence'] == 0.75
    assert (rows[0]['file'], rows[0]['class']) == (name, name)
    assert [
      strict.parse_json(line)
      for line in labelled_files.as_json_lines(rows).splitlines()
    ] == rows
    text = labelled_files.as_csv(rows)
    table = list(csv.reader(io.StringIO(text, newline='')))
    assert {len(line) for line in table} == {5}
    for line in table:
      for value in line:
        assert not value.startswith(_FORMULA), value
    read = table[1][0]
    assert read.removeprefix("'") == name or read == f"'{name}" or read == name

  return _judged('names in CSV and JSON', name, check)


def _on_pages(place: Place) -> list[Outcome]:
  folder = place.root / 'names'
  for arm in ('tl', 'kd'):
    synthetic.write_run(folder / 'runs' / arm, arm, classes=strict.NAMES)
  page.write([folder / 'runs'], folder / 'report', replicates=20)

  def as_html():
    text = (folder / 'report' / 'index.html').read_text(encoding='utf-8')
    strict.parse_html(text)
    assert '<script>alert' not in text and 'onload="alert' not in text

  def as_markdown():
    text = (folder / 'report' / 'report.md').read_text(encoding='utf-8')
    assert '<script' not in text and '<b>' not in text

  def as_json():
    text = (folder / 'report' / 'report.json').read_text(encoding='utf-8')
    assert json.dumps(strict.parse_json(text))

  checks = {'html': as_html, 'markdown': as_markdown, 'json': as_json}
  if place.long and test_browser.CHROMIUM:
    target = folder / 'browser'
    target.mkdir()

    def in_chromium():
      test_browser.test_any_name_of_a_class_is_a_text_and_nothing_else(target)

    checks['chromium'] = in_chromium
  kind = f'{len(strict.NAMES)} names on a page'
  return [_judged(kind, name, check) for name, check in checks.items()]
