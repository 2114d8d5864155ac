"""What a page says of a teacher whose run is not like those of its students."""

import json

import numpy as np
import pytest

from tests.report import synthetic
from tlkd_jax.evaluation import degradation, records
from tlkd_jax.report import page

OURS, THEIRS = ('ant', 'bee', 'cat'), ('cat', 'ant', 'bee')
# Label of the students -> label of the teacher.
THERE = np.asarray([THEIRS.index(name) for name in OURS])


def report(folder):
  page.write([folder], folder / 'report', replicates=20)
  found = json.loads((folder / 'report' / 'report.json').read_text())
  tables = {t['title']: t for s in found['sections'] for t in s['tables']}
  return (folder / 'report' / 'report.md').read_text(), tables


def named(table):
  return [
    dict(zip(table['columns'], row, strict=True)) for row in table['rows']
  ]


def in_other_order(path):
  """Predictions as a run of the teacher's order of classes has them."""
  stored = records.read_arrays(path)
  logits = np.empty_like(stored['logits'])
  logits[:, THERE] = stored['logits']
  records.write_arrays(
    path, stored | {'logits': logits, 'labels': THERE[stored['labels']]}
  )


@pytest.fixture
def other_order(tmp_path):
  """Three runs, of which the teacher's has its classes in another order."""
  teacher = synthetic.write_run(
    tmp_path / 'teacher', 'teacher', accuracy=0.9, classes=THEIRS
  )
  tl = synthetic.write_run(tmp_path / 'tl', 'tl', classes=list(OURS))
  kd = synthetic.write_run(
    tmp_path / 'kd', 'kd', accuracy=0.8, teacher=teacher, classes=list(OURS)
  )
  for split in ('test', 'validation'):
    path = teacher / 'predictions' / f'{split}.npz'
    # As the run of TL+KD asked it, by name.
    stored = records.read_arrays(path)
    records.write_arrays(kd / 'predictions' / f'teacher_{split}.npz', stored)
    in_other_order(path)
  return {'teacher': teacher, 'tl': tl, 'kd': kd}


def write_view(run, labels, names):
  """What the suite qualitative stores of the space before the last layer."""
  count = len(labels)
  places = np.zeros((count, 2), np.float32)
  arrays = {'labels': labels, 'indices': np.arange(count)}
  folder = run / 'evaluation'
  records.write_arrays(
    folder / 'embedding.npz', arrays | {'pca': places, 'tsne': places}
  )
  figures = {
    'count': count,
    'knn_accuracy': 0.5,
    'silhouette': 0.1,
    'explained_by_pca': [0.4, 0.2],
  }
  records.write_json(
    folder / 'qualitative.json',
    {'class_names': list(names), 'embedding': figures},
  )


def test_classes_are_named_in_the_order_of_the_students(other_order, tmp_path):
  labels = np.arange(9) % 3
  write_view(other_order['tl'], labels, OURS)
  write_view(other_order['teacher'], THERE[labels], THEIRS)
  _, tables = report(tmp_path)
  rows = named(tables['By class'])
  assert [row['class'] for row in rows] == [*OURS]
  # Each image is of one class, whoever speaks of it.
  found = {}
  for row in named(tables['Places']):
    found.setdefault(row['index'], set()).add((row['class'], row['model']))
  for index, said in found.items():
    assert {name for name, _ in said} == {OURS[index % 3]}
    assert {model for _, model in said} == {'TL', 'teacher'}


def test_a_teacher_of_another_order_is_not_asked_by_place(
  other_order, tmp_path
):
  """Where TL+KD did not store what it says, its own answers are no match."""
  for path in (other_order['kd'] / 'predictions').glob('teacher_*.npz'):
    path.unlink()
  text, tables = report(tmp_path)
  assert [row['class'] for row in named(tables['By class'])] == [*OURS]
  assert 'The teacher is wrong' not in text


def test_a_teacher_that_was_tested_on_other_images_shows_none(
  other_order, tmp_path
):
  """Its answers to the students' images are at hand all the same."""
  labels = np.arange(9) % 3
  write_view(other_order['tl'], labels, OURS)
  write_view(other_order['teacher'], THERE[labels], THEIRS)
  path = other_order['teacher'] / 'predictions' / 'test.npz'
  stored = records.read_arrays(path)
  records.write_arrays(path, stored | {'indices': stored['indices'] + 1})
  text, tables = report(tmp_path)
  assert {row['model'] for row in named(tables['Places'])} == {'TL'}
  assert 'The teacher is wrong' in text


def write_cells(run, indices, size, labels=None, **said):
  """Cells of one corruption; half of the answers are right."""
  labels = indices % 3 if labels is None else labels
  rng = np.random.default_rng(0)
  for cell in [degradation.CLEAN] + [('fog', s) for s in range(1, 6)]:
    records.write_arrays(
      degradation.cell_path(run, cell),
      {
        'logits': rng.normal(size=(len(indices), 3)).astype(np.float32),
        'labels': labels.astype(np.int32),
        'indices': indices,
        'image_size': np.asarray(size),
        'step': np.asarray(3),
      }
      | {k: np.asarray(v) for k, v in said.items() if cell[0] == 'none'},
    )


@pytest.mark.parametrize(
  ('indices', 'size', 'turned', 'words', 'shown'),
  [
    (np.arange(30), 64, 0, 'ones for all models.', True),
    (
      np.arange(30),
      96,
      0,
      "ones for TL and TL+KD; the teacher's at its own size, 96 pixels.",
      True,
    ),
    (np.arange(0, 60, 6), 64, 0, 'ones for TL and TL+KD.', False),
    (np.arange(30), 64, 1, 'ones for TL and TL+KD.', False),
  ],
)
def test_degraded_images_of_a_teacher_are_the_same_or_said_to_be_others(
  indices, size, turned, words, shown, tmp_path
):
  for arm in ('teacher', 'tl', 'kd'):
    options = {'teacher': tmp_path / 'teacher'} if arm == 'kd' else {}
    run = synthetic.write_run(tmp_path / arm, arm, **options)
    if arm == 'teacher':
      write_cells(run, indices, size, (indices + turned) % 3)
    else:
      write_cells(run, np.arange(30), 64)
  text, tables = report(tmp_path)
  assert f'30 test images, the same corrupted {words}' in text
  left_out = 'on other degraded images and is left out' in text
  assert left_out is not shown
  rows = named(tables['Corrupted error, mean over severities 1 to 5'])
  assert all((row['error teacher'] is not None) is shown for row in rows)


@pytest.mark.parametrize(
  ('said', 'words', 'shown', 'agreed'),
  [
    ({'pixels': 'p', 'look': 'a'}, 'ones for all models.', True, True),
    (
      {'pixels': 'q', 'look': 'b'},
      "ones for TL and TL+KD; the teacher's cut as it looks at images.",
      True,
      False,
    ),
    ({'pixels': 'q', 'look': 'a'}, 'ones for TL and TL+KD.', False, False),
    (
      {'pixels': 'p', 'look': 'a', 'classes': 'other'},
      'ones for TL and TL+KD.',
      False,
      False,
    ),
  ],
)
def test_degraded_images_are_the_same_where_their_pixels_are(
  said, words, shown, agreed, tmp_path
):
  """Of one size and with labels alike: indices of a split only count."""
  for arm in ('teacher', 'tl', 'kd'):
    options = {'teacher': tmp_path / 'teacher'} if arm == 'kd' else {}
    run = synthetic.write_run(tmp_path / arm, arm, **options)
    own = {'pixels': 'p', 'look': 'a', 'classes': 'c'}
    own |= said if arm == 'teacher' else {}
    write_cells(run, np.arange(30), 64, **own)
  text, tables = report(tmp_path)
  assert f'30 test images, the same corrupted {words}' in text
  assert ('on other degraded images and is left out' in text) is not shown
  means = 'Means by severity, with agreement'
  metrics = {row['metric'] for row in named(tables[means])}
  assert ('agreement with teacher' in metrics) is agreed
