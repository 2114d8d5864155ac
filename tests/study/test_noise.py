"""The same cell run again: apart from the rows, and beside the effect."""

import json
import pathlib

import numpy as np
import pytest

from tests.study.rows import STUDY, paired, row
from tlkd_jax import settings
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.runtime import locked, sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.study import conduct, designs, noise, pages, results

GAINS = (0.03, 0.01, 0.02, 0.04, 0.02, 0.03)
MADE = {
  'commit': 'abc',
  'versions': {'jax': '1'},
  'device': '1 x cpu',
  'cores': 1,
}


def again(top1, cores=1, number=0, **made):
  return {
    'dataset': 'digits',
    'size': 10,
    'arm': 'tl',
    'seed': 0,
    'number': number,
    'test': {'top1': top1},
    'made': MADE | {'cores': cores} | made,
  }


def rows_of_study():
  rows = paired(GAINS)
  for one in rows:
    one['made'] = MADE
  return rows


def test_the_floor_is_by_cores_and_holds_the_own_run():
  reruns = [again(0.52), again(0.51, 1), again(0.55, 2), again(0.59, 2)]
  (floor,) = noise.floors(rows_of_study(), reruns)
  # The study's own is at 0.5, on one core.
  assert floor.top1 == {1: (0.52, 0.51, 0.5), 2: (0.55, 0.59)}
  assert floor.spread(1) == pytest.approx(0.02)
  assert floor.spread(2) == pytest.approx(0.04)
  assert floor.over_all == pytest.approx(0.09)
  text = noise.words([floor], 0.025, 0.01)
  assert (
    'differs by up to 2.00 points on 1 core and 4.00 points on 2 cores, and by '
    'up to 9.00 points between numbers of cores (1 place). The effect is +2.50 '
    'points'
  ) in text


def test_without_an_effect_or_a_spread_no_number_is_invented():
  floors = noise.floors(rows_of_study(), [again(0.52)])
  assert noise.words(floors, 0.01, float('nan')).endswith('of one seed.')
  none = noise.words(floors, float('nan'), float('nan'))
  assert none.endswith('(1 place).') and 'nan' not in none


@pytest.mark.parametrize(
  'other', [{'device': '1 x H100'}, {'versions': {}}, {'commit': 'abd'}]
)
def test_what_was_made_otherwise_is_no_rerun(other):
  reruns = [again(0.52), again(0.9, **other)]
  (floor,) = noise.floors(rows_of_study(), reruns)
  assert floor.top1 == {1: (0.52, 0.5)} and floor.left_out == 1


def test_reruns_lie_apart_and_stand_beside_the_effect(tmp_path):
  rows = rows_of_study()
  for one in rows:
    folder = tmp_path / one['folder']
    stored = {k: v for k, v in one.items() if k != 'answers'}
    records.write_json(folder / 'cell.json', stored)
  for number, top1 in enumerate((0.1, 0.2)):
    folder = tmp_path / f'noise/2cores/digits/10/tl/seed0/run{number}'
    records.write_json(folder / 'rerun.json', again(top1, 2, number))
    # As a finished cell would look.
    records.write_json(folder / 'cell.json', row('tl', 0, top1))
  found = results.collect(tmp_path, 'top1')
  assert len(found) == len(rows)
  assert min(one['test']['top1'] for one in found) == 0.5
  pages.write(tmp_path, found, STUDY)
  page = (tmp_path / 'report.md').read_text()
  assert 'up to 10.00 points on 2 cores, and by up to 40.00' in page
  assert '| 0.100, 0.200 | 0.100 |' in page
  # Of a study whose folders are gone the file is enough.
  kept = json.loads((tmp_path / 'noise.json').read_text())
  assert [one['test']['top1'] for one in kept] == [0.1, 0.2]


def finished(folder, top1):
  """What fine_tune leaves, of ten images in two classes."""
  labels = np.arange(10) % 2
  said = np.where(np.arange(10) < 10 * top1, labels, 1 - labels)
  stored = evaluate.Predictions(
    np.eye(2, dtype=np.float32)[said],
    np.zeros((10, 2), np.float32),
    labels,
    np.arange(10),
  )
  for split in ('validation', 'test'):
    evaluate.save(folder / 'predictions' / f'{split}.npz', stored)


def test_what_runs_is_one_cell_a_place_and_what_is_there_stays(
  tmp_path, monkeypatch
):
  ran = []

  def fine_tune(own, folder, dataset, mesh):
    ran.append((own.num_train_per_class, own.seed, own.arm))
    finished(folder, 0.5 + len(ran) / 10)
    (folder / 'checkpoints').mkdir()

  monkeypatch.setattr(noise, 'fine_tune', fine_tune)
  monkeypatch.setattr(noise.defaults, 'for_data', lambda own, dataset: own)
  config = settings.from_config(designs.config_of('smoke'))
  conduct.check_noise(config, tmp_path)
  mesh = sharding.make_mesh(1)
  for _ in range(2):
    noise.run(config, tmp_path, lambda own: None, mesh)
  # Two sizes, each three times.
  assert ran == [(2, 0, 'tl')] * 3 + [(4, 0, 'tl')] * 3
  found = noise.collect(tmp_path)
  assert [one['size'] for one in found] == [2, 2, 2, 4, 4, 4]
  assert not [*pathlib.Path(tmp_path).rglob('checkpoints')]
  assert results.collect(tmp_path, 'top1') == []


def test_a_cell_whose_teacher_is_missing_is_refused(tmp_path):
  config = designs.config_of('smoke')
  config.study.reference, config.study.treatment = 'kd', 'tl'
  own = settings.from_config(config)
  with pytest.raises(ValueError, match='teacher digits/2/teacher/seed0 is not'):
    conduct.check_noise(own, tmp_path)
  config.study.run_arms = ('linear_probe',)
  with pytest.raises(ValueError, match='study.run_arms'):
    conduct.check_noise(settings.from_config(config), tmp_path)


def test_one_process_at_a_time_runs_cells_again(tmp_path):
  config = designs.make(smoke=True)
  with locked.held(tmp_path / noise.FOLDER):
    with pytest.raises(UserError, match='noise is in use by another process'):
      conduct.run_noise(config, tmp_path)
