"""Which configurations share their data, and that a key decides it wholly."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from tests import tiny
from tlkd_jax import data, inference, settings
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.training import checkpoints, inputs

pytestmark = pytest.mark.usefixtures('tiny_models')


class Recording:
  """Settings that note the keys that are read of them."""

  def __init__(self, section, seen: set[str], prefix: str = ''):
    self._section, self._seen, self._prefix = section, seen, prefix

  def __getattr__(self, name: str):
    value = getattr(self._section, name)
    key = f'{self._prefix}{name}'
    if dataclasses.is_dataclass(value):
      return Recording(value, self._seen, f'{key}.')
    self._seen.add(key)
    return value


# Other values of the keys that are not numbers of at least 1000.
_OTHERS = {
  'dataset': 'cifar10',
  'train_fraction': 0.5,
  'data.crop': 0.5,
  'data.data_dir': 'elsewhere',
  'data.cache_dir': 'elsewhere',
  'data.interpolation': 'lanczos',
  'data.on_bad_image': 'skip',
  'data.image_column': 'file',
  'data.label_column': 'species',
  'data.split_column': 'fold',
  'data.pattern': '{class}_*',
  'distillation.more_teachers': ('a larger one',),
}


def test_the_key_holds_all_that_loading_reads(cache_dir, monkeypatch):
  larger = types.SimpleNamespace(image_size=2000)
  monkeypatch.setattr(checkpoints, 'read_description', lambda _: larger)
  monkeypatch.setattr(data, 'load_splits', lambda *_, **__: None)
  own = tiny.make_config('kd', cache_dir, num_train_per_class=0)
  seen: set[str] = set()
  inputs.load_dataset(Recording(own, seen))
  assert seen >= {'seed', 'image_size', 'teacher.image_size', *_OTHERS}
  key = inputs.data_key(own)
  assert key == inputs.data_key(dataclasses.replace(own))
  for name in sorted(seen):
    changed = settings.with_values(own, {name: _OTHERS.get(name, 1000)})
    assert changed != own
    assert inputs.data_key(changed) != key, name


def test_what_only_training_reads_does_not_part_the_data(cache_dir):
  own = tiny.make_config('kd', cache_dir)
  others = {'num_steps': 7, 'optimizer.learning_rate': 1.0}
  changed = settings.with_values(own, others)
  assert inputs.data_key(changed) == inputs.data_key(own)


def test_runs_of_a_folder_are_evaluated_on_their_own_pixels(
  compare_run, tmp_path
):
  """The second run's further teacher saw larger images, so its data are."""
  larger = tmp_path / 'larger'
  shutil.copytree(compare_run / 'teacher', larger)
  (path,) = larger.glob('checkpoints/best/*/record/metadata')
  record = json.loads(path.read_text())
  path.write_text(json.dumps(record | {'image_size': 24}))
  for name in ('runs/1', 'runs/2', 'alone'):
    shutil.copytree(compare_run / 'kd', tmp_path / name)
  for name in ('runs/2', 'alone'):
    path = tmp_path / name / 'config.json'
    config = json.loads(path.read_text())
    config['distillation']['more_teachers'] = [str(larger)]
    path.write_text(json.dumps(config))
  logits = {}
  for place in ('runs', 'alone'):
    inference.evaluate_run(str(tmp_path / place), sharding.make_mesh())
  for name in ('runs/1', 'runs/2', 'alone'):
    stored = evaluate.load(tmp_path / name / 'predictions' / 'test.npz')
    logits[name] = stored.logits
  np.testing.assert_array_equal(logits['runs/2'], logits['alone'])
  assert np.abs(logits['runs/1'] - logits['runs/2']).max() > 1e-4
