"""What a student saves: sentences, the front, the section on both pages."""

import json
import math
import re

import pytest

from tests.report import synthetic
from tests.study.rows import STUDY, paired
from tlkd_jax.models import serving as costs
from tlkd_jax.models.serving import Figures, Serving, Timing
from tlkd_jax.report import closing, page, plots, savings, serving
from tlkd_jax.report.savings import Point
from tlkd_jax.study import pages
from tlkd_jax.study import serving as of_study
from tlkd_jax.training import serving as measured


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """Words and tables are compared here; drawing takes most of a page's time."""
  monkeypatch.setattr(plots, '_draw', lambda *_, **__: '<svg></svg>')


def cost(name='small', ms=None, macs=31, size=4.0, **changes):
  own = Figures(name, 64, 6, 'float32', 10, macs * 10**6, 0, int(size * 1e6))
  if ms is None:
    return Serving(own)
  place = {'device': 'cpu', 'cores': 2, 'beside': 0.0} | changes
  timings = tuple(
    Timing('JAX', batch, ms * batch, ms, ms, 9, memory=10**7, **place)
    for batch in (1, 32)
  )
  return Serving(own, timings)


def point(accuracy, own, label='TL+KD', style='kd'):
  return Point(label, style, accuracy, own)


def teacher(accuracy, own):
  return point(accuracy, own, 'teacher', 'teacher')


@pytest.mark.parametrize(
  ('student', 'teacher_', 'words'),
  [
    (
      (0.9, cost(ms=5.1, size=10)),
      (0.913, cost('large', ms=19.8, size=42)),
      'To answer one image the TL+KD student takes 5.1 ms, its teacher 19.8 '
      'ms: 3.9 times as fast, 4.2 times smaller, 1.3 points below it (JAX on '
      'cpu, 2 cores).',
    ),
    (
      (0.95, cost(ms=10.0, size=20)),
      (0.9, cost('large', ms=5.0, size=10)),
      'takes 10 ms, its teacher 5 ms: 2.0 times as slow, 2.0 times larger, 5.0 '
      'points above it (',
    ),
    (
      (0.9, cost(ms=5.0)),
      (0.9, cost('alike', ms=5.1)),
      ': as fast as it, as large as it, as accurate as it (',
    ),
    (
      (0.9, cost(macs=31, size=10)),
      (0.91, cost('large', macs=1240, size=42)),
      'An image takes the TL+KD student 31 million multiply-adds, its teacher '
      '1,240: 40.0 times fewer, 4.2 times smaller, 1.0 points below it.',
    ),
    # Of one alone the time is not known.
    ((0.9, cost(ms=5.0)), (0.91, cost()), 'An image takes the TL+KD student'),
    (
      (0.9, cost(ms=5.0, beside=1.25)),
      (0.9, cost(ms=9.0)),
      'Other processes kept up to 1.2 cores busy meanwhile: these are not the '
      'times of an idle machine.',
    ),
    (
      (0.9, cost(ms=5.0)),
      (0.9, cost(ms=9.0, cores=1)),
      'The teacher was timed on cpu, 1 core: the times are not to be compared.',
    ),
    ((math.nan, cost(ms=5.0)), (0.9, cost(ms=5.0)), 'as large as it (JAX'),
  ],
)
def test_the_sentence(student, teacher_, words):
  said = savings.sentence(point(*student), teacher(*teacher_))
  assert words in said


def test_of_an_unknown_cost_nothing_is_said():
  assert not savings.sentence(point(0.9, None), teacher(0.9, cost(ms=1.0)))
  assert not savings.sentence(point(0.9, cost(ms=1.0)), teacher(0.9, None))


@pytest.mark.parametrize(
  ('points', 'best'),
  [
    ([], []),
    ([(1, 0.5)], [True]),
    ([(1, 0.5), (2, 0.6)], [True, True]),
    ([(1, 0.6), (2, 0.5)], [True, False]),
    # Of one cost the more accurate, of one accuracy the cheaper.
    ([(1, 0.5), (1, 0.6), (2, 0.6)], [False, True, False]),
    ([(1, 0.5), (1, 0.5)], [True, True]),
    ([(1, 0.5), (3, 0.7), (2, 0.7), (4, 0.9)], [True, False, True, True]),
  ],
)
def test_the_front(points, best):
  assert savings.front(points) == best


def make_section(groups, pairs=()):
  found = serving.section(groups, pairs, 'x')
  return found and {
    'texts': [b.text for b in found.blocks if hasattr(b, 'text')],
    'tables': {b.title: b for b in found.blocks if hasattr(b, 'rows')},
    'figures': [b for b in found.blocks if hasattr(b, 'panels')],
  }


def test_the_section_in_milliseconds():
  points = [point(0.8, cost(ms=5.0)), teacher(0.9, cost('large', ms=20.0))]
  found = make_section({'here': points}, [('here', *points)])
  assert found['texts'][0].startswith('To answer one image')
  assert not any('not measured' in text for text in found['texts'])
  table = found['tables']['Accuracy and cost']
  assert table.columns[:7] == [
    *('place', 'arm', 'network', 'test accuracy', 'on the front'),
    *('ms a batch of 1', 'ms a batch of 32'),
  ]
  assert [row[4] for row in table.rows] == ['yes', 'yes']
  assert len(found['tables']['Networks, timed'].rows) == 4
  assert 'milliseconds' in found['figures'][0].alt


def test_the_section_in_multiply_adds_says_so():
  points = [point(0.8, cost(ms=5.0)), teacher(0.7, cost('large', macs=99))]
  found = make_section({'here': points}, [('here', *points)])
  assert any(
    'not measured for all networks' in t and '--suite=cost' in t
    for t in found['texts']
  )
  table = found['tables']['Accuracy and cost']
  assert 'ms a batch of 1' not in table.columns
  assert [row[4] for row in table.rows] == ['yes', 'no']
  assert 'multiply-adds' in found['figures'][0].alt


def test_of_several_places_each_is_named():
  points = [point(0.8, cost(ms=5.0)), teacher(0.9, cost('large', ms=20.0))]
  pairs = [('here', *points), ('there', *points)]
  found = make_section({'here': points}, pairs)
  assert [text.split()[0] for text in found['texts']] == ['here:', 'there:']


def test_what_is_not_measured_is_said():
  own = cost(ms=5.0)
  own = Serving(own.figures, own.timings, ('ONNX Runtime: not measured: x',))
  found = make_section({'here': [point(0.8, own)]})
  assert 'ONNX Runtime: not measured: x.' in found['texts']


def test_without_any_cost_there_is_no_section():
  assert make_section({'here': [point(0.8, None)]}) is None
  assert make_section({}) is None


@pytest.mark.parametrize(
  ('labels', 'marks'),
  [
    (['TL', 'TL+KD', 'teacher'], ['TL', 'TL+KD', 'teacher']),
    (['TL', 'TL+KD, efficientnet_lite0'], ['1', '2']),
    (list('abcdef'), list('123456')),
  ],
)
def test_names_that_would_cover_each_other_are_numbers(labels, marks):
  points = [point(0.8, cost(ms=5.0), label) for label in labels]
  (figure,) = make_section({'here': points, 'there': points})['figures']
  drawn = [row[1:3] for row in figure.data.rows]
  assert drawn == 2 * [list(pair) for pair in zip(marks, labels, strict=True)]
  told = '; '.join(f'{m} {name}' for m, name in zip(marks, labels, strict=True))
  assert figure.note == (f'{told}.' if marks != labels else '')


def test_a_picture_of_points_that_lie_on_each_other(monkeypatch):
  """Its names stand apart, and it is drawn for any number of points."""
  monkeypatch.undo()
  for count in (1, 2, 3):
    points = [(5.0, 0.8, 'kd', f'arm{n}', n == 0) for n in range(count)]
    drawn = plots.trade_off('here', points, 'ms', 'accuracy')
    assert all(f'arm{n}' in drawn for n in range(count))
    heights = re.findall(r' y="(\S+)"[^>]*>arm', drawn)
    assert len(set(heights)) == len(heights) == count


def test_more_places_than_panels():
  groups = {f'place {n}': [point(0.8, cost(ms=5.0))] for n in range(9)}
  found = make_section(groups)
  assert len(found['figures'][0].panels) == 6
  assert 'first 6 of 9' in found['figures'][0].alt


def with_teacher(folder, accuracy):
  """Adds a teacher to the summary of a synthetic run."""
  summary = json.loads((folder / 'summary.json').read_text())
  summary['teacher'] = {'test': {'top1': accuracy}}
  (folder / 'summary.json').write_text(json.dumps(summary))
  for path in folder.glob('.sums/summary*'):
    path.unlink()


@pytest.mark.parametrize('timed', [True, False])
def test_on_the_page_of_runs(timed, tmp_path):
  """TL counts once for each seed, equal accuracies too."""
  runs = synthetic.write_study(tmp_path / 'runs', [0.1, 0.2, 0.2])
  student, large = cost(ms=5.0), cost('large', ms=20.0)
  for folder in runs.glob('*/*/*'):
    if folder.name == 'kd':
      with_teacher(folder, 0.9)
    if timed:
      own = {'student': student}
      own |= {'teacher': large} if folder.name == 'kd' else {}
      measured.write(folder, own)
  page.write([runs], tmp_path / 'out', replicates=20)
  sections = json.loads((tmp_path / 'out' / 'report.json').read_text())
  (found,) = [s for s in sections['sections'] if s['title'] == serving.TITLE]
  rows = next(
    t['rows'] for t in found['tables'] if t['title'] == 'Accuracy and cost'
  )
  by_arm = {row[1]: row for row in rows}
  assert set(by_arm) == {'TL', 'TL+KD', 'teacher'}
  assert by_arm['TL'][3] == pytest.approx(0.5)
  assert by_arm['TL+KD'][3] == pytest.approx(0.5 + 0.5 / 3, abs=0.01)
  assert by_arm['teacher'][3] == pytest.approx(0.9)
  if timed:
    assert by_arm['teacher'][5:7] == [20.0, 640.0]
    assert 'the TL+KD student takes 5 ms' in str(found)
    assert '4.0 times as fast' in str(found)
  else:
    # Of the networks that the configuration names, from their shapes.
    assert by_arm['TL'][2] == 'efficientnet_lite0 at 32'
    assert 'not measured for all networks' in str(found)


def test_on_the_page_of_a_study(tmp_path):
  rows = paired([0.1, 0.2, 0.1])
  for row in rows:
    name = 'large' if row['arm'] == 'teacher' else 'small'
    row['prediction_cost'] = costs.as_json(cost(name))
    del row['prediction_cost']['measured']
  pages.write(tmp_path, rows, STUDY)
  text = (tmp_path / 'report.md').read_text()
  assert serving.TITLE in text and 'not measured for all networks' in text
  stored = [
    costs.as_json(cost(n, ms=m)) for n, m in (('small', 4), ('large', 8))
  ]
  (tmp_path / of_study.FILE).write_text(json.dumps(stored))
  pages.write(tmp_path, rows, STUDY)
  text = (tmp_path / 'report.md').read_text()
  assert 'the TL+KD student takes 4 ms, its teacher 8 ms: 2.0 times' in text
  assert 'not measured for all networks' not in text


def test_data_sets_of_a_study_have_networks_of_their_own(tmp_path):
  rows = []
  for dataset, ms in (('digits', 4), ('photos', 12)):
    own = paired([0.1, 0.2, 0.1], dataset=dataset)
    for row in own:
      name = 'large' if row['arm'] == 'teacher' else 'small'
      one = cost(f'{name} of {dataset}', ms=ms)
      row['prediction_cost'] = costs.as_json(one)
      folder = tmp_path / row['folder']
      measured.write(folder, {'student': one})
    rows += own
  pages.write(tmp_path, rows, STUDY)
  text = (tmp_path / 'report.md').read_text()
  for dataset, ms in (('digits', 4), ('photos', 12)):
    said = f'{dataset}: To answer one image the TL+KD student takes {ms} ms'
    assert said in text


def test_on_the_page_of_a_study_of_unknown_networks(tmp_path):
  pages.write(tmp_path, paired([0.1, 0.2, 0.1]), STUDY)
  assert serving.TITLE not in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize('damage', ['{}', '[{}]', '[1'])
def test_a_damaged_file_is_named(damage, tmp_path):
  (tmp_path / of_study.FILE).write_text(damage)
  with pytest.raises(ValueError, match='damaged'):
    of_study.read(tmp_path)


def test_at_the_end_of_a_command(tmp_path):
  folder = synthetic.write_run(tmp_path / 'kd', 'kd')
  kd = json.loads((folder / 'summary.json').read_text())
  kd['student']['test']['top1'], kd['teacher'] = 0.8, kd['student'].copy()
  kd['teacher'] = {s: {'count': 60, 'top1': 0.9} for s in kd['student']}
  said = closing.table({'kd': kd}, {'kd': folder})
  assert 'To answer one image' not in said and 'An image takes' not in said
  measured.write(folder, {'student': cost(ms=5), 'teacher': cost('b', ms=9)})
  said = closing.table({'kd': kd}, {'kd': folder})
  assert 'student takes 5 ms, its teacher 9 ms: 1.8 times as fast' in said
  assert '10.0 points below it' in said
  said = closing.table({'kd': kd | {'mutual': True}}, {'kd': folder})
  assert 'To answer one image' not in said
