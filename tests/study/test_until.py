"""Seeds are added until the answer is sure: no model, cells made to order."""

import json
import time

import numpy as np
import pytest

from configs import study as study_config
from tests.study.rows import row
from tlkd_jax import settings
from tlkd_jax.answer.rows import Answers, pack
from tlkd_jax.evaluation import records
from tlkd_jax.study import cells, conduct, until

CHANGES = {
  'study.run_arms': ('tl', 'kd'),
  'study.sizes': (2,),
  'study.max_seeds': 9,
  'study.metrics': ('top1', 'nll'),
}
COUNT = 5000


def make(**changes):
  config = settings.from_config(study_config.get_config('smoke'))
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  return settings.with_values(config, CHANGES | flat)


@pytest.fixture
def play(monkeypatch):
  """Sets what the cells of a study find: seed -> gain; returns who ran."""
  ran = []

  def set_gains(gain_of, seconds=60.0):
    def run(config, cell, matrix, root, load, mesh):
      del config, matrix, load, mesh
      ran.append(cell.name)
      gain = gain_of(cell.seed) * (cell.arm == 'kd')
      right = np.arange(COUNT) < round(COUNT * (0.5 + gain))
      rng = np.random.default_rng([cell.seed, int(cell.size), len(cell.arm)])
      right = rng.permutation(right)
      record = row(cell.arm, cell.seed, right.mean(), size=cell.size)
      record['test']['ece'] = 0.1
      record |= {
        'hits': pack(Answers('a', right)),
        'wall_seconds': seconds,
        'teachers': list(cell.teachers),
      }
      folder = cells.folder_of(root, cell)
      records.write_json(folder / 'cell.json', record)

    monkeypatch.setattr(cells, 'run', run)
    return ran

  monkeypatch.setattr(conduct, 'check', lambda config, matrix: [])
  return set_gains


def seeds_of(ran) -> list[int]:
  return sorted({int(name.split('seed')[1]) for name in ran})


def end(config, seeds=None, deadline=None):
  return until.make(config, seeds, deadline, 1)


def test_a_clear_gain_ends_at_the_first_look(play, tmp_path):
  ran = play(lambda seed: 0.1 + seed / 1000)
  config = make()
  rows, sentence = conduct.run(config, tmp_path, end(config))
  assert seeds_of(ran) == [0, 1, 2, 3, 4] and len(rows) == 5 * 3
  assert sentence.startswith('Yes, it helps: ')
  progress = (tmp_path / 'progress.txt').read_text()
  assert '5 seeds: helps, +10.2' in progress
  # Again: nothing runs, and the answer is the same.
  assert conduct.run(config, tmp_path, end(config))[1] == sentence
  assert len(ran) == 5 * 3


def test_seeds_are_added_until_the_interval_is_narrow_enough(
  play, tmp_path, caplog
):
  gains = np.random.default_rng(6).normal(0.02, 0.016, 9)
  ran = play(lambda seed: gains[seed])
  config = make()
  caplog.set_level('INFO', 'absl')
  _, sentence = conduct.run(config, tmp_path, end(config))
  last = seeds_of(ran)[-1]
  assert 5 < last + 1 <= 9 and sentence.startswith('Yes, it helps: ')
  assert f'over {last + 1} paired seeds' in sentence
  seen = [m for m in caplog.messages if 'seeds: not yet known' in m]
  assert len(seen) == last + 1 - 5
  assert all('more seeds' in m and ' min' in m for m in seen)
  # The interval of the look before stands beside it.
  assert '(after 5: ' in seen[1]
  page = (tmp_path / 'report.md').read_text()
  assert 'look by look' in page and f'| {last + 1} |' in page


def test_an_interrupted_one_goes_on_and_says_the_same(play, tmp_path):
  gains = np.random.default_rng(6).normal(0.02, 0.016, 9)
  config = make()
  ran = play(lambda seed: gains[seed])
  _, unbroken = conduct.run(config, tmp_path / 'a', end(config))
  total = list(ran)
  ran.clear()
  real = cells.run

  def stop(config, cell, *rest):
    if len(ran) == 17:
      raise KeyboardInterrupt
    return real(config, cell, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cells, 'run', stop)
    with pytest.raises(KeyboardInterrupt):
      conduct.run(config, tmp_path / 'b', end(config))
  _, resumed = conduct.run(config, tmp_path / 'b', end(config))
  assert resumed == unbroken and sorted(ran) == sorted(total)


@pytest.mark.parametrize(('most', 'expected'), [(6, 6), (None, 9)])
def test_what_is_never_sure_ends_with_the_seeds(most, expected, play, tmp_path):
  ran = play(lambda seed: 0.05 * (-1) ** seed)
  config = make()
  _, sentence = conduct.run(config, tmp_path, end(config, most))
  assert len(seeds_of(ran)) == expected
  assert sentence.startswith('Not yet known: ')
  text = (tmp_path / 'progress.txt').read_text()
  assert f'no more than {expected} seeds' in text
  # With more allowed it goes on from there.
  if most:
    conduct.run(config, tmp_path, end(config))
    assert len(seeds_of(ran)) == 9


def test_a_seed_that_would_end_after_the_budget_is_not_begun(play, tmp_path):
  """A seed takes 3 cells of 60 seconds; two minutes are left."""
  ran = play(lambda seed: 0.05 * (-1) ** seed)
  config = make()
  last = end(config, deadline=time.time() + 120)
  _, sentence = conduct.run(config, tmp_path, last)
  assert len(seeds_of(ran)) == 5 and sentence.startswith('Not yet known: ')
  assert 'the budget is spent' in (tmp_path / 'progress.txt').read_text()


def test_no_cell_begins_after_the_budget(play, tmp_path):
  ran = play(lambda seed: 0.05)
  config = make()
  conduct.run(config, tmp_path, end(config, deadline=time.time() - 1))
  assert ran == []


def test_equal_is_sure_too(play, tmp_path):
  play(lambda seed: 0.0004 * (-1) ** seed)
  config = make(study__margin=0.04)
  _, sentence = conduct.run(config, tmp_path, end(config))
  assert sentence.startswith('Equal within the margin: ')


def test_a_failed_cell_ends_it(play, tmp_path):
  play(lambda seed: 0.1)
  real = cells.run

  def fail(config, cell, *rest):
    if (cell.seed, cell.arm) == (3, 'kd'):
      raise ValueError('broken')
    return real(config, cell, *rest)

  config = make()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cells, 'run', fail)
    with pytest.raises(Exception, match='broken: digits/2/kd/seed3$'):
      conduct.run(config, tmp_path, end(config))


@pytest.mark.parametrize(
  ('changes', 'seeds', 'message'),
  [
    ({}, 4, '--max_seeds is 4; accepted: 5, the first look, to 9'),
    ({}, 10, r'--max_seeds is 10; accepted: .* to 9 \(study.max_seeds'),
    ({'study__tuning_seeds': (8,)}, None, 'tuning_seeds holds 8'),
  ],
)
def test_an_end_that_cannot_be_is_refused(changes, seeds, message):
  with pytest.raises(ValueError, match=message):
    end(make(**changes), seeds)


def test_a_folder_that_other_data_sets_share_is_refused(play, tmp_path):
  play(lambda seed: 0.1)
  other = {'other': settings.StudyDataset(changes={'dataset': 'digits'})}
  conduct.run(make(study__seeds=1, study__datasets=other), tmp_path)
  config = make()
  with pytest.raises(Exception, match='other, 2 per class'):
    conduct.run(config, tmp_path, end(config))


def test_it_tunes_first(play, tmp_path):
  """Cells that tune are finished before the first one that confirms."""
  ran = play(lambda seed: 0.1 + seed / 10_000)
  config = make(
    study__tuning_seeds=(100,),
    study__grid={'optimizer.learning_rate': (0.1, 0.2)},
    study__criterion='top1',
  )
  real = cells.run

  def tune(config, cell, matrix, root, *rest):
    real(config, cell, matrix, root, *rest)
    path = cells.folder_of(root, cell) / 'cell.json'
    record = json.loads(path.read_text())
    record['trial'] = dict(cell.trial)
    record |= {'tuning': True} if cell.seed == 100 else {}
    records.write_json(path, record)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cells, 'run', tune)
    _, sentence = conduct.run(config, tmp_path, end(config))
  assert sentence.startswith('Yes, it helps: ')
  seeds = [int(name.split('seed')[1].split('/')[0]) for name in ran]
  assert seeds[:6] == [100] * 6 and set(seeds[6:]) == set(range(5))
