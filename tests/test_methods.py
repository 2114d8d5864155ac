"""Every method in a real run on digits, guided by a fine-tuned teacher."""

import json

import pytest

from tests import tiny
from tlkd_jax import arms, losses
from tlkd_jax.runtime import sharding

pytestmark = pytest.mark.usefixtures('tiny_models')

METHODS = [
  name
  for name, loss in losses.LOSSES.items()
  if loss.same_as is None and loss.guide != 'start'
]


def rows(workdir, split='train'):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['split'] == split]


@pytest.mark.parametrize('name', METHODS)
def test_a_method_lowers_its_own_loss(name, compare_run, cache_dir, tmp_path):
  config = tiny.make_config(
    'kd',
    cache_dir,
    loss=name,
    teacher__checkpoint=str(compare_run / 'teacher'),
    # The factor of wsld follows the cross-entropy, without a gradient.
    distillation__hard_weight=float(name == 'wsld'),
    distillation__warmup_fraction=0.0,
    optimizer__name='adamw',
    optimizer__learning_rate=3e-3,
    optimizer__warmup_fraction=0.0,
    # All images in every batch: no noise of sampling.
    batch_size=40,
    num_steps=20,
    log_every_steps=5,
    eval_every_steps=20,
  )
  arms.run(config, tmp_path, sharding.make_mesh(1))
  first, *_, last = (row['soft_loss'] for row in rows(tmp_path))
  assert last < first
