"""Finished cells are of the study that counts them, or it does not begin."""

import json
import math
import shutil

import pytest

from tests.study.test_damaged_cells import ROW
from tests.study.test_plans import make as make_study
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.errors import RunError
from tlkd_jax.study import cells, conduct, matrix, until, workers
from tlkd_jax.training import workdir as workdirs


def make(**changes):
  few = {'study__seeds': 2, 'study__run_arms': ('tl', 'kd'), 'num_steps': 6}
  return make_study(**few | changes)


def finish(config, root):
  """Writes what is left of each cell: its settings and its record."""
  everything = matrix.make_matrix(config)
  for cell in everything:
    folder = cells.folder_of(root, cell)
    folder.mkdir(parents=True)
    own = {name: getattr(cell, name) for name in ('dataset', 'size', 'seed')}
    record = json.dumps(ROW | own | {'arm': cell.arm, 'kind': cell.kind})
    sealed.write_text(folder / 'cell.json', record)
    workdirs.write(folder, cells.configure(config, cell, everything, root))
    (folder / 'summary.json').write_text('{}')
  return everything


@pytest.fixture
def study(tmp_path, monkeypatch):
  """(configuration, folder) of a finished study; its data are not read."""
  monkeypatch.setattr(conduct, 'check', lambda *_: [])
  config = make()
  finish(config, tmp_path)
  return config, tmp_path


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    ({'num_steps': 7}, 'num_steps: 6 there, 7 now'),
    ({'batch_size': 5}, 'batch_size: '),
    ({'optimizer__learning_rate': 0.5}, 'optimizer.learning_rate: '),
    ({'distillation__temperature': 9.0}, 'distillation.temperature: '),
  ],
)
def test_cells_of_another_recipe_are_refused(changes, line, study):
  _, root = study
  with pytest.raises(ValueError, match='another configuration') as error:
    conduct.prepare(make(**changes), root)
  assert line in str(error.value)


def test_every_cell_is_compared(study):
  config, root = study
  last = matrix.make_matrix(config)[-1]
  path = cells.folder_of(root, last) / 'config.json'
  stored = workdirs.read(path.parent)
  sealed.write_text(path, json.dumps(stored | {'batch_size': 5}))
  with pytest.raises(ValueError, match=f'{path.parent} holds a run of another'):
    conduct.prepare(config, root)


def test_what_a_run_does_not_find_otherwise_may_change(study):
  config, root = study
  conduct.prepare(config, root)
  # More seeds, other places of the data, and how it is done.
  conduct.prepare(
    make(
      study__seeds=3,
      data__cache_dir='elsewhere',
      data__memory_budget_mib=77,
      log_every_steps=3,
    ),
    root,
  )
  other = make(num_steps=7)
  for cell in matrix.make_matrix(config):
    # Published rows are records alone.
    (cells.folder_of(root, cell) / 'config.json').unlink()
  conduct.prepare(other, root)


def test_what_cannot_be_compared_is_no_reason(study, caplog):
  """A damaged record of settings, and students whose teacher is gone."""
  config, root = study
  teacher, *_, kd = matrix.make_matrix(config)
  path = cells.folder_of(root, kd) / 'config.json'
  path.write_bytes(path.read_bytes()[:-9])
  shutil.rmtree(cells.folder_of(root, teacher))
  conduct.prepare(config, root)
  assert f'{path} is damaged' in caplog.text


def test_a_study_that_leaves_cells_open_does_not_end_well(study, monkeypatch):
  """Its workers alone were asked to stop, and ended with 0 as they should."""
  config, root = study
  conduct.check_complete(config, root)
  more = make(study__seeds=4)
  message = '12 cells are not finished; the same command goes on'
  # With --until of its first four seeds.
  monkeypatch.setattr(conduct, 'known', lambda *_: matrix.make_matrix(more))
  for end in (None, until.Until(7, None, 2), until.Until(7, math.inf, 2)):
    with pytest.raises(RunError, match=message):
      conduct.check_complete(more, root, end=end)
  # The budget of --until is spent, or nothing was to be run.
  conduct.check_complete(more, root, end=until.Until(7, 0.0, 2))
  conduct.check_complete(more, root, ran=False)


def test_of_several_machines_each_answers_for_its_own_cells(study):
  config, root = study
  mine = workers.shard_of(matrix.make_matrix(config), 0, 2)
  for cell in mine:
    shutil.rmtree(cells.folder_of(root, cell))
  conduct.check_complete(config, root, (1, 2))
  with pytest.raises(RunError, match=f'{len(mine)} cells are not finished'):
    conduct.check_complete(config, root, (0, 2))
