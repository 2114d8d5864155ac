"""Which trials an arm has, and which one is confirmed."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from configs import study as study_config
from tlkd_jax import settings
from tlkd_jax.settings import Study, StudyArm, StudyDataset
from tlkd_jax.study import matrix, trials, tuning

ARMS = {
  'teacher': StudyArm('teacher', 'teacher'),
  'probed': StudyArm('teacher', 'probed', (), {'teacher.fit': 'probed'}),
  'tl': StudyArm('tl', 'TL'),
  'kd': StudyArm('kd', 'TL+KD', ('teacher',)),
  'born_again': StudyArm('kd', 'born again', ('tl',)),
  'both': StudyArm('kd', 'two teachers', ('probed', 'tl')),
}
RATES = {'optimizer.learning_rate': (0.1, 0.2)}


def of_arms(grid, arms=(), **changes) -> dict[str, list[dict]]:
  """Arm -> its trials, of a study with that grid."""
  own = {
    name: dataclasses.replace(ARMS[name], grid=dict(arms).get(name, {}))
    for name in ARMS
  }
  study = Study(datasets={'a': StudyDataset()}, arms=own, grid=grid, **changes)
  found = trials.of_arms(study, list(own))
  return {name: [dict(trial) for trial in found[name]] for name in found}


@pytest.mark.parametrize(
  ('key', 'readers'),
  [
    ('optimizer.beta1', ARMS),
    ('label_smoothing', ARMS),
    ('augment.mixup_alpha', ARMS),
    ('student.dropout', ('tl', 'kd', 'born_again', 'both')),
    ('distillation.temperature', ('kd', 'born_again', 'both')),
    ('teacher.label_smoothing', ('teacher', 'probed', 'kd', 'both')),
  ],
)
def test_a_key_is_tried_by_the_arms_that_read_it(key, readers):
  values = (0.1, 0.2)
  alike = {name: RATES for name in ARMS if name not in readers}
  found = of_arms({key: values}, alike)
  for name, of_arm in found.items():
    expected = key if name in readers else 'optimizer.learning_rate'
    assert of_arm == [{expected: value} for value in values], name


def test_fixmatch_tries_keys_of_its_own_beside_those_of_tl():
  arms = {
    'tl': ARMS['tl'],
    'kd': ARMS['kd'],
    'teacher': ARMS['teacher'],
    'fixmatch': StudyArm('tl', '', (), {'student.fit': 'fixmatch'}),
  }
  grid = {
    'optimizer.learning_rate': (0.1,),
    'distillation.temperature': (3.0,),
    'distillation.labelled_fraction': (0.2,),
    'distillation.fixmatch_threshold': (0.7,),
  }
  study = Study(datasets={'a': StudyDataset()}, arms=arms, grid=grid)
  found = trials.of_arms(study, list(arms))
  rate, temperature, share, threshold = grid
  assert {name: {*dict(trial)} for name, (trial,) in found.items()} == {
    'tl': {rate},
    'kd': {rate, temperature, share},
    'teacher': {rate},
    'fixmatch': {rate, share, threshold},
  }


def test_an_arms_own_grid_stands_in_place_of_the_studys():
  own = {'tl': {'optimizer.learning_rate': (0.3, 0.4)}}
  found = of_arms(RATES, own)
  assert found['tl'] == [{'optimizer.learning_rate': r} for r in (0.3, 0.4)]
  assert found['kd'] == [{'optimizer.learning_rate': r} for r in (0.1, 0.2)]


def test_students_try_the_same_number_of_trials():
  grid = RATES | {'distillation.temperature': (1.0, 2.0, 4.0)}
  message = '2: tl; 6: kd, born_again, both.*study.trials=2'
  with pytest.raises(ValueError, match=message):
    of_arms(grid)
  found = of_arms(grid, trials=2)
  assert {name: len(each) for name, each in found.items()} == dict.fromkeys(
    ARMS, 2
  )
  assert found == of_arms(grid, trials=2)
  more = of_arms(grid, {'tl': {'label_smoothing': (0.0, 0.1, 0.2)}})
  assert len(more['tl']) == len(more['kd']) == 6


def test_an_arm_that_is_not_tuned_stays_but_not_the_two_of_the_question():
  grid = {'distillation.temperature': (1.0, 2.0)}
  with pytest.raises(ValueError, match='1: tl; 2: kd, born_again, both'):
    of_arms(grid)
  found = of_arms(grid, reference='born_again')
  assert found['tl'] == [{}]


@pytest.mark.parametrize(
  ('grid', 'message'),
  [
    ({'seed': (1, 2)}, "study.grid: unknown .*'seed'"),
    (
      {'optimizer.learning_rte': (1, 2)},
      "'optimizer.learning_rte'.*learning_rate",
    ),
    ({'teacher.checkpoint': ('a',)}, 'teacher.checkpoint'),
  ],
)
def test_keys_that_cannot_be_tried(grid, message):
  config = settings.from_config(study_config.get_config('smoke'))
  with pytest.raises(ValueError, match=message):
    settings.with_values(config, {'study.grid': grid})


def test_a_study_of_no_seed_at_all():
  config = settings.from_config(study_config.get_config('smoke'))
  with pytest.raises(ValueError, match='seeds is 0 without study.tuning_seeds'):
    settings.with_values(config, {'study.seeds': 0})
  assert not matrix.make_matrix(tuned(**{'study.seeds': 0}))


def test_two_data_sets_keep_what_each_brings():
  arg = 'dataset=folder:/x/trashnet.zip,also=folder:/x/cifar10.zip,arms=tune'
  config = settings.from_config(study_config.get_config(arg))
  found = config.study.datasets
  first, second = found['trashnet'], found['cifar10']
  assert (first.sizes, second.sizes) == ((20,), (10,))
  assert first.changes['image_size'] == 96
  assert second.changes['dataset'] == 'folder:/x/cifar10.zip'
  found = matrix.make_tuning(config)
  assert {cell.seed for cell in found} == {100, 101, 102}
  place = [c for c in found if (c.dataset, c.seed) == ('cifar10', 100)]
  counts = [sum(c.arm == arm for c in place) for arm in ('teacher', 'tl', 'kd')]
  assert counts == [3, 12, 12]
  with pytest.raises(ValueError, match="both called 'digits'"):
    study_config.get_config('also=digits')


def test_keys_of_the_teacher_belong_to_teachers():
  config = settings.from_config(study_config.get_config('smoke'))
  with pytest.raises(ValueError, match='arms.kd.grid has teacher.fit, which'):
    settings.with_values(
      config, {'study.arms.kd.grid': {'teacher.fit': ('probed', 'early')}}
    )


def test_every_key_can_be_given_on_the_command_line():
  config = study_config.get_config('smoke')
  config.study.grid.distillation.temperature = (1.0, 2.0)
  config.study.arms.tl.grid.label_smoothing = (0.0, 0.1)
  config.study.arms.tl_l2sp.grid.transfer.l2_sp = (0.1, 0.2)
  made = settings.from_config(config)
  assert made.study.grid == {'distillation.temperature': (1.0, 2.0)}
  assert made.study.arms['tl'].grid == {'label_smoothing': (0.0, 0.1)}
  assert not made.study.arms['kd'].grid


def tuned(**changes):
  config = settings.from_config(study_config.get_config('smoke'))
  values = {
    'study.run_arms': ('tl', 'kd'),
    'study.tuning_seeds': (100, 101),
    'study.grid': {
      'teacher.label_smoothing': (0.0, 0.2),
      'optimizer.learning_rate': (0.1, 0.3),
    },
    'study.arms.tl.grid': {'label_smoothing': (0.0, 0.1)},
  }
  return settings.with_values(config, values | changes)


def finish(root: pathlib.Path, cells, value) -> None:
  """Writes the records of cells; value(cell) is their NLL."""
  for cell in cells:
    folder = root / 'cells' / cell.name
    folder.mkdir(parents=True)
    record = {'validation': {'nll': value(cell)}, 'wall_seconds': 1.0}
    (folder / 'cell.json').write_text(json.dumps(record))


def _value(cell) -> float:
  """Students like rate 0.3 and a smoothed teacher; it does not like itself."""
  trial = dict(cell.trial)
  value = cell.seed / 1000 + cell.size
  value -= trial['optimizer.learning_rate'] * (
    1 if cell.arm != 'teacher' else -1
  )
  smoothed = trial.get('teacher.label_smoothing', 0.0)
  return value - smoothed * (1 if cell.arm == 'kd' else -1)


def test_what_is_confirmed_is_what_the_tuning_seeds_chose(tmp_path):
  config = tuned()
  first = tuning.known(config, tmp_path)
  assert {cell.seed for cell in first} == {100, 101}
  count = {
    arm: sum(c.arm == arm and c.seed == 100 for c in first)
    for arm in ('teacher', 'tl', 'kd')
  }
  assert count == {'teacher': 8, 'tl': 8, 'kd': 8}
  finish(tmp_path, first[:-1], _value)
  assert tuning.known(config, tmp_path) == first
  finish(tmp_path, first[-1:], _value)
  found = tuning.known(config, tmp_path)[len(first) :]
  assert {cell.seed for cell in found} == {0, 1}
  chosen = {}
  for cell in found:
    chosen.setdefault(cell.arm, []).append(dict(cell.trial))
  smoothed = {'optimizer.learning_rate': 0.1, 'teacher.label_smoothing': 0.2}
  plain = smoothed | {'teacher.label_smoothing': 0.0}
  # At both sizes and seeds: the best teacher, and the one that kd asks for.
  assert chosen['teacher'] == [plain, smoothed] * 4
  best = {'optimizer.learning_rate': 0.3, 'teacher.label_smoothing': 0.2}
  assert chosen['kd'] == [best] * 4
  kd = next(c for c in found if c.arm == 'kd')
  assert [dict(c.trial) for c in matrix.needed(kd, found)] == [smoothed]


def test_data_sets_weigh_the_same_and_a_failure_is_worst(tmp_path):
  config = tuned(
    **{
      'study.run_arms': ('tl',),
      'study.datasets': {
        'a': {'sizes': (2, 4, 6), 'changes': {}},
        'b': {'sizes': (2,), 'changes': {}},
      },
      'study.grid': RATES,
      'study.arms.tl.grid': {},
    }
  )
  cells = matrix.make_tuning(config)

  def value(cell):
    slow = dict(cell.trial)['optimizer.learning_rate'] == 0.1
    return (1.0 if slow else 1.5) if cell.dataset == 'a' else 3.0 - 0.4 * slow

  finish(tmp_path, cells, value)
  scores = tuning.scores_of(config, tmp_path, cells)
  assert [score.mean for score in scores] == pytest.approx([1.8, 2.25])
  assert [score.cells for score in scores] == [8, 8]
  assert [score.chosen for score in scores] == [True, False]
  assert np.allclose([score.std for score in scores], 0.0)


@pytest.mark.parametrize(
  ('tune_over', 'rates'),
  [
    ('all', {('a', 2): 0.1, ('a', 4): 0.1, ('b', 2): 0.1}),
    ('dataset', {('a', 2): 0.2, ('a', 4): 0.2, ('b', 2): 0.1}),
    ('place', {('a', 2): 0.1, ('a', 4): 0.2, ('b', 2): 0.1}),
  ],
)
def test_places_choose_together_or_alone(tmp_path, tune_over, rates):
  config = tuned(
    **{
      'study.run_arms': ('tl',),
      'study.tune_over': tune_over,
      'study.datasets': {
        'a': {'sizes': (2, 4), 'changes': {}},
        'b': {'sizes': (2,), 'changes': {}},
      },
      'study.grid': RATES,
      'study.arms.tl.grid': {},
    }
  )
  gains = {('a', 2): 0.1, ('a', 4): -0.5, ('b', 2): 0.6}

  def value(cell):
    slow = dict(cell.trial)['optimizer.learning_rate'] == 0.1
    return 2.0 - gains[cell.dataset, cell.size] * slow

  finish(tmp_path, matrix.make_tuning(config), value)
  found = tuning.known(config, tmp_path)
  confirmed = {
    (cell.dataset, cell.size): dict(cell.trial)['optimizer.learning_rate']
    for cell in found
    if cell.seed == 0
  }
  assert confirmed == rates


def test_seeds_that_tune_do_not_confirm():
  with pytest.raises(ValueError, match='tuning_seeds holds 1, which confirm'):
    matrix.make_matrix(tuned(**{'study.tuning_seeds': (1, 100)}))
