"""A run goes on with the data that it began with, or says what has changed."""

import copy
import gzip
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tlkd_jax.data import Dataset, Files, load_splits
from tlkd_jax.training import data_record, decoding, inputs, workdir
from tlkd_jax.training.loop import fine_tune

pytestmark = pytest.mark.usefixtures('tiny_models')

BEFORE = {
  'classes': ['cat', 'dog'],
  'files': {
    'train': {
      'names': [f'{i}.png' for i in range(6)],
      'labels': [0, 0, 0, 1, 1, 1],
      'digests': [10, 11, 12, 13, 14, 15],
    },
    'test': {'names': ['t'], 'labels': [1], 'digests': [2**64 - 1]},
  },
}


def changed(change):
  record = copy.deepcopy(BEFORE)
  change(record['files']['train'], record)
  return record


def add(train, record, names=('6.png',)):
  for name in names:
    train['names'].append(name)
    train['labels'].append(1)
    train['digests'].append(99)


def take(train, record, row=2):
  for values in train.values():
    del values[row]


def rename(train, record):
  train['names'][0] = 'a.png'


def another_class(train, record):
  train['labels'][1] = 1


def another_picture(train, record):
  train['digests'][5] += 1


def another_order(train, record):
  for values in train.values():
    values.reverse()


def another_split(train, record):
  take(train, record, 5)
  add(record['files']['test'], record, ['5.png'])


def a_new_class(train, record):
  record['classes'] = ['ape', 'cat', 'dog']
  for files in record['files'].values():
    files['labels'] = [label + 1 for label in files['labels']]


def classes_in_another_order(train, record):
  record['classes'].reverse()


def no_test(train, record):
  del record['files']['test']


def validation(train, record):
  record['files']['validation'] = copy.deepcopy(record['files']['test'])


MANY = [f'{i}.png' for i in range(6, 11)]
CASES = [
  (add, ['train: 6 images there, 7 now; 1 new: 6.png']),
  (
    lambda train, record: add(train, record, MANY),
    ['train: 6 images there, 11 now; 5 new: 6.png, 7.png, 8.png, ...'],
  ),
  (take, ['train: 6 images there, 5 now; 1 gone: 2.png']),
  (
    rename,
    ['train: 6 images there, 6 now; 1 new: a.png; 1 gone: 0.png'],
  ),
  (
    another_class,
    [
      'train: 6 images there, 6 now; '
      '1 of another class: 1.png (cat there, dog now)'
    ],
  ),
  (another_picture, ['train: 6 images there, 6 now; 1 other bytes: 5.png']),
  (another_order, ['train: the same images in another order']),
  (
    another_split,
    [
      'train: 6 images there, 5 now; 1 gone: 5.png',
      'test: 1 images there, 2 now; 1 new: 5.png',
    ],
  ),
  (a_new_class, ['classes: 2 there, 3 now; 1 new: ape']),
  (
    classes_in_another_order,
    [
      'classes: the same in another order',
      'train: 6 images there, 6 now; 6 of another class: 0.png (cat there, '
      'dog now), 1.png (cat there, dog now), 2.png (cat there, dog now), ...',
      'test: 1 images there, 1 now; 1 of another class: t (dog there, cat now)',
    ],
  ),
  (no_test, ['test: 1 images there, 0 now; 1 gone: t']),
  (validation, ['validation: 0 images there, 1 now; 1 new: t']),
]


@pytest.mark.parametrize(('change', 'lines'), CASES)
def test_what_has_changed_is_named(change, lines, tmp_path):
  data_record.write(tmp_path, BEFORE)
  data_record.check(tmp_path, copy.deepcopy(BEFORE))
  with pytest.raises(ValueError, match='not those that') as error:
    data_record.check(tmp_path, changed(change))
  assert str(error.value).splitlines()[1:-1] == [f'  {line}' for line in lines]


def test_a_record_is_written_once(tmp_path):
  data_record.check(tmp_path, BEFORE)
  data_record.write(tmp_path, BEFORE)
  data_record.write(tmp_path, changed(add))
  data_record.check(tmp_path, BEFORE)


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: data[:-10],
    lambda data: b'no gzip',
    lambda data: data[:20] + b'\0\0\0' + data[23:],
    lambda data: gzip.compress(b'{"classes": '),
    lambda data: gzip.compress(b'[]'),
    lambda data: gzip.compress(b'{"classes": [], "files": {"train": 3}}'),
  ],
)
def test_a_damaged_record_is_named(damage, tmp_path):
  data_record.write(tmp_path, BEFORE)
  path = tmp_path / data_record.LABELLED
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=r'data\.json\.gz is damaged'):
    data_record.check(tmp_path, BEFORE)


def picture(seed: int) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, 'PNG')
  return data.getvalue()


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'pictures'
  for label, name in enumerate(('cat', 'dog')):
    (root / name).mkdir(parents=True)
    for i in range(12):
      (root / name / f'{i}.png').write_bytes(picture(100 * label + i))
  return root


def add_five(root):
  for i in range(5):
    (root / 'cat' / f'new{i}.png').write_bytes(picture(1000 + i))


def overwrite(root):
  (root / 'dog' / '7.png').write_bytes(picture(2000))


def into_another_class(root):
  (root / 'cat' / '3.png').rename(root / 'dog' / 'was3.png')


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    (add_five, 'new: cat/new'),
    (overwrite, 'other bytes: dog/7.png'),
    (into_another_class, 'gone: cat/3.png'),
    (lambda root: (root / 'dog' / '0.png').unlink(), 'gone: dog/0.png'),
  ],
)
def test_the_files_of_a_folder(change, named, folder, tmp_path):
  """Also those that the run's subset leaves out."""

  def record():
    loaded = load_splits(
      f'folder:{folder}',
      image_size=8,
      num_train_per_class=1,
      num_validation_per_class=1,
      num_test_per_class=1,
      cache_dir=tmp_path / 'cache',
    )
    return data_record.of_labelled(loaded)

  before = record()
  assert data_record.changes(before, record()) == []
  change(folder)
  assert named in '\n'.join(data_record.changes(before, record()))


def test_images_without_labels_have_a_record_of_their_own(folder, cache_dir):
  config = tiny.make_config(
    'kd', cache_dir, distillation__unlabelled=f'folder:{folder}'
  )
  own = decoding.load_dataset(config)

  def record():
    return data_record.of_unlabelled(inputs.training_data(config, own))

  before = record()
  assert len(before['files']['unlabelled']['names']) == 24
  add_five(folder)
  overwrite(folder)
  (line,) = data_record.changes(before, record())
  assert line.startswith('unlabelled: 24 images there, 29 now; 5 new: ')
  assert '1 other bytes: ' in line


@pytest.mark.parametrize(
  ('digests', 'copies'),
  [([11, 11, 15, 99], 3), ([98, 99], 0), ([0, 0, 2**64 - 1], 0)],
)
def test_other_data_that_the_run_was_trained_on(digests, copies, tmp_path):
  """0 is no digest, and the run's own test images are none of these."""
  files = Files([], np.zeros(0, np.int32), np.asarray(digests, np.uint64))
  other = Dataset('other', [], {}, 8, True, {}, [], files={'test': files})
  assert data_record.copies_of_training(tmp_path, other) == 0
  record = changed(lambda train, _: train['digests'].__setitem__(0, 0))
  data_record.write(tmp_path, record)
  assert data_record.copies_of_training(tmp_path, other) == copies


def test_a_run_records_its_data_and_is_resumed_without_a_word(
  compare_run, cache_dir, tmp_path
):
  """One that has no record, of a version before, gets one."""
  shutil.copytree(compare_run / 'tl', tmp_path / 'tl')
  config = tiny.make_config('tl', cache_dir)
  dataset = decoding.load_dataset(config)
  path = tmp_path / 'tl' / data_record.LABELLED
  written = path.read_bytes()
  files = json.loads(gzip.decompress(written))['files']
  assert {split: len(f['names']) for split, f in files.items()} == {
    split: len(f.names) for split, f in dataset.files.items()
  }
  path.unlink()
  summary = fine_tune(config, tmp_path / 'tl', dataset, None)
  assert summary['arm'] == 'tl' and path.read_bytes() == written


def test_a_record_of_a_version_with_fewer_keys(
  compare_run, cache_dir, tmp_path
):
  """Keys that came since have their defaults there."""
  config = json.loads((compare_run / 'tl' / 'config.json').read_text())
  del config['teacher']['crop'], config['transfer']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  workdir.check(tmp_path, tiny.make_config('tl', cache_dir))
  other = tiny.make_config('tl', cache_dir, transfer__l2_sp=0.5)
  with pytest.raises(
    ValueError, match=r'transfer\.l2_sp: 0\.0 there, 0\.5 now'
  ):
    workdir.check(tmp_path, other)


def of_files(train, test):
  """A data set of which the names and bytes of two splits are known."""
  files = {
    name: Files([*map(str, rows)], np.zeros(len(rows), int), np.array(rows))
    for name, rows in (('train', train), ('test', test))
  }
  return Dataset('pets', ['cat'], {}, 8, True, {}, [], files=files)


@pytest.mark.parametrize(
  ('learned', 'tested', 'count'),
  [
    ([1, 2, 3], [4, 5], 0),
    ([1, 2, 3], [3, 4], 1),
    ([1, 2, 3, 4], [4, 3, 5], 2),
    ([], [4, 5], 0),
  ],
)
def test_a_teacher_that_learned_from_the_test_images_is_refused(
  tmp_path, learned, tested, count
):
  theirs = data_record.of_labelled(of_files(learned, [9]))
  data_record.write(tmp_path, theirs)
  dataset = of_files([7], tested)
  if not count:
    data_record.check_taught(str(tmp_path), dataset)
    return
  message = f'learned from {count} of the {len(tested)} images that are test'
  with pytest.raises(ValueError, match=message):
    data_record.check_taught(str(tmp_path), dataset)


@pytest.mark.parametrize(
  ('own', 'tested', 'count'),
  [
    # The teacher learned 1, 2 and 3 by other names.
    ([7], [1, 4, 3], 2),
    # Exact copies within one data set are there for the student too.
    ([1, 3], [1, 4, 3], 0),
    ([3], [1, 4, 3], 1),
    # No digest is like none.
    ([7], [0, 4], 0),
  ],
)
def test_a_teacher_that_learned_them_by_other_names(
  tmp_path, own, tested, count
):
  theirs = data_record.of_labelled(of_files([0, 1, 2, 3], [9]))
  names = theirs['files']['train']['names']
  theirs['files']['train']['names'] = [f'train/{name}' for name in names]
  data_record.write(tmp_path, theirs)
  dataset = of_files(own, tested)
  if not count:
    data_record.check_taught(str(tmp_path), dataset)
    return
  with pytest.raises(ValueError, match=f'learned from {count} of the '):
    data_record.check_taught(str(tmp_path), dataset)


def test_a_teacher_without_a_record_is_taken(tmp_path):
  data_record.check_taught(str(tmp_path), of_files([1], [2]))
  damaged = tmp_path / data_record.LABELLED
  damaged.write_bytes(b'no gzip')
  with pytest.raises(ValueError, match='is damaged'):
    data_record.check_taught(str(tmp_path), of_files([1], [2]))
