"""A damaged record of a cell costs that record, not the study."""

import json
import shutil

import numpy as np
import pytest

from tests.report import synthetic
from tests.study.test_plans import make
from tlkd_jax.evaluation import records
from tlkd_jax.models import serving as costs_of
from tlkd_jax.models.serving import Figures, Serving
from tlkd_jax.report import runs
from tlkd_jax.runtime import sealed
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.study import (
  cells,
  conduct,
  matrix,
  noise,
  results,
  serving,
  workers,
)
from tlkd_jax.training import serving as costs

ROW = {
  'kind': 'tl',
  'trial': {},
  'seconds': 1.0,
  'wall_seconds': 2.0,
  'validation': {'top1': 0.5, 'nll': 1.0},
  'test': {'top1': 0.5, 'nll': 1.0, 'ece': 0.1},
}

FIGURES = Figures('tiny', 16, 10, 'float32', 900, 5000, 0, 3600)


@pytest.fixture
def study(tmp_path):
  """(configuration, folder) of a study all of whose cells are finished."""
  config = make(study__seeds=2, study__run_arms=('tl',))
  for cell in matrix.make_matrix(config):
    folder = cells.folder_of(tmp_path, cell)
    folder.mkdir(parents=True)
    own = {name: getattr(cell, name) for name in ('dataset', 'size', 'seed')}
    text = json.dumps(ROW | own | {'arm': cell.arm})
    sealed.write_text(folder / 'cell.json', text)
  return config, tmp_path


def cut(path):
  path.write_bytes(path.read_bytes()[:-9])


def flip(path):
  path.write_bytes(path.read_bytes().replace(b'0.5', b'0.6', 1))


def empty(path):
  path.write_bytes(b'')


def other(path):
  shutil.rmtree(path.parent / '.sums')
  path.write_text('{"dataset": "digits"}')


def no_object(path):
  shutil.rmtree(path.parent / '.sums')
  path.write_text('[1, 2]')


@pytest.mark.parametrize('damage', [cut, flip, empty, other, no_object])
def test_it_is_left_out_and_run_again(damage, study, caplog):
  config, root = study
  everything = matrix.make_matrix(config)
  assert {*workers.states(everything, root).values()} == {'done'}
  whole = results.collect(root, 'top1')
  path = cells.folder_of(root, everything[1]) / 'cell.json'
  damage(path)
  rows = results.collect(root, 'top1')
  gone = str(path.parent.relative_to(root))
  assert rows == [row for row in whole if row['folder'] != gone]
  assert len(rows) == len(whole) - 1
  assert f'{path} is damaged' in caplog.text
  now = workers.states(everything, root)
  assert [c for c, state in now.items() if state == 'open'] == [everything[1]]
  workers.seconds_left(now, root)
  results.write(root, config)
  ran = []

  def run(cell):
    ran.append(cell)
    sealed.write_text(path, json.dumps(ROW))

  workers.work(everything, root, run, lambda: None)
  assert ran == [everything[1]]


def test_a_cell_that_leaves_no_whole_record_has_failed(study):
  """And is not taken again and again."""
  config, root = study
  everything = matrix.make_matrix(config)
  cut(cells.folder_of(root, everything[0]) / 'cell.json')
  ran = []
  workers.work(everything, root, ran.append, lambda: None)
  assert ran == [everything[0]]
  assert 'whole record' in cells.failure(root, everything[0])


# Beside a cell's record: what is read of it, and of whom.
BESIDE = {
  'evaluation/corruptions.json': lambda root, rows: [
    row.get('degraded') for row in rows
  ],
  'predictions/test.npz': lambda root, rows: [
    'answers' in row for row in results.with_answers(root, rows)
  ],
  'evaluation/cost.json': lambda root, rows: len(serving.collect(root, rows)),
}


def write_beside(folder):
  """What `--suite` and a run leave in a cell's folder."""
  records.write_json(
    folder / 'evaluation' / 'corruptions.json',
    {'count': 4, 'clean': {'top1': 0.5}, 'mean_corrupted_error': {'all': 0.5}},
  )
  arrays = {'logits': np.eye(4, 2), 'labels': [0, 1, 0, 1], 'indices': range(4)}
  records.write_arrays(
    folder / 'predictions' / 'test.npz',
    {name: np.asarray(value) for name, value in arrays.items()},
  )
  costs.write(folder, {'student': Serving(FIGURES, ())})


def flip_middle(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 2
  path.write_bytes(content)


@pytest.mark.parametrize('name', BESIDE)
def test_what_lies_beside_a_record_is_left_out(name, study, caplog):
  config, root = study
  folders = [cells.folder_of(root, c) for c in matrix.make_matrix(config)]
  for folder in folders:
    write_beside(folder)
  whole = BESIDE[name](root, results.collect(root, 'top1'))
  path = folders[1] / name
  for damage in (cut, flip_middle, empty, no_object):
    write_beside(folders[1])
    damage(path)
    caplog.clear()
    found = BESIDE[name](root, results.collect(root, 'top1'))
    if isinstance(whole, list):
      assert sum(a != b for a, b in zip(found, whole, strict=True)) == 1
    else:
      # Of the same network as that of the other cell.
      assert found == whole == 1
    assert str(path) in caplog.text and 'it is left out' in caplog.text


@pytest.mark.parametrize('damage', [cut, empty, no_object])
def test_costs_of_a_study_that_are_damaged_are_left_out(
  damage, tmp_path, caplog
):
  path = tmp_path / serving.FILE
  records.write_json(path, [costs_of.as_json(Serving(FIGURES, ()))])
  assert [*serving.collect(tmp_path, [])] == [FIGURES]
  damage(path)
  assert serving.collect(tmp_path, []) == {}
  assert str(path) in caplog.text


@pytest.mark.parametrize('damage', [cut, empty, flip_middle])
def test_a_damaged_rerun_is_left_out(damage, tmp_path, caplog):
  paths = [
    tmp_path / noise.FOLDER / '2cores/digits/2/tl' / number / 'rerun.json'
    for number in '01'
  ]
  for path in paths:
    records.write_json(path, {'number': path.parent.name})
  assert len(noise.collect(tmp_path)) == 2
  damage(paths[0])
  assert noise.collect(tmp_path) == [{'number': '1'}]
  assert str(paths[0]) in caplog.text
  shutil.rmtree(tmp_path / noise.FOLDER)
  damage(tmp_path / noise.FILE)
  assert noise.collect(tmp_path) == []
  assert f'{tmp_path / noise.FILE} is damaged' in caplog.text


@pytest.mark.parametrize('name', ['config.json', 'summary.json'])
def test_a_report_of_many_runs_leaves_a_damaged_one_out(name, tmp_path):
  synthetic.write_study(tmp_path / 'study', [0.1, 0.2])
  whole, _ = runs.collect([tmp_path])
  cut(whole[0].path / name)
  found, notes = runs.collect([tmp_path])
  assert [r.path for r in found] == [r.path for r in whole[1:]]
  assert any(f'{name} is damaged' in note for note in notes)


def test_a_report_says_that_a_record_of_a_cell_is_damaged(tmp_path):
  run = synthetic.write_run(tmp_path / 'tl', 'tl')
  sealed.write_text(run / 'cell.json', '{"made": {}}')
  assert runs.collect([run])[0][0].made == {}
  cut(run / 'cell.json')
  found, notes = runs.collect([run])
  assert found[0].made is None
  assert any('cell.json is damaged' in note for note in notes)


@pytest.mark.parametrize(
  ('first', 'second', 'goes'),
  [
    (conduct.WHOLE, conduct.WHOLE, False),
    (conduct.WHOLE, (0, 2), False),
    ((0, 2), (0, 2), False),
    ((0, 2), (1, 2), True),
  ],
)
def test_one_command_at_a_time_has_a_study(first, second, goes, tmp_path):
  with conduct.alone(tmp_path, first):
    # Its workers.
    with conduct.alone(tmp_path, second, wanted=False):
      pass
    try:
      with conduct.alone(tmp_path, second):
        assert goes
    except UserError as error:
      assert not goes and 'in use by another process' in str(error)


def test_a_second_study_in_python_is_refused(study):
  config, root = study
  with (
    conduct.alone(root),
    pytest.raises(UserError, match='in use by another process'),
  ):
    conduct.run(config, root)
