"""Names with accents, composed as Linux has them or spread as a Mac does."""

import os
import unicodedata

import pytest
import trees
from pictures import encode, picture

from tlkd_jax.data import Labelling
from tlkd_jax.data.builders import archives, table_files

NAMES = [f'{kind}{i}.png' for kind in ('\u00e9t\u00e9', 'z') for i in range(15)]
FORMS = ('NFC', 'NFD')


def members(form: str) -> dict[str, bytes]:
  """The same images of two classes, in one spelling of their names."""
  found = {}
  for label in ('caf\u00e9', 'tea'):
    for name in NAMES:
      data = encode(picture(label + name), 'PNG')
      found[unicodedata.normalize(form, f'{label}/{name}')] = data
  return found


def write(root, form: str, kind: str = 'folder'):
  if kind != 'folder':
    how = {'zip': trees.write_zip, 'tar': trees.write_tar}[kind]
    return how(root.with_name(f'{root.name}.{kind}'), members(form))
  for name, data in members(form).items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return root


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar', 'pattern'])
def test_splits_and_order_are_those_of_the_other_spelling(kind, load, tmp_path):
  labelling = None
  if kind == 'pattern':
    labelling = Labelling(pattern='{class}/*.png')
  for form in FORMS:
    path = write(tmp_path / form, form, kind.replace('pattern', 'folder'))
    found = load(f'folder:{path}', labelling=labelling)
    if form == FORMS[0]:
      first = found
  assert first.class_names == found.class_names == ['caf\u00e9', 'tea']
  for split, examples in first.splits.items():
    assert any('\u00e9t\u00e9' in name for name in examples.names)
    assert found.splits[split].names == examples.names
    assert found.splits[split].fingerprint() == examples.fingerprint()


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_two_images_whose_names_would_be_one(kind, tmp_path):
  both = {
    unicodedata.normalize(form, '\u00e9.png'): trees.PNG + form.encode()
    for form in FORMS
  }
  files = {f'{c}/{n}': data for c in 'ab' for n, data in both.items()}
  path = tmp_path / f'x.{kind}'
  if kind == 'folder':
    for name, data in files.items():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      (path / name).write_bytes(data)
    if len(os.listdir(path / 'a')) == 1:
      pytest.skip('this file system takes them for one')
  else:
    {'zip': trees.write_zip, 'tar': trees.write_tar}[kind](path, files)
  with archives.open_tree(str(path)) as tree:
    assert {f.name: tree.read(f, -1) for f in tree.files} == files


@pytest.mark.parametrize('kind', ['csv', 'csv without endings', 'imagefolder'])
@pytest.mark.parametrize('typed', FORMS)
@pytest.mark.parametrize('stored', FORMS)
def test_tables(stored, typed, kind, tmp_path):
  """Of whatever spelling, they find images of either."""
  root = write(tmp_path / 'set', stored)
  lines = ['file_name,label']
  for name in members(typed):
    cell = name.removesuffix('.png') if 'without' in kind else name
    lines.append(f'{cell},{name[0]}')
  (root / 'metadata.csv').write_text('\n'.join(lines), encoding='utf-8')
  if kind == 'imagefolder':
    with archives.open_tree(str(root)) as tree:
      found = table_files.arrange_image_folder('x', tree, Labelling())
  else:
    path = str(root / 'metadata.csv')
    found = table_files.read_table_files(path, Labelling())
  names = [one.name for one in found.splits['unsplit']]
  assert sorted(names) == sorted(members('NFC')) and not found.left_out


def test_a_table_of_two_images_whose_names_would_be_one(tmp_path):
  both = [unicodedata.normalize(form, '\u00e9.png') for form in FORMS]
  for name in both:
    (tmp_path / name).write_bytes(trees.PNG + name.encode())
  if len(os.listdir(tmp_path)) == 1:
    pytest.skip('this file system takes them for one')
  text = 'path,label\n' + ''.join(f'{n},{k}\n' for k, n in enumerate(both))
  (tmp_path / 't.csv').write_text(text, encoding='utf-8')
  found = table_files.read_table_files(str(tmp_path / 't.csv'), Labelling())
  examples = found.splits['unsplit']
  assert [one.name for one in examples] == both
  data = list(found.read(one.file for one in examples))
  assert data == [trees.PNG + name.encode() for name in both]
