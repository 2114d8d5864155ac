import importlib.util
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import encode, picture

from tlkd_jax.data import prepare, sources

HAS_TENSORFLOW = importlib.util.find_spec('tensorflow') is not None

# Extracts its archive through the download manager, as built-in sets do.
ARCHIVE_BUILDER = """
import sys
import tensorflow_datasets as tfds
from tlkd_jax.data import prepare

archive, data_dir = sys.argv[1:]


class ZippedPets(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=['cat', 'dog']),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    root = dl_manager.extract(archive)
    return {s: self._generate_examples(root / s) for s in ('train', 'test')}

  def _generate_examples(self, root):
    for path in sorted(root.glob('*/*.png')):
      key = f'{path.parent.name}/{path.name}'
      yield key, {'image': path, 'label': path.parent.name}


try:
  print(prepare.prepare('zipped_pets', data_dir=data_dir))
except ModuleNotFoundError as error:
  print(f'ModuleNotFoundError: {error}')
"""


@pytest.fixture
def pets(tmp_path):
  """A zip of 12 train and 4 test images of each of two classes."""
  with zipfile.ZipFile(tmp_path / 'pets.zip', 'w') as archive:
    for split, count in [('train', 12), ('test', 4)]:
      for label in ('cat', 'dog'):
        for i in range(count):
          name = f'{split}/{label}/{i}.png'
          archive.writestr(name, encode(picture(name), 'PNG'))
  return tmp_path


def _run(pets):
  script = pets / 'builder.py'
  script.write_text(ARCHIVE_BUILDER)
  root = pathlib.Path(prepare.__file__).resolve().parents[2]
  return subprocess.run(
    [sys.executable, script, pets / 'pets.zip', pets / 'prepared'],
    capture_output=True,
    text=True,
    timeout=300,
    env={'PYTHONPATH': str(root), 'PATH': '', 'HOME': str(pets)},
  )


@pytest.mark.skipif(not HAS_TENSORFLOW, reason='TensorFlow is not installed')
def test_an_archive_is_prepared_with_tensorflow_and_read_without(load, pets):
  done = _run(pets)
  assert 'zipped_pets/1.0.0' in done.stdout, done.stderr
  dataset = load('zipped_pets', data_dir=pets / 'prepared')
  assert 'tensorflow' not in sys.modules
  assert dataset.class_names == ['cat', 'dog']
  sizes = {name: len(split) for name, split in dataset.splits.items()}
  assert sizes == {'train': 22, 'validation': 2, 'test': 8}
  seen = {image.tobytes() for image in dataset.splits['test'].images}
  assert len(seen) == 8


@pytest.mark.skipif(HAS_TENSORFLOW, reason='TensorFlow is installed')
def test_without_tensorflow_the_message_says_how_to_get_it(pets):
  done = _run(pets)
  assert "preparing 'zipped_pets' needs TensorFlow" in done.stdout, done.stderr
  assert 'tlkd_jax[tfds]' in done.stdout


class GeneratedShapes(tfds.core.GeneratorBasedBuilder):
  """Needs no archive, so it is prepared without TensorFlow."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name)
    for name in (
      'train',
      'train_test',
      'train_validation',
      'unlabelled',
      'test',
    )
  ]

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'mask': tfds.features.Image(shape=(None, None, 1)),
      'label': tfds.features.ClassLabel(names=['disc', 'square']),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = self.builder_config.name.split('_')
    splits = ['train', 'test'] if splits == ['unlabelled'] else splits
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split):
    unlabelled = self.builder_config.name == 'unlabelled' and split == 'test'
    for i in range(20):
      image = picture(f'{split}-{i}')
      label = -1 if unlabelled else i % 2
      mask = encode(image.convert('L'), 'PNG')
      example = {'image': encode(image, 'JPEG'), 'mask': mask, 'label': label}
      yield i, example


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('tfds')
  for config in GeneratedShapes.BUILDER_CONFIGS:
    prepare.prepare(f'generated_shapes/{config.name}', data_dir=data_dir)
  return data_dir


@pytest.mark.parametrize(
  'config, sizes, note',
  [
    ('train', (14, 2, 4), 'test (4 images) and validation (2 images) cut'),
    ('train_test', (18, 2, 20), 'validation (2 images) cut from its 20'),
    ('train_validation', (18, 2, 20), 'its validation split is used as test'),
  ],
)
def test_missing_splits_of_a_tfds_set(load, shapes, config, sizes, note):
  dataset = load(f'generated_shapes/{config}', data_dir=shapes)
  assert tuple(map(len, dataset.splits.values())) == sizes
  assert any(note in text for text in dataset.notes)
  for split in dataset.splits.values():
    assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2
  train, validation = dataset.splits['train'], dataset.splits['validation']
  assert not set(train.indices) & set(validation.indices)
  again = load(f'generated_shapes/{config}', data_dir=shapes)
  assert again.splits['train'].names == train.names
  assert again.splits['train'].fingerprint() == train.fingerprint()


def test_a_tfds_set_for_a_test_alone(load, shapes, tmp_path):
  name, places = 'generated_shapes/test', {'data_dir': shapes}
  found = sources.open_test(name, cache_dir=tmp_path, **places)
  assert len(found.splits['test'].names) == 20
  with pytest.raises(ValueError, match='has no train split'):
    load(name, **places)


class HandMade(GeneratedShapes):
  """Its archive is to be downloaded by hand."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = 'put shapes.tar there'

  def _split_generators(self, dl_manager):
    raise FileNotFoundError(dl_manager.manual_dir / 'shapes.tar')


def test_what_is_to_be_downloaded_by_hand_is_said(tmp_path):
  message = f'{tmp_path}/downloads/manual does not exist .*put shapes.tar there'
  with pytest.raises(FileNotFoundError, match=f'(?s)by hand.*{message}'):
    prepare.prepare('hand_made/train', data_dir=tmp_path)


def test_unlabelled_split_is_an_error(load, shapes):
  with pytest.raises(ValueError, match='test is not labelled'):
    load('generated_shapes/unlabelled', data_dir=shapes)


def test_own_sets_are_prepared_in_the_cache(tmp_path, three_splits):
  for name in ('digits', f'folder:{three_splits}'):
    path = prepare.prepare(name, cache_dir=tmp_path)
    assert path.is_relative_to(tmp_path)
    assert any('array_record' in file.name for file in path.iterdir())


@pytest.mark.parametrize(
  'name, code, text',
  [
    ('digits', 0, 'train: 1169 images, 113 (8) to 119 (1) of a class'),
    ('cifar1O', 2, "error: unknown data set 'cifar1O'. Did you mean 'cifar10'"),
  ],
)
def test_command(tmp_path, name, code, text):
  root = pathlib.Path(prepare.__file__).resolve().parents[2]
  done = subprocess.run(
    [sys.executable, '-m', 'tlkd_jax.data.prepare', '--dataset', name]
    + ['--data_dir', tmp_path, '--cache_dir', tmp_path],
    capture_output=True,
    text=True,
    timeout=300,
    cwd=root,
  )
  assert done.returncode == code, done.stderr
  assert text in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr
