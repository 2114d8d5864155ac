"""What the teacher says, in words and as a table of the page."""

import json
import math

import pytest

from tests import strict
from tests.report import synthetic
from tlkd_jax.report import html, markdown, page, pairing, runs, teaching
from tlkd_jax.report.context import open_pair
from tlkd_jax.runtime import sealed

_PLACE = {
  'p_label': 0.987,
  'entropy': 0.0953,
  'effective_classes': 1.1,
  'agreement': 1.0,
  'nll': 0.0131,
  'ece': 0.0125,
}
SAID = {
  'temperature': 2.0,
  'sham': 'off',
  'training views': _PLACE,
  'validation': _PLACE | {'p_label': 0.6, 'agreement': 0.72, 'entropy': None},
  'scaled_nll': 1.25,
  'student_probe_nll': 1.125,
  'warnings': ['its targets are little more than the labels'],
}


def make_runs(folder, **summary):
  for arm in ('tl', 'kd'):
    synthetic.write_run(folder / arm, arm)
  path = folder / 'kd' / 'summary.json'
  sealed.write_text(path, json.dumps(json.loads(path.read_text()) | summary))


def write(folder, **summary):
  """(the section as data, in Markdown, in HTML) of a pair; {} without one."""
  make_runs(folder, **summary)
  paired = pairing.pair(*runs.collect([folder]))
  context = open_pair(paired.pairs[0], folder / 'report')
  found = teaching.section(context)
  sections = [found] if found else []
  html_text = html.page('T', '', sections)
  strict.parse_html(html_text)
  (data,) = markdown.as_data(sections) or [{}]
  return data, markdown.page('T', '', sections), html_text


def test_the_page_has_it_where_the_pair_is_shown(tmp_path):
  make_runs(tmp_path, teacher_says={'teacher': SAID})
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  for name in ('report.md', 'index.html'):
    text = (tmp_path / 'report' / name).read_text()
    places = [
      text.index(words)
      for words in (
        'Did TL+KD beat TL?',
        'From here on one pair is shown',
        'gives the label a probability of 0.987',
        'Targets at temperature 2',
        'Who is right where',
      )
    ]
    assert places == sorted(places), name


def test_it_is_said_in_words_and_in_a_table(tmp_path):
  section, text, _ = write(tmp_path, teacher_says={'teacher': SAID})
  (table,) = section['tables']
  rows = [dict(zip(table['columns'], r, strict=True)) for r in table['rows']]
  assert [row['on'] for row in rows] == [
    "the student's training views",
    'validation images',
  ]
  assert [row['p(label)'] for row in rows] == [0.987, 0.6]
  assert [row['agreement'] for row in rows] == [1.0, 0.72]
  assert math.isnan(rows[1]['entropy']) and rows[0]['entropy'] == 0.0953
  assert table['source'] == '../kd/summary.json'
  for words in (
    'gives the label a probability of 0.987 at temperature 2, as if 1.1 of 3',
    'on validation images 0.600',
    '100 % of the views and of 72 % of the validation images',
    'The teacher itself knows less of these classes than logistic regression',
    'validation NLL 1.250 and 1.125',
    'Warning, teacher: its targets are little more than the labels.',
  ):
    assert words in text, words
  assert 'sham' not in text


@pytest.mark.parametrize(
  ('changes', 'there', 'not_there'),
  [
    ({'student_probe_nll': 1.5}, 'knows more of these', 'knows less'),
    ({'student_probe_nll': None}, 'On the views', 'logistic regression'),
    ({'sham': 'uniform'}, 'the same for all other classes', 'than its own'),
    ({'sham': 'permuted'}, 'at other classes than its own', 'the same for all'),
    ({'warnings': []}, 'On the views', 'Warning, '),
  ],
)
def test_what_depends_on_the_run(changes, there, not_there, tmp_path):
  said = {'teacher': SAID | changes, 'teacher2': SAID | changes}
  _, text, html = write(tmp_path, teacher_says=said)
  for page_text in (text, html):
    assert there in page_text and not_there not in page_text
  assert 'the teacher2 gives the label' in text


def test_runs_that_did_not_measure_it(tmp_path):
  section, text, _ = write(tmp_path)
  assert not section['tables']
  assert 'was not measured when these runs were made' in text


def test_of_an_earlier_version_the_rest_is_shown(tmp_path):
  keys = 'temperature', 'training views', 'validation', 'warnings'
  said = {'teacher': {key: SAID[key] for key in keys}}
  section, text, _ = write(tmp_path, teacher_says=said)
  assert section['tables']
  assert 'logistic regression' not in text


def test_a_peer_says_nothing_before_the_student_starts(tmp_path):
  section, _, _ = write(tmp_path, mutual=True)
  assert section == {}
