"""A ViT without a head of its own teaches a convolutional student."""

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import arrays
from tlkd_jax import arms
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import judging, loop, says, targets
from tlkd_jax.training.lessons import make_objective
from tlkd_jax.training.metric_writers import read_rows

pytestmark = pytest.mark.usefixtures('tiny_models')


@pytest.fixture(scope='module')
def probed_vit(cache_dir, tmp_path_factory):
  """Workdir of a ViT as it starts, under a fitted head."""
  workdir = tmp_path_factory.mktemp('probed')
  config = tiny.make_config(
    'teacher',
    cache_dir,
    teacher__name='tiny_vit',
    teacher__fit='probed',
    teacher__probe_views=0,
    teacher__probe_folds=3,
  )
  with tiny.registered():
    arms.run(config, workdir, sharding.make_mesh(1))
  return workdir


@pytest.fixture
def run(cache_dir, probed_vit, tmp_path, monkeypatch):
  """Runs kd with what is compared, and no more; gives its workdir."""
  for module, name in (
    (loop, 'finish'),
    (judging, 'validate'),
    (says, 'measure'),
  ):
    monkeypatch.setattr(module, name, lambda *_: {})

  def call(name, **changes):
    config = tiny.make_config(
      'kd',
      cache_dir,
      teacher__name='tiny_vit',
      teacher__checkpoint=str(probed_vit),
      num_steps=4,
      **changes,
    )
    arms.run(config, tmp_path / name, sharding.make_mesh(1))
    return config, tmp_path / name

  return call


def test_stored_embeddings_are_those_of_the_step(run, tmp_path):
  """Bitwise: two of one teacher, of which neither is what its head reads."""
  found = []
  for mode in ('online', 'cached'):
    config, workdir = run(
      mode,
      loss='cosine+rkd',
      distillation__options={'embedding': 'mean'},
      distillation__extra__rkd__options={'embedding': 'class'},
      augment__crop='random_resized',
      targets__mode=mode,
      targets__views=2,
      targets__dtype='float32',
      targets__dir=str(tmp_path / 'targets'),
    )
    read = targets.outputs_read(make_objective(config, None, guided=True))
    assert read == ('logits', 'patch_mean', 'class_token')
    found.append((arrays(workdir), read_rows(workdir / 'metrics.jsonl')))
  for name, value in found[0][0].items():
    np.testing.assert_array_equal(found[1][0][name], value, err_msg=name)
  for left, right in zip(found[0][1], found[1][1], strict=True):
    assert left['soft_loss'] == right['soft_loss'] > 0
    assert left['rkd_loss'] == right['rkd_loss'] > 0


def test_maps_are_learned_from_patches(run):
  _, workdir = run('maps', loss='fitnet+at', log_every_steps=1)
  rows = read_rows(workdir / 'metrics.jsonl')
  assert len(rows) == 4
  for loss in ('soft_loss', 'at_loss'):
    assert 0 < rows[-1][loss] < np.inf
  assert rows[-1]['soft_loss'] < rows[0]['soft_loss']
  projector = [name for name in arrays(workdir) if 'projector' in name]
  assert any('stage1' in name for name in projector)


def test_a_further_teacher_without_an_embedding_is_named_first(
  compare_run, probed_vit, cache_dir, tmp_path, monkeypatch
):
  monkeypatch.setattr(arms, 'fine_tune', None)
  config = tiny.make_config(
    'kd',
    cache_dir,
    loss='cosine',
    teacher__name='tiny_vit',
    teacher__checkpoint=str(probed_vit),
    distillation__options={'embedding': 'class'},
    distillation__ensemble='losses',
    distillation__more_teachers=(str(compare_run / 'teacher'),),
  )
  told = (
    r"options\.embedding is 'class', which tiny_teacher does not give; "
    r'accepted: pooled \(distillation\.more_teachers, .*teacher\)'
  )
  with pytest.raises(UserError, match=told):
    arms.run(config, tmp_path, sharding.make_mesh(1))
  assert not list(tmp_path.iterdir())
