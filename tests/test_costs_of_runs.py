"""Costs of predictions of finished runs: summary, evaluation/cost.json."""

import json
import shutil

import pytest

from tests import tiny
from tlkd_jax import main
from tlkd_jax.export import serving as suite
from tlkd_jax.models import serving
from tlkd_jax.models.serving import Serving, Timing
from tlkd_jax.report import closing
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.training import serving as measured

pytestmark = pytest.mark.usefixtures('tiny_models')
ARMS = ('teacher', 'tl', 'kd')


@pytest.fixture
def runs(compare_run, tmp_path):
  """A copy of what is read here of a finished comparison."""
  folder = tmp_path / 'runs'
  ignored = shutil.ignore_patterns('latest', 'evaluation', 'targets', 'arrays')
  shutil.copytree(compare_run, folder, ignore=ignored)
  return folder


@pytest.fixture
def asked(monkeypatch):
  """The networks that are measured, by no clock."""
  found = []

  def measure(own, runtime='JAX'):
    found.append(own.model)
    timings = [
      Timing(runtime, batch, 5.0 * batch, 4.0, 6.0, 9, 'cpu', 2)
      for batch in serving.BATCHES
    ]
    return Serving(own, tuple(timings))

  monkeypatch.setattr(serving, 'measure', measure)
  return found


def folders(runs):
  return [runs / arm for arm in ARMS]


def test_a_summary_counts_student_and_teacher(compare_run):
  said = {
    arm: sealed.read_json(compare_run / arm / 'summary.json')['prediction_cost']
    for arm in ARMS
  }
  student = serving.figures('tiny', 16, 10)
  teacher = serving.figures('tiny_teacher', 16, 10)
  assert [*said['tl']] == ['student'] and [*said['teacher']] == ['teacher']
  for arm in ('tl', 'kd'):
    assert serving.from_json(said[arm]['student']).figures == student
  for arm in ('teacher', 'kd'):
    assert serving.from_json(said[arm]['teacher']).figures == teacher


def test_a_short_command_is_not_measured(runs, asked):
  measured.after_training(folders(runs), measured.LEAST_STEPS - 1)
  assert not asked and not measured.read(runs / 'kd')


def test_after_training_each_network_is_measured_once(runs, asked):
  measured.after_training(folders(runs), measured.LEAST_STEPS)
  assert sorted(asked) == ['tiny', 'tiny_teacher']
  kd = measured.read(runs / 'kd')
  assert [*kd] == ['student', 'teacher']
  assert kd['student'] == measured.read(runs / 'tl')['student']
  assert kd['teacher'] == measured.read(runs / 'teacher')['teacher']
  # What is there stays.
  measured.after_training(folders(runs), measured.LEAST_STEPS)
  assert len(asked) == 2


def test_the_command_says_what_the_student_saves(runs, asked):
  measured.after_training(folders(runs), measured.LEAST_STEPS)
  workdirs = {arm: runs / arm for arm in ARMS}
  summaries = {
    arm: sealed.read_json(path / 'summary.json')
    for arm, path in workdirs.items()
  }
  said = closing.table(summaries, workdirs)
  assert 'To answer one image the TL+KD student takes 5 ms, its teacher' in said
  shutil.rmtree(runs / 'kd' / 'evaluation')
  said = closing.table(summaries, workdirs)
  assert 'An image takes the TL+KD student' in said


@pytest.mark.parametrize(
  'error', [RuntimeError('out of memory'), OSError('full'), ValueError('odd')]
)
def test_a_run_is_finished_whatever_the_measurement_does(
  error, runs, monkeypatch, caplog
):
  def fail(own):
    raise error

  monkeypatch.setattr(serving, 'measure', fail)
  measured.after_training(folders(runs), 10**6)
  assert f'were not timed: {error}' in caplog.text
  assert not measured.read(runs / 'kd')


def test_a_teacher_that_is_gone_is_left_out(runs, asked, monkeypatch):
  gone = {'teacher': str(runs / 'gone')}
  monkeypatch.setattr(measured.networks, 'teacher_runs', lambda settings: gone)
  measured.after_training([runs / 'kd'], 100)
  assert [*measured.read(runs / 'kd')] == ['student']


@pytest.mark.parametrize('text', ['[]', '{"student": {}}', '{'])
def test_a_damaged_file_is_named(text, runs):
  path = measured.path_of(runs / 'kd')
  path.parent.mkdir(parents=True)
  path.write_text(text)
  with pytest.raises(ValueError, match='damaged'):
    measured.read(runs / 'kd')


def test_the_suite_of_a_folder_of_runs(runs, asked, monkeypatch):
  monkeypatch.setattr(suite.importlib.util, 'find_spec', lambda name: None)
  text = suite.measure_runs(runs)
  assert sorted(asked) == ['tiny', 'tiny_teacher']
  lines = text.splitlines()
  assert sum('JAX 5 ms (4 to 6) a batch of 1,' in s for s in lines) == 2
  (why,) = {s for s in lines if s.startswith('ONNX Runtime: not measured')}
  assert 'jax2onnx and onnxruntime not installed' in why
  assert any('int8: tiny not measured: no int8.onnx' in s for s in lines)
  assert not any('int8: tiny_teacher' in s for s in lines)
  kd = json.loads((runs / 'kd/evaluation/cost.json').read_text())
  assert kd['student']['not_measured'] and kd['teacher']['not_measured']
  # Once more, and it is as it was: nothing is added to what is there.
  assert suite.measure_runs(runs) == text


@pytest.mark.parametrize(
  'error', [RuntimeError('no kernel\nfor it'), KeyError('op'), MemoryError()]
)
def test_what_a_converter_cannot_do_is_said(error, runs, asked, monkeypatch):
  def fail(known):
    raise error

  monkeypatch.setattr(suite.importlib.util, 'find_spec', lambda name: object())
  monkeypatch.setattr(suite, '_in_onnx', fail)
  text = suite.measure_runs(runs / 'kd')
  reason = str(error).partition('\n')[0] or 'MemoryError'
  assert f'ONNX Runtime: tiny not measured: {reason}' in text
  assert 'JAX 5 ms' in text


def test_a_quantised_file_of_the_run_is_timed(runs, asked, monkeypatch):
  def session(path, runtime, image_size):
    assert (path, image_size) == (runs / 'kd' / 'int8.onnx', 16)
    return (Timing(runtime, 1, 2.0, 1.0, 3.0, 9, 'cpu', 2, file=99),)

  monkeypatch.setattr(suite.importlib.util, 'find_spec', lambda name: object())
  monkeypatch.setattr(suite, '_in_onnx', lambda known: ())
  monkeypatch.setattr(suite, 'in_session', session)
  (runs / 'kd' / 'int8.onnx').write_bytes(b'')
  text = suite.measure_runs(runs)
  assert 'ONNX Runtime, int8 2 ms (1 to 3) a batch of 1' in text
  kd, tl = (measured.read(runs / arm)['student'] for arm in ('kd', 'tl'))
  assert kd.find(suite.INT8, 1).file == 99 and tl.find(suite.INT8, 1) is None
  assert not any('int8' in why for why in kd.missing)


def test_no_run_is_one_message(tmp_path):
  with pytest.raises(UserError, match='no checkpoint in'):
    suite.measure_runs(tmp_path)


def test_the_file_that_the_converter_makes_is_timed(monkeypatch):
  pytest.importorskip('jax2onnx', exc_type=ImportError)
  pytest.importorskip('onnxruntime')
  monkeypatch.setattr(suite.timing, 'SECONDS', 0.0)
  own = serving.figures('tiny', 16, 10)
  one, many = suite._in_onnx(own)
  assert (one.batch, many.batch) == serving.BATCHES
  assert min(one.ms, many.ms) > 0 and one.file > own.bytes / 2
  assert one.runtime == many.runtime == suite.FLOAT


@pytest.mark.slow
def test_the_command(compare_run, cache_dir, capsys, tmp_path, monkeypatch):
  """A tiny run of enough steps, measured; then the suite of it."""
  from tlkd_jax import arms

  config = tiny.make_config('tl', cache_dir, num_steps=measured.LEAST_STEPS)
  arms.run(config, tmp_path / 'run', sharding.make_mesh(1))
  found = measured.read(tmp_path / 'run')['student']
  assert [one.batch for one in found.timings] == [1, 32]
  for one in found.timings:
    assert 0 < one.low <= one.ms <= one.high
    assert one.memory > found.figures.bytes
  assert 'cost' in main._SUITES
