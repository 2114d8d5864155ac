"""Training images are kept as large as random crops need them."""

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tlkd_jax.data import augment, load_splits, transforms, unlabelled
from tlkd_jax.settings import with_values
from tlkd_jax.training import decoding, drawing, preparation

pytestmark = pytest.mark.usefixtures('tiny_models')


def photograph(seed: int, width: int, height: int) -> Image.Image:
  """As in photographs, details are equally strong at every scale (1/f)."""
  rng = np.random.default_rng(seed)
  spectrum = np.fft.rfft2(rng.normal(size=(3, height, width)))
  rows, columns = np.fft.fftfreq(height), np.fft.rfftfreq(width)
  frequency = np.hypot(rows[:, None], columns)
  frequency[0, 0] = 1.0
  noise = np.fft.irfft2(spectrum / frequency, (height, width))
  noise = noise / noise.std() * 40 + 128
  pixels = np.clip(noise, 0, 255).astype(np.uint8).transpose(1, 2, 0)
  return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """36 and more pixels high, in two classes and two splits."""
  root = tmp_path_factory.mktemp('photographs')
  for number in range(36):
    split = 'test' if number < 4 else 'train'
    folder = root / split / ('cat', 'dog')[number % 2]
    folder.mkdir(parents=True, exist_ok=True)
    size = (90, 36) if number % 4 else (120, 72)
    photograph(number, *size).save(folder / f'{number}.png')
  return f'folder:{root}'


def sizes(dataset):
  return {s: x.images.shape[1] for s, x in dataset.splits.items()}


# Of images of 36 pixels mostly, for networks of 16 and 24 at a crop of 0.8.
STORED = [
  # 20 / sqrt((0.35 + 1) / 2), and 30 / sqrt(...) is beyond the files' 36.
  ({'augment__crop': 'random_resized'}, 24, 36),
  ({'augment__crop': 'random_resized', 'augment__scale': (0.2, 0.6)}, 32, 36),
  ({'augment__crop': 'random_resized', 'augment__scale': (0.1, 0.1)}, 36, 36),
  ({'augment__crop': 'random_resized', 'augment__scale': (1.0, 1.0)}, 20, 30),
  ({'augment__crop': 'random'}, 20, 30),
  ({'augment__crop': 'centre'}, 20, 30),
  # What is said is done, in proportion for others.
  ({'data__train_size': 50}, 50, 75),
  ({'data__train_size': 16, 'augment__crop': 'centre'}, 16, 24),
]


@pytest.mark.parametrize(('changes', 'own', 'theirs'), STORED)
def test_how_large_training_images_are_kept(
  changes, own, theirs, photographs, cache_dir
):
  changes = {'data__crop': 0.8, 'num_train_per_class': 3, **changes}
  config = tiny.make_config(
    'kd',
    cache_dir,
    dataset=photographs,
    teacher__image_size=24,
    **changes,
  )
  guided = decoding.load_dataset(config)
  (other,) = guided.others
  assert sizes(guided) == {'train': own, 'validation': 16, 'test': 16}
  assert sizes(other) == {'train': theirs, 'validation': 24, 'test': 24}
  assert (guided.square, other.square) == (min(own, 20), min(theirs, 30))
  alone = decoding.load_dataset(with_values(config, {'arm': 'tl'}))
  for split in ('train', 'validation', 'test'):
    np.testing.assert_array_equal(
      guided.splits[split].images, alone.splits[split].images
    )
  # Its own run sees what it sees here.
  teacher = decoding.load_dataset(with_values(config, {'arm': 'teacher'}))
  np.testing.assert_array_equal(
    teacher.splits['train'].images, other.splits['train'].images
  )


def test_digits_are_kept_as_small_as_they_are(cache_dir):
  config = tiny.make_config('tl', cache_dir, augment__crop='random_resized')
  assert sizes(decoding.load_dataset(config))['train'] == 16


def test_runs_that_keep_images_otherwise_do_not_share_them():
  config = tiny.make_config('tl')
  others = [
    {'data.train_size': 30},
    {'augment.crop': 'random_resized'},
    {'augment.crop': 'random_resized', 'augment.scale': (0.2, 1.0)},
  ]
  keys = [
    decoding.data_key(with_values(config, values)) for values in [{}, *others]
  ]
  assert len(set(keys)) == 4
  assert decoding.data_key(with_values(config, {'arm': 'kd'})) == keys[0]


def test_a_size_below_what_is_seen_is_refused(photographs, cache_dir):
  config = tiny.make_config(
    'tl', cache_dir, dataset=photographs, data__train_size=12
  )
  with pytest.raises(ValueError, match='train_size is 12, less than image_siz'):
    decoding.load_dataset(config)


def test_files_without_a_header_do_not_count(tmp_path):
  assert transforms.short_side_of(b'no image') is None
  assert transforms.short_side_of(transforms.unreadable('gone')) is None
  path = tmp_path / 'image.png'
  photograph(0, 90, 36).save(path)
  assert transforms.short_side_of(path.read_bytes()) == 36
  # Damaged behind its header.
  assert transforms.short_side_of(path.read_bytes()[:100]) == 36


def sharpness(images) -> float:
  """Mean magnitude of the gradient, of grey levels a pixel."""
  grey = np.asarray(images, np.float32).mean(-1)
  across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
  return float(np.hypot(across[:, 1:], down[:, :, 1:]).mean())


def views(config, dataset) -> np.ndarray:
  images = dataset.splits['train'].images
  numbers = np.arange(len(images))
  draw = drawing.make_augmentation(config, dataset)
  drawn = [
    draw(images, numbers, np.full_like(numbers, view), seed=0)
    for view in range(4)
  ]
  return np.concatenate(drawn)


def test_training_views_are_as_sharp_as_test_images(photographs, cache_dir):
  config = tiny.make_config(
    'tl',
    cache_dir,
    dataset=photographs,
    num_train_per_class=0,
    data__crop=0.8,
    augment__crop='random_resized',
  )
  dataset = decoding.load_dataset(config)
  drawn = views(config, dataset)
  assert drawn.min() >= 0 and drawn.max() <= 255
  test = sharpness(dataset.splits['test'].images)
  assert sharpness(drawn) > 0.88 * test
  # Smaller images, or a softer kernel, would not do.
  small = with_values(config, {'data.train_size': 20})
  soft = with_values(config, {'data.interpolation': 'bilinear'})
  for changed in (small, soft):
    found = views(changed, decoding.load_dataset(changed))
    assert sharpness(found) < 0.88 * test


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
def test_crops_that_keep_the_scale_keep_it(
  interpolation, photographs, cache_dir
):
  """Whatever is stored, they see what is seen at the scale of evaluation."""
  small, large = (
    load_splits(
      photographs,
      image_size=16,
      crop_fraction=0.8,
      train_size=side,
      interpolation=interpolation,
      cache_dir=cache_dir,
    )
    for side in (None, 35)
  )
  assert (small.square, large.square) == (20, 20)
  cut = preparation.make_evaluated(small)
  images = small.splits['train'].images
  # The centre of what is decoded for evaluation, bit for bit.
  np.testing.assert_array_equal(cut(images), images[:, 2:18, 2:18])
  numbers = np.arange(len(images))
  for crop in ('centre', 'random'):
    both = [
      np.asarray(
        augment.augment(
          dataset.splits['train'].images,
          0,
          numbers,
          numbers,
          image_size=16,
          crop=crop,
          **preparation.resampling(dataset),
        )
      )
      for dataset in (small, large)
    ]
    apart = np.abs(both[0] - both[1]).mean()
    moved = np.abs(both[0][:, 1:] - both[1][:, :-1]).mean()
    # Files are resampled twice rather than once; in place of the first two
    # kernels, which alias, JAX has another.
    limit = 0.75 if interpolation in ('nearest', 'box') else 0.5
    assert apart < limit * moved
  centre = preparation.make_evaluated(large)(large.splits['train'].images)
  assert centre.shape == (len(numbers), 16, 16, 3)


def test_images_without_labels_are_kept_as_the_others(photographs, cache_dir):
  dataset = load_splits(
    photographs,
    image_size=16,
    crop_fraction=0.8,
    train_size=35,
    cache_dir=cache_dir,
  )
  more = unlabelled.extend(dataset, photographs, crop_fraction=0.8)
  train, count = more.splits['train'], len(dataset.splits['train'])
  names = dict(zip(train.names[:count], train.images[:count], strict=True))
  again = dict(zip(train.names[count:], train.images[count:], strict=True))
  for name, image in names.items():
    np.testing.assert_array_equal(again[name], image)
