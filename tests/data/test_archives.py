"""Zip and tar files: how they are read, and what of them is refused."""

import bz2
import contextlib
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest
import trees
from pictures import make_classes

from tlkd_jax.data import transforms
from tlkd_jax.data.builders import archives, entries, walk, zips

PETS = {'unsplit': {'cat': 3, 'dog': 3}}


@pytest.fixture
def pets(tmp_path):
  return trees.write(tmp_path / 'pets', 'cat/*3 dog/*3')


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  root = tmp_path_factory.mktemp('plain')
  make_classes(root / 'train', {'a': 6, 'b': 6})
  make_classes(root / 'test', {'a': 2, 'b': 2})
  return root


def _files(root):
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in sorted(root.rglob('*.png'))
  }


@pytest.mark.parametrize(
  'name, mode',
  [
    ('x.tar', 'w'),
    ('x.tar.gz', 'w:gz'),
    ('x.tgz', 'w:gz'),
    ('x.tar.bz2', 'w:bz2'),
    ('x.tar.xz', 'w:xz'),
    ('no_suffix', 'w:gz'),
  ],
)
def test_tar_is_read_like_its_folder(
  name, mode, load, plain, tmp_path, data_cache, monkeypatch
):
  members = {f'pets/{n}': data for n, data in _files(plain).items()}
  path = trees.write_tar(tmp_path / name, members, mode)
  packed, unpacked = load(f'folder:{path}'), load(f'folder:{plain}')
  for split, found in unpacked.splits.items():
    assert packed.splits[split].names == found.names
    assert packed.splits[split].fingerprint() == found.fingerprint()
  assert not list((data_cache / 'spool').glob('*'))

  def again(*_):
    raise AssertionError('listed again')

  monkeypatch.setattr(archives, 'open_tree', again)
  assert load(f'folder:{path}').facts == packed.facts
  path.touch()
  with pytest.raises(AssertionError, match='listed again'):
    load(f'folder:{path}')


def test_a_tar_is_read_again_once_heic_can_be(
  load, plain, tmp_path, monkeypatch
):
  members = _files(plain)
  members['train/a/new.heic'] = members['train/a/000.png']
  path = trees.write_tar(tmp_path / 'x.tar', members)

  def names():
    splits = load(f'folder:{path}').splits.values()
    return {name for split in splits for name in split.names}

  monkeypatch.setattr(transforms, 'has_heif', lambda: False)
  transforms.suffixes.cache_clear()
  assert len(names()) == 16
  monkeypatch.setattr(transforms, 'has_heif', lambda: True)
  transforms.suffixes.cache_clear()
  found = names()
  monkeypatch.undo()
  transforms.suffixes.cache_clear()
  assert len(found) == 17 and 'train/a/new.heic' in found


def test_links_and_devices_in_a_tar_are_left_out(pets, tmp_path):
  path = tmp_path / 'x.tar'
  with tarfile.open(path, 'w') as archive:
    archive.add(pets, 'pets')
    for name, kind, target in [
      ('pets/cat/link.png', tarfile.SYMTYPE, '/etc/passwd'),
      ('pets/cat/hard.png', tarfile.LNKTYPE, 'pets/cat/0.png'),
      ('pets/cat/pipe.png', tarfile.FIFOTYPE, ''),
      ('pets/cat/disk.png', tarfile.BLKTYPE, ''),
      ('pets/cat/line.png', tarfile.CHRTYPE, ''),
    ]:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      archive.addfile(info)
  listing = trees.arranged(path)
  assert trees.counts(listing) == PETS
  assert trees.left_out(listing) == {'link or device in an archive': 5}


@pytest.mark.parametrize(
  'rename',
  [
    lambda n: f'/{n}',
    lambda n: f'//{n}',
    lambda n: f'/home/me/pets/{n}',
    lambda n: f'./{n}',
    lambda n: f'../../{n}',
    lambda n: f'C:\\pets\\{n}'.replace('/', '\\'),
    lambda n: n.replace('/', '\\'),
    lambda n: f'pets\\{n}'.replace('/', '\\'),
    lambda n: f'pets//{n}',
  ],
)
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_odd_names_of_members(rename, kind, plain, tmp_path):
  members = {rename(n): data for n, data in _files(plain).items()}
  write = {'zip': trees.write_zip, 'tar': trees.write_tar}[kind]
  path = write(tmp_path / f'x.{kind}', members)
  with archives.open_tree(str(path)) as tree:
    for file in tree.files:
      end = '/'.join(file.parts[-3:])
      assert tree.read(file, -1) == (plain / end).read_bytes()
  assert trees.counts(trees.arranged(path)) == {
    'train': {'a': 6, 'b': 6},
    'test': {'a': 2, 'b': 2},
  }


@pytest.mark.parametrize(
  'name',
  ['../../etc/x.png', 'a/../../b/x.png', '..\\x\\y.png', '/../a/x.png'],
)
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_a_name_that_leads_out_of_the_archive(name, kind, plain, tmp_path):
  """Beside others it is no class of its own, and no image of another one."""
  members = _files(plain) | {name: b'odd'}
  write = {'zip': trees.write_zip, 'tar': trees.write_tar}[kind]
  listing = trees.arranged(write(tmp_path / f'x.{kind}', members))
  assert trees.counts(listing) == {
    'train': {'a': 6, 'b': 6},
    'test': {'a': 2, 'b': 2},
  }
  (why,) = trees.left_out(listing)
  assert why.startswith('a name that leads elsewhere')


def test_a_name_that_differs_beside_the_data(pets, tmp_path):
  """As zipfile itself writes it when a name is changed after writing."""
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for name in trees.names('cat/*3 dog/*3'):
      archive.write(pets / name, name)
      archive.infolist()[-1].filename = f'/{name}'
  with archives.open_tree(str(path)) as tree:
    assert len(tree.files) == 6
    for file in tree.files:
      assert tree.read(file, -1) == (pets / file.name).read_bytes()


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_the_later_of_two_members_counts(kind, tmp_path):
  members = [
    ('cat/0.png', b'old'),
    ('dog/0.png', b'dog'),
    ('cat/0.png', b'new'),
  ]
  path = tmp_path / f'x.{kind}'
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for name, data in members:
        said = contextlib.nullcontext()
        if data == b'new':
          said = pytest.warns(UserWarning)
        with said:
          archive.writestr(name, data)
  else:
    with tarfile.open(path, 'w') as archive:
      for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
  with archives.open_tree(str(path)) as tree:
    found = {file.name: tree.read(file, -1) for file in tree.files}
    assert found == {'cat/0.png': b'new', 'dog/0.png': b'dog'}
    assert [(one.name, one.why) for one in tree.left_out] == [
      ('cat/0.png', 'once more under the same name in the archive')
    ]


def test_utf8_names_without_the_flag(tmp_path):
  """As several Linux tools write them."""
  members = {f'{c}/{i}.png': trees.PNG for c in ('Xatze', 'Xund') for i in '12'}
  path = trees.write_zip(tmp_path / 'x.zip', members)
  path.write_bytes(
    path.read_bytes().replace(b'Xa', 'ä'.encode()).replace(b'Xu', 'ü'.encode())
  )
  listing = trees.arranged(path)
  assert trees.counts(listing) == {'unsplit': {'ätze': 2, 'ünd': 2}}
  assert listing.notes == []


def test_names_of_another_code_page_are_read_and_said(tmp_path):
  members = {f'{c}/{i}.png': trees.PNG for c in ('Xa', 'Xb') for i in '12'}
  path = trees.write_zip(tmp_path / 'x.zip', members)
  path.write_bytes(path.read_bytes().replace(b'X', b'\x84'))
  listing = trees.arranged(path)
  assert trees.counts(listing) == {'unsplit': {'äa': 2, 'äb': 2}}
  assert 'code page 437' in listing.notes[0]


def test_links_in_a_zip_are_left_out(pets, tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for name in trees.names('cat/*3 dog/*3'):
      archive.write(pets / name, name)
    info = zipfile.ZipInfo('cat/link.png')
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, '/etc/passwd')
  assert trees.counts(trees.arranged(path)) == PETS


def _patched(path, offset_local, offset_central, value):
  """Sets a 16-bit field of every member, in both headers."""
  data = bytearray(path.read_bytes())
  for mark, offset in (
    (b'PK\x03\x04', offset_local),
    (b'PK\x01\x02', offset_central),
  ):
    at = data.find(mark)
    while at >= 0:
      struct.pack_into('<H', data, at + offset, value)
      at = data.find(mark, at + 4)
  path.write_bytes(bytes(data))


@pytest.mark.parametrize(
  'method, name', [(9, 'Deflate64'), (98, 'PPMd'), (77, 'unknown')]
)
def test_other_methods_are_one_message(
  method, name, pets, tmp_path, monkeypatch
):
  monkeypatch.setattr(zips, '_inflate64', lambda: None)
  members = {n: b'x' for n in trees.names('cat/*3 dog/*3')}
  path = trees.write_zip(tmp_path / 'x.zip', members)
  _patched(path, 8, 10, method)
  with pytest.raises(
    ValueError, match=f'cat/0.png is packed by.*{name}'
  ) as caught:
    trees.arranged(path)
  assert ('pip install inflate64' in str(caught.value)) == (method == 9)


def test_encrypted_members_are_one_message(tmp_path):
  members = {n: b'x' for n in trees.names('cat/*3 dog/*3')}
  path = trees.write_zip(tmp_path / 'x.zip', members)
  _patched(path, 6, 8, 1)
  with pytest.raises(ValueError, match='cat/0.png is encrypted'):
    trees.arranged(path)


def test_deflate64_is_read_with_its_package(pets, tmp_path):
  inflate64 = pytest.importorskip('inflate64')
  path = tmp_path / 'x.zip'
  # Stored members whose bytes are a Deflate64 stream, then named so.
  data = {n: bytes(range(256)) * 500 for n in trees.names('cat/*3 dog/*3')}
  packed = {}
  for name, plain_data in data.items():
    packer = inflate64.Deflater()
    packed[name] = packer.deflate(plain_data) + packer.flush()
  with zipfile.ZipFile(path, 'w') as archive:
    for name, stream in packed.items():
      archive.writestr(name, stream)
      info = archive.getinfo(name)
      info.file_size = len(data[name])
      info.CRC = zlib.crc32(data[name])
  _patched(path, 8, 10, 9)
  with archives.open_tree(str(path)) as tree:
    assert [tree.read(f, -1) for f in tree.files] == list(data.values())


def _bomb(path, megabytes):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    with archive.open('a/huge.png', 'w', force_zip64=True) as member:
      for _ in range(megabytes):
        member.write(bytes(1 << 20))


def test_a_member_beyond_the_limit_is_a_bad_image(tmp_path, monkeypatch):
  monkeypatch.setattr(walk, 'MAX_FILE_BYTES', 2 << 20)
  _bomb(tmp_path / 'x.zip', 3)
  with archives.open_tree(str(tmp_path / 'x.zip')) as tree:
    data = walk.read_image(tree, tree.files[0])
  with pytest.raises(
    transforms.BadImageError, match='3 MiB; a file has at most 2'
  ):
    transforms.decode_image(data)


@pytest.mark.parametrize('kind', ['zip', 'tar.gz', 'tar.bz2', 'tar.xz'])
def test_archives_that_grow_too_much_are_refused(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(entries, '_FREE_BYTES', 1 << 20)
  path = tmp_path / f'x.{kind}'
  if kind == 'zip':
    _bomb(path, 8)
  else:
    members = {'a/huge.png': bytes(8 << 20)}
    trees.write_tar(path, members, f'w:{kind.removeprefix("tar.")}')
  with pytest.raises(ValueError, match='taken for an attack'):
    trees.arranged(path)


def _cut(path):
  path.write_bytes(path.read_bytes()[:5000])


def _without_header(path):
  data = bytearray(path.read_bytes())
  data[1024 : 1024 + 512] = b'x' * 512
  path.write_bytes(bytes(data))


@pytest.mark.parametrize(
  'name, make, said',
  [
    ('x.tar', _without_header, 'damaged at byte 1024'),
    ('x.tar', _cut, 'damaged'),
    ('x.tar.gz', lambda p: p.write_bytes(p.read_bytes()[:-30]), 'cut short'),
    ('x.tar.bz2', lambda p: p.write_bytes(p.read_bytes()[:-9]), 'cut short'),
    ('x.tar.xz', lambda p: p.write_bytes(p.read_bytes()[:-30]), 'cut short'),
    ('x.gz', lambda p: p.write_bytes(gzip.compress(b'text')), 'damaged'),
    ('x.bz2', lambda p: p.write_bytes(bz2.compress(b'text' * 999)), 'damaged'),
    ('x.7z', lambda p: p.write_bytes(b"7z\xbc\xaf'\x1c"), 'unpack it'),
    ('x.rar', lambda p: p.write_bytes(b'Rar!\x1a\x07'), 'unpack it'),
    ('x.txt', lambda p: p.write_text('text'), 'neither a folder nor'),
    ('pipe', lambda p: (p.unlink(), os.mkfifo(p)), 'neither a folder nor'),
  ],
)
def test_damaged_and_foreign_files(name, make, said, tmp_path):
  mode = {'gz': 'w:gz', 'bz2': 'w:bz2', 'xz': 'w:xz'}.get(
    name.split('.')[-1], 'w'
  )
  members = {n: trees.PNG + os.urandom(500) for n in trees.names('a/*3 b/*3')}
  path = trees.write_tar(tmp_path / name, members, mode)
  make(path)
  with pytest.raises(ValueError, match=said):
    trees.arranged(path)


def test_every_cut_of_a_zip_is_one_message(tmp_path):
  members = {n: trees.PNG for n in trees.names('a/*2 b/*2')}
  whole = trees.write_zip(tmp_path / 'x.zip', members).read_bytes()
  path = tmp_path / 'cut.zip'
  for size in range(0, len(whole), 7):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match='folder:'):
      trees.arranged(path)


def test_every_flip_in_a_zip_is_read_or_one_message(tmp_path):
  members = {n: trees.PNG for n in trees.names('a/*2 b/*2')}
  whole = trees.write_zip(tmp_path / 'x.zip', members).read_bytes()
  path = tmp_path / 'flipped.zip'
  for at in range(len(whole)):
    path.write_bytes(
      whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
    )
    try:
      with archives.open_tree(str(path)) as tree:
        for file in tree.files:
          assert walk.read_image(tree, file)
    except ValueError as error:
      assert 'folder:' in str(error)
