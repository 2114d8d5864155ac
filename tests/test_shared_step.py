"""Runs share a compiled step if, and only if, their programs are the same."""

import logging

import jax
import pytest

from tests import tiny
from tests.test_resume import arrays
from tlkd_jax import arms
from tlkd_jax.runtime import sharding
from tlkd_jax.training import decoding, memory, run
from tlkd_jax.training import step as steps

pytestmark = pytest.mark.usefixtures('tiny_models')

OTHERS = [
  {'num_steps': 7},
  {'image_size': 24},
  {'compute_dtype': 'bfloat16'},
  {'label_smoothing': 0.2},
  {'ema_decay': 0.9},
  {'batch_norm': 'train'},
  {'remat': 'blocks'},
  {'student__drop_path': 0.1},
  {'student__dropout': 0.1},
  {'augment__crop': 'random'},
  {'augment__scale': (0.5, 1.0)},
  {'augment__flip': 'on'},
  {'augment__brightness': 0.3},
  {'augment__mixup_alpha': 0.2},
  {'augment__cutmix_alpha': 1.0},
  {'augment__randaugment_ops': 1},
  {'optimizer__learning_rate': 0.02},
  {'optimizer__warmup_fraction': 0.5},
  {'optimizer__name': 'adamw'},
  {'optimizer__momentum': 0.8},
  {'optimizer__clip_norm': 0.5},
  {'optimizer__layer_decay': 0.9},
  {'optimizer__accumulate_steps': 2},
  {'optimizer__freeze_until_step': 2},
  {'optimizer__train_only': 'head'},
  {'distillation__temperature': 3.0},
  {'distillation__temperature_schedule': 'linear'},
  {'distillation__soft_weight': 0.5},
  {'distillation__hard_weight': 0.5},
  {'distillation__warmup_fraction': 0.5},
  {'distillation__schedule': 'linear', 'distillation__end_weight': 0.1},
  {'distillation__sham': 'permuted'},
  {'distillation__sham': 'uniform'},
  {'distillation__teacher_view': 'clean'},
  {'data__balance': 'logit_adjustment'},
  {'transfer__l2_sp': 0.1},
]


@pytest.fixture(scope='module')
def program(cache_dir, compare_run, tmp_path_factory):
  """All that the step of a TL+KD run of some settings is made of."""
  teacher, datasets = str(compare_run / 'teacher'), {}

  def call(**changes) -> tuple:
    config = tiny.make_config(
      'kd', cache_dir, teacher__checkpoint=teacher, **changes
    )
    key = config.seed, config.image_size
    if key not in datasets:
      datasets[key] = decoding.load_dataset(config)
    folder = tmp_path_factory.mktemp('run')
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(steps, 'kept', lambda *parts: parts)
      made = run.set_up(config, folder, datasets[key], sharding.make_mesh())
    return made.step

  with tiny.registered():
    call.usual = call()
    yield call


@pytest.mark.parametrize('loss', ['kd', 'fitnet', 'crd'])
def test_runs_of_other_seeds_have_one_program(loss, program):
  first, other = (
    program(distillation__loss=loss, seed=seed) for seed in (0, 1)
  )
  assert len({first, other}) == 1


@pytest.mark.parametrize('changes', OTHERS, ids=lambda c: ','.join(c))
def test_other_settings_are_other_programs(changes, program):
  assert program(**changes) != program.usual


def test_a_second_run_compiles_no_step_and_is_what_it_was(
  cache_dir, tmp_path, caplog
):
  """That it follows another changes no bit of it."""
  config = [tiny.make_config('tl', cache_dir, seed=seed) for seed in (0, 1)]
  steps.kept.cache_clear()
  arms.run(config[1], tmp_path / 'alone', sharding.make_mesh())
  steps.kept.cache_clear()
  arms.run(config[0], tmp_path / 'before', sharding.make_mesh())
  with jax.log_compiles(), caplog.at_level(logging.WARNING, 'jax'):
    arms.run(config[1], tmp_path / 'after', sharding.make_mesh())
  compiled = [r.getMessage() for r in caplog.records]
  assert not [m for m in compiled if m.startswith('Compiling jit(step)')]
  alone, after = arrays(tmp_path / 'alone'), arrays(tmp_path / 'after')
  before = arrays(tmp_path / 'before')
  assert alone.keys() == after.keys()
  assert all((alone[k] == after[k]).all() for k in alone)
  assert any((before[k] != after[k]).any() for k in before)


def test_steps_of_runs_before_are_dropped_before_a_run_is_refused(
  cache_dir, tmp_path, monkeypatch
):
  config = tiny.make_config('tl', cache_dir, num_steps=1)
  arms.run(config, tmp_path / 'before', sharding.make_mesh())
  kept = []

  def free(devices):
    kept.append(steps.kept.cache_info().currsize)
    return 2**40 if kept[-1] == 0 else 2**20

  monkeypatch.setattr(memory, 'free_bytes', free)
  monkeypatch.setattr(memory, '_needed', lambda *_: 2**30)
  arms.run(config, tmp_path / 'after', sharding.make_mesh())
  assert kept[-2] > 0 == kept[-1]
