"""Arms keep their names, labels and changes, so that a study goes on."""

import json
import pathlib

import pytest

from configs import study
from tlkd_jax import settings
from tlkd_jax.study import arms

# Group -> arm -> what it was when committed studies ran.
STORED = json.loads((pathlib.Path(__file__).parent / 'arms.json').read_text())


def described(arm):
  return {
    'kind': arm.kind,
    'label': arm.label,
    'teachers': list(arm.teachers),
    'changes': dict(arm.changes),
  }


@pytest.mark.parametrize('group', STORED)
def test_arms_are_what_they_were(group):
  found = {
    name: described(arm) for name, arm in arms.make_arms(group, 32).items()
  }
  # A new loss is a new arm, in its place among the others.
  kept = {name: arm for name, arm in found.items() if name in STORED[group]}
  assert kept == STORED[group] and list(kept) == list(STORED[group])
  if group != 'methods':
    assert found == kept


@pytest.mark.parametrize('group', STORED)
def test_the_configuration_has_the_arms_of_its_group(group):
  config = settings.from_config(study.get_config(f'arms={group}'))
  assert config.study is not None
  made = arms.make_arms(group, config.image_size)
  assert dict(config.study.arms) == made


def test_the_teacher_of_high_resolution_sees_larger_images():
  for size, larger in ((32, 48), (64, 112), (96, 160)):
    arm = arms.make_arms('all', size)['teacher_high_res']
    assert arm.changes == {'teacher.image_size': larger}


def test_confirming_seeds_are_not_those_of_other_studies():
  used = set(range(20)) | set(arms.TUNING['study.tuning_seeds'])
  for dataset in ('trashnet', 'cifar10', 'digits'):
    config = settings.from_config(
      study.get_config(f'arms=confirm,dataset=folder:{dataset}')
    )
    seeds = set(range(config.seed, config.seed + config.study.seeds))
    assert len(seeds) == 10 == config.study.max_seeds
    assert not seeds & used and config.data.num_test_per_class == 0
