"""The page, its answer, and that every number can be traced."""

import json
import re

import numpy as np
import pytest

from tests.report import synthetic
from tlkd_jax.answer.rows import place_of
from tlkd_jax.evaluation import comparison, degradation, evaluate, records
from tlkd_jax.report import __main__ as command
from tlkd_jax.report import page, pairing, plots, runs
from tlkd_jax.report.blocks import named_table


@pytest.fixture(scope='module')
def single(compare_run, tmp_path_factory):
  """The report of the compare run, as it stands after training."""
  out = tmp_path_factory.mktemp('single') / 'report'
  page.write([compare_run], out, replicates=50)
  return out


def data(out):
  return json.loads((out / 'report.json').read_text())


def tables(out):
  return {
    table['title']: table
    for section in data(out)['sections']
    for table in section['tables']
  }


def named(table):
  return [
    dict(zip(table['columns'], row, strict=True)) for row in table['rows']
  ]


def test_the_page_needs_nothing_else(single):
  text = (single / 'index.html').read_text()
  assert len(text) < 10e6
  links = re.findall(r'(?:src|href)="([^"]*)"', text)
  assert links and all(link.startswith(('#', 'data:')) for link in links)
  assert not re.findall(r'@import|url\((?!#)', text)
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert len(ids) == len(set(ids))
  for link in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text):
    assert link in ids
  assert len(re.findall('<svg role="img" aria-label="[^"]+"', text)) > 8
  assert 'prefers-color-scheme:dark' in text and 'currentColor' in text
  assert not re.findall('<img (?![^>]*alt="[^"]+")', text)


def test_the_numbers_are_those_of_the_predictions(single, compare_run):
  kd, tl = (
    evaluate.load(compare_run / arm / 'predictions' / 'test.npz')
    for arm in ('kd', 'tl')
  )
  found = tables(single)
  table = found[f'All metrics on the {len(tl.labels)} test images']
  row = dict(zip(table['columns'], table['rows'][0], strict=True))
  assert row['metric'] == 'top1'
  assert row['TL'] == (tl.logits.argmax(1) == tl.labels).mean()
  assert row['TL+KD minus TL'] == pytest.approx(row['TL+KD'] - row['TL'])
  assert {r[0] for r in table['rows']} == set(comparison.metrics.METRICS)
  overlap = comparison.error_overlap(kd.logits, tl.logits, tl.labels)
  cells = [r[1:] for r in found['Who is right where']['rows']]
  assert np.sum(cells) == len(tl.labels)
  assert cells[0][1] == overlap['only_x_right']
  for table in found.values():
    for path in re.findall(r'[^ ,]+predictions/[a-z_]+\.npz', table['source']):
      assert '{' in path or (single / path).resolve().exists(), path


def test_what_is_missing_is_said_with_the_command(single):
  text = (single / 'report.md').read_text()
  for suite in ('corruptions', 'qualitative', 'ood'):
    assert f'--suite={suite}`' in text
  assert '--checkpoint' in text and 'compare_run' in text


def test_the_page_says_what_the_data_hold(tmp_path):
  counts = {'images': 30, 'used': 27, 'smallest': ['ant', 8]}
  held = {
    'classes': 3,
    'first_classes': ['ant', '<b>', 'cat'],
    'splits': {'test': counts | {'largest': ['<b>', 10]}},
    'left_out': [{'why': '.raw', 'count': 4, 'example': 'ant/<i>.raw'}],
    'copies': [
      {
        'what': 'across',
        'split': 'test',
        'count': 5,
        'example': ['test/a.png', 'train/a.png'],
      }
    ],
  }
  for arm in ('tl', 'kd'):
    synthetic.write_run(tmp_path / arm, arm, data=held)
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  (row,) = named(tables(tmp_path / 'report')['Images by split'])
  assert (row['split'], row['images'], row['used']) == ('test', 30, 27)
  assert (row['smallest class'], row['largest class']) == ('ant: 8', '<b>: 10')
  text = (tmp_path / 'report' / 'index.html').read_text()
  assert '5 of 30 images of test are exact copies of images of train' in text
  assert 'left out 4 (.raw), such as ant/&lt;i&gt;.raw' in text
  assert '<b>:' not in text and '<i>.raw' not in text


def test_one_seed_is_inconclusive(single):
  said = data(single)['answer']
  assert said.startswith('Not yet known: one seed.')
  assert 'McNemar' in said and '95 % interval' in said
  assert said in (single / 'report.md').read_text()


@pytest.mark.parametrize(
  ('gains', 'start', 'verdict'),
  [
    ([0.1, 0.15, 0.2, 0.1, 0.15, 0.2], 'Yes, it helps:', 'better'),
    ([-0.1, -0.15, -0.2, -0.1, -0.15, -0.2], 'No, it hurts:', 'worse'),
    ([0.2, 0.15, 0.2], 'Not yet known:', 'inconclusive'),
    ([0.2, -0.2, 0.1, -0.1, 0.15, -0.15], 'Not yet known:', 'inconclusive'),
  ],
)
def test_over_seeds(gains, start, verdict, tmp_path):
  study = synthetic.write_study(tmp_path / 'study', gains)
  page.write([study], tmp_path / 'report', replicates=20)
  found = data(tmp_path / 'report')
  assert found['answer'].startswith(start)
  assert f'over {len(gains)} paired seeds and 60 test images' in found['answer']
  (one,) = found['comparisons']
  assert one['seeds'] == list(range(len(gains)))
  test = one['tests']['top1']
  assert test['verdict'] == verdict
  assert test['mean_difference'] == pytest.approx(np.mean(gains), abs=0.01)
  rows = tables(tmp_path / 'report')['Paired by seed: TL+KD minus TL on test']
  first = named(rows)[0]
  assert (first['metric'], first['verdict']) == ('top1', verdict)


@pytest.mark.usefixtures('laid_out')
def test_over_sizes(tmp_path):
  gains = [0.05, 0.0667, 0.05, 0.0667, 0.05, 0.0667, 0.05]
  study = synthetic.write_study(tmp_path / 'study', gains, sizes=(10, 20))
  page.write([study], tmp_path / 'report', replicates=20)
  found = data(tmp_path / 'report')
  assert found['answer'].startswith('Yes, it helps: ')
  assert 'over 2 places' in found['answer']
  # 2 * 2 / 128 is below 0.05.
  assert 'better at 2, worse at 0, inconclusive at 0' in found['answer']
  assert [one['place'] for one in found['comparisons']] == [
    'digits, 10 per class',
    'digits, 20 per class',
  ]
  sizes = tables(tmp_path / 'report')['Accuracy on digits']
  assert {row[1] for row in sizes['rows']} == {30, 60}
  # About half of the way to what TL gains by twice the labels.
  (worth,) = re.findall(r'worth \+(\d+) %', str(found['sections']))
  assert 30 < int(worth) < 70


def test_runs_are_paired_by_what_they_share(tmp_path):
  for i, loss in enumerate(('kd', 'dkd')):
    synthetic.write_run(
      tmp_path / f'kd{i}', 'kd', distillation__loss=loss, accuracy=0.7
    )
  synthetic.write_run(tmp_path / 'tl', 'tl')
  synthetic.write_run(tmp_path / 'other', 'tl', num_steps=99)
  (tmp_path / 'unfinished').mkdir()
  (tmp_path / 'unfinished' / 'config.json').write_text('{"arm": "tl"}')
  paired, notes = pair(tmp_path)
  assert len(paired.pairs) == 2
  arms = {row['arm']: row['label'] for row in paired.rows}
  assert arms == {
    'tl': 'TL',
    'kd, distillation.loss=kd': 'TL+KD, distillation.loss=kd',
    'kd, distillation.loss=dkd': 'TL+KD, distillation.loss=dkd',
    'tl, num_steps=99': 'TL, num_steps=99',
  }
  assert paired.treatments == [arm for arm in arms if arm.startswith('kd')]
  assert len({place_of(row) for row in paired.rows}) == 1
  assert any('unfinished is not finished' in note for note in notes)
  assert any(
    'other has no partner' in note and 'as TL, num_steps=99' in note
    for note in notes
  )
  # A second run of one seed does not count twice.
  synthetic.write_run(tmp_path / 'again', 'tl')
  again, notes = pair(tmp_path)
  assert len(again.rows) == len(paired.rows)
  assert any('repeats seed 0' in note for note in notes)


def pair(folder):
  found, notes = runs.collect([folder])
  return pairing.pair(found, notes), notes


def test_recipes_of_one_data_set_are_places_of_their_own(tmp_path):
  for steps in (50, 99):
    for arm in ('tl', 'kd'):
      synthetic.write_run(tmp_path / f'{steps}{arm}', arm, num_steps=steps)
  synthetic.write_run(tmp_path / 'smooth', 'tl', label_smoothing=0.3)
  paired, notes = pair(tmp_path)
  assert {str(place_of(row)) for row in paired.rows} == {
    'digits, 10 per class, num_steps=50',
    'digits, 10 per class, num_steps=99',
  }
  # Which of the two it stands beside is not known.
  assert {row['arm'] for row in paired.rows} == {'tl', 'kd'}
  assert any(note.endswith('differ only in the arm.') for note in notes)


def test_each_kind_of_distillation_has_its_answer(tmp_path):
  for seed in range(6):
    synthetic.write_run(tmp_path / f'tl{seed}', 'tl', seed, 0.5)
    for loss, gain in (('kd', 0.2), ('dkd', -0.2)):
      folder = tmp_path / f'{loss}{seed}'
      changes = {'distillation__loss': loss}
      synthetic.write_run(folder, 'kd', seed, 0.5 + gain, **changes)
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  dkd, kd = data(tmp_path / 'report')['answer'].split('\n')
  assert dkd.startswith('No, it hurts: ')
  assert kd.startswith('Yes, it helps: ')
  assert 'for TL+KD, distillation.loss=dkd and' in dkd
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert 'These are 2 answers' in text


def test_rows_of_a_table_have_one_set_of_columns():
  rows = [{'a': 1, 'b': 2}, {'b': 4, 'a': 3}]
  table = named_table('title', rows, 'source')
  assert (table.columns, table.rows) == (['a', 'b'], [[1, 2], [3, 4]])
  with pytest.raises(ValueError, match="'title': row 1 differs .* in 'b', 'c'"):
    named_table('title', [{'a': 1, 'b': 2}, {'a': 1, 'c': 2}], 'source')
  assert named_table('title', [], 'source').columns == []


def test_one_arm_alone(tmp_path):
  synthetic.write_run(tmp_path / 'tl', 'tl')
  page.write([tmp_path / 'tl'], tmp_path / 'report')
  assert data(tmp_path / 'report')['answer'].startswith('There is no answer')


def test_a_page_says_by_what_its_runs_were_made(single, compare_run, tmp_path):
  made = json.loads((compare_run / 'tl' / 'summary.json').read_text())['made']
  text = (single / 'report.md').read_text()
  assert f'Every run was made by commit {made["commit"] or "unknown"}' in text
  assert f'jax {made["versions"]["jax"]}' in text
  assert 'not recorded' not in text
  study = synthetic.write_study(tmp_path / 'study', [0.1])
  for arm, cores in (('tl', made['cores']), ('kd', made['cores'] + 1)):
    path = study / '10' / 'seed0' / arm / 'summary.json'
    summary = json.loads(path.read_text())
    summary['made'] = made | {'cores': cores}
    records.write_json(path, summary)
  page.write([study], tmp_path / 'report')
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert 'were not made alike (cores)' in text
  assert 'There is no answer' in text


def test_other_test_images_are_not_compared(tmp_path):
  study = synthetic.write_study(tmp_path / 'study', [0.1])
  path = study / '10' / 'seed0' / 'kd' / 'predictions' / 'test.npz'
  stored = records.read_arrays(path)
  records.write_arrays(path, stored | {'indices': stored['indices'] + 1})
  page.write([study], tmp_path / 'report')
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert 'no predictions of the same test images' in text
  assert 'There is no answer' in text


def test_what_is_of_an_earlier_step_is_not_there(tmp_path):
  """A stopped run was evaluated, and went on to another best step."""
  folder = synthetic.write_run(tmp_path / 'tl', 'tl')
  summary = json.loads((folder / 'summary.json').read_text())
  records.write_json(folder / 'summary.json', summary | {'best_step': 5})
  place, run = folder / 'evaluation', runs.read_run(folder)
  records.write_json(place / 'qualitative.json', {'count': 1})
  records.write_arrays(place / 'embedding.npz', {'tsne': np.zeros((1, 2))})
  for step, shown in ((None, True), (5, True), (3, False)):
    said = {} if step is None else {'step': step}
    records.write_json(place / 'ood.json', {'count': 1} | said)
    arrays = {'labels': np.zeros(1)}
    arrays |= {name: np.asarray(value) for name, value in said.items()}
    records.write_arrays(place / 'features.npz', arrays)
    found = [
      run.record('ood'),
      run.record('qualitative'),
      run.arrays('features'),
      run.arrays('embedding'),
    ]
    assert [one is not None for one in found] == [shown] * 4


@pytest.mark.usefixtures('laid_out')
def test_degraded_images(tmp_path):
  """Cells of three corruptions; TL+KD gains on TL as it gets worse."""
  study = synthetic.write_study(tmp_path / 'study', [0.1])
  rng = np.random.default_rng(0)
  labels = np.arange(100) % 3
  for arm, slope in (('tl', 0.12), ('kd', 0.04)):
    for cell in [degradation.CLEAN] + [
      (name, s) for name in ('fog', 'snow', 'rotation') for s in range(1, 6)
    ]:
      right = rng.random(100) < 0.95 - slope * cell[1]
      logits = 3.0 * np.eye(3)[(labels + ~right) % 3]
      records.write_arrays(
        degradation.cell_path(study / '10' / 'seed0' / arm, cell),
        {
          'logits': logits.astype(np.float32),
          'labels': labels,
          'indices': np.arange(100),
          'image_size': np.asarray(32),
          'step': np.asarray(3),
        },
      )
  page.write([study], tmp_path / 'report', replicates=20)
  found = tables(tmp_path / 'report')
  rows = {
    r['corruption']: r
    for r in named(found['Corrupted error, mean over severities 1 to 5'])
  }
  fog, ce = rows['fog'], 'CE (TL = 1)'
  assert fog[ce] == pytest.approx(fog['error TL+KD'] / fog['error TL'])
  both = rows['mean: ImageNet-C-like, 15']
  assert both[ce] == pytest.approx((fog[ce] + rows['snow'][ce]) / 2)
  assert both[ce] < 1
  gaps = found['Does the gap in accuracy grow with severity?']['rows']
  slope = {r[0]: r for r in gaps}['all']
  assert slope[3] == pytest.approx(0.08, abs=0.03)
  assert slope[-1] == 'moves in favour of TL+KD'
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert '3 are here' in text.replace('26 corruptions ', '')


def test_numbers_on_axes_are_not_cut():
  """Shortening coordinates must leave the texts alone."""
  svg = plots.lines(
    'a < b', {'tl': ([1, 2], [0.9251, 0.9252])}, x_label='x', y_label='y'
  )
  labels = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
  assert any(re.fullmatch(r'0\.925\d+', label) for label in labels), labels
  assert 'aria-label="a &lt; b"' in svg and '#010203' not in svg


def test_mistakes_are_one_message(tmp_path, capsys):
  assert command.main([str(tmp_path / 'no'), '--out', str(tmp_path)]) == 2
  assert 'no such folder' in capsys.readouterr().err
  assert command.main([str(tmp_path), '--out', str(tmp_path / 'r')]) == 2
  assert 'no finished run' in capsys.readouterr().err
  run = synthetic.write_run(tmp_path / 'tl', 'tl')
  (run / 'summary.json').write_text('{')
  assert command.main([str(run), '--out', str(tmp_path / 'r')]) == 2
  assert 'summary.json is damaged' in capsys.readouterr().err


def test_every_run_stands_there_with_the_pixels_that_it_saw(tmp_path):
  sizes = {'image_size': 96, 'teacher__image_size': 160}
  for arm in ('teacher', 'tl', 'kd'):
    synthetic.write_run(tmp_path / arm, arm, **sizes)
  synthetic.write_run(tmp_path / 'same', 'teacher', seed=1, image_size=96)
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  rows = named(tables(tmp_path / 'report')['The runs'])
  assert {row['run']: row['pixels'] for row in rows} == {
    '../teacher': 160,
    '../tl': 96,
    '../kd': 96,
    '../same': 96,
  }


def test_a_probed_teacher_is_part_of_the_cost(tmp_path):
  """It took no steps: its images are counted by what it passed over."""
  teacher = synthetic.write_run(
    tmp_path / 'teacher', 'teacher', accuracy=0.9, teacher__fit='probed'
  )
  (teacher / 'metrics.jsonl').unlink()
  synthetic.write_run(tmp_path / 'tl', 'tl')
  synthetic.write_run(tmp_path / 'kd', 'kd', teacher=teacher)
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  rows = named(tables(tmp_path / 'report')['What it cost'])
  # 30 images, each as it is and in four views; three steps of eight, which
  # the teacher sees too.
  assert [(row['model'], row['images'], row['seconds']) for row in rows] == [
    ('teacher', 30 * 5, 12.5),
    ('TL', 3 * 8, 4.0),
    ('TL+KD', 30 * 5 + 2 * 3 * 8, 12.5 + 4.0),
  ]
  assert rows[0]['last top-1 on validation'] == pytest.approx(0.9)


def test_a_teacher_whose_run_is_not_here_is_not_said_to_be_counted(tmp_path):
  for arm in ('tl', 'kd'):
    synthetic.write_run(tmp_path / arm, arm)
  page.write([tmp_path], tmp_path / 'report', replicates=20)
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert "TL+KD without its teacher's own run, which is not here" in text
  assert 'start where' not in text


def test_members_are_parts_of_their_ensemble(tmp_path):
  """It stands beside a pair; the runs that it consists of do not."""
  for arm in ('tl', 'kd'):
    synthetic.write_run(tmp_path / arm, arm)
  whole = tmp_path / 'ensemble'
  synthetic.write_run(whole, 'tl', student__fit='ensemble')
  for number in (1, 2):
    place = whole / f'member{number}'
    synthetic.write_run(place, 'tl', student__member=number)
  paired, notes = pair(tmp_path)
  arms = [row['arm'] for row in paired.rows]
  assert arms == ['tl', 'kd', 'tl, student.fit=ensemble']
  assert len(notes) == 1 and 'ensemble has no partner' in notes[0]


def test_a_key_that_an_older_version_lacked_parts_no_pair(tmp_path):
  for arm in ('tl', 'kd'):
    synthetic.write_run(tmp_path / arm, arm)
  path = tmp_path / 'tl' / 'config.json'
  config = json.loads(path.read_text())
  assert config['student'].pop('dropout') is None
  path.write_text(json.dumps(config))
  paired, notes = pair(tmp_path)
  assert len(paired.pairs) == 1 and not notes
