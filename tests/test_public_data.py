"""The study's data sets are made from archives like the public ones."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import public_data
from tlkd_jax.data import Fold, load_splits, prepare

CLASSES = ['airplane', 'automobile', 'bird']


def photograph(number: int) -> bytes:
  rng = np.random.default_rng(number)
  small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
  image = Image.fromarray(small).resize((16, 12), Image.Resampling.BICUBIC)
  data = io.BytesIO()
  image.save(data, 'JPEG')
  return data.getvalue()


@pytest.fixture
def trash(tmp_path, monkeypatch):
  """A stand-in of TrashNet's archive: 2 classes of 6 and 4, 3 are test."""
  listed = tmp_path / 'listed.txt'
  listed.write_text('glass/glass2.jpg\nglass/glass10.jpg\ntrash/trash1.jpg\n')
  monkeypatch.setattr(public_data, 'TEST', listed)
  monkeypatch.setattr(public_data, 'TRASHNET', {'glass': 10, 'trash': 4})
  monkeypatch.setattr(public_data, '_HALF', (8, 6))

  def make(left_out=(), more=()):
    members = {
      f'dataset-resized/{name}/{name}{i}.jpg': photograph(i + len(name) * size)
      for name, size in public_data.TRASHNET.items()
      for i in range(1, size + 1)
    }
    members |= {
      'dataset-resized/.DS_Store': b'x',
      'dataset-resized/glass/._glass1.jpg': b'x',
      '__MACOSX/dataset-resized/glass/glass1.jpg': b'x',
    }
    members |= dict.fromkeys(more, photograph(0))
    path = tmp_path / 'dataset-resized.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      for name, data in members.items():
        if name not in left_out:
          archive.writestr(name, data)
    return path

  return make


def test_trashnet_has_the_split_that_is_written_down(tmp_path, trash):
  out = tmp_path / 'made' / 'trashnet.zip'
  assert public_data.main(['trashnet', str(trash()), str(out)]) == 0
  with zipfile.ZipFile(out) as made:
    names = made.namelist()
    one = Image.open(io.BytesIO(made.read('trashnet/test/glass/glass2.jpg')))
  assert one.size == (8, 6) and len(names) == 14
  assert sorted(n for n in names if '/test/' in n) == [
    'trashnet/test/glass/glass10.jpg',
    'trashnet/test/glass/glass2.jpg',
    'trashnet/test/trash/trash1.jpg',
  ]
  first = out.read_bytes()
  public_data.main(['trashnet', str(trash()), str(out)])
  assert out.read_bytes() == first
  dataset = load_splits(f'folder:{out}', image_size=8, cache_dir=tmp_path)
  assert len(dataset.splits['test']) == 3


def test_all_of_trashnet_can_be_cut_into_folds(tmp_path, trash):
  split, whole = tmp_path / 'split.zip', tmp_path / 'whole.zip'
  public_data.write('trashnet', trash(), split)
  assert public_data.write('trashnet_whole', trash(), whole) == 14
  with zipfile.ZipFile(split) as parts, zipfile.ZipFile(whole) as made:
    images = {n.split('/', 2)[2]: parts.read(n) for n in parts.namelist()}
    for name in made.namelist():
      assert made.read(name) == images[name.removeprefix('trashnet_whole/')]
  dataset = load_splits(
    f'folder:{whole}', image_size=8, cache_dir=tmp_path, fold=Fold(0, 2)
  )
  assert sum(len(one) for one in dataset.splits.values()) == 14


@pytest.mark.parametrize(
  ('left_out', 'more', 'message'),
  [
    (('glass/glass3.jpg',), (), "{'glass': 9, 'trash': 4}; expected"),
    (('trash/trash1.jpg', 'trash/trash2.jpg'), (), "'trash': 2}"),
    ((), ('glass/glass99.jpg',), "{'glass': 11, 'trash': 4}"),
    (('glass/glass2.jpg',), ('glass/glass99.jpg',), 'such as glass/glass2.jpg'),
  ],
)
def test_another_archive_is_refused(
  tmp_path, trash, capsys, left_out, more, message
):
  archive = trash(
    *([f'dataset-resized/{n}' for n in x] for x in (left_out, more))
  )
  out = tmp_path / 'trashnet.zip'
  assert public_data.main(['trashnet', str(archive), str(out)]) == 2
  assert message in capsys.readouterr().err
  assert not out.exists()


@pytest.mark.parametrize('name', ['trashnet', 'cifar10'])
def test_what_is_no_archive_is_one_message(tmp_path, capsys, name):
  (tmp_path / 'page.html').write_text('<html>')
  for file in ('page.html', 'nothing'):
    given = [name, str(tmp_path / file), str(tmp_path / 'out.zip')]
    assert public_data.main(given) == 2
  assert capsys.readouterr().err.count('error: ') == 2


def cifar(path, batches):
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in batches.items():
      data = pickle.dumps(content, protocol=2)
      info = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def test_cifar10_in_the_order_of_its_batches(tmp_path):
  rng = np.random.default_rng(0)
  values = {}
  batches = {'batches.meta': {b'label_names': [n.encode() for n in CLASSES]}}
  for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
    values[name] = rng.integers(0, 256, (3, 3, 1, 1), np.uint8)
    rows = np.broadcast_to(values[name], (3, 3, 32, 32)).reshape(3, -1)
    batches[name] = {b'data': rows.copy(), b'labels': [2, 0, 2]}
  out = tmp_path / 'cifar10.zip'
  archive = cifar(tmp_path / 'cifar-10-python.tar.gz', batches)
  assert public_data.main(['cifar10', str(archive), str(out)]) == 0
  with zipfile.ZipFile(out) as made:
    names = made.namelist()
    fourth = np.asarray(
      Image.open(io.BytesIO(made.read('cifar10/train/bird/0003.jpg')))
    )
  assert len(names) == 18
  assert 'cifar10/test/bird/0001.jpg' in names
  assert 'cifar10/train/airplane/0004.jpg' in names
  # The second bird of the second batch, as RGB, but for JPEG.
  wanted = values['data_batch_2'][2, :, 0, 0].astype(int)
  assert np.abs(fourth.reshape(-1, 3) - wanted).max() <= 4


class _Code:
  def __reduce__(self):
    return os.getcwd, ()


def test_a_batch_that_would_run_code_is_refused(tmp_path, capsys):
  archive = cifar(tmp_path / 'c.tar.gz', {'batches.meta': _Code()})
  out = tmp_path / 'cifar10.zip'
  assert public_data.main(['cifar10', str(archive), str(out)]) == 2
  assert 'which no batch does' in capsys.readouterr().err
  missing = cifar(tmp_path / 'd.tar.gz', {'batches.meta': {b'label_names': []}})
  assert public_data.main(['cifar10', str(missing), str(out)]) == 2
  assert 'has no data_batch_1' in capsys.readouterr().err


def test_the_list_is_that_of_the_data_at_hand(shared_dir):
  with zipfile.ZipFile(shared_dir / 'data' / 'trashnet.zip') as archive:
    names = [n.split('/', 2) for n in archive.namelist() if n.endswith('.jpg')]
  listed = public_data.TEST.read_text().split()
  assert len(listed) == len(set(listed)) == 630
  assert {file for _, split, file in names if split == 'test'} == {*listed}
  counts = {name: 0 for name in public_data.TRASHNET}
  for _, _, file in names:
    counts[file.partition('/')[0]] += 1
  assert counts == public_data.TRASHNET


def test_the_digest_is_that_of_the_pixels(tmp_path, trash):
  out = tmp_path / 'trashnet.zip'
  public_data.write('trashnet', trash(), out)
  cache = tmp_path / 'cache'
  lines = prepare.digests(f'folder:{out}', 8, cache_dir=cache)
  assert [line.partition(':')[0] for line in lines] == [
    'train at 8 px',
    'validation at 8 px',
    'test at 8 px',
  ]
  again = prepare.digests(f'folder:{out}', 8, cache_dir=tmp_path / 'other')
  assert again == lines
  larger = prepare.digests(f'folder:{out}', 9, cache_dir=cache)
  assert not {*larger} & {*lines}
  # One picture is another one.
  changed = {}
  with zipfile.ZipFile(out) as made:
    for name in made.namelist():
      changed[name] = made.read(name)
  changed['trashnet/test/glass/glass2.jpg'] = photograph(99)
  with zipfile.ZipFile(tmp_path / 'changed.zip', 'w') as made:
    for name, data in changed.items():
      made.writestr(name, data)
  other = prepare.digests(
    f'folder:{tmp_path / "changed.zip"}', 8, cache_dir=cache
  )
  same = [a == b for a, b in zip(lines, other, strict=True)]
  assert same == [True, True, False]
