"""Names for people and folders."""

import pytest

from tlkd_jax.answer.labels import dataset_name


@pytest.mark.parametrize(
  ('dataset', 'name'),
  [
    ('digits', 'digits'),
    ('folder:data/trashnet.zip', 'trashnet'),
    ('folder:/a/b/photos/', 'photos'),
    ('csv:birds/labels.csv', 'labels'),
    ('imagefolder:a/pets', 'pets'),
    ('parquet:hub/cifar10', 'cifar10'),
    ('oxford_iiit_pet:4.*.*', 'oxford_iiit_pet'),
  ],
)
def test_data_sets(dataset, name):
  assert dataset_name(dataset) == name
