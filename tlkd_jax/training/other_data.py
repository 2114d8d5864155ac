"""Labelled data that a finished run has not seen, for its network to answer."""

import hashlib
import pathlib
import re

from absl import logging

from tlkd_jax.data import Dataset, located, other
from tlkd_jax.settings import Settings
from tlkd_jax.training import data_record, decoding
from tlkd_jax.training.descriptions import Description


def load(name: str, settings: Settings, description: Description) -> Dataset:
  """Decodes data as a run's network looks at images; the one split is 'test'.

  Args:
    name: of the data, as in the settings.
    settings: of the run.
    description: of its checkpoint.

  Raises:
    ValueError: the run's own data, or as other.load.
    FileNotFoundError: as other.load.
  """
  if is_own(name, settings):
    raise ValueError(
      f"--dataset {name} is the run's own data set, most of which it was "
      'trained on; without --dataset its validation and test images are taken'
    )
  section = settings.data
  # Names of columns mean nothing in data of another kind.
  alike = name.partition(':')[0] == settings.dataset.partition(':')[0]
  dataset = other.load(
    name,
    description.class_names,
    description.look,
    on_bad_image=section.on_bad_image,
    data_dir=section.data_dir,
    cache_dir=section.cache_dir,
    labelling=decoding.labelling(settings) if alike else None,
  )
  logging.info('%s', dataset.describe())
  return dataset


def is_own(name: str, settings: Settings) -> bool:
  """Whether data are those that a run was trained on, by another path too."""
  return located(name) == located(settings.dataset)


def place(name: str) -> str:
  """The folder for it: the data's name, and a digest that tells two apart."""
  whole = located(name)
  digest = hashlib.sha256(whole.encode('utf-8', 'replace')).hexdigest()[:6]
  word = re.sub(r'\W+', '_', pathlib.PurePath(whole).name).strip('_')
  return f'on_{word[:40]}-{digest}'


def notes(workdir: pathlib.Path, dataset: Dataset) -> list[str]:
  """What must be known of a run's numbers on such data.

  Raises:
    ValueError: the run's record of its own data is damaged.
  """
  lines = list(dataset.notes)
  copies = data_record.copies_of_training(workdir, dataset)
  if copies:
    lines.append(
      f'{copies} of its {len(dataset.files["test"].names)} images are exact '
      f'copies of training images of {workdir}'
    )
  return lines
