"""A finished run evaluated on labelled data that it was not trained on."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.workdirs import change_description
from tlkd_jax import evaluating
from tlkd_jax.data import Look, load_splits, other
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import other_data

pytestmark = pytest.mark.usefixtures('tiny_models')

NAMES = tuple(str(k) for k in range(10))


@pytest.fixture(scope='module')
def digits(cache_dir):
  """Test digits as the runs of tests/tiny.py saw them."""
  options = {
    'image_size': 16,
    'num_validation_per_class': 4,
    'num_test_per_class': 4,
    'cache_dir': cache_dir,
  }
  return load_splits('digits', num_train_per_class=1, **options).splits['test']


def write(folder, digits, classes=NAMES, split='', count=99):
  """Class folders of those digits; returns the rows that were written."""
  rows = [
    row for row, k in enumerate(digits.labels.tolist()) if NAMES[k] in classes
  ][:count]
  for row in rows:
    place = folder / split / NAMES[digits.labels[row]]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(digits.images[row])).save(place / f'{row:02}.png')
  return rows


@pytest.fixture
def run(compare_run, tmp_path):
  shutil.copytree(compare_run / 'tl', tmp_path / 'run')
  # Of folders other than digits the crop would be another.
  return tmp_path / 'run'


def evaluate_on(run, folder, **options):
  return evaluating.evaluate_run(
    str(run), sharding.make_mesh(), dataset=f'folder:{folder}', **options
  )


@pytest.mark.parametrize(
  ('classes', 'split', 'rest'),
  [
    (NAMES, '', ''),
    (('1', '3', '8'), '', ''),
    (('2', '7'), 'test', 'train'),
    (('0', '9', '4'), 'val', 'train'),
  ],
)
def test_the_answers_are_those_to_the_same_pictures(
  classes, split, rest, run, digits, tmp_path, compare_run
):
  """A subset of classes too; a test split is taken alone."""
  before = {
    path: path.read_bytes() for path in run.rglob('*') if path.is_file()
  }
  folder = tmp_path / 'other'
  rows = write(folder, digits, classes, split)
  if rest:
    write(folder, digits, classes, rest)
  text = evaluate_on(run, folder)
  for path, data in before.items():
    assert path.read_bytes() == data
  (place,) = (run / 'evaluation').glob('on_other-*')
  found = evaluate.load(place / 'predictions' / 'test.npz')
  known = evaluate.load(compare_run / 'tl' / 'predictions' / 'test.npz')
  rows = sorted(rows, key=lambda row: (digits.labels[row], row))
  np.testing.assert_array_equal(found.labels, digits.labels[rows])
  np.testing.assert_allclose(
    found.logits, known.logits[rows], rtol=1e-5, atol=1e-6
  )
  clean = json.loads((place / 'clean.json').read_text())
  assert list(clean) == ['test'] and clean['test']['count'] == len(rows)
  top1 = (found.logits.argmax(-1) == found.labels).mean()
  assert clean['test']['top1'] == pytest.approx(top1)
  row = next(line for line in text.splitlines() if line.startswith('tiny'))
  assert row.split()[1:4] == ['test', str(len(rows)), f'{top1:.3f}']
  said = f'its split {"test" if split == "test" else "validation"}; train is'
  assert (said if split else 'all its images') in text
  absent = len(NAMES) - len(classes)
  assert (f"without {absent} of the network's 10" in text) == (absent > 0)
  about = json.loads((place / 'data.json').read_text())
  assert about['dataset'] == f'folder:{folder}' and about['notes']


def test_classes_are_matched_by_name(run, digits, tmp_path):
  """In whatever order the run has them."""
  folder = tmp_path / 'other'
  write(folder, digits, ('0', '1', '2'))
  evaluate_on(run, folder)
  (place,) = (run / 'evaluation').iterdir()
  before = evaluate.load(place / 'predictions' / 'test.npz')
  change_description(run, class_names=list(NAMES[::-1]))
  evaluate_on(run, folder)
  after = evaluate.load(place / 'predictions' / 'test.npz')
  np.testing.assert_array_equal(after.labels, 9 - before.labels)
  np.testing.assert_array_equal(after.logits, before.logits)


def test_several_runs_and_several_data(compare_run, digits, tmp_path):
  """Each has a folder of its own, also under one last name."""
  runs = tmp_path / 'runs'
  for arm in ('tl', 'kd'):
    shutil.copytree(compare_run / arm, runs / arm)
  for name in ('a', 'b'):
    write(tmp_path / name / 'other', digits, count=10 if name == 'a' else 20)
    text = evaluate_on(runs, tmp_path / name / 'other')
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ['tl', 'kd']
  for arm in ('tl', 'kd'):
    counts = [
      json.loads((place / 'clean.json').read_text())['test']['count']
      for place in (runs / arm / 'evaluation').glob('on_other-*')
    ]
    assert sorted(counts) == [10, 20]


def test_images_that_it_was_trained_on_are_said(run, tmp_path, monkeypatch):
  """By the bytes of the files, whatever they are called."""
  monkeypatch.setattr(
    other_data.data_record, 'copies_of_training', lambda *_: 7
  )
  folder = tmp_path / 'other'
  options = {'image_size': 16, 'num_train_per_class': 1}
  write(folder, load_splits('digits', **options).splits['validation'], count=9)
  text = evaluate_on(run, folder)
  assert '7 of its 9 images are exact copies of training images' in text


def test_only_the_suite_clean(run, tmp_path):
  with pytest.raises(UserError, match='only the suite clean is accepted'):
    evaluate_on(run, tmp_path, suite='corruptions')


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    (('cat', 'Dog'), r"1 classes .* know: 'Dog' \(is it 'dog'\?\); it knows"),
    (('cat', 'zebra'), "1 classes .* know: 'zebra'"),
    (('ca', 'do', 'hen'), "3 classes .*'ca' .is it 'cat'.*, 'do' .*, 'hen'"),
  ],
)
def test_classes_that_the_network_does_not_know(classes, message, tmp_path):
  for name in classes:
    (tmp_path / 'other' / name).mkdir(parents=True)
    for i in range(3):
      path = tmp_path / 'other' / name / f'{i}.png'
      Image.new('RGB', (9, 9), (i, 0, 0)).save(path)
  with pytest.raises(ValueError, match=message):
    other.load(
      f'folder:{tmp_path}/other',
      ['cat', 'dog', 'owl'],
      Look(8, 1.0, 'bicubic'),
      cache_dir=tmp_path / 'cache',
    )
