"""Which folder names mean train, validation or test.

Case, accents, numbers, separators and words such as 'set' and 'images' do not
matter: 'Train', 'train_set', '01-training', 'TestImages', 'val2017'.
"""

import dataclasses
import re
import unicodedata


def _plain(name: str) -> str:
  """Lower case, without accents."""
  spread = unicodedata.normalize('NFKD', name).casefold()
  bare = ''.join(c for c in spread if not unicodedata.combining(c))
  # Kana and Hangul are composed again.
  return unicodedata.normalize('NFC', bare)


_WORDS = {
  'train': (
    *('train', 'training', 'trainings', 'trn', 'trainval', 'learn'),
    *('trainingsdaten', 'lernen', 'entrainement', 'apprentissage'),
    *('entrenamiento', 'entrenar', 'treino', 'treinamento', 'treinar'),
    *('addestramento', 'allenamento', 'traning', 'trening', 'egitim'),
    *('обучение', 'обучающая', 'тренировка', '训练', '訓練', '学習', '학습'),
    '훈련',
  ),
  'validation': (
    *('validation', 'valid', 'val', 'vali', 'validate', 'validating', 'dev'),
    *('devel', 'development', 'eval', 'evaluation', 'validierung'),
    *('validierungsdaten', 'validacion', 'validacao', 'validazione'),
    *('validatie', 'validering', 'walidacja', 'dogrulama', 'валидация'),
    *('проверка', '验证', '驗證', '検証', '검증'),
  ),
  'test': (
    *('test', 'tests', 'testing', 'tst', 'holdout', 'heldout', 'testdaten'),
    *('prueba', 'pruebas', 'teste', 'testes', 'prova', 'prove', 'тест'),
    *('тестирование', 'тестовая', '测试', '測試', 'テスト', '테스트', '시험'),
  ),
}  # fmt: skip
_SPLIT_OF = {
  _plain(word): split for split, words in _WORDS.items() for word in words
}

# What may stand beside such a word without a meaning of its own.
_BESIDE = (
  *('set', 'sets', 'data', 'dataset', 'datasets', 'images', 'image', 'imgs'),
  *('img', 'pictures', 'pics', 'photos', 'split', 'folder', 'dir', 'files'),
  *('samples', 'examples', 'classes', '集', '数据集', '数据', 'データ'),
  '데이터',
)  # fmt: skip
_FILLERS = tuple(map(_plain, _BESIDE))
_GLUED = re.compile(
  f'({"|".join(sorted(_SPLIT_OF, key=len, reverse=True))})'
  f'({"|".join(_FILLERS)})|({"|".join(_FILLERS)})'
  f'({"|".join(sorted(_SPLIT_OF, key=len, reverse=True))})'
)

# Folders that only hold what is below them.
CONTAINERS = frozenset(
  ('images', 'image', 'imgs', 'img', 'data', 'dataset', 'datasets', 'pictures')
  + ('photos', 'pics', 'jpg', 'jpeg', 'jpegs', 'png', 'jpegimages', 'raw')
  + ('files', 'classes')
)

# Folders of images without labels, as competitions add them.
UNLABELLED = frozenset(
  ('unlabelled', 'unlabeled', 'unsup', 'unsupervised', 'pred', 'predict')
  + ('prediction', 'predictions', 'sample')
)

_PARTS = frozenset(
  ('fold', 'split', 'part', 'partition', 'subset', 'cv', 'set')
)


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What a folder's name says.

  Attributes:
    split: 'train', 'validation' or 'test'.
    rest: words beside it that have another meaning, () where it is certain.
  """

  split: str
  rest: tuple[str, ...]


def read(name: str) -> Meaning | None:
  """The split that a folder's name speaks of, None if of none or of two."""
  words = _words(name)
  meant = [word for word in words if word in _SPLIT_OF]
  joined = ''.join(words)
  if joined in _SPLIT_OF:
    return Meaning(_SPLIT_OF[joined], ())
  if len(meant) != 1:
    return None
  rest = tuple(word for word in words if word not in _SPLIT_OF)
  return Meaning(_SPLIT_OF[meant[0]], rest)


def is_container(name: str) -> bool:
  """Whether a folder is named after images at large."""
  return _plain(name) in CONTAINERS


def is_unlabelled(name: str) -> bool:
  """Whether a folder is named after images without labels."""
  return bool(UNLABELLED & set(_words(name)))


def is_numbered_part(name: str) -> bool:
  """Whether a folder is named as one of several parts: 'fold_1', 'Part B'."""
  words = re.findall(r'[^\W\d_]+', _plain(name))
  return bool(_PARTS & set(words)) and all(
    word in _PARTS or len(word) == 1 for word in words
  )


def _words(name: str) -> list[str]:
  """The words of a name that have a meaning."""
  spaced = re.sub(r'(?<=[a-zß-ÿ])(?=[A-Z])', ' ', name)
  words = []
  for word in re.findall(r'[^\W\d_]+', _plain(spaced)):
    glued = _GLUED.fullmatch(word)
    if glued and word not in _SPLIT_OF:
      word = glued[1] or glued[4]
    words.append(word)
  return [word for word in words if word not in _FILLERS]
