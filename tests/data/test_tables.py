"""Labels from tables and names: what is read, and what is refused."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import trees
from pictures import encode, picture

from tlkd_jax.data import Labelling, prepare
from tlkd_jax.data.builders import archives, labels, patterns, table_files

# Two of each class, as far as names go.
PETS = 'a/1.png a/2.png b/1.png b/2.png'
LABELS = {
  'a/1.png': 'cat',
  'a/2.png': 'cat',
  'b/1.png': 'dog',
  'b/2.png': 'dog',
}
CSV = 'path,label\n' + ''.join(f'{n},{c}\n' for n, c in LABELS.items())
JSON = ''.join(
  json.dumps({'path': n, 'label': c}) + '\n' for n, c in LABELS.items()
)
OF_SPLITS = (
  'path,label,split\na/1.png,cat,train\nb/1.png,dog,train\n'
  'a/2.png,cat,test\nb/2.png,dog,test\n'
)


def found_of(labelled: labels.Labelled) -> dict:
  """Split -> {name: class}."""
  return {
    split: {one.name: labelled.class_names[one.label] for one in examples}
    for split, examples in labelled.splits.items()
  }


def write(root: pathlib.Path, text: str | bytes, name='table.csv', files=PETS):
  trees.write(root, files)
  data = text.encode() if isinstance(text, str) else text
  (root / name).write_bytes(data)
  return root / name


def _case(text, name='table.csv', **labelling):
  return text, name, labelling


# Tables that all say LABELS.
TABLES = {
  'CSV': _case(CSV),
  'TSV': _case(CSV.replace(',', '\t'), 'table.tsv'),
  'semicolons': _case(CSV.replace(',', ';')),
  'bars': _case(CSV.replace(',', '|')),
  'spaces': _case(CSV.replace(',', ' '), 'list.txt'),
  'tabs in a .csv': _case(CSV.replace(',', '\t')),
  'a BOM': _case('\ufeff' + CSV),
  'UTF-16 of Excel': _case(CSV.replace(',', '\t').encode('utf-16')),
  "Excel's line": _case('sep=;\r\n' + CSV.replace(',', ';')),
  'lines of Windows': _case(CSV.replace('\n', '\r\n')),
  'lines of old Macs': _case(CSV.replace('\n', '\r')),
  'empty lines': _case('\n\n' + CSV.replace('\n', '\n\n')),
  'no last line end': _case(CSV.strip()),
  'quotes': _case(CSV.replace('cat', '"cat"').replace('path', '"path"')),
  'spaces around': _case(CSV.replace(',', ' , ')),
  'other columns': _case(
    'index,path,width,label\n'
    + ''.join(f'{k},{n},7,{c}\n' for k, (n, c) in enumerate(LABELS.items()))
  ),
  'an unnamed column': _case(
    ',path,label\n'
    + ''.join(f'{k},{n},{c}\n' for k, (n, c) in enumerate(LABELS.items()))
  ),
  'other usual names': _case(CSV.replace('path,label', 'File Name,Class')),
  'names of HF': _case(CSV.replace('path,label', 'file_name,labels')),
  'names of Kaggle': _case(CSV.replace('path,label', 'image_id,breed')),
  'names of numbers': _case(CSV.replace('path,label', 'id,class_id')),
  'stated': _case(
    CSV.replace('path,label', 'where,what'),
    image_column='where',
    label_column='what',
  ),
  'stated beside a usual one': _case(
    'path,coarse,label\n'
    + ''.join(f'{n},{c},pet\n' for n, c in LABELS.items()),
    label_column='coarse',
  ),
  'backslashes': _case(CSV.replace('/', '\\')),
  'a dot before': _case(CSV.replace('a/', './a/').replace('b/', 'a/../b/')),
  'no endings': _case(CSV.replace('.png', '')),
  'a row twice': _case(CSV + 'a/1.png,cat\n./a/1.png,cat\n'),
  'JSON lines': _case(JSON, 'table.jsonl'),
  'JSON lines with a BOM': _case('\ufeff' + JSON, 'table.ndjson'),
  'JSON lines by another name': _case(JSON, 'labels.txt'),
  'empty lines in JSON': _case(JSON.replace('\n', '\n\n'), 'table.jsonl'),
  'a list of JSON': _case(
    json.dumps([{'image': n, 'category': c} for n, c in LABELS.items()]),
    'table.json',
  ),
}


@pytest.mark.parametrize('case', TABLES)
def test_tables(case, tmp_path):
  text, name, labelling = TABLES[case]
  path = write(tmp_path, text, name)
  found = table_files.read_table_files(str(path), Labelling(**labelling))
  assert found.class_names == ['cat', 'dog']
  assert found_of(found) == {'unsplit': LABELS}
  assert found.notes[0].startswith(f'csv:{path}: images from ')


def test_what_is_not_used_is_said(tmp_path):
  text = TABLES['other columns'][0]
  path = write(tmp_path, text + text.splitlines()[1] + '\n')
  notes = table_files.read_table_files(str(path), Labelling()).notes
  assert notes == [
    f"csv:{path}: images from 'path', labels from 'label'; not used: index, "
    'width',
    '1 rows repeat another one and count once',
  ]


@pytest.mark.parametrize('ending', ['.JPG', '.png', '.Jpeg'])
def test_the_case_of_an_ending_that_a_table_lacks(ending, tmp_path):
  files = PETS.replace('.png', ending)
  path = write(tmp_path, CSV.replace('.png', ''), files=files)
  found = table_files.read_table_files(str(path), Labelling())
  names = {name.replace('.png', ending): c for name, c in LABELS.items()}
  assert found_of(found) == {'unsplit': names}


def test_of_several_endings_lower_case_comes_first(tmp_path):
  """As before endings in capitals were looked for: data stay what they were."""
  path = write(tmp_path, CSV.replace('.png', ''))
  for name in LABELS:
    other = (tmp_path / name).with_suffix('.JPG')
    other.write_bytes((tmp_path / name).read_bytes())
  found = table_files.read_table_files(str(path), Labelling())
  assert found_of(found) == {'unsplit': LABELS}


def test_a_column_without_a_name(tmp_path):
  """As pandas writes its index."""
  lines = [f'{n if n else ""},{x}' for n, x in enumerate(CSV.splitlines())]
  path = write(tmp_path, '\n'.join(lines))
  found = table_files.read_table_files(str(path), Labelling())
  assert found.notes[0].endswith("; not used: ''")
  assert found_of(found) == {'unsplit': LABELS}


def test_absolute_paths(tmp_path):
  write(tmp_path / 'test', CSV)
  text = CSV.replace('\na', f'\n{tmp_path}/test/a')
  text = text.replace('\nb', f'\n{tmp_path}/test/b')
  inside = tmp_path / 'test' / 'other.csv'
  inside.write_text(text)
  outside = tmp_path / 'elsewhere' / 'other.csv'
  outside.parent.mkdir()
  outside.write_text(text)
  found = table_files.read_table_files(str(inside), Labelling())
  # Names, which decide over splits, do not change where the folder moves.
  assert found_of(found) == {'unsplit': LABELS}
  found = table_files.read_table_files(str(outside), Labelling())
  # A folder above, here 'test', is not the table's affair.
  assert set(found.splits) == {'unsplit'}
  assert next(iter(found_of(found)['unsplit'])) == f'{tmp_path}/test/a/1.png'


def test_paths_that_lead_out_of_the_folder(tmp_path, monkeypatch):
  """Names, which decide over splits, are the same however it is spelt."""
  root = tmp_path / 'birds'
  files = 'train/1.png train/2.png test/1.png'
  text = 'path,label\n../train/1.png,cat\n../train/2.png,dog\n'
  text += f'../test/1.png,cat\n{root}/labels/test/1.png,dog\n'
  trees.write(root, files)
  write(root / 'labels', text, 't.csv', 'test/1.png')
  expected = {
    'train': {'../train/1.png': 'cat', '../train/2.png': 'dog'},
    'test': {'../test/1.png': 'cat', 'test/1.png': 'dog'},
  }
  for start, spelt in (
    (tmp_path, 'birds/labels/t.csv'),
    (root, 'labels/t.csv'),
    (root / 'labels', 't.csv'),
    (root / 'train', '../labels/t.csv'),
    (tmp_path, str(root / 'labels' / 't.csv')),
  ):
    monkeypatch.chdir(start)
    found = table_files.read_table_files(spelt, Labelling())
    assert found_of(found) == expected
    for examples in found.splits.values():
      data = list(found.read(one.file for one in examples))
      assert all(one.startswith(trees.PNG) for one in data)


SPLITS = {
  'a column': OF_SPLITS,
  'another name': OF_SPLITS.replace('split', 'subset'),
  'another spelling': OF_SPLITS.replace('test\n', 'Testing\n'),
  'and case': OF_SPLITS.replace('train', 'TRAIN_SET').replace('test', 'Test'),
  'Chinese': OF_SPLITS.replace('train', '训练').replace('test', '测试'),
}


@pytest.mark.parametrize('case', SPLITS)
def test_splits_of_a_column(case, tmp_path):
  path = write(tmp_path, SPLITS[case])
  found = found_of(table_files.read_table_files(str(path), Labelling()))
  assert found == {
    'train': {'a/1.png': 'cat', 'b/1.png': 'dog'},
    'test': {'a/2.png': 'cat', 'b/2.png': 'dog'},
  }


def test_a_column_that_is_only_called_like_a_split(tmp_path):
  path = write(
    tmp_path,
    OF_SPLITS.replace('split', 'dataset')
    .replace('train\n', 'ham10000\n')
    .replace('test\n', 'vidir\n'),
  )
  found = table_files.read_table_files(str(path), Labelling())
  assert set(found.splits) == {'unsplit'} and 'dataset' in found.notes[0]
  with pytest.raises(ValueError, match="split 'ham10000', 'vidir'; accepted"):
    table_files.read_table_files(str(path), Labelling(split_column='dataset'))


def test_a_table_for_each_split(tmp_path):
  head, *rows = OF_SPLITS.replace(',split', '').splitlines()
  for name, part in (('train', rows[:2]), ('val', rows[2:])):
    lines = [row.rpartition(',')[0] for row in part]
    write(tmp_path, '\n'.join([head, *lines]), f'{name}.csv')
  (tmp_path / 'classes.csv').write_text('number,name\n0,cat\n')
  found = table_files.read_table_files(str(tmp_path), Labelling())
  assert found_of(found) == {
    'train': {'a/1.png': 'cat', 'b/1.png': 'dog'},
    'validation': {'a/2.png': 'cat', 'b/2.png': 'dog'},
  }
  assert [one.name for one in found.left_out] == ['classes.csv']


def test_splits_of_folders_that_a_table_names(tmp_path):
  """Without a column they would be mixed, and test images trained on."""
  text = CSV.replace('\na', '\ntrain/a').replace('\nb', '\ntest/a')
  text += 'train/b/1.png,dog\n'
  files = 'train/a/1.png train/a/2.png test/a/1.png test/a/2.png train/b/1.png'
  path = write(tmp_path, text, files=files)
  found = table_files.read_table_files(str(path), Labelling())
  assert {split: len(names) for split, names in found_of(found).items()} == {
    'train': 3,
    'test': 2,
  }
  assert 'splits are read from the folders of the images' in found.notes
  path.write_text(text + 'other.png,cat\n')
  shutil.copy(tmp_path / 'train/a/1.png', tmp_path / 'other.png')
  with pytest.raises(ValueError, match='no split in line 7, others have one'):
    table_files.read_table_files(str(path), Labelling())


@pytest.mark.parametrize(
  ('names', 'order'),
  [
    (['10', '9', '1'], ['1', '9', '10']),
    (['-1', '10', '2'], ['-1', '2', '10']),
    (['2.5', '10', '1.0'], ['1.0', '2.5', '10']),
    (['007', '10', '8'], ['007', '8', '10']),
    (['10', '9', 'x'], ['10', '9', 'x']),
    (['b', 'B', 'a'], ['B', 'a', 'b']),
  ],
)
def test_numbers_keep_their_order(names, order, tmp_path):
  text = 'path,label\n' + ''.join(
    f'{path},{name}\n' for path, name in zip(LABELS, names, strict=False)
  )
  path = write(tmp_path, text)
  found = table_files.read_table_files(str(path), Labelling())
  assert found.class_names == order
  for path, name in zip(LABELS, names, strict=False):
    assert found_of(found)['unsplit'][path] == name
  assert any('differ in case' in note for note in found.notes) == ('b' in names)


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    (3, '3'),
    (3.0, '3'),
    (True, 'true'),
    ('  cat ', 'cat'),
    ('e\u0301', '\xe9'),
  ],
)
def test_labels_of_json(value, name, tmp_path):
  rows = [
    {'path': 'a/1.png', 'label': value},
    {'path': 'b/1.png', 'label': 'x'},
  ]
  path = write(tmp_path, '\n'.join(map(json.dumps, rows)), 't.jsonl')
  found = table_files.read_table_files(str(path), Labelling())
  assert found_of(found)['unsplit'] == {'a/1.png': name, 'b/1.png': 'x'}


# Cells that join labels, among plain ones.
JOINED = [
  ['cat;dog'], ['cat|dog'], ['cat, dog'], ['cat dog'], ['dog/cat'],
  ['cat+dog'], ['cat & dog'], ['dog;fox'], ['cat|fox|elk'], ['[cat]'],
  ["['cat', 'dog']"], ['["cat"]'], ['[0, 1]'], ['{cat, dog}'], ["('cat',)"],
]  # fmt: skip
ALONE = [
  # No cell is a single label.
  (['a;b', 'b;c', 'a;c'], True),
  (['a|b|c', 'b', 'a|c'], True),
  # Names with separators, and a taxonomy.
  (['great dane', 'great auk', 'dane, tall'], False),
  (['maillot', 'maillot, tank suit', 'tench, Tinca tinca'], False),
  (['animal;dog;pug', 'animal;dog;husky', 'animal;cat'], False),
  (['Canis;lupus;lupus', 'Canis;lupus;dingo'], False),
  (['healthy', 'Corn_(maize)', '(none)'], False),
  (['1/2', '3/4'], False),
]


@pytest.mark.parametrize(
  ('cells', 'refused'),
  [([*cells, 'cat', 'dog'], True) for cells in JOINED] + ALONE,
  ids=str,
)
def test_a_cell_of_several_labels(cells, refused, tmp_path):
  files = ' '.join(f'{k}.png' for k in range(len(cells)))
  rows = [{'path': f'{k}.png', 'label': cell} for k, cell in enumerate(cells)]
  path = write(tmp_path, '\n'.join(map(json.dumps, rows)), 't.jsonl', files)
  if not refused:
    found = table_files.read_table_files(str(path), Labelling())
    assert found.class_names == sorted(cells)
    return
  with pytest.raises(
    ValueError, match='Multi-label data sets are not'
  ) as error:
    table_files.read_table_files(str(path), Labelling())
  assert 'cells hold' in str(error.value) and 'in line 1' in str(error.value)


# What is refused, and with which words.
REFUSED = {
  'nothing': ('', 'is empty; expected a line of column names'),
  'no header': ('a/1.png,cat\nb/1.png,dog\n', 'no column for the image .*us'),
  'one column': ('path\na/1.png\n', r"one column only \('path'\)"),
  'no label': (
    'path,colour\na/1.png,red\n',
    'no column for the label .* it has path, colour. Name it with data.label_c',
  ),
  'two labels': (
    'path,class,category\na/1.png,cat,pet\n',
    "columns 'class', 'category' may each be the label; say which with data.la",
  ),
  'two images': (
    'file,image,label\na/1.png,1.png,cat\n',
    "columns 'file', 'image' may each be the image",
  ),
  'a column twice': ('path,label,label\na,b,c\n', 'column label is there tw'),
  'a comma in a name': (
    CSV + 'a/1, copy.png,cat\n',
    "2 columns in the header .*, another number in line 6; a ',' within",
  ),
  'a short row': (CSV + 'a/3.png\n', 'another number in line 6'),
  'an open quote': (CSV + '"a/3.png,cat\n', 'line 6: unexpected end of data'),
  'an empty label': (
    CSV.replace('dog', '', 1),
    'no label in line 4; images without one',
  ),
  **{
    f'the label {text}': (CSV.replace('dog', text, 1), 'no label in line 4;')
    for text in ('NaN', 'nan', '<NA>', '#N/A')
  },
  'splits of a competition': (
    OF_SPLITS.replace('split', 'Usage')
    .replace('train\n', 'Training\n')
    .replace('test\n', 'PublicTest\n'),
    "column 'Usage' looks like a split and holds PublicTest; put 'train', 'va",
  ),
  'splits with other words': (
    OF_SPLITS.replace('split', 'fold').replace('test\n', 'test-hard\n'),
    "column 'fold' looks like a split and holds test-hard; put",
  ),
  'an empty path': (CSV + ',cat\n', "line 6: path is ''; expected the path"),
  'images that are not there': (
    CSV + 'a/3.png,cat\na,cat\nhttp://x/1.png,dog\n',
    '3 of 7 images are not there: line 6 a/3.png, line 7 a, line 8 http://x/1',
  ),
  'labels that disagree': (
    CSV + './a/1.png,dog\n',
    "a/1.png has two labels, 'cat' in line 2 and 'dog' in line 6. Multi-label",
  ),
  'splits that disagree': (
    OF_SPLITS + 'a/1.png,cat,test\n',
    "a/1.png has two splits, 'train' in line 2 and 'test' in line 6",
  ),
  'an unknown split': (
    OF_SPLITS.replace('test\n', 'public\n'),
    "split 'public'; accepted: train, validation, test",
  ),
  'a doubtful split': (
    OF_SPLITS.replace('train\n', 'train_small\n'),
    "split 'train_small'; accepted",
  ),
  'splits that are numbers': (
    OF_SPLITS.replace('train\n', '0\n').replace('test\n', '1\n'),
    "split '0', '1'; accepted",
  ),
  'an empty split': (
    OF_SPLITS.replace('test\n', '\n', 1),
    r'no split in line 4, others have one \(test, train\)',
  ),
  'no train': (
    OF_SPLITS.replace('train\n', 'val\n'),
    'the splits are test, validation, none of them train',
  ),
  'a split in other words': (
    OF_SPLITS.replace('split', 'is_valid'),
    "column 'is_valid' looks like a split; put 'train'",
  ),
  'a class of test alone': (
    OF_SPLITS.replace('dog,test', 'elk,test'),
    "class 'elk' is in test but not in train",
  ),
  'one class': (CSV.replace('dog', 'cat'), r"one class only \('cat'\)"),
  'one number in two ways': (
    CSV.replace('cat', '1').replace('dog', '1.0'),
    "labels '1' and '1.0' are one number",
  ),
  'another encoding': (
    CSV.replace('dog', 'chi\xean').encode('latin-1'),
    'line 4: not text in UTF-8; save the file in UTF-8',
  ),
  'UTF-16 without a BOM': (CSV.encode('utf-16-le'), 'is not text in UTF-8'),
  'a workbook': (b'PK\x03\x04rest', 'a zip or an Excel workbook; save it as'),
  'a compressed one': (b'\x1f\x8brest', 'is compressed; unpack it first'),
  'a pointer': (
    'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
    'is a pointer of Git LFS; run git lfs pull',
  ),
}  # fmt: skip
REFUSED_JSON = {
  'no JSON': (JSON + '{"path": \n', 'line 5: not JSON: .*; expected an object'),
  'a list': (JSON + '["a/1.png", "cat"]\n', 'line 5: .*; expected an object '),
  'a number in a list': ('[{"path": "a"}, 3]', 'item 2: .3.; expected an obj'),
  'a key that is missing': (JSON + '{"path": "a/1.png"}\n', 'no label in line'),
  'several labels': (
    JSON + '{"path": "a/1.png", "label": ["cat", "dog"]}\n',
    '1 cells hold a list, such as .*in line 5. Multi-label',
  ),
  'one label in a list': (
    '{"path": "a/1.png", "label": ["cat"]}\n',
    '1 cells hold a list',
  ),
  'an object': (
    '{"path": "a/1.png", "label": {"name": "cat"}}\n',
    "such as .*'name'.* Multi-label",
  ),
  'a path that is none': (JSON + '{"path": 7, "label": "cat"}', "path is '7'"),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_tables_that_are_refused(case, tmp_path):
  text, message = REFUSED[case]
  path = write(tmp_path, text)
  with pytest.raises(ValueError, match=message) as error:
    labels.check_classes(table_files.read_table_files(str(path), Labelling()))
  assert str(error.value).startswith(f'csv:{path}')


@pytest.mark.parametrize('case', REFUSED_JSON)
def test_json_that_is_refused(case, tmp_path):
  text, message = REFUSED_JSON[case]
  path = write(tmp_path, text, 'table.jsonl')
  with pytest.raises(ValueError, match=message):
    table_files.read_table_files(str(path), Labelling())


def test_a_column_that_is_not_there(tmp_path):
  path = write(tmp_path, CSV)
  labelling = Labelling(label_column='lable')
  with pytest.raises(ValueError, match="'lable'; it has .*did you mean label"):
    table_files.read_table_files(str(path), labelling)


def _metadata(rows, place='metadata.csv'):
  """(place, text) of a metadata file."""
  if place.endswith('jsonl'):
    return place, '\n'.join(
      json.dumps({'file_name': n, 'label': c}) for n, c in rows
    )
  return place, 'file_name,label\n' + ''.join(f'{n},{c}\n' for n, c in rows)


BOTH = [('1.png', 'cat'), ('2.png', 'dog')]
# Files, metadata, splits.
IMAGE_FOLDERS = {
  'at the root': (
    '1.png 2.png',
    [_metadata(BOTH)],
    {'unsplit': ['1.png', '2.png']},
  ),
  'JSON lines': (
    '1.png 2.png',
    [_metadata(BOTH, 'metadata.jsonl')],
    {'unsplit': ['1.png', '2.png']},
  ),
  'in each split': (
    'train/1.png train/2.png test/1.png',
    [
      _metadata(BOTH, 'train/metadata.csv'),
      _metadata(BOTH[:1], 'test/metadata.jsonl'),
    ],
    {'train': ['train/1.png', 'train/2.png'], 'test': ['test/1.png']},
  ),
  'splits in other words': (
    'data/Training/a/1.png data/Training/2.png data/valid/1.png',
    [
      _metadata([('a/1.png', 'cat'), BOTH[1]], 'data/Training/metadata.csv'),
      _metadata(BOTH[:1], 'data/valid/metadata.csv'),
    ],
    {
      'train': ['data/Training/a/1.png', 'data/Training/2.png'],
      'validation': ['data/valid/1.png'],
    },
  ),
  'splits that the root names': (
    'train/1.png train/2.png test/1.png',
    [
      _metadata(
        [('train/1.png', 'x'), ('train/2.png', 'y'), ('test/1.png', 'x')]
      )
    ],
    {'train': ['train/1.png', 'train/2.png'], 'test': ['test/1.png']},
  ),
}


@pytest.mark.parametrize('kind', ['folder', 'zip'])
@pytest.mark.parametrize('case', IMAGE_FOLDERS)
def test_image_folders(case, kind, tmp_path):
  files, metadata, splits = IMAGE_FOLDERS[case]
  root = trees.write(tmp_path / 'set', f'{files} notes.txt beside.png')
  for place, text in metadata:
    (root / place).write_text(text)
  if kind == 'zip':
    root = pathlib.Path(shutil.make_archive(str(root), 'zip', root))
  with archives.open_tree(str(root)) as tree:
    assert table_files.has_metadata(tree)
    found = table_files.arrange_image_folder('imagefolder:x', tree, Labelling())
    images = list(
      found.read(one.file for one in found.splits[next(iter(splits))])
    )
  assert {s: list(n) for s, n in found_of(found).items()} == splits
  assert all(image.startswith(trees.PNG) for image in images)
  assert {one.name: one.why for one in found.left_out} == {
    'notes.txt': '.txt',
    'beside.png': 'not in the metadata',
  }


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    (_metadata([*BOTH, ('3.png', 'cat')]), '1 of 3 images are not there: me'),
    (_metadata([*BOTH, ('1.png', 'dog')]), 'has two labels'),
    (('metadata.csv', 'file_name,text\n1.png,a cat\n'), 'no column for the l'),
    (('metadata.csv', 'file_name,label\n1.png,cat;dog\n2.png,dog\n'), 'Multi'),
    (
      ('metadata.jsonl', '{"file_name": "1.png", "objects": {"bbox": []}}'),
      'imagefolder:x/metadata.jsonl: no column for the label',
    ),
  ],
)  # fmt: skip
def test_image_folders_that_are_refused(metadata, message, tmp_path):
  root = trees.write(tmp_path, '1.png 2.png')
  (root / metadata[0]).write_text(metadata[1])
  with archives.open_tree(str(root)) as tree:
    with pytest.raises(ValueError, match=message):
      table_files.arrange_image_folder('imagefolder:x', tree, Labelling())


FLAT = 'cat.0.png cat.1.png dog.0.png dog.1.png'
PATTERNS = {
  'a name': ('{class}.*.png', FLAT, ['cat', 'dog']),
  'whatever follows': ('{class}.*', FLAT, ['cat', 'dog']),
  'only an ending': ('{class}.*', 'cat.png dog.png', ['cat', 'dog']),
  'no ending': ('{class}_*', 'a_dane_1.png pug_1.jpg', ['a_dane', 'pug']),
  'one character': ('{class}.?.png', FLAT, ['cat', 'dog']),
  'another case': ('{class}.*.PNG', FLAT, ['cat', 'dog']),
  'underscores': (
    '{class}_*.png', 'great_dane_1.png pug_12.png', ['great_dane', 'pug']
  ),
  'the end of a name': ('*-{class}.png', '1-cat.png 2-dog.png', ['cat', 'dog']),
  'numbers': ('*_{class}.png', 'x_10.png y_9.png', ['9', '10']),
  'an expression': (r'(?P<class>[a-z]+)\.\d+', FLAT, ['cat', 'dog']),
  'its only group': (r'^(.+)\.\d+\.png$', FLAT, ['cat', 'dog']),
  'one character of it': (r'^(.)', FLAT, ['c', 'd']),
  'another name of it': (r'(?P<label>[a-z]+)', FLAT, ['cat', 'dog']),
  'brackets before it': (r'\(x\)(\w+)', '(x)a.png (x)b.png', ['a', 'b']),
  'a group without a name': (
    r'(?:x_)?(?P<class>\w+)-(\d+)', 'x_cat-1.png dog-2.png', ['cat', 'dog']
  ),
  'a folder': ('{class}/*/*', 'cat/x/1.png dog/y/1.png', ['cat', 'dog']),
}  # fmt: skip


@pytest.mark.parametrize('case', PATTERNS)
def test_patterns(case, tmp_path):
  pattern, files, names = PATTERNS[case]
  root = trees.write(tmp_path, f'{files} readme.txt')
  with archives.open_tree(str(root)) as tree:
    found = patterns.arrange('folder:x', tree, pattern)
  assert found.class_names == names
  assert sum(map(len, found_of(found)['unsplit'])) and not found.notes
  assert [one.name for one in found.left_out] == ['readme.txt']


@pytest.mark.parametrize(
  ('pattern', 'files'),
  [
    ('{class}.*.png', 'train/cat.0.png train/dog.0.png test/cat.0.png'),
    ('{class}.*.png', 'x/Train/cat.0.png x/Train/dog.0.png x/tst/cat.0.png'),
    ('{split}_{class}.*', 'train_cat.0.png train_dog.0.png test_cat.0.png'),
    ('{split}/{class}.*', 'train/cat.0.png train/dog.0.png test/cat.0.png'),
    (
      r'(?P<split>[a-z]+)-(?P<class>\w+)',
      'trn-cat.png trn-dog.png test-cat.png',
    ),
  ],
)
def test_splits_of_patterns(pattern, files, tmp_path):
  root = trees.write(tmp_path, files)
  with archives.open_tree(str(root)) as tree:
    found = found_of(patterns.arrange('folder:x', tree, pattern))
  assert {split: len(names) for split, names in found.items()} == {
    'train': 2,
    'test': 1,
  }


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('*.jpg', "'\\*.jpg' is no regular expression: .*; accepted: a name with"),
    ('cat', "'cat' has no class; accepted: a name with {class}"),
    ('(a)(b)', 'has no class'),
    ('(?P<label>.+)_', None),
    ('[', 'is no regular expression'),
    ('{class}_{class}', 'twice'),
    ('{Class}.png', 'has no class'),
  ],
)
def test_patterns_without_a_class(pattern, message):
  if message is None:
    assert patterns.compile_pattern(pattern).groups == 1
    return
  with pytest.raises(ValueError, match=message):
    patterns.compile_pattern(pattern)


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    (
      '{class}_*.jpg',
      "'{class}_\\*.jpg' matches none of 4 images, such as",
    ),
    ('{class}.0.png', None),
    ('cat{class}.*.png', 'matches none'),
    ('{class}at.*.png', 'one class only'),
  ],
)
def test_what_a_pattern_does_not_match(pattern, message, tmp_path):
  root = trees.write(tmp_path, FLAT)
  with archives.open_tree(str(root)) as tree:
    if message is None:
      found = patterns.arrange('folder:x', tree, pattern)
      assert [one.why for one in found.left_out] == [
        'its name is not as data.pattern'
      ] * 2
      return
    with pytest.raises(ValueError, match=message):
      labels.check_classes(patterns.arrange('folder:x', tree, pattern))


def test_images_and_labels_are_those_of_the_table(load, tmp_path):
  """Through records and decoding, for each kind."""
  root = tmp_path / 'set'
  (root / 'x').mkdir(parents=True)
  table, expected = ['file_name,label,split'], {}
  for split, count in (('train', 6), ('val', 2), ('test', 2)):
    for number in range(count):
      for label in ('10', '9'):
        name = f'x/{split}_{label}.{number}.png'
        (root / name).write_bytes(encode(picture(name, (16, 16)), 'PNG'))
        table.append(f'{name},{label},{split}')
        expected[name] = (np.asarray(picture(name, (16, 16))), label)
  (root / 'metadata.csv').write_text('\n'.join(table))
  for name, labelling in (
    (f'csv:{root}/metadata.csv', None),
    (f'imagefolder:{root}', None),
    (f'folder:{root}', Labelling(pattern='{split}_{class}.*.png')),
  ):
    found = load(name, labelling=labelling, crop_fraction=1.0)
    assert found.class_names == ['9', '10']
    assert {s: len(split) for s, split in found.splits.items()} == {
      'train': 12, 'validation': 4, 'test': 4
    }  # fmt: skip
    for split in found.splits.values():
      for file, image, label in zip(
        split.names, split.images, split.labels, strict=True
      ):
        pixels, its_class = expected[file]
        np.testing.assert_array_equal(image, pixels)
        assert found.class_names[label] == its_class


def test_a_changed_table_is_noticed(load, tmp_path):
  for k in range(12):
    (tmp_path / f'{k}.png').write_bytes(encode(picture(str(k)), 'PNG'))
  rows = [f'{k}.png,{"ab"[k % 2]}' for k in range(12)]
  path = tmp_path / 'table.csv'
  path.write_text('\n'.join(['path,label', *rows]))
  first = load(f'csv:{path}')
  rows[3] = '3.png,a'
  path.write_text('\n'.join(['path,label', *rows]))
  second = load(f'csv:{path}')
  count = [
    sum((s.labels == 0).sum() for s in found.splits.values())
    for found in (first, second)
  ]
  assert count == [6, 7]


@pytest.mark.parametrize(
  ('name', 'labelling', 'message'),
  [
    ('csv:', {}, 'csv needs a path: csv:PATH'),
    ('csv:/nowhere.csv', {}, 'csv:/nowhere.csv: no such file'),
    ('imagefolder:', {}, 'imagefolder needs a path'),
    ('imagefolder:/nowhere', {}, 'imagefolder:/nowhere: no such folder'),
    ('csv:{root}', {}, 'is a folder without tables such as train.csv'),
    ('folder:{root}', {}, r'no class folders.* csv:{root}/names.csv'),
    ('folder:{root}/names.csv', {}, 'is it a table, csv:{root}/names.csv'),
    (
      'imagefolder:{root}',
      {'label_column': 'x'},
      'holds none of metadata.csv, .*data.label_column names a column of one',
    ),
    ('digits', {'pattern': '{class}_*'}, 'which digits does not use; .*fol'),
    (
      'folder:{root}',
      {'label_column': 'x'},
      "data.label_column is 'x', which folder:.* it is for csv:PATH and",
    ),
    ('csv:{root}/names.csv', {'pattern': '{class}_*'}, 'data.pattern is .*fol'),
    ('cvs:x', {}, "unknown data set 'cvs:x'. Did you mean 'csv'"),
  ],
)  # fmt: skip
def test_names_of_data_sets(name, labelling, message, load, tmp_path):
  root = trees.write(tmp_path / 'x', '1.png 2.png')
  (root / 'names.csv').write_text('number,name\n')
  name, message = (
    text.replace('{root}', str(root)) for text in (name, message)
  )
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    load(name, labelling=Labelling(**labelling), data_dir=tmp_path)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ('1.png 2.png metadata.csv', 'metadata of images: imagefolder:'),
    ('data/train-00000-of-00001.parquet', 'parquet: *'),
    ('cat.1.png dog.1.png', 'data.pattern says where'),
  ],
)
def test_a_folder_of_another_kind_is_named(files, message, load, tmp_path):
  root = trees.write(tmp_path / 'x', files)
  with pytest.raises(ValueError, match=message):
    load(f'folder:{root}')


def test_what_a_table_holds_is_shown_without_a_run(tmp_path, data_cache):
  for k in range(12):
    (tmp_path / f'{k}.png').write_bytes(encode(picture(str(k)), 'PNG'))
  rows = [f'{k}.png,{"ab"[k % 2]}' for k in range(12)]
  (tmp_path / 'table.csv').write_text('\n'.join(['where,what', *rows]))
  labelling = Labelling(image_column='where', label_column='what')
  lines = prepare.describe(
    f'csv:{tmp_path}/table.csv', cache_dir=data_cache, labelling=labelling
  )
  assert '2 classes: a, b' in lines
  assert any("labels from 'what'" in line for line in lines)
