"""Pictures in other sizes and compressions, across splits."""

import io

import numpy as np
import pytest
from pictures import encode, make_classes
from PIL import Image

from tlkd_jax.data import facts

SIZE = (160, 117)
COPIES = {
  'half': lambda image: encode(image.resize((80, 59)), 'PNG'),
  'double': lambda image: encode(image.resize((320, 233)), 'PNG'),
  'jpeg': lambda image: encode(image, 'JPEG', quality=80),
  'twice': lambda image: encode(
    Image.open(io.BytesIO(encode(image, 'JPEG', quality=60))),
    'JPEG',
    quality=90,
  ),
  'webp': lambda image: encode(image, 'WEBP', quality=80),
  'bmp': lambda image: encode(image, 'BMP'),
  'brighter': lambda image: encode(image.point(lambda v: v * 0.9 + 9), 'PNG'),
  'third': lambda image: encode(image.resize((53, 39)), 'JPEG'),
}
OTHERS = {
  'mirrored': lambda image: encode(image.transpose(0), 'PNG'),
  'turned': lambda image: encode(image.rotate(90), 'PNG'),
  'flat': lambda image: encode(Image.new('RGB', SIZE, 'white'), 'PNG'),
}


def photograph(seed: int) -> Image.Image:
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)


def write(folder, made):
  folder.mkdir(parents=True)
  for name, data in made.items():
    (folder / name).write_bytes(data)


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'near'
  for label, name in enumerate(('cat', 'dog')):
    numbers = range(50 * label, 50 * label + 8)
    whole = {f'{i}.png': encode(photograph(i), 'PNG') for i in numbers}
    write(root / 'train' / name, whole)
    for split, start in (('validation', 200), ('test', 300)):
      numbers = range(start + 50 * label, start + 50 * label + 2)
      others = {f'{i}.png': encode(photograph(i), 'PNG') for i in numbers}
      write(root / split / name, others)
  return root


@pytest.mark.parametrize('copy', COPIES)
def test_copies_are_found_and_others_are_not(copy, root, load):
  for kind, made in (COPIES | OTHERS).items():
    if kind == copy or kind in OTHERS:
      data = made(photograph(3))
      (root / 'test' / 'cat' / f'{kind}.x.png').write_bytes(data)
  (root / 'validation' / 'dog' / 'flat.png').write_bytes(OTHERS['flat'](None))
  # An exact copy is reported as such.
  exact = (root / 'train' / 'dog' / '55.png').read_bytes()
  (root / 'test' / 'dog' / 'exact.png').write_bytes(exact)
  name = f'folder:{root}'
  dataset = load(name, near_duplicates=True)
  assert dataset.facts['near_copies'] == [
    {
      'split': 'test',
      'count': 1,
      'example': [f'test/cat/{copy}.x.png', 'train/cat/3.png'],
    }
  ]
  (line,) = [x for x in facts.copies_lines(dataset.facts) if 'look' in x]
  assert line.startswith('1 of 9 images of test look like images of train or ')
  assert line in dataset.describe()
  assert 'near_copies' not in load(name).facts


def test_of_each_split_with_the_earlier_ones(root, load):
  shown = COPIES['jpeg'](photograph(2))
  (root / 'validation' / 'cat' / 'a.jpg').write_bytes(shown)
  shown = COPIES['half'](photograph(250))
  (root / 'test' / 'dog' / 'a.png').write_bytes(shown)
  found = load(f'folder:{root}', near_duplicates=True).facts['near_copies']
  assert [(near['split'], *near['example']) for near in found] == [
    ('validation', 'validation/cat/a.jpg', 'train/cat/2.png'),
    ('test', 'test/dog/a.png', 'validation/dog/250.png'),
  ]


def test_digits_are_not_alike(load):
  """1.6 million pairs."""
  assert load('digits', near_duplicates=True).facts['near_copies'] == []


def test_none_is_said(tmp_path, load):
  make_classes(tmp_path, {'a': 20, 'b': 20})
  dataset = load(f'folder:{tmp_path}', near_duplicates=True)
  assert dataset.facts['near_copies'] == []
  assert 'no image of validation or test looks like' in dataset.describe()


def test_photographs_on_one_table(shared_dir, load):
  """No false alarm among 86,000 pairs; exact copies are others' matter."""
  dataset = load(
    f'folder:{shared_dir / "data" / "trashnet.zip"}',
    num_train_per_class=60,
    num_validation_per_class=20,
    num_test_per_class=20,
    near_duplicates=True,
  )
  across = [c for c in dataset.facts['copies'] if c['what'] == 'across']
  assert ['test/metal/metal91.jpg', 'train/glass/glass115.jpg'] in [
    copy['example'] for copy in across
  ]
  assert dataset.facts['near_copies'] == []
