"""Pages of runs whose names and numbers are not what one hopes for."""

import json
import math
import re

import pytest

from tests import strict
from tests.report import synthetic
from tests.study import rows as invented
from tlkd_jax.report import fonts, html, markdown, page, plots
from tlkd_jax.report.blocks import Section, Table, Text
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.texts import visible
from tlkd_jax.study import pages, results

UNDEFINED = (*strict.NUMBERS, None)


def write_report(folder, classes=synthetic.CLASSES, spoil=None):
  """The three files of a report on a teacher, TL and TL+KD."""
  for arm in ('teacher', 'tl', 'kd'):
    run = synthetic.write_run(
      folder / 'runs' / arm, arm, accuracy=0.7, classes=classes
    )
    if spoil:
      spoil(run, arm)
  page.write([folder / 'runs'], folder / 'report', replicates=20)
  return check_pages(folder / 'report')


def check_pages(folder):
  """(HTML, Markdown, JSON) of a page, each as strict as can be."""
  text = (folder / 'index.html').read_text(encoding='utf-8')
  strict.parse_html(text)
  lines = (folder / 'report.md').read_text(encoding='utf-8')
  assert not re.search(r'<[a-z!/?]', lines, re.IGNORECASE)
  data = strict.parse_json((folder / 'report.json').read_text())
  return text, lines, data


@pytest.mark.usefixtures('laid_out')
@pytest.mark.parametrize('start', range(0, len(strict.NAMES), 10))
def test_any_name_of_a_class(start, tmp_path):
  names = strict.NAMES[start : start + 10]
  _, lines, data = write_report(tmp_path, names)
  tables = {t['title']: t for s in data['sections'] for t in s['tables']}
  assert [row[0] for row in tables['By class']['rows']] == list(names)
  table = lines[lines.index('**By class**') :].split('\n')[4:]
  for name, line in zip(names, table, strict=False):
    assert line.startswith(f'| {markdown.escape(name)} | 6 |')
    assert len(re.findall(r'(?<!\\)\|', line)) == 10


@pytest.mark.parametrize('shift', [0, 1])
def test_any_number(shift, tmp_path):
  """As they stand in files of this version, null, and of earlier ones."""

  def spoil(run, arm):
    number = ('teacher', 'tl', 'kd').index(arm) + shift
    value = UNDEFINED[number]
    path = run / 'summary.json'
    summary = json.loads(path.read_text()) | {'seconds': value}
    for splits in (summary.get('student'), summary.get('teacher')):
      for metrics in (splits or {}).values():
        spoiled = dict.fromkeys(metrics.keys() - {'count'}, value)
        metrics.update(spoiled)
    sealed.write_text(path, json.dumps(summary))
    rows = [
      {'step': 3, 'split': 'train', 'loss': value, 'seconds': value},
      {'step': 3, 'split': 'validation', 'top1': value, 'nll': value},
      {'step': 6, 'split': 'validation', 'top1': 0.5, 'nll': value},
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    sealed.write_text(run / 'metrics.jsonl', text)
    scores = ('auroc', 'fpr95', 'aupr_in', 'aupr_out')
    ood = {'in': 'a', 'out': 'b', 'in_count': 3, 'out_count': 4}
    ood['scores'] = {'msp': dict.fromkeys(scores, value)}
    (run / 'evaluation').mkdir()
    sealed.write_text(run / 'evaluation' / 'ood.json', json.dumps(ood))

  write_report(tmp_path, spoil=spoil)


@pytest.mark.parametrize('value', UNDEFINED)
def test_any_number_of_a_study(value, tmp_path):
  gains = [0.1, 0.2, 0.1]
  rows = invented.paired(gains) + invented.paired(
    gains,
    dataset='other',
    nll=value,
    seconds=value,
    wall_seconds=value,
    curve=[[5, value, value], [10, 2.0, 0.5]],
  )
  for row in rows:
    row['test']['ece'] = value
    row['degraded'] = {'count': 5, 'top1': {'clean': 0.5, 'noise': value}}
  pages.write(tmp_path, rows, invented.STUDY)
  check_pages(tmp_path)
  assert results.as_markdown(rows).count('\n') == 2 + len(rows)


@pytest.mark.parametrize('start', range(0, len(strict.NAMES), 15))
def test_any_name_of_a_study(start, tmp_path):
  names = strict.NAMES[start : start + 15]
  rows = [r for name in names for r in invented.paired([0.1], dataset=name)]
  for row in rows:
    row['label'] += names[len(row['arm'])]
    row['test']['ece'] = 0.1
  pages.write(tmp_path, rows, invented.STUDY)
  check_pages(tmp_path)
  table = results.as_markdown(rows).split('\n')
  assert len(table) == 3 + len(rows)
  assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table[:-1]}) == 1


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('cat', 'cat'),
    ('macro_f1', 'macro_f1'),
    ('a b_c-d.e+f (1)', 'a b_c-d.e+f (1)'),
    ('<b>x', '&lt;b&gt;x'),
    ('<img src=x onerror=f()>', '&lt;img src=x onerror=f()&gt;'),
    ('&lt;', '&amp;lt;'),
    ('a|b', r'a\|b'),
    ('`', r'\`'),
    ('\\', r'\\'),
    ('*a* _b_ __c__', r'\*a\* \_b\_ \_\_c\_\_'),
    ('[a](b)', r'\[a\](b)'),
    ('~~a~~ $x$', r'\~\~a\~\~ \$x\$'),
    ('a\nb', r'a\\x0ab'),
    ('a\r\n# b', r'a\\x0d\\x0a# b'),
    ('\u202egnp', r'\\u202egnp'),
    ('\u2028', r'\\u2028'),
    ('\ud800', r'\\ud800'),
    ('猫', '猫'),
    ('👩\u200d🔬', '👩\u200d🔬'),
  ],
)
def test_a_name_is_no_markup(name, shown):
  assert markdown.escape(name) == shown


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('- a', r'\- a'),
    ('1. a', r'1\. a'),
    ('12) a', r'12\) a'),
    ('## a', r'\## a'),
    ('---', r'\---'),
    ('-0.5 points', '-0.5 points'),
    ('3.5 points', '3.5 points'),
    ('see `a <b> c` and <b>', 'see `a <b> c` and &lt;b&gt;'),
    ('one ` alone', r'one \` alone'),
    ('``', r'\`\`'),
  ],
)
def test_a_paragraph_begins_nothing_else(text, shown):
  sections = [Section('key', 'A', [Text(text)])]
  assert markdown.page('T', '', sections).split('\n')[-2] == shown
  strict.parse_html(html.page('T', '', sections))


def test_code_of_a_page_is_what_stands_between_two_backticks():
  text = html.page('T', '', [Section('k', 'A', [Text('`a` b ` c <d>')])])
  assert '<p><code>a</code> b ` c &lt;d&gt;</p>' in text


def test_what_is_missing_stands_where_its_column_does():
  table = Table('t', ['text', 'number'], [['0 to 1', 1.0], [None, None]], 'x')
  text = html.page('T', '', [Section('k', 'A', [table])])
  assert '<td class="text" data-value="">' in text
  assert text.count('<td data-value="">') == 1


@pytest.mark.parametrize(
  ('value', 'written'),
  [(0.5, '0.5'), (math.inf, 'Infinity'), (-math.inf, '-Infinity')],
)
def test_the_page_sorts_by_numbers_that_its_script_can_read(value, written):
  table = Table('t', ['a'], [[value]], 'source')
  text = html.page('T', '', [Section('k', 'A', [table])])
  assert f'data-value="{written}"' in text


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('plain, with spaces', 'plain, with spaces'),
    ('', ''),
    ('a\x1b[31m', r'a\x1b[31m'),
    ('a\x85b', r'a\x85b'),
    ('a\u2067b\u2069', r'a\u2067b\u2069'),
    ('\udce9', r'\udce9'),
    ('\U000e0fff', r'\U000e0fff'),
    ('א\u200fב é\u0301', 'א\u200fב é\u0301'),
  ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
  assert visible(text) == shown


class TestLetters:
  """Which of them the installed fonts have, here for two invented fonts."""

  @pytest.fixture(autouse=True)
  def installed(self, monkeypatch):
    latin = frozenset(range(32, 127)) | {ord('…')}
    letters = {
      'latin.ttf': latin,
      'serif.ttf': latin | {ord('猫')},
      'noto.ttf': frozenset(map(ord, '猫狗')),
      'thai.ttf': frozenset(map(ord, 'ก')),
    }
    paths = {
      fonts.FIRST: 'latin.ttf',
      'A Serif': 'serif.ttf',
      'Noto Sans CJK JP': 'noto.ttf',
      'Thai': 'thai.ttf',
    }
    monkeypatch.setattr(fonts, '_paths', lambda: paths)
    monkeypatch.setattr(fonts, '_letters', letters.__getitem__)
    fonts._further.cache_clear()
    yield
    fonts._further.cache_clear()

  @pytest.mark.parametrize(
    ('text', 'more'),
    [
      ('cat', []),
      ('猫', ['Noto Sans CJK JP']),
      ('cat 狗', ['Noto Sans CJK JP']),
      ('猫狗ก', ['Noto Sans CJK JP', 'Thai']),
      ('ก\u200dก\ufe0f', ['Thai']),
      ('ש', []),
    ],
  )
  def test_the_fewest_fonts_that_have_them(self, text, more):
    assert fonts.families(text) == [fonts.FIRST, *more]

  @pytest.mark.parametrize(
    ('names', 'ticks', 'note'),
    [
      (['cat', '猫'], ['cat', '猫'], ''),
      (['a long name of a class'], ['a long nam…'], ''),
      (['cat', 'שלום'], ['0', '1'], 'Numbers: 0 cat, 1 שלום.'),
      (['x🦄'], ['0'], 'Numbers: 0 x🦄.'),
      (
        ['n02085620-one', 'n02085620-two'],
        ['0', '1'],
        'Numbers: 0 n02085620-one, 1 n02085620-two.',
      ),
      (['a\nb'], [r'a\x0ab'], ''),
    ],
  )
  def test_names_at_the_axes(self, names, ticks, note):
    assert plots.tick_names(names) == (ticks, note)

  def test_other_texts_of_a_figure_are_escaped(self):
    assert plots.drawable('cat 猫 ש\n') == r'cat 猫 \u05e9\x0a'


@pytest.mark.parametrize('name', strict.NAMES)
def test_a_figure_shows_names_as_they_are(name):
  """Dollars are no formula, and what looks like an attribute stays."""
  name = f'{name} id="a" x="0.123456" url(#b) #010203'
  svg = plots.intervals(name, [name], [(0.1, 0.0, 0.2)], 'x')
  assert 'aria-label=' in svg
  texts = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
  text = plots.drawable(name)
  text = text if len(text) <= 38 else f'{text[:20]}…{text[-17:]}'
  text = html.html.escape(text, quote=False)
  assert text in texts
  strict.parse_html(f'<!DOCTYPE html><title>t</title>{svg}')
