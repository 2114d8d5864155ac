"""How long a command will take, counted before anything is trained."""

import pytest

from tests import tiny
from tlkd_jax import protocols
from tlkd_jax.models import describe
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import with_values
from tlkd_jax.training import costs, decoding, defaults, forecast

pytestmark = pytest.mark.usefixtures('tiny_models')

# Six steps of 8 of 40 training images, evaluated after each third step on 40
# images (two evaluations), then on those and 40 of test. A network is asked for
# two forward passes of each training image, and learns from one at three.
STEPS, AT_END, EVALUATED = 6 * 8, 80, 2 * 40 + 80
LEARNS = 3 * STEPS + EVALUATED
ASKED = STEPS + AT_END


@pytest.fixture(scope='module')
def dataset(cache_dir):
  with tiny.registered():
    found = decoding.load_dataset(tiny.make_config('kd', cache_dir))
  sizes = {name: len(split) for name, split in found.splits.items()}
  assert sizes == {'train': 40, 'validation': 40, 'test': 40}
  return found


@pytest.fixture(scope='module')
def macs():
  with tiny.registered():
    return {
      (name, size): describe.describe(name, size, num_classes=10).macs
      for name in ('tiny', 'tiny_teacher')
      for size in (16, 32)
    }


OWN, THEIRS, LARGE = ('tiny', 16), ('tiny_teacher', 16), ('tiny_teacher', 32)

# Arm and changes -> images of each network, over all parts of the plan, as so
# many forward passes.
CASES = {
  'tl': ('tl', {}, {OWN: LEARNS}),
  'head alone': (
    'tl',
    {'optimizer__train_only': 'head'},
    {OWN: STEPS + EVALUATED},
  ),
  'probed student': (
    'tl',
    {'student__fit': 'probed', 'student__probe_views': 2},
    {OWN: 3 * 40 + AT_END},
  ),
  'members': (
    'tl',
    {'student__fit': 'ensemble', 'student__members': 3},
    {OWN: 3 * (LEARNS + AT_END)},
  ),
  'a probe first': (
    'tl',
    {'transfer__probe_steps': 3},
    {OWN: 3 * 8 + 40 + AT_END + LEARNS},
  ),
  'kd': (
    'kd',
    {'teacher__fit': 'finetuned'},
    {THEIRS: LEARNS + ASKED, OWN: LEARNS},
  ),
  'larger images': (
    'kd',
    {'teacher__fit': 'early', 'teacher__image_size': 32},
    {LARGE: LEARNS + ASKED, OWN: LEARNS},
  ),
  'probed': (
    'compare',
    {'teacher__fit': 'probed', 'teacher__probe_views': 4},
    {THEIRS: 5 * 40 + AT_END + ASKED, OWN: 2 * LEARNS},
  ),
  'stored': (
    'compare',
    {
      'teacher__fit': 'finetuned',
      'targets__mode': 'cached',
      'targets__views': 1,
    },
    {THEIRS: LEARNS + 40 + AT_END, OWN: 2 * LEARNS},
  ),
  'folds': (
    'kd',
    {'teacher__fit': 'crossfitted_finetuned', 'teacher__probe_folds': 3},
    {THEIRS: 3 * (LEARNS + AT_END) + 3 * ASKED, OWN: LEARNS},
  ),
  'mutual': (
    'kd',
    {'distillation__mutual': True},
    {THEIRS: LEARNS, OWN: LEARNS},
  ),
  'generations': (
    'kd',
    {'teacher__fit': 'finetuned', 'distillation__generations': 2},
    {THEIRS: LEARNS + ASKED, OWN: 2 * LEARNS + ASKED},
  ),
  'longer teacher': (
    'teacher',
    {'teacher__num_steps': 12},
    {THEIRS: 3 * 12 * 8 + 4 * 40 + AT_END},
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_the_whole_plan_is_counted(case, dataset, cache_dir, macs, tmp_path):
  arm, changes, expected = CASES[case]
  config = tiny.make_config(arm, cache_dir, **changes)
  plan = protocols.plan(defaults.for_data(config, dataset), tmp_path)
  found = sum(forecast.count(part.settings, dataset).macs for part in plan)
  assert found == sum(macs[key] * count for key, count in expected.items())


def test_steps_for_a_teacher_that_is_not_there_are_counted(
  dataset, cache_dir, macs
):
  config = tiny.make_config('tl', cache_dir, cost_matched=True)
  config = defaults.for_data(config, dataset)
  steps = costs.count(config, dataset).total_steps
  expected = 3 * 8 * steps + AT_END + 40 * -(-steps // 3)
  assert forecast.count(config, dataset).macs == macs[OWN] * expected


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0, 'about a minute or less'),
    (80, 'about a minute or less'),
    (100, 'about 2 min'),
    (230, 'about 3 min'),
    (400, 'about 5 min'),
    (5000, 'about 1 h 30 min'),
    (3600 * 5.4, 'about 5 h'),
    (3600 * 30, 'about 24 h'),
    (3600 * 50, 'about 2 days'),
  ],
)
def test_no_more_is_said_than_is_known(seconds, text):
  assert forecast.rounded(seconds) == text


def test_what_is_finished_is_not_counted(
  dataset, cache_dir, tmp_path, caplog, monkeypatch
):
  caplog.set_level('INFO', logger='absl')
  monkeypatch.setattr(forecast, 'measure_rates', lambda dtype: (1e3, 0.0))
  config = tiny.make_config('tl', cache_dir)
  runs = [
    (tmp_path / name, with_values(config, {'num_steps': steps}))
    for name, steps in (('one', 6), ('two', 600))
  ]
  mesh = sharding.make_mesh(1)
  days = []
  for done in (None, 'two', 'one'):
    if done:
      (tmp_path / done).mkdir()
      (tmp_path / done / 'summary.json').touch()
    caplog.clear()
    forecast.say(runs, dataset, mesh)
    days += [m for m in caplog.messages if 'on this machine' in m]
  total = [forecast.count(one, dataset).macs for _, one in runs]
  assert [d.partition(' on ')[0] for d in days] == [
    forecast.rounded(sum(total) / 1e3),
    forecast.rounded(total[0] / 1e3),
  ]
