"""Folders and archives with what is odd in them."""

import os
import pathlib
import shutil
import socket

import pytest
import trees
from pictures import make_classes

from tlkd_jax.data import transforms, unlabelled
from tlkd_jax.data.builders import archives

PETS = {'unsplit': {'cat': 3, 'dog': 3}}


@pytest.fixture
def pets(tmp_path):
  return trees.write(tmp_path / 'pets', 'cat/*3 dog/*3')


def _link(target):
  return lambda path: path.symlink_to(target)


def _socket(path):
  here = os.getcwd()
  os.chdir(path.parent)  # the path of a socket has 108 bytes at most
  try:
    with socket.socket(socket.AF_UNIX) as bound:
      bound.bind(path.name)
  finally:
    os.chdir(here)


INSIDE = 'link to a folder that it lies in'
COUNTED = 'link to a folder that is counted where it is'
ODD = 'fifo, socket or device'
SYSTEM = "hidden or a system's"


def _write(data=trees.PNG):
  def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

  return write


@pytest.mark.parametrize(
  'place, make, why',
  [
    ('cat/up', _link('..'), INSIDE),
    ('cat/self', _link('.'), INSIDE),
    ('up', _link('..'), INSIDE),
    ('root', _link('/'), INSIDE),
    ('cat/far', _link('../../..'), INSIDE),
    ('cat/more', _link('../dog'), COUNTED),
    ('cat/pipe.png', os.mkfifo, ODD),
    ('cat/zero.png', _link('/dev/zero'), ODD),
    ('cat/null', _link('/dev/null'), ODD),
    ('cat/door.png', _socket, ODD),
    ('cat/@eaDir/0.png/THUMB.png', _write(), SYSTEM),
    ('cat/.@__thumb/0.png', _write(), SYSTEM),
    ('__MACOSX/cat/._0.png', _write(), SYSTEM),
    ('#recycle/cat/0.png', _write(), SYSTEM),
    ('cat/Thumbs.db', _write(), SYSTEM),
    ('cat/.hidden.png', _write(), SYSTEM),
    ('lost+found/0.png', _write(), SYSTEM),
    ('cat/1.txt', _write(), '.txt'),
    ('cat/1.raw', _write(), '.raw'),
    ('cat/1.png~', _write(), '.png~'),
    ('cat/1.jpg.part', _write(), '.part'),
    ('cat/README', _write(b'text'), 'no suffix, no image'),
    ('cat/empty', _write(b''), 'no suffix, no image'),
  ],
)
def test_left_out(place, make, why, pets):
  make(pets / place)
  listing = trees.arranged(pets)
  assert trees.counts(listing) == PETS
  assert trees.left_out(listing) == {why: 1}


@pytest.mark.parametrize(
  'name, data',
  [
    *((f'a.{e}', b'x') for e in ('avif', 'jp2', 'pnm', 'tga', 'pgm', 'JPE')),
    *((f'a.{e}', b'x') for e in ('webp', 'TIFF', 'qoi', 'psd', 'mpo', 'dds')),
    ('n0123_7', trees.PNG + b'rest'),
    ('0123abcd', b'\xff\xd8\xff\xe0 and so on'),
    ('photo', b'RIFF1234WEBPVP8 '),
    ('scan', b'II*\0\x08\0\0\0'),
    ('new', b'\0\0\0\x1cftypavif\0\0\0\0'),
  ],
)
def test_counted(name, data, pets):
  (pets / 'cat' / name).write_bytes(data)
  listing = trees.arranged(pets)
  assert trees.counts(listing) == {'unsplit': {'cat': 4, 'dog': 3}}
  assert not listing.left_out


@pytest.mark.parametrize('name', ['a.heic', 'a.HEIF', 'b.hif'])
@pytest.mark.parametrize('there', [False, True])
def test_heic_needs_a_package(name, there, pets, monkeypatch):
  monkeypatch.setattr(transforms, 'has_heif', lambda: there)
  transforms.suffixes.cache_clear()
  (pets / 'cat' / name).write_bytes(b'x')
  listing = trees.arranged(pets)
  transforms.suffixes.cache_clear()
  assert len(listing.files['unsplit']['cat']) == 3 + there
  for why in trees.left_out(listing):
    assert why.endswith('read after: pip install pillow-heif')
  assert len(listing.left_out) == 1 - there


@pytest.mark.parametrize(
  'place, target, said',
  [
    ('test', 'train', 'test/ is a link to train/'),
    ('train/kitty', 'cat', 'train/kitty/ is a link to train/cat/'),
    ('train/puppy', '../train/dog', 'train/puppy/ is a link to train/dog/'),
  ],
)
def test_a_class_or_split_twice_is_refused(place, target, said, tmp_path):
  root = trees.write(tmp_path, 'train/cat/*3 train/dog/*3')
  (root / place).symlink_to(target)
  with pytest.raises(ValueError, match=said):
    trees.arranged(root)


def test_links_to_elsewhere_are_followed_once(tmp_path):
  trees.write(tmp_path / 'store', 'cats/*3 dogs/*3 dogs/deep/*2')
  root = tmp_path / 'root'
  (root / 'test').mkdir(parents=True)
  (root / 'train').mkdir()
  (root / 'train' / 'cat').symlink_to('../../store/cats')
  (root / 'train' / 'dog').symlink_to(tmp_path / 'store' / 'dogs')
  assert trees.counts(trees.arranged(tmp_path / 'root' / 'train')) == {
    'unsplit': {'cat': 3, 'dog': 5}
  }
  for name in ('cat', 'dog'):
    (root / 'test' / name).symlink_to(f'../train/{name}')
  with pytest.raises(ValueError, match='is a link to'):
    trees.arranged(root)


@pytest.mark.parametrize('place', ['cat', 'test', 'train', 'train/cat/deep'])
def test_a_folder_that_cannot_be_read_is_named(place, tmp_path, monkeypatch):
  root = trees.write(
    tmp_path, 'train/cat/*3 train/cat/deep/*1 train/dog/*3 test/cat/*1 cat/*1'
  )
  scandir = os.scandir

  def refusing(path):
    if pathlib.Path(path) == root / place:
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refusing)
  with pytest.raises(PermissionError, match=f'{place} cannot be read'):
    trees.arranged(root)


def test_a_file_that_cannot_be_read_is_named(pets, monkeypatch, tmp_path):
  listing = trees.arranged(pets)
  name, file = listing.files['unsplit']['cat'][0]
  (pets / name).unlink()
  with pytest.raises(FileNotFoundError, match=f'{name} cannot be read'):
    listing.read(file)


def test_links_to_nothing_are_bad_images(load, tmp_path):
  make_classes(tmp_path, {'a': 6, 'b': 6})
  (tmp_path / 'a' / 'gone.png').symlink_to('nowhere.png')
  (tmp_path / 'b' / 'round.jpg').symlink_to('round.jpg')
  with pytest.raises(ValueError, match='a/gone.png: a link to nothing'):
    load(f'folder:{tmp_path}')
  skipped = load(f'folder:{tmp_path}', on_bad_image='skip').skipped
  assert {n for found in skipped.values() for n, _ in found} == {
    'a/gone.png',
    'b/round.jpg',
  }


def test_names_that_are_no_utf8(load, tmp_path):
  make_classes(tmp_path, {'a': 6, 'b': 6})
  os.rename(tmp_path / 'b', os.path.join(os.fsencode(tmp_path), b'caf\xe9'))
  shutil.copy(
    tmp_path / 'a' / '000.png',
    os.path.join(os.fsencode(tmp_path), b'a', b'\xff.png'),
  )
  dataset = load(f'folder:{tmp_path}')
  assert dataset.class_names == ['a', 'caf\\xe9']
  every = [n for split in dataset.splits.values() for n in split.names]
  assert 'a/\\xff.png' in every and len(every) == 13
  assert any('not UTF-8' in note for note in dataset.notes)
  dataset.describe().encode()


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_control_characters_in_names_are_shown(kind, load, tmp_path):
  root = tmp_path / 'root'
  make_classes(root, {'a\nb': 5, 'c\x1b[31m': 5, ' d ': 5})
  (root / 'a\nb' / '000.png').rename(root / 'a\nb' / 'x\r\ny.png')
  path = root
  if kind != 'folder':
    members = {
      str(path.relative_to(root)): path.read_bytes()
      for path in sorted(root.rglob('*.png'))
    }
    write = {'zip': trees.write_zip, 'tar': trees.write_tar}[kind]
    path = write(tmp_path / f'x.{kind}', members)
  for _ in range(2):  # written, then read from the cache
    dataset = load(f'folder:{path}')
    # As in tables, spaces around a name are none of it.
    assert dataset.class_names == [r'a\x0ab', r'c\x1b[31m', 'd']
    names = [n for split in dataset.splits.values() for n in split.names]
    assert r'a\x0ab/x\x0d\x0ay.png' in names and len(names) == 15


def test_files_are_sorted_and_hold_their_bytes(tmp_path):
  root = trees.write(tmp_path / 'root', 'b/*2 a/deep/*1 a/*2')
  members = {n: (root / n).read_bytes() for n in trees.names('b/*2 a/deep/*1')}
  zipped = trees.write_zip(tmp_path / 'x.zip', members)
  tarred = trees.write_tar(tmp_path / 'x.tgz', members, 'w:gz')
  for path in (root, zipped, tarred):
    with archives.open_tree(str(path)) as tree:
      listed = [file.name for file in tree.files]
      assert listed == sorted(listed)
      for file in tree.files:
        assert tree.read(file, -1) == (root / file.name).read_bytes()
        assert tree.read(file, 4) == trees.PNG[:4]


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar.gz'])
def test_unlabelled_images_are_walked_likewise(kind, load, tmp_path):
  root = tmp_path / 'root'
  make_classes(root, {'some': 3, 'more': 2})
  path = root
  if kind == 'folder':
    (root / 'some' / 'up').symlink_to('..')
    (root / 'some' / 'notes.txt').write_text('x')
    os.mkfifo(root / 'pipe.png')
  else:
    names = ('some/000.png', 'some/001.png', 'some/002.png')
    members = {n: (root / n).read_bytes() for n in (*names, 'more/000.png')}
    members['more/001.png'] = members['more/000.png']
    write = {'zip': trees.write_zip, 'tar.gz': trees.write_tar}[kind]
    options = ['w:gz'] if kind == 'tar.gz' else []
    path = write(tmp_path / f'x.{kind}', members, *options)
  digits = load('digits', num_train_per_class=2)
  extended = unlabelled.extend(digits, f'folder:{path}')
  assert (extended.splits['train'].labels == unlabelled.NO_LABEL).sum() == 5
