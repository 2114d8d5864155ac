"""Which cells a study has, in which order, and what each of them runs."""

import pathlib

import pytest

from configs import study
from tlkd_jax import settings
from tlkd_jax.evaluation import records
from tlkd_jax.study import cells as runs
from tlkd_jax.study import matrix, results, workers
from tlkd_jax.training import lessons

ROOT = pathlib.Path('x')


def make(arg='smoke', **changes):
  config = settings.from_config(study.get_config(arg))
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  return settings.with_values(config, flat)


def config_of(config, cells, arm):
  cell = next(c for c in cells if c.arm == arm)
  guides = {c.arm: (c, ROOT / c.arm) for c in matrix.needed(cell, cells)}
  return matrix.make_config(config, cell, guides)


def test_a_cell_comes_after_what_it_needs():
  cells = matrix.make_matrix(make())
  assert len(cells) == 12 * 2 * 2
  names = [cell.name for cell in cells]
  assert len(set(names)) == len(names)
  for number, cell in enumerate(cells):
    for teacher in cell.teachers:
      needed = cell.name.replace(f'/{cell.arm}/', f'/{teacher}/')
      assert names.index(needed) < number
  assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_chosen_arms_bring_their_teachers():
  cells = matrix.make_matrix(make(study__run_arms=('kd_ensemble',)))
  arms = {cell.arm for cell in cells}
  assert arms == {'teacher', 'teacher_high_res', 'tl', 'kd_ensemble'}


def test_arms_of_a_seed_share_their_data_and_differ_in_their_arm():
  config = make()
  cells = matrix.make_matrix(config)
  tl, kd = (config_of(config, cells, arm) for arm in ('tl', 'kd'))
  assert (tl.arm, kd.arm) == ('tl', 'kd')
  assert kd.teacher.checkpoint == 'x/teacher'
  same = {'arm': 'tl', 'teacher.checkpoint': None}
  assert settings.with_values(kd, same) == tl
  smoothed = config_of(config, cells, 'tl_label_smoothing')
  assert smoothed.label_smoothing == 0.1 != tl.label_smoothing


def test_teachers_are_what_their_own_cells_are():
  config = make(image_size=32)
  cells = matrix.make_matrix(config)
  high = config_of(config, cells, 'kd_high_res_teacher')
  assert (high.image_size, high.teacher.image_size) == (32, 48)
  born_again = config_of(config, cells, 'tl_self_distillation')
  assert born_again.teacher.name == config.student.name
  assert born_again.teacher.checkpoint == 'x/tl'
  several = config_of(config, cells, 'kd_ensemble')
  assert several.teacher.checkpoint == 'x/teacher'
  assert several.distillation.more_teachers == ('x/teacher_high_res', 'x/tl')


@pytest.mark.parametrize(
  ('size', 'count', 'fraction', 'name'),
  [(20, 20, 1.0, '20'), (0, 0, 1.0, 'all'), (0.25, 0, 0.25, '0.25')],
)
def test_sizes_are_counts_or_fractions(size, count, fraction, name):
  config = make(study__sizes=(size,))
  cells = matrix.make_matrix(config)
  own = config_of(config, cells, 'tl')
  assert (own.num_train_per_class, own.train_fraction) == (count, fraction)
  assert (
    next(c for c in cells if c.arm == 'tl').name == f'digits/{name}/tl/seed0'
  )


def test_every_arm_has_the_same_trials():
  slow = {'kind': 'tl', 'label': 'slow'}
  slow['changes'] = {'optimizer': {'learning_rate': 0.01}}
  config = make(
    study__arms__slow=slow,
    study__grid__optimizer__learning_rate=(0.1, 0.2),
    study__grid__optimizer__weight_decay=(0.0, 0.5),
  )
  cells = matrix.make_matrix(config)
  trials = {}
  for cell in cells:
    trials.setdefault((cell.group, cell.arm), set()).add(cell.trial)
  assert {len(found) for found in trials.values()} == {4}
  assert len({frozenset(found) for found in trials.values()}) == 1
  first = next(c for c in cells if c.arm == 'slow')
  own = matrix.make_config(config, first, {})
  # The grid wins over the arm's own rate.
  assert own.optimizer.learning_rate == 0.1
  assert first.name.endswith('/seed0/learning_rate=0.1,weight_decay=0.0')


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    ('timm/resnet18', 'name=timm%2Fresnet18'),
    # As ever: cells that are finished lie there.
    ('a b,é%=', 'name=a b,é%='),
    ((0.1, 0.9), 'name=(0.1, 0.9)'),
    (None, 'name=None'),
  ],
)
def test_a_trial_is_one_folder_whatever_its_value(value, name, tmp_path):
  trial = (('student.name', value),)
  assert matrix.trial_name(trial) == name
  cell = matrix.Cell('digits', 2, 'tl', 0, trial, 'TL', 'tl', (), ())
  record = {'dataset': 'digits', 'size': 2, 'arm': 'tl', 'seed': 0}
  record |= {'trial': {'student.name': value}, 'validation': {'top1': 0.5}}
  records.write_json(runs.folder_of(tmp_path, cell) / 'cell.json', record)
  (row,) = results.collect(tmp_path, 'top1')
  assert row['folder'] == f'cells/{cell.name}'


def test_another_loss_brings_its_published_settings():
  dkd = {
    'kind': 'kd',
    'label': 'DKD',
    'teachers': ('teacher',),
    'changes': {'distillation': {'loss': 'dkd'}},
  }
  config = make(study__arms__dkd=dkd)
  own = config_of(config, matrix.make_matrix(config), 'dkd')
  assert own.distillation.options['beta'] == 8.0
  assert own.distillation.temperature == 4.0
  config = make(
    study__arms__dkd=dkd, study__arms__dkd__changes__distillation__temperature=8
  )
  own = config_of(config, matrix.make_matrix(config), 'dkd')
  assert own.distillation.temperature == 8.0
  (term,) = lessons.make_objective(own, None, guided=True).terms
  assert term.hyperparameters['temperature'] == 8.0
  config = settings.with_values(config, {'study.run_arms': ('dkd',)})
  matrix.check(config, matrix.make_matrix(config))


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({'teachers': ('tutor',)}, r"mine.teachers is \('tutor',\).*teacher"),
    ({'teachers': ()}, r'mine.teachers is \(\).*at least one with "kd"'),
    ({'kind': 'kdd'}, r"study.arms.mine.kind is 'kdd'; accepted: .*kd"),
    ({'teachers': ('mine',)}, 'mine -> mine is a circle'),
    ({'tutors': ('teacher',)}, "'study.arms.mine.tutors'.*teachers"),
    ({'changes': {'num_stepz': 3}}, "mine: unknown .*'num_stepz'.*num_steps"),
    ({'changes': {'num_steps': 'x'}}, 'study.arms.mine: num_steps'),
    ({'changes': {'num_steps': -1}}, 'study.arms.mine: num_steps is -1'),
    ({'changes': {'ema_decay': 7}}, 'study.arms.mine: ema_decay is 7'),
    ({'changes': {'student': {'name': 'resnet19'}}}, 'resnet18'),
  ],
)
def test_a_wrong_arm_is_one_message_before_anything_runs(section, message):
  arm = {'kind': 'kd', 'label': '', 'teachers': ('teacher',), 'changes': {}}
  with pytest.raises(ValueError, match=message):
    config = make(study__arms__mine=arm | section, study__run_arms=('mine',))
    matrix.check(config, matrix.make_matrix(config))


def test_shards_are_disjoint_complete_and_tear_no_group():
  cells = matrix.make_matrix(make(study__seeds=3))
  shards = [workers.shard_of(cells, index, 3) for index in range(3)]
  assert sorted(c.name for s in shards for c in s) == sorted(
    c.name for c in cells
  )
  groups = [{cell.group for cell in shard} for shard in shards]
  assert not set.intersection(*groups) and all(groups)


def test_a_size_beyond_the_smallest_class_is_one_message_before_a_cell():
  config = make(study__sizes=(4, 1000))
  message = 'num_train_per_class=1000 is more than a class holds'
  with pytest.raises(ValueError, match=message):
    matrix.check(config, matrix.make_matrix(config))
