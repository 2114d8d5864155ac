"""Images without labels: the rest of train, a TFDS split, what is refused."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import tiny
from tests.data.pictures import encode, make_classes, picture
from tlkd_jax import data
from tlkd_jax.data import sources, unlabelled
from tlkd_jax.data.unlabelled import Where
from tlkd_jax.training import decoding, inputs


@pytest.fixture(scope='module')
def digits(cache_dir):
  return data.load_splits(
    'digits', image_size=16, num_train_per_class=3, cache_dir=cache_dir
  )


def test_the_rest_are_the_other_training_images_once_each(digits, cache_dir):
  everything = data.load_splits('digits', image_size=16, cache_dir=cache_dir)
  split = unlabelled.extend(
    digits, 'rest', where=Where(cache_dir=cache_dir)
  ).splits['train']
  whole, own = everything.splits['train'], digits.splits['train']
  assert len(split) == len(whole) > len(own) == 30
  for part in ('images', 'labels', 'indices'):
    np.testing.assert_array_equal(getattr(split, part)[:30], getattr(own, part))
  assert (split.labels[30:] == unlabelled.NO_LABEL).all()
  assert sorted(split.indices.tolist()) == sorted(whole.indices.tolist())
  by_index = dict(zip(whole.indices.tolist(), whole.images, strict=True))
  names = dict(zip(whole.indices.tolist(), whole.names, strict=True))
  for row, index in enumerate(split.indices.tolist()):
    np.testing.assert_array_equal(split.images[row], by_index[index])
    assert split.names[row] == names[index]


def test_all_looks_have_the_same_rest(tiny_models, cache_dir):
  config = tiny.make_config(
    'kd',
    cache_dir,
    teacher__image_size=24,
    distillation__unlabelled='rest',
  )
  dataset = inputs.training_data(config, decoding.load_dataset(config))
  (other,) = dataset.others
  own, theirs = dataset.splits['train'], other.splits['train']
  assert theirs.images.shape[1] > own.images.shape[1]
  for part in ('labels', 'indices', 'names'):
    np.testing.assert_array_equal(getattr(own, part), getattr(theirs, part))
  assert (own.labels < 0).sum() > 1000


def test_nothing_is_left_of_a_set_that_is_used_whole(cache_dir):
  whole = data.load_splits('digits', image_size=8, cache_dir=cache_dir)
  where = Where(cache_dir=cache_dir)
  count = len(whole.splits['train'])
  match = f'all {count} training images of digits are labelled'
  with pytest.raises(ValueError, match=match):
    unlabelled.check(whole, 'rest', where)
  with pytest.raises(ValueError, match=match):
    unlabelled.extend(whole, 'rest', where=where)


class Scenes(tfds.core.GeneratorBasedBuilder):
  """Images without a label feature, in two splits."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'picture': tfds.features.Image(shape=(None, None, 3))}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples(3),
      'unlabelled': self._generate_examples(5),
    }

  def _generate_examples(self, count):
    for i in range(count):
      data_of_file = encode(picture(f'scene{count}-{i}'), 'PNG')
      yield i, {'picture': io.BytesIO(data_of_file)}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scenes')
  builder = Scenes(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  return folder


@pytest.mark.parametrize(
  ('place', 'count'),
  [
    ('tfds:scenes', 3),
    ('tfds:scenes:train', 3),
    ('tfds:scenes:unlabelled', 5),
    ('tfds:scenes:1.0.0', 3),
    ('tfds:scenes:1.0.0:unlabelled', 5),
  ],
)
def test_a_tfds_split_without_labels(place, count, digits, scenes, tmp_path):
  where = Where(data_dir=scenes, cache_dir=tmp_path)
  unlabelled.check(digits, place, where)
  split = unlabelled.extend(digits, place, where=where).splits['train']
  assert len(split) == 30 + count and (split.labels[30:] == -1).all()
  assert len(set(split.indices.tolist())) == 30 + count
  assert len({image.tobytes() for image in split.images[30:]}) == count


@pytest.mark.parametrize(
  ('place', 'error', 'message'),
  [
    ('tfds:scenes:tset', ValueError, "no split 'tset'; accepted: train, unla"),
    ('tfds:cifar10', FileNotFoundError, 'cifar10.* is not prepared in'),
    ('tfds:cifar11', ValueError, "unknown data set 'cifar11'. Did you mean"),
    ('folder:nowhere', FileNotFoundError, 'no folder nowhere'),
  ],
)
def test_what_is_not_there_is_said_before_anything_is_decoded(
  place, error, message, digits, scenes, tmp_path
):
  where = Where(data_dir=scenes, cache_dir=tmp_path)
  with pytest.raises(error, match=f'distillation.unlabelled: .*{message}'):
    unlabelled.check(digits, place, where)


def test_labels_of_a_split_are_not_read(digits, cache_dir, monkeypatch):
  """Whatever the hidden labels are, even none that could be a class."""
  where = Where(cache_dir=cache_dir)
  split = unlabelled.extend(digits, 'rest', where=where).splits['train']
  open_sources = sources.open_sources

  def other_labels(*args, **options):
    found = open_sources(*args, **options)
    train = found.splits['train']
    wrong = dataclasses.replace(train, labels=-77 - train.labels)
    splits = found.splits | {'train': wrong}
    return dataclasses.replace(found, splits=splits)

  monkeypatch.setattr(sources, 'open_sources', other_labels)
  again = unlabelled.extend(digits, 'rest', where=where).splits['train']
  for part in ('images', 'labels', 'indices', 'names'):
    np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_images_of_validation_and_test_are_left_out(kind, tmp_path):
  """By their bytes, whatever they are called; those of train are counted."""
  root, more = tmp_path / 'pets', tmp_path / 'more'
  make_classes(root, {'cat': 12, 'dog': 12})
  make_classes(more / 'outside', {'owl': 3})
  own = data.load_splits(
    f'folder:{root}', image_size=16, cache_dir=tmp_path / 'cache'
  )
  for split in ('train', 'validation', 'test'):
    for k, name in enumerate(own.files[split].names):
      shutil.copy(root / name, more / f'{split}{k}.png')
  place = f'folder:{more}'
  if kind == 'zip':
    place = f'folder:{shutil.make_archive(str(more), "zip", more)}'
  extended = unlabelled.extend(own, place)
  split = extended.splits['train']
  trained = len(own.splits['train'])
  names = split.names[trained:]
  assert len(names) == trained + 3
  assert all(name.startswith(('train', 'outside')) for name in names)
  evaluated = len(own.files['validation'].names) + len(own.files['test'].names)
  said = extended.notes[-1]
  assert f'{evaluated} others are left out: exact copies of images of' in said
  assert f'{trained} of them are exact copies of images of train' in said


def test_nothing_but_images_of_test(tmp_path):
  make_classes(tmp_path / 'pets' / 'train', {'cat': 9, 'dog': 9})
  make_classes(tmp_path / 'pets' / 'test', {'cat': 2, 'dog': 2})
  own = data.load_splits(
    f'folder:{tmp_path}/pets', image_size=16, cache_dir=tmp_path / 'cache'
  )
  with pytest.raises(ValueError, match='all 4 images of .*test are exact cop'):
    unlabelled.extend(own, f'folder:{tmp_path}/pets/test')
