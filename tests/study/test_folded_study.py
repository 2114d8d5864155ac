"""A small real study over folds: each seed is tested on its own."""

import logging

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tlkd_jax import settings
from tlkd_jax.answer import plan as plans
from tlkd_jax.evaluation import evaluate
from tlkd_jax.report import runs
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.settings import StudyArm, StudyDataset
from tlkd_jax.study import conduct

pytestmark = pytest.mark.usefixtures('tiny_models')


def draw(folder):
  """Ten pictures of each of two classes."""
  for i in range(20):
    path = folder / ('cat', 'dog')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def make(folder, cache_dir, size=0):
  """The settings of a study of three folds, and seeds, of one arm."""
  return settings.with_values(
    tiny.make_config('tl', cache_dir, num_train_per_class=0, num_steps=3),
    {
      'arm': 'study',
      'data.folds': 3,
      'study': settings.Study(
        datasets={
          'pets': StudyDataset(changes={'dataset': f'folder:{folder}'})
        },
        arms={'tl': StudyArm('tl', 'TL'), 'kd': StudyArm('tl', 'same')},
        run_arms=('tl',),
        sizes=(size,),
        seeds=3,
      ),
    },
  )


@pytest.mark.parametrize('size', [0, 0.5, 2])
def test_a_split_of_its_own_is_one_message_before_a_cell(
  tmp_path, cache_dir, size
):
  for split in ('train', 'test'):
    draw(tmp_path / 'pets' / split)
  config = make(tmp_path / 'pets', cache_dir, size)
  with pytest.raises(UserError, match='of its own, which folds would mix'):
    conduct.run(config, tmp_path / 'study')
  assert not [*(tmp_path / 'study').rglob('cells')]


def test_seeds_go_through_the_folds(tmp_path, cache_dir, caplog):
  draw(tmp_path / 'pets')
  config = make(tmp_path / 'pets', cache_dir)
  root = tmp_path / 'study'
  with caplog.at_level(logging.INFO, logger='absl'):
    rows, _ = conduct.run(config, root)
  # What is done is said before the first cell.
  first = next(line for line in caplog.messages if 'study' in line)
  assert first.startswith('study of pets, all images\n  treatment: kd\n')
  size = config.image_size
  assert f'\n  pets, {config.student.name} at {size} px: tl' in first
  assert [row['folds'] for row in rows] == [3, 3, 3]
  tested = []
  for row in rows:
    found = evaluate.load(root / row['folder'] / 'predictions' / 'test.npz')
    tested += found.indices.tolist()
    assert row['num_train'] + len(found.indices) < 20
  assert sorted(tested) == [*range(20)]
  plan = dict(plans.read(root).words)
  assert plan['folds'] == '3, seed i is tested on fold i mod 3'
  # A report of the same runs knows it too.
  found, _ = runs.collect([root])
  assert [run.folds for run in found] == [3, 3, 3]
