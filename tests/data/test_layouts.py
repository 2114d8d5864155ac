"""Which folders are splits and which are classes, in many spellings."""

import pytest
import trees

from tlkd_jax.data.builders import split_words

TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'
PETS = {'cat': 3, 'dog': 3}
FEW = {'cat': 1, 'dog': 1}


@pytest.mark.parametrize(
  'name, split',
  [
    *((n, TRAIN) for n in ('train', 'Train', 'TRAINING', 'trn', 'Train_Set')),
    *((n, TRAIN) for n in ('train-images', 'trainImages', 'TrainData')),
    *((n, TRAIN) for n in ('01_train', 'train2017', 'train 256', 'trainset')),
    *((n, TRAIN) for n in ('img_train', 'training_dataset')),
    *((n, TRAIN) for n in ('Trainingsdaten', 'entraînement', 'entrenamiento')),
    *(
      (n, TRAIN) for n in ('treino', 'обучение', '训练集', '学習データ', '학습')
    ),
    *((n, VALIDATION) for n in ('val', 'Valid', 'VALIDATION', 'dev', 'eval')),
    *((n, VALIDATION) for n in ('valset', 'dev_set', 'val2017', 'validação')),
    *((n, VALIDATION) for n in ('Validierung', '验证集', '検証', 'imagesVal')),
    *((n, TEST) for n in ('test', 'Test', 'TESTING', 'tst', 'test_set')),
    *((n, TEST) for n in ('holdout', 'hold-out', 'Hold_Out', 'heldout')),
    *((n, TEST) for n in ('test_images', 'Testdaten', 'prueba', 'тест')),
    *((n, TEST) for n in ('テスト', '测试集', 'tests', 'test (2)')),
  ],
)
def test_names_of_splits(name, split):
  assert split_words.read(name) == split_words.Meaning(split, ())


@pytest.mark.parametrize(
  'name',
  [
    *('cat', 'bus', 'contest', 'latest', 'strain', 'trains', 'rain', 'value'),
    *(
      'developer',
      'valley',
      'evaluate_me',
      'attest',
      'learner',
      'testosterone',
    ),
    *('train_test', 'test_of_train', '2017', 'images', '', '___', 'devil'),
  ],
)
def test_names_of_none(name):
  assert split_words.read(name) is None


def _case(text, **splits):
  return text, splits


READ = {
  'upper case': _case('Train/cat/*3 Train/dog/*3 TEST/cat/*1 TEST/dog/*1'),
  'other case beside train': _case(
    'train/cat/*3 train/dog/*3 Test/cat/*1 Test/dog/*1'
  ),
  'longer words': _case(
    'Training/cat/*3 Training/dog/*3 Testing/cat/*1 Testing/dog/*1'
  ),
  'sets': _case(
    'training_set/cat/*3 training_set/dog/*3 test_set/cat/*1 test_set/dog/*1'
  ),
  'glued': _case(
    'trainImages/cat/*3 trainImages/dog/*3 testimages/cat/*1 testimages/dog/*1'
  ),
  'numbered': _case(
    '1_train/cat/*3 1_train/dog/*3 2-test/cat/*1 2-test/dog/*1'
  ),
  'holdout': _case('train/cat/*3 train/dog/*3 hold-out/cat/*1 hold-out/dog/*1'),
  'French': _case(
    'entraînement/cat/*3 entraînement/dog/*3 test/cat/*1 test/dog/*1'
  ),
  'Chinese': _case('训练/cat/*3 训练/dog/*3 测试/cat/*1 测试/dog/*1'),
  'three': _case(
    'trn/cat/*3 trn/dog/*3 dev/cat/*1 dev/dog/*1 tst/cat/*1 tst/dog/*1',
    train=PETS,
    validation=FEW,
    test=FEW,
  ),
  'validation alone': _case(
    'TRAIN/cat/*3 TRAIN/dog/*3 Val/cat/*1 Val/dog/*1',
    train=PETS,
    validation=FEW,
  ),
  'prefixed alike': _case(
    'seg_train/cat/*3 seg_train/dog/*3 seg_test/cat/*1 seg_test/dog/*1'
  ),
  'twice the same name': _case(
    'seg_train/seg_train/cat/*3 seg_train/seg_train/dog/*3 '
    'seg_test/seg_test/cat/*1 seg_test/seg_test/dog/*1 seg_pred/seg_pred/*4'
  ),
  'prefixed beside train': _case(
    'train/cat/*3 train/dog/*3 my_test/cat/*1 my_test/dog/*1'
  ),
  'train and validation in one': _case(
    'train_val/cat/*3 train_val/dog/*3 test/cat/*1 test/dog/*1'
  ),
  'images, then splits': _case(
    'images/train/cat/*3 images/train/dog/*3 images/test/cat/*1 '
    'images/test/dog/*1 annotations/all.xml'
  ),
  'splits, then images': _case(
    'train/images/cat/*3 train/images/dog/*3 train/labels/x.txt '
    'test/images/cat/*1 test/images/dog/*1'
  ),
  'images in every class': _case(
    'train/cat/images/*3 train/dog/images/*3 test/cat/*1 test/dog/*1'
  ),
  'class, then split': _case(
    'cat/train/*3 cat/test/*1 dog/train/*3 dog/test/*1'
  ),
  'class, then split, in other words': _case(
    'cat/Training/*3 cat/TEST/*1 dog/trn/*3 dog/test_set/*1'
  ),
  'class, then prefixed split': _case(
    'cat/cat_train/*3 cat/cat_test/*1 dog/dog_train/*3 dog/dog_test/*1'
  ),
  'images, class, split': _case(
    'images/cat/train/*3 images/cat/test/*1 images/dog/train/*3 '
    'images/dog/test/*1'
  ),
  'wrapped': _case(
    'pets/v1/train/cat/*3 pets/v1/train/dog/*3 pets/v1/test/cat/*1 '
    'pets/v1/test/dog/*1'
  ),
  'wrapped in a split word': _case(
    'training/train/cat/*3 training/train/dog/*3 training/test/cat/*1 '
    'training/test/dog/*1'
  ),
  'files beside the folders': _case(
    'data/train/cat/*3 data/train/dog/*3 data/test/cat/*1 data/test/dog/*1 '
    'README.md logo.png'
  ),
  'train alone': _case('train/cat/*3 train/dog/*3', train=PETS),
  'unlabelled images beside': _case(
    'train/cat/*3 train/dog/*3 unlabeled/*5', train=PETS
  ),
  'a class called train': _case(
    'train/*3 bus/*3', unsplit={'train': 3, 'bus': 3}
  ),
  'classes called test and control': _case(
    'test/*3 control/*3',
    unsplit={'test': 3, 'control': 3},
  ),
  'classes with the word train': _case(
    'bullet_train/*3 bus/*3 strain/*3',
    unsplit={'bullet_train': 3, 'bus': 3, 'strain': 3},
  ),
  'a class called train in splits': _case(
    'train/train/*3 train/bus/*3 test/train/*1 test/bus/*1',
    train={'train': 3, 'bus': 3},
    test={'train': 1, 'bus': 1},
  ),
  'a sub-folder called train': _case(
    'vehicle/train/*3 vehicle/bus/*3 animal/cat/*3',
    unsplit={'vehicle': 6, 'animal': 3},
  ),
  'sub-folders of classes': _case(
    'cat/left/*2 cat/right/*1 dog/left/*3', unsplit=PETS
  ),
  'classes in a wrapper': _case('images/cat/*3 images/dog/*3', unsplit=PETS),
}


@pytest.mark.parametrize('case', READ)
def test_read(case, tmp_path):
  text, splits = READ[case]
  listing = trees.arranged(trees.write(tmp_path / 'root', text))
  expected = splits or {'train': PETS, 'test': FEW}
  assert trees.counts(listing) == expected
  # Each image is used once or left out with a reason.
  used = sum(sum(classes.values()) for classes in expected.values())
  files = [n for n in trees.names(text) if not n.endswith('/')]
  assert used + len(listing.left_out) == len(files)
  in_order = [
    name
    for classes in listing.files.values()
    for found in classes.values()
    for name, _ in found
  ]
  assert len(set(in_order)) == used


REFUSED = {
  'an unknown word': (
    'train/cat/*3 train/dog/*3 klausur/cat/*1 klausur/dog/*1',
    ['train/', 'klausur/', 'as a split', 'as a class'],
  ),
  'an unknown word beside two': (
    'train/cat/*3 train/dog/*3 test/cat/*1 test/dog/*1 more/cat/*1',
    ['more/', 'no split that is known'],
  ),
  'images beside train alone': (
    'train/cat/*3 train/dog/*3 extra/*3',
    ['train/', 'extra/', 'as a split', 'as a class'],
  ),
  'a vehicle or a split': (
    'train/steam/*3 train/diesel/*3 bus/*3',
    ['train/', 'bus/', 'as a split', 'as a class'],
  ),
  'a test without labels': (
    'train/cat/*3 train/dog/*3 test/*3',
    ['test/ holds images without class folders', 'unlabelled'],
  ),
  'images of a split in one folder': (
    'train/n1/images/*3 train/n2/images/*3 val/images/*3 val/notes.txt',
    ['val/ holds images without class folders'],
  ),
  'images of all splits in one folder each': (
    'train/images/*3 train/labels/1.txt val/images/*3 val/labels/1.txt',
    ['no class folders in train/, val/'],
  ),
  'an empty test': (
    'train/cat/*3 train/dog/*3 test/',
    ['test/ beside train/ holds no image'],
  ),
  'an empty Validation': (
    'train/cat/*3 train/dog/*3 Validation/',
    ['Validation/ beside train/ holds no image'],
  ),
  'a test of other files': (
    'train/cat/*3 train/dog/*3 test/cat/1.raw test/dog/1.raw',
    ["class 'cat', 'dog' in test holds no images"],
  ),
  'splits without classes': (
    'train/*3 test/*3',
    ['no class folders', 'rename'],
  ),
  'splits or classes': (
    'train/*3 test/*3 bus/*3',
    ['no class folders in test/, train/', 'if they are classes'],
  ),
  'splits without classes, wrapped': (
    'images/Train/*3 images/Val/*3 labels/Train/1.txt',
    ['no class folders in Train/, Val/'],
  ),
  'splits in a split word': (
    'train/train/*3 train/test/*3',
    ['no class folders'],
  ),
  'one split twice': (
    'train/cat/*3 train/dog/*3 Training/cat/*3 Training/dog/*3',
    ["'Training', 'train'", 'one split twice'],
  ),
  'two cases of a name': (
    'train/cat/*3 train/dog/*3 TRAIN/cat/*3 TRAIN/dog/*3',
    ["'TRAIN', 'train'", 'one split twice'],
  ),
  'numbered twice': (
    'train1/cat/*3 train1/dog/*3 train2/cat/*3 train2/dog/*3',
    ['one split twice'],
  ),
  'splits in one class alone': (
    'cat/train/*3 cat/test/*1 dog/*3',
    ['cat/ holds test/, train/', 'look like splits'],
  ),
  'images beside splits in a class': (
    'cat/train/*3 cat/test/*1 cat/*2 dog/train/*3 dog/test/*1',
    ['cat/', 'look like splits'],
  ),
  'test alone in classes of images': (
    'cat/*3 cat/test/*1 dog/*3 dog/test/*1',
    ['cat/ holds test/', 'look like splits'],
  ),
  'split and class in one name': (
    'train_cat/*3 train_dog/*3 test_cat/*1 test_dog/*1',
    ['train_cat/', 'look like splits of one class'],
  ),
  'a split of one class alone': (
    'cat/train/*3 cat/test/*1 dog/test/*1',
    ["class 'dog' is in test but not in train"],
  ),
  'an empty split in a class': (
    'cat/train/*3 cat/test/ dog/train/*3 dog/test/*1',
    ["class 'cat' in test holds no images"],
  ),
  'two data sets': (
    'A/train/cat/*3 A/test/cat/*1 B/train/cat/*3 B/test/cat/*1',
    ['A/', 'data sets beside each other'],
  ),
  'folds': (
    'fold1/cat/*3 fold1/dog/*3 fold2/cat/*3 fold2/dog/*3',
    ['fold1/, fold2/', 'parts of one data set'],
  ),
  'parts': (
    'Part_A/cat/*3 Part_A/dog/*3 Part_B/cat/*3 Part_B/dog/*3',
    ['parts of one data set'],
  ),
  'a hidden class': ('a/*3 b/*3 .net/*3', ['.net/ holds 3 images', 'rename']),
  'a hidden class in train': (
    'train/a/*3 train/b/*3 train/.js/*2',
    ['train/.js/ holds 2 images'],
  ),
  'images alone': ('a.png b.png', ['no class folders']),
  'one class': ('cat/*3', ["one class only ('cat')"]),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, tmp_path):
  text, said = REFUSED[case]
  root = trees.write(tmp_path / 'root', text)
  with pytest.raises(ValueError) as caught:
    trees.arranged(root)
  for part in (f'folder:{root}', *said):
    assert part in str(caught.value)


def test_what_is_beside_has_a_reason(tmp_path):
  text = (
    'train/cat/*2 train/dog/*2 train/stray.png test/cat/*2 test/dog/*2 '
    'predict/*3 logo.png notes.txt .ipynb_checkpoints/a.png train/cat/.b.png'
  )
  listing = trees.arranged(trees.write(tmp_path, text))
  assert trees.left_out(listing) == {
    'image in train/ beside its class folders': 1,
    'image in predict/, which is no split': 3,
    'image beside the class folders': 1,
    '.txt': 1,
    "hidden or a system's": 2,
  }


def test_equal_sub_folders_are_mentioned(tmp_path):
  text = 'in/day/*2 in/night/*2 out/day/*2 out/night/*2'
  listing = trees.arranged(trees.write(tmp_path, text))
  assert listing.notes == [
    "in/, out/ all hold the folders 'day', 'night'; the outer folders are read "
    'as the classes'
  ]


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_classes_that_are_probably_one_are_mentioned(kind, tmp_path):
  """As in tables."""
  text = 'train/cat/*2 train/Cat/*2 train/big_dog/*1 train/Big-Dog/*1'
  path = tmp_path / 'x'
  if kind == 'zip':
    members = dict.fromkeys(trees.names(text), trees.PNG)
    path = trees.write_zip(tmp_path / 'x.zip', members)
  else:
    trees.write(path, text)
    if len(list((path / 'train').iterdir())) < 4:
      pytest.skip('this file system takes them for one')
  assert trees.arranged(path).notes == [
    "classes 'Big-Dog', 'big_dog' differ in case or separators alone",
    "classes 'Cat', 'cat' differ in case or separators alone",
  ]


def test_two_spellings_of_an_accent_are_one_class(tmp_path):
  composed, spread = 'caf\u00e9', 'cafe\u0301'
  text = f'train/{composed}/*2 train/tea/*2 test/{spread}/*1 test/tea/*1'
  listing = trees.arranged(trees.write(tmp_path, text))
  assert trees.counts(listing)['test'] == {composed: 1, 'tea': 1}
