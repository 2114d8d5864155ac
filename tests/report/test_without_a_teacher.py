"""Self-training and FixMatch have their own words on the page."""

import json

import pytest

from tests import strict
from tests.report import synthetic
from tests.report.test_teaching_section import SAID
from tlkd_jax.report import page, pairing, runs
from tlkd_jax.runtime import sealed

# Kind -> (arm, accuracy, configuration, what its summary says besides).
KINDS = {
  'kd': ('kd', 0.7, {}, {'teacher_says': {'teacher': SAID}}),
  'hard': (
    'kd',
    0.65,
    {'distillation__self_training': 'hard'},
    {
      'self_training': 'hard',
      'teacher_says': {'teacher': SAID | {'warnings': []}},
    },
  ),
  'soft': (
    'kd',
    0.65,
    {'distillation__self_training': 'soft'},
    {'self_training': 'soft', 'teacher_says': {'teacher': SAID}},
  ),
  'fixmatch': (
    'tl',
    0.75,
    {
      'student__fit': 'fixmatch',
      'distillation__fixmatch_threshold': 0.8,
      'distillation__fixmatch_weight': 0.25,
    },
    {'fixmatch': True},
  ),
}


def write(folder, *kinds, seeds=1):
  """TL and these kinds; the page as Markdown and as its data."""
  for seed in range(seeds):
    place = folder / f'seed{seed}'
    tl = synthetic.write_run(place / 'tl', 'tl', seed=seed, accuracy=0.6)
    for kind in kinds:
      arm, accuracy, changes, more = KINDS[kind]
      run = synthetic.write_run(
        place / kind,
        arm,
        seed=seed,
        accuracy=accuracy,
        teacher=tl if 'self_training' in more else None,
        distillation__unlabelled='rest',
        **changes,
      )
      path = run / 'summary.json'
      summary = json.loads(path.read_text()) | {'num_unlabelled': 500} | more
      sealed.write_text(path, json.dumps(summary))
  page.write([folder], folder / 'report', replicates=20)
  strict.parse_html((folder / 'report' / 'index.html').read_text())
  data = json.loads((folder / 'report' / 'report.json').read_text())
  return (folder / 'report' / 'report.md').read_text(), data


@pytest.mark.parametrize(
  ('kind', 'name', 'words'),
  [
    ('hard', 'self-training', 'by the class that it holds most likely'),
    ('soft', 'self-training', 'with soft pseudo-labels: no teacher'),
    ('fixmatch', 'FixMatch', 'a probability of 0.8 or more'),
  ],
)
def test_the_page_calls_it_by_its_name(kind, name, words, tmp_path):
  text, data = write(tmp_path, kind)
  assert data['title'] == f'TL and {name} compared'
  assert f'## Did {name} beat TL?' in text
  assert f'This {name} model got' in data['answer']
  assert words in text
  assert '30 images with labels and 500 without' in text
  assert f'| {name} right |' in text and f'{name} minus TL' in text
  assert f'/{kind} is {name}: no teacher' in text
  assert 'TL+KD' not in text and 'TL, ' not in text
  for missing in ('the teacher', 'was not measured', 'no partner'):
    assert missing not in text


def test_its_own_tl_run_is_no_teacher_and_part_of_the_cost(tmp_path):
  text, data = write(tmp_path, 'hard')
  tables = {t['title']: t for s in data['sections'] for t in s['tables']}
  cost = tables['What it cost']
  rows = [dict(zip(cost['columns'], row, strict=True)) for row in cost['rows']]
  # Both runs end at 4 s by their metrics; TL took 12.5 s in all.
  assert {row['model']: row['seconds'] for row in rows} == {
    'TL': 4.0,
    'self-training': 16.5,
  }
  assert 'the TL run gives the label a probability of 0.987' in text
  assert 'no better than TL' not in text


def test_fixmatch_sees_some_images_twice(tmp_path):
  _, data = write(tmp_path, 'fixmatch')
  tables = {t['title']: t for s in data['sections'] for t in s['tables']}
  cost = tables['What it cost']
  rows = [dict(zip(cost['columns'], row, strict=True)) for row in cost['rows']]
  found = {row['model']: row['images'] for row in rows}
  # Three steps of eight; of a batch half has no labels.
  assert found == {'TL': 3 * 8, 'FixMatch': 3 * (8 + 4)}


def test_each_has_its_answer_beside_a_teacher(tmp_path):
  text, data = write(tmp_path, 'kd', 'hard', 'fixmatch', seeds=2)
  assert data['title'] == 'TL and TL+KD compared'
  assert '## Did TL+KD, self-training or FixMatch beat TL?' in text
  asked = [one['treatment'] for one in data['comparisons']]
  assert asked == ['TL+KD', 'self-training', 'FixMatch']
  assert 'Without a teacher: FixMatch minus TL +15.00 points' in text
  assert text.count('distillation.self_training).') == 1


def test_two_of_a_kind_are_told_apart(tmp_path):
  _, data = write(tmp_path, 'hard', 'soft')
  asked = [one['treatment'] for one in data['comparisons']]
  assert asked == [
    f'self-training, distillation.self_training={kind}'
    for kind in ('hard', 'soft')
  ]


def test_fixmatch_of_another_recipe_is_no_pair(tmp_path):
  synthetic.write_run(tmp_path / 'tl', 'tl')
  run = synthetic.write_run(
    tmp_path / 'fix', 'tl', student__fit='fixmatch', image_size=16
  )
  path = run / 'summary.json'
  summary = json.loads(path.read_text()) | {'fixmatch': True}
  sealed.write_text(path, json.dumps(summary))
  found, notes = runs.collect([tmp_path])
  assert not pairing.pair(found, notes).pairs
