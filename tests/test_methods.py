"""Every method in a real run on digits, guided by a fine-tuned teacher."""

import json

import pytest

from tests import tiny
from tlkd_jax import arms, losses
from tlkd_jax.runtime import sharding
from tlkd_jax.training import loop

pytestmark = pytest.mark.usefixtures('tiny_models')

METHODS = [
  name
  for name, loss in losses.LOSSES.items()
  if loss.same_as is None and loss.guide != 'start'
]


def rows(workdir, split='train'):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['split'] == split]


# A sum costs one compilation. Alone are those whose values are small beside
# the others', which would lead elsewhere.
SUMS = [
  *(('wsld',), ('logit_mse',), ('function_matching',), ('ce_label_smoothing',)),
  ('kd', 'fitnet', 'srrl', 'fsp', 'ofd'),
  ('kd_logit_std', 'fitnet_convreg', 'simkd', 'rkd', 'reviewkd'),
  ('dist', 'vid', 'ickd', 'crd'),
  ('dkd_logit_std', 'ft', 'sp', 'cc', 'pseudo_label', 'cosine', 'smooth_l1'),
  ('nkd', 'bv_distances', 'mgd', 'nst', 'ab'),
  ('dkd', 'mlkd', 'at', 'srd', 'pkt'),
]


@pytest.mark.parametrize('names', SUMS, ids='+'.join)
def test_a_method_lowers_its_own_loss(
  names, compare_run, cache_dir, tmp_path, monkeypatch
):
  first, *more = names
  config = tiny.make_config(
    'kd',
    cache_dir,
    loss='+'.join(names),
    teacher__checkpoint=str(compare_run / 'teacher'),
    # The factor of wsld follows the cross-entropy, without a gradient.
    distillation__hard_weight=float(first == 'wsld'),
    distillation__warmup_fraction=0.0,
    **{f'distillation__extra__{name}__warmup_fraction': 0.0 for name in more},
    optimizer__name='adamw',
    optimizer__learning_rate=3e-3,
    optimizer__warmup_fraction=0.0,
    # All images in every batch: no noise of sampling.
    batch_size=40,
    num_steps=20,
    log_every_steps=5,
    eval_every_steps=20,
  )
  # What is measured before and after the steps is the same for all.
  monkeypatch.setattr(loop.says, 'on_validation', lambda _: {})
  monkeypatch.setattr(loop.says, 'measure', lambda *_: None)
  monkeypatch.setattr(loop, 'finish', lambda *_: {})
  arms.run(config, tmp_path, sharding.make_mesh(1))
  found = rows(tmp_path)
  for name in names:
    metric = 'soft_loss' if name == first else f'{name}_loss'
    assert found[-1][metric] < found[0][metric], name


def test_every_method_is_in_a_sum():
  assert sorted(name for names in SUMS for name in names) == sorted(METHODS)
