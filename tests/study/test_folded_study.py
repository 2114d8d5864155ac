"""A small real study over folds: each seed is tested on its own."""

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tlkd_jax import settings
from tlkd_jax.answer import plan as plans
from tlkd_jax.evaluation import evaluate
from tlkd_jax.report import runs
from tlkd_jax.settings import StudyArm, StudyDataset
from tlkd_jax.study import conduct

pytestmark = pytest.mark.usefixtures('tiny_models')


def test_seeds_go_through_the_folds(tmp_path, cache_dir):
  for i in range(20):
    path = tmp_path / 'pets' / ('cat', 'dog')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  dataset = f'folder:{tmp_path / "pets"}'
  config = settings.with_values(
    tiny.make_config('tl', cache_dir, num_train_per_class=0, num_steps=3),
    {
      'arm': 'study',
      'data.folds': 3,
      'study': settings.Study(
        datasets={'pets': StudyDataset(changes={'dataset': dataset})},
        arms={'tl': StudyArm('tl', 'TL'), 'kd': StudyArm('tl', 'same')},
        run_arms=('tl',),
        sizes=(0,),
        seeds=3,
      ),
    },
  )
  root = tmp_path / 'study'
  rows, _ = conduct.run(config, root)
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
