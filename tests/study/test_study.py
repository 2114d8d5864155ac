"""Small real studies: resumed, in parallel, on two machines, with failures."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from configs import study as study_config
from tests import tiny
from tlkd_jax import settings
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import RunError
from tlkd_jax.study import cells, conduct, matrix, results, workers

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHANGES = {
  'study__run_arms': ('tl', 'kd'),
  'study__sizes': (2, 4),
  'study__seeds': 2,
}
# Of a row, what two runs of one cell cannot have in common.
_CLOCK = ('seconds', 'wall_seconds')


def rows(root: pathlib.Path) -> list[dict]:
  """results.json without the clock."""
  found = json.loads((root / 'results.json').read_text())
  for row in found:
    for name in _CLOCK:
      del row[name]
    row['curve'] = [(step, value) for step, _, value in row['curve']]
  return found


@pytest.fixture(scope='module')
def make(cache_dir):
  """A study of the tiny models: changes -> configuration."""

  def make_config(**changes):
    with tiny.registered():
      config = study_config.get_config('smoke,student=tiny')
      flat = settings.to_dict(tiny.make_config('tl', cache_dir))
      config.update({k: v for k, v in flat.items() if k != 'arm'})
      changes = CHANGES | changes
      config.update_from_flattened_dict(
        {key.replace('__', '.'): value for key, value in changes.items()}
      )
      return settings.from_config(config)

  return make_config


def run_here(config, root) -> list[str]:
  """Runs a study in this process; returns the cells that ran."""
  root.mkdir(exist_ok=True)
  everything, ran = matrix.make_matrix(config), []
  mesh, load = sharding.make_mesh(1), cells.Loader()
  workers.forget_failures(everything, root)

  def run(cell):
    ran.append(cell.name)
    cells.run(config, cell, everything, root, load, mesh)

  workers.work(everything, root, run, lambda: None)
  results.write(root, config)
  return ran


@pytest.fixture(scope='module')
def finished(make, tmp_path_factory):
  """(configuration, folder) of a study with a size that no class can give."""
  root = tmp_path_factory.mktemp('finished')
  config = make(study__sizes=(2, 4000), study__keep='needed')
  with tiny.registered():
    ran = run_here(config, root)
  return config, root, ran


def test_a_failing_cell_stops_no_other(finished):
  config, root, ran = finished
  now = workers.states(matrix.make_matrix(config), root)
  states = {cell.name: state for cell, state in now.items()}
  for name, state in states.items():
    arm = name.split('/')[2]
    bad = 'blocked' if arm == 'kd' else 'failed'
    assert state == (bad if '/4000/' in name else 'done'), name
  assert not [name for name in ran if '/4000/kd/' in name]
  cell = next(c for c in now if c.name == 'digits/4000/tl/seed1')
  assert 'num_train_per_class=4000' in cells.failure(root, cell)
  with pytest.raises(RunError) as error:
    conduct.check_complete(config, root)
  # Each reason once, with all cells that it stopped.
  title, *reasons = str(error.value).splitlines()
  assert title == 'cells without a result:'
  assert [r.count('num_train_per_class=4000') for r in reasons] == [1, 0]
  ends = [
    [f'digits/4000/{arm}/seed{seed}' for seed in (0, 1) for arm in arms]
    for arms in (('teacher', 'tl'), ('kd',))
  ]
  named = [set(r.rpartition(': ')[2].split(', ')) for r in reasons]
  assert named == [set(end) for end in ends]
  assert reasons[1].strip().startswith('waiting for a cell that failed: ')


def test_rows_are_what_the_runs_say(finished):
  _, root, _ = finished
  found = rows(root)
  assert [(r['arm'], r['seed']) for r in found] == [
    (arm, seed) for arm in ('kd', 'teacher', 'tl') for seed in (0, 1)
  ]
  for row in found:
    folder = root / row['folder']
    summary = json.loads((folder / 'summary.json').read_text())
    role = 'teacher' if row['arm'] == 'teacher' else 'student'
    for split in ('validation', 'test'):
      for name in ('top1', 'nll', 'ece'):
        expected = summary[role][split][name]
        assert row[split][name] == pytest.approx(expected, abs=1e-12)
    assert (row['num_train'], row['train_images']) == (20, 6 * 8)
    assert row['teacher_images'] == (48 if row['arm'] == 'kd' else 0)
  kd = next(r for r in found if r['arm'] == 'kd')
  config = json.loads((root / kd['folder'] / 'config.json').read_text())
  own = root / 'cells/digits/2/teacher/seed0'
  assert pathlib.Path(config['teacher']['checkpoint']) == own


def test_arms_of_a_seed_saw_the_same_test_images_and_other_seeds_differ(
  finished,
):
  _, root, _ = finished
  found = {(r['arm'], r['seed']): r for r in rows(root)}
  assert found['tl', 0]['test'] != found['tl', 1]['test']
  assert found['tl', 0]['test']['nll'] != found['kd', 0]['test']['nll']


def test_a_finished_study_runs_nothing_again(finished):
  config, root, _ = finished
  before = (root / 'results.json').read_text()
  with tiny.registered():
    ran = run_here(config, root)
  # Failures are tried again: the user may have mended the cause.
  assert ran and all('/4000/' in name for name in ran)
  assert (root / 'results.json').read_text() == before


def test_checkpoints_that_nothing_needs_are_gone(finished):
  _, root, _ = finished
  assert not list(root.glob('cells/digits/2/*/seed*/checkpoints'))


def test_another_configuration_is_refused(finished, make):
  """Whether the cell is finished or not."""
  _, root, _ = finished
  config = make(study__sizes=(2,), num_steps=7)
  cell = matrix.make_matrix(config)[0]
  message = r'another configuration:\n  num_steps: 6 there, 7 now'
  moved = make(study__sizes=(2,), data__cache_dir='elsewhere')
  with tiny.registered():
    with pytest.raises(ValueError, match=message):
      cells.configure(config, cell, matrix.make_matrix(config), root)
    cells.configure(moved, cell, matrix.make_matrix(moved), root)


def test_trials_are_chosen_on_validation_and_the_others_hide_their_test(
  make, tmp_path, tiny_models
):
  config = make(
    study__run_arms=('tl',),
    study__sizes=(4,),
    study__seeds=1,
    study__grid__optimizer__learning_rate=(0.01, 0.3),
    best_metric='nll',
  )
  run_here(config, tmp_path)
  found = json.loads((tmp_path / 'results.json').read_text())
  assert [r['trial']['optimizer.learning_rate'] for r in found] == [0.01, 0.3]
  best = min(found, key=lambda r: r['validation']['nll'])
  assert [r['chosen'] for r in found] == [r is best for r in found]
  assert ['test' in r for r in found] == [r is best for r in found]


def test_a_study_that_tunes_on_seeds_of_its_own(make, tmp_path, tiny_models):
  config = make(
    study__sizes=(4,),
    study__seeds=1,
    study__tuning_seeds=(7,),
    study__grid__distillation__temperature=(1.0, 4.0),
    study__arms__tl__grid__optimizer__learning_rate=(0.01, 0.3),
    study__keep='needed',
  )
  found, sentence = conduct.run(config, tmp_path)
  scores = json.loads((tmp_path / 'tuning.json').read_text())
  tried = {(s['arm'], *s['trial'].values()): s for s in scores}
  assert list(tried) == [
    *(('tl', 0.01), ('tl', 0.3), ('teacher',), ('kd', 1.0), ('kd', 4.0)),
  ]
  assert all(score['metric'] == 'nll' for score in scores)
  for arm in ('tl', 'kd'):
    own = [score for score in scores if score['arm'] == arm]
    best = min(own, key=lambda score: score['mean'])
    assert [score['chosen'] for score in own] == [s is best for s in own]
    (row,) = [r for r in found if r['arm'] == arm and r['chosen']]
    assert row['seed'] == 0 and row['trial'] == best['trial']
    tuning = [r for r in found if r['arm'] == arm and r['seed'] == 7]
    assert len(tuning) == 2 and not any('test' in r for r in tuning)
  page = (tmp_path / 'report.md').read_text()
  assert 'Trials on seeds 7' in page and '3 runs; seeds 0\n' in page
  assert sentence in page
  # All is there: nothing runs again, and the answer is the same.
  before = (tmp_path / 'results.json').read_text()
  assert conduct.run(config, tmp_path)[1] == sentence
  assert (tmp_path / 'results.json').read_text() == before


def test_an_arm_of_several_runs_counts_them_all(make, tmp_path, tiny_models):
  """LP-FT: a probe of 3 steps before the 6 steps of fine-tuning."""
  config = make(
    study__run_arms=('tl',),
    study__sizes=(4,),
    study__seeds=1,
    transfer__probe_steps=3,
  )
  run_here(config, tmp_path)
  (row,) = rows(tmp_path)
  assert row['train_images'] == (6 + 3) * 8
  cell = matrix.make_matrix(config)[0]
  cells.configure(config, cell, [cell], tmp_path)


def start(root, cache_dir, session_dir, *arguments) -> subprocess.Popen:
  changes = CHANGES | {'num_steps': 20, 'eval_every_steps': 2}
  command = tiny.arguments('study', cache_dir, **changes)
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.tiny_study', *command, *arguments]
    + [f'--workdir={root}', f'--compilation_cache={session_dir / "compiled"}'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def finish(process) -> str:
  out, error = process.communicate(timeout=900)
  assert process.returncode == 0, error
  assert 'Traceback' not in error
  return out


@pytest.fixture(scope='module')
def unbroken(cache_dir, session_dir, tmp_path_factory):
  root = tmp_path_factory.mktemp('unbroken')
  out = finish(start(root, cache_dir, session_dir))
  assert 'paired seeds' in out and (root / 'index.html').exists()
  return rows(root)


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_unbroken(
  unbroken, cache_dir, session_dir, tmp_path
):
  """kill -9 at random moments, of the command and its workers."""
  moments = random.Random(int.from_bytes(os.urandom(4)))
  runs = dict[str, int]()
  for _ in range(3):
    process = start(tmp_path, cache_dir, session_dir, '--jobs=2')
    # Starting takes most of the time; the kill should hit a run.
    count = len(list(tmp_path.glob('cells/*/*/*/*/cell.json')))
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob('cells/*/*/*/*/cell.json'))) <= count:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    time.sleep(moments.uniform(0, 3))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = tmp_path.glob('cells/*/*/*/*/cell.json')
    runs |= {str(path): path.stat().st_mtime_ns for path in done}
  finish(start(tmp_path, cache_dir, session_dir))
  assert rows(tmp_path) == unbroken
  for path, written in runs.items():
    assert pathlib.Path(path).stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
  'commands', [[['--jobs=2']], [['--shard=1/2'], ['--shard=2/2']]]
)
def test_side_by_side_is_one_after_the_other(
  commands, unbroken, cache_dir, session_dir, tmp_path
):
  started = [
    start(tmp_path, cache_dir, session_dir, *arguments)
    for arguments in commands
  ]
  for process in started:
    finish(process)
  # Two that end at once may each miss the other's last row.
  config = settings.from_config(study_config.get_config('smoke'))
  results.write(tmp_path, config)
  assert rows(tmp_path) == unbroken


def test_checkpoints_of_parts_go_with_keep_best(tmp_path):
  cell = matrix.Cell('digits', 2, 'tl', 0, (), 'TL', 'tl', (), ())
  folder = cells.folder_of(tmp_path, cell)
  for place in ('checkpoints/best', 'fold1/checkpoints', 'member2/checkpoints'):
    (folder / place).mkdir(parents=True)
  cells._thin('best', tmp_path, cell, [cell])
  kept = {str(p.relative_to(folder)) for p in folder.rglob('checkpoints')}
  assert kept == {'checkpoints'}
  assert (folder / 'member2').exists()
