"""JSON that every reader takes, and no larger than it must be."""

import io
import json
import math
import zipfile

import numpy as np
import pytest

from tests import strict
from tlkd_jax.evaluation import evaluate, records, suites


@pytest.mark.parametrize(
  'value',
  [
    float('nan'),
    float('inf'),
    -float('inf'),
    np.float32('nan'),
    np.float64('inf'),
    np.array(float('nan')),
    np.array(-float('inf'), np.float16),
  ],
)
def test_what_is_no_number_is_null(value, tmp_path):
  value = {'a': value, 'b': [value, (1, value)], 'c': {'d': value, 'e': 0.5}}
  expected = {
    'a': None,
    'b': [None, [1, None]],
    'c': {'d': None, 'e': 0.5},
  }
  assert strict.parse_json(records.dumps(value)) == expected
  records.write_json(tmp_path / 'new' / 'a.json', value)
  text = (tmp_path / 'new' / 'a.json').read_text()
  assert strict.parse_json(text) == expected


@pytest.mark.parametrize(
  'text', ['null', 'NaN', 'Infinity', '-Infinity', '0.25', '3']
)
def test_numbers_of_this_and_of_older_versions(text):
  value = records.number(json.loads(text))
  expected = float(text) if text[0].isdigit() else math.nan
  np.testing.assert_equal(value, expected)


@pytest.fixture(scope='module')
def many_classes():
  """Answers of two models to 800 images of 1,000 classes."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 1000, 800).astype(np.int32)
  return [
    evaluate.Predictions(
      rng.normal(size=(800, 1000)).astype(np.float32),
      np.zeros((800, 1), np.float32),
      labels,
      np.arange(800),
    )
    for _ in range(2)
  ]


def test_a_summary_does_not_grow_with_the_classes(many_classes, tmp_path):
  summary = evaluate.summarize(*many_classes)
  assert len(records.dumps(summary, indent=1)) < 1000
  evaluate.save_confusions(tmp_path, {'test': many_classes[0]})
  path = tmp_path / 'confusion.npz'
  counts = records.read_arrays(path)['test']
  assert counts.shape == (1000, 1000) and counts.sum() == 800
  labels = many_classes[0].labels
  assert (counts.sum(axis=1) == np.bincount(labels, minlength=1000)).all()
  assert path.stat().st_size < 50_000


def test_the_clean_suite_grows_with_the_classes_not_with_their_square(
  many_classes,
):
  names = [f'a class of usual length {k}' for k in range(1000)]
  found = suites.describe(*many_classes, names)
  assert len(records.dumps(found, indent=1)) < 200_000
  assert found['per_class']['class'] == names


@pytest.mark.parametrize(
  ('old', 'new'),
  [(b'}', b'('), (b"'descr'", b"'descx'"), (b'<i8', b'<z8'), (b'NUMPY', b'XY')],
)
def test_a_header_that_cannot_be_read_names_the_file(old, new, tmp_path):
  """Inside an archive whose checksums are right."""
  stream = io.BytesIO()
  np.save(stream, np.arange(3))
  content = stream.getvalue()
  assert old in content
  path = tmp_path / 'a.npz'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.npy', content.replace(old, new, 1))
  with pytest.raises(ValueError, match=r'a\.npz is damaged'):
    records.read_arrays(path)
