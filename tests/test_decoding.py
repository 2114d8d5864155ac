"""Which configurations share their data, and that a key decides it wholly."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.workdirs import change_description
from tlkd_jax import data, evaluating, settings
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.training import decoding

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
  'data.data_dir': 'elsewhere',
  'data.cache_dir': 'elsewhere',
  'data.on_bad_image': 'skip',
  'data.near_duplicates': True,
  'data.image_column': 'file',
  'data.label_column': 'species',
  'data.split_column': 'fold',
  'data.pattern': '{class}_*',
  'augment.crop': 'random_resized',
}


def test_the_key_holds_all_that_loading_reads(cache_dir, monkeypatch):
  """Beside the look, which whoever shares data compares too."""
  monkeypatch.setattr(data, 'load_splits', lambda *_, **__: None)
  own = tiny.make_config('kd', cache_dir, num_train_per_class=0)
  seen: set[str] = set()
  decoding.load_seen(Recording(own, seen), data.Look(16, 1.0, 'bicubic'))
  assert seen >= {'seed', *_OTHERS}
  key = decoding.data_key(own)
  assert key == decoding.data_key(dataclasses.replace(own))
  for name in sorted(seen):
    changed = settings.with_values(own, {name: _OTHERS.get(name, 1000)})
    assert changed != own
    assert decoding.data_key(changed) != key, name


def test_what_only_training_reads_does_not_part_the_data(cache_dir):
  own = tiny.make_config('kd', cache_dir)
  others = {'num_steps': 7, 'optimizer.learning_rate': 1.0}
  changed = settings.with_values(own, others)
  assert decoding.data_key(changed) == decoding.data_key(own)


def test_runs_of_a_folder_are_evaluated_on_their_own_pixels(
  compare_run, tmp_path
):
  """Whatever pixels a run beside it or a further teacher of its own saw."""
  larger = tmp_path / 'runs' / '1'
  shutil.copytree(compare_run / 'teacher', larger)
  change_description(larger, image_size=24)
  for name in ('runs/2', 'runs/3'):
    shutil.copytree(compare_run / 'kd', tmp_path / name)
  path = tmp_path / 'runs' / '3' / 'config.json'
  config = json.loads(path.read_text())
  config['distillation']['more_teachers'] = [str(larger)]
  sealed.write_text(path, json.dumps(config))
  evaluating.evaluate_run(str(tmp_path / 'runs'), sharding.make_mesh())
  logits = {
    run: evaluate.load(run / 'predictions' / 'test.npz').logits
    for run in (
      *(tmp_path / 'runs').iterdir(),
      compare_run / 'kd',
      compare_run / 'teacher',
    )
  }
  for name in ('2', '3'):
    np.testing.assert_array_equal(
      logits[tmp_path / 'runs' / name], logits[compare_run / 'kd']
    )
  moved = logits[larger] - logits[compare_run / 'teacher']
  assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize(
  ('values', 'fold'),
  [
    ({}, None),
    ({'seed': 7}, None),
    ({'data.folds': 5, 'seed': 7}, data.Fold(2, 5)),
    ({'data.folds': 5, 'seed': 200}, data.Fold(0, 5)),
    ({'data.folds': 5, 'data.fold': 3, 'seed': 7}, data.Fold(3, 5)),
    ({'data.folds': 3, 'seed': 7, 'arm': 'teacher'}, data.Fold(1, 3)),
  ],
)
def test_a_seed_goes_to_its_fold(values, fold):
  own = settings.with_values(settings.make('tl'), values)
  assert decoding.fold(own) == fold
  assert decoding.where(own).fold == fold
  key = decoding.data_key(own)
  split_once = {'data.folds': 0, 'data.fold': None}
  other = settings.with_values(own, split_once)
  assert (decoding.data_key(other) == key) == (fold is None)
