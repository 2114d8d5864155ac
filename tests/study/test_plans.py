"""What a study states before its runs, and that it holds to it."""

import json

import pytest

from configs import study as study_config
from tlkd_jax import settings
from tlkd_jax.answer import plan as plans
from tlkd_jax.study import plans as stating

SIZES = {'study.sizes': (2, 4)}


def make(**changes):
  config = settings.from_config(study_config.get_config('smoke'))
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  return settings.with_values(config, SIZES | flat)


def finish(root, name='digits/2/tl/seed0'):
  folder = root / 'cells' / name
  folder.mkdir(parents=True)
  (folder / 'cell.json').write_text('{}')


def test_a_plan_is_stated_before_the_first_run_and_kept(tmp_path):
  assert plans.read(tmp_path) is None
  stated = stating.state(make(study__margin=0.01), tmp_path)
  assert plans.read(tmp_path) == stated
  assert (stated.margin, stated.max_seeds, stated.after) == (0.01, 20, 0)
  assert stated.places == ('digits, 2 per class', 'digits, 4 per class')
  assert dict(stated.words)['trials an arm'] == '1 (kd), 1 (tl)'
  # Nothing has been seen: it may still change.
  assert stating.state(make(), tmp_path).margin == 0.005
  finish(tmp_path)
  before = (tmp_path / plans.FILE).read_text()
  # More seeds are what the plan is for.
  stating.state(make(study__seeds=9), tmp_path)
  assert (tmp_path / plans.FILE).read_text() == before


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    ({'study__margin': 0.02}, 'study.margin: 0.005 there, 0.02 now'),
    ({'study__max_seeds': 30}, 'study.max_seeds: 20 there, 30 now'),
    ({'study__metrics': ('top1', 'nll')}, 'study.metrics: '),
    ({'study__treatment': 'tl_l2sp'}, 'treatment: kd there, tl_l2sp now'),
    ({'study__reference': 'linear_probe'}, 'reference: tl there, linear'),
    ({'best_metric': 'brier'}, 'step: the best by'),
    ({'seed': 7}, 'confirming seeds: from 0 on there, from 7 on now'),
    (
      {'study__grid': {'optimizer.learning_rate': (0.1, 0.2)}},
      'trials an arm: 1 (kd), 1 (tl) there, 2 (kd), 2 (tl) now',
    ),
    (
      {'study__tuning_seeds': (100,)},
      'tuned: nothing there, on seeds 100 by nll on validation now',
    ),
  ],
)
def test_what_a_study_is_judged_by_does_not_change(changes, line, tmp_path):
  stating.state(make(), tmp_path)
  finish(tmp_path)
  with pytest.raises(ValueError) as error:
    stating.state(make(**changes), tmp_path)
  assert line in str(error.value) and 'another --workdir' in str(error.value)


def test_a_further_data_set_adds_its_places(tmp_path):
  stating.state(make(), tmp_path)
  finish(tmp_path)
  other = {'other': settings.StudyDataset(changes={'dataset': 'digits'})}
  stated = stating.state(make(study__datasets=other), tmp_path)
  assert len(stated.places) == 4 and stated.after == 0


def test_a_study_that_stated_nothing_says_when_it_did(tmp_path):
  finish(tmp_path)
  finish(tmp_path, 'digits/2/tl/seed1/learning_rate=1')
  assert stating.state(make(), tmp_path).after == 2
  assert plans.read(tmp_path).after == 2


@pytest.mark.parametrize(
  'damage', ['[]', '{', '{"margin": 0}', 'margin', 'null']
)
def test_a_damaged_plan_is_named(damage, tmp_path):
  stating.state(make(), tmp_path)
  path = tmp_path / plans.FILE
  if damage == 'margin':
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {'margin': 'much'}))
  else:
    path.write_text(damage)
  with pytest.raises(ValueError, match=r'plan\.json.*damaged|plan\.json:'):
    plans.read(tmp_path)
