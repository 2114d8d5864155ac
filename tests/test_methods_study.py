"""The study of all methods: its arms, and the table of its cells."""

import pathlib

import pytest

from benchmarks import compare_methods
from configs import study
from tests import tiny
from tlkd_jax import losses, settings
from tlkd_jax.study import matrix


def test_every_loss_is_an_arm_with_its_published_numbers():
  with tiny.registered():
    config = study.get_config('arms=methods,student=tiny,teacher=tiny')
    config.study.seeds = 1
    config.study.sizes = (20,)
    config = settings.from_config(config)
    cells = matrix.make_matrix(config)
    made = {}
    for cell in cells:
      needed = matrix.needed(cell, cells)
      guides = {other.arm: (other, pathlib.Path('runs')) for other in needed}
      made[cell.arm] = matrix.make_config(config, cell, guides)
  unnamed = set(losses.LOSSES) - set(made)
  # Second names; the teacher-free losses are arms of kind 'tl'.
  assert unnamed == {
    *('dkd_binary', 'mlkd_cc_bc', 'function_matching_mixup', 'fitnet_hint'),
    *('ofd_partial_l2', 'reviewkd_hcl', 'l2sp', 'ce_label_smoothing'),
  }
  assert made['sp'].distillation.soft_weight == 3000.0
  assert made['dkd'].distillation.options['beta'] == 8.0
  assert made['function_matching'].distillation.hard_weight == 0.0
  assert made['delta'].arm == 'tl' and made['delta'].transfer.delta > 0
  assert len({config.num_steps for config in made.values()}) == 1


def rows():
  values = {
    'teacher': [0.95, 0.95],
    'tl': [0.70, 0.80],
    'kd': [0.75, 0.81],
    'at': [0.72, 0.77],
  }
  return [
    {
      'dataset': 'd',
      'size': 20,
      'arm': arm,
      'kind': arm if arm in ('teacher', 'tl') else 'kd',
      'seed': seed,
      'chosen': True,
      'test': {'top1': value, 'nll': 1.0},
    }
    for arm, tests in values.items()
    for seed, value in enumerate(tests)
  ]


def test_table_names_what_lost():
  lines = compare_methods.table(rows()).splitlines()
  assert [line.split(' | ')[0] for line in lines[2:5]] == [
    *('| kd', '| tl', '| at'),
  ]
  assert '| kd | 2 | 0.7800 | +0.0300 | +0.0500 +0.0100 | 1.000 |' in lines
  assert lines[-1] == 'Below plain TL in the mean: at.'
  with pytest.raises(ValueError, match="no finished cell of the arm 'tl'"):
    compare_methods.table([row for row in rows() if row['arm'] != 'tl'])
