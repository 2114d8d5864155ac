"""Students that learn to round: from a finished run to one of int8."""

import json

import numpy as np
import pytest

from configs import qat
from tests import tiny
from tests.marks import slow
from tests.workdirs import arrays
from tlkd_jax import arms, export, settings
from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, UserError
from tlkd_jax.settings import WrongSettings
from tlkd_jax.training import decoding, finished, loop
from tlkd_jax.training import run as run_parts
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.checkpoints import read_description

pytestmark = pytest.mark.usefixtures('tiny_models')

# Bounds that follow to the step of an evaluation, and then stay.
COURSE = {
  'num_steps': 8,
  'eval_every_steps': 2,
  'keep_checkpoints': 4,
  'quantize.observe_fraction': 0.5,
  'quantize.calibration_images': 20,
  'optimizer.learning_rate': 1e-2,
}


def configured(run, guide='student', **changes):
  config = settings.from_config(
    qat.get_config(f'checkpoint={run},guide={guide}')
  )
  return settings.with_values(config, COURSE | changes)


@pytest.fixture(scope='module')
def runner(compare_run):
  """Goes on with the TL+KD student in a folder."""

  def call(workdir):
    config = configured(compare_run / 'kd')
    return arms.run(config, workdir, sharding.make_mesh())['kd']

  return call


@pytest.fixture(scope='module')
def run(runner, tmp_path_factory):
  """Workdir of a finished run, its summary."""
  workdir = tmp_path_factory.mktemp('qat')
  with tiny.registered():
    return workdir, runner(workdir)


def bounds(tree) -> dict[str, np.ndarray]:
  return {k: v for k, v in tree.items() if k.endswith('bounds')}


def test_a_transfer_baseline_keeps_it_to_its_calibrated_start(
  compare_run, tmp_path
):
  """That rounds as the student does before its first update."""
  changes = {'transfer.delta': 1e-3}
  config = configured(compare_run / 'kd', guide='none', **changes)
  dataset = decoding.load_dataset(config)
  found = run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())
  own = tiny.flatten(found.learners['student'].model_state)
  start = tiny.flatten(found.start['model_state'])
  assert own.keys() == start.keys() and len(bounds(own)) == 7
  for name, value in own.items():
    np.testing.assert_array_equal(start[name], value, err_msg=name)
  (name, *_) = bounds(own)
  assert np.isfinite(own[name]).all() and np.ptp(own[name]) > 0


def test_its_bounds_follow_and_then_stay(run):
  workdir, _ = run
  found = [arrays(workdir, 'latest', step) for step in (2, 4, 6, 8)]
  names = [name for name in found[0] if name.endswith('bounds')]
  assert len(names) == 7
  for name in names:
    values = [tree[name] for tree in found]
    # Some pixel is black and some white in every batch.
    moved = not np.array_equal(values[0], values[1])
    assert moved or name.endswith('stem/input.bounds')
    np.testing.assert_array_equal(values[1], values[2], err_msg=name)
    np.testing.assert_array_equal(values[1], values[3], err_msg=name)
  left = [tree[names[0].replace('bounds', 'left')] for tree in found]
  assert left == [2, 0, 0, 0]


@pytest.mark.parametrize('stop_at', [3, *slow(6)])
def test_a_stopped_run_ends_as_the_other(
  stop_at, runner, run, tmp_path, monkeypatch
):
  """While its bounds follow, and when they stay; bit for bit."""
  with monkeypatch.context() as patch:
    patch.setattr(
      loop.StopRequest, 'requested', lambda self, step: step == stop_at
    )
    with pytest.raises(Interrupted):
      runner(tmp_path)
  runner(tmp_path)
  for kind in ('latest', 'best'):
    left, right = arrays(run[0], kind), arrays(tmp_path, kind)
    assert left.keys() == right.keys() and len(bounds(left)) == 7
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)
  for split in ('validation', 'test'):
    both = [
      evaluate.load(folder / 'predictions' / f'{split}.npz').logits
      for folder in (run[0], tmp_path)
    ]
    np.testing.assert_array_equal(*both)


def test_its_predictions_are_those_of_int8(run):
  """Of the network that its checkpoint describes, which rounds."""
  workdir, summary = run
  description = read_description(workdir)
  assert (description.model, description.arm) == ('tiny int8', 'kd')
  loaded = finished.restore(str(workdir), description)
  config = settings.from_config(workdirs.read(workdir))
  dataset = decoding.load_dataset(config)
  mesh = sharding.make_mesh()
  found = evaluate.predict(
    make_eval_step(loaded.network, mesh),
    sharding.replicate((loaded.params, loaded.model_state), mesh),
    pipeline.eval_batches(dataset.splits['test'], config.batch_size),
    mesh,
  )
  stored = evaluate.load(workdir / 'predictions' / 'test.npz')
  np.testing.assert_allclose(found.logits, stored.logits, atol=1e-5)
  assert summary['student']['test']['top1'] == pytest.approx(
    np.mean(stored.logits.argmax(-1) == stored.labels)
  )


def test_its_float_student_is_its_teacher(run, compare_run):
  workdir, summary = run
  config = json.loads((workdir / 'config.json').read_text())
  assert config['teacher']['checkpoint'] == str(compare_run / 'kd')
  before = json.loads((compare_run / 'kd' / 'summary.json').read_text())
  assert summary['teacher']['test']['top1'] == pytest.approx(
    before['student']['test']['top1']
  )


class TestConfiguration:
  def test_a_tenth_of_the_steps_and_of_the_learning_rate(self, compare_run):
    place = compare_run / 'kd'
    before = settings.from_config(workdirs.read(place))
    config = settings.from_config(qat.get_config(f'checkpoint={place}'))
    assert config.num_steps == max(1, round(before.num_steps / 10))
    assert config.optimizer.learning_rate == pytest.approx(
      before.optimizer.learning_rate / 10
    )
    assert config.student.checkpoint == str(place)
    assert (config.arm, config.quantize.mode) == ('kd', 'qat')
    for name in ('dataset', 'seed', 'image_size', 'batch_size', 'augment'):
      assert vars(config)[name] == vars(before)[name]

  def test_guides(self, compare_run):
    place = compare_run / 'kd'
    own = configured(place)
    assert (own.teacher.name, own.teacher.checkpoint) == ('tiny', str(place))
    before = settings.from_config(workdirs.read(place))
    taught = configured(place, 'teacher')
    assert taught.teacher == before.teacher
    assert taught.distillation == before.distillation
    assert configured(place, 'none').arm == 'tl'
    assert configured(compare_run / 'tl').teacher.name == 'tiny'

  @pytest.mark.parametrize(
    ('arg', 'message'),
    [
      (None, 'configs/qat.py needs the finished run of a student'),
      ('guide=none', 'needs the finished run of a student'),
      ('checkpoint={}/kd,guide=teecher', "guide='teecher'; accepted: student"),
      ('checkpoint={}/tl,guide=teacher', 'no frozen teacher taught .*arm tl'),
      ('checkpoint={}/teacher', "run of arm 'teacher'; accepted: one of a stu"),
      ('checkpoint={}/nowhere', 'holds no config.json: not a run'),
      ('checkpoint={}', 'holds no config.json: not a run'),
      ('chekpoint=x', 'did you mean checkpoint'),
    ],
  )
  def test_refused(self, arg, message, compare_run):
    arg = arg and arg.format(compare_run)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      qat.get_config(arg)


def test_another_student_is_refused_before_any_work(
  run, compare_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    decoding, 'load_dataset', lambda *_, **__: pytest.fail('data were decoded')
  )
  place = compare_run / 'kd'
  for checkpoint, name, found in (
    (place, 'tiny_teacher', 'tiny'),
    # One that rounds already.
    (run[0], 'tiny', 'tiny int8'),
  ):
    config = configured(
      place, **{'student.checkpoint': str(checkpoint), 'student.name': name}
    )
    match = rf'holds a {found}; accepted: a run of student.name, {name}, in flo'
    with pytest.raises(UserError, match=match):
      arms.run(config, tmp_path / 'run', sharding.make_mesh())
  assert not (tmp_path / 'run').exists()


def test_a_transformer_is_refused_at_the_door(compare_run):
  with pytest.raises(WrongSettings, match="student.name is 'tiny_vit'.*folded"):
    configured(compare_run / 'kd', **{'student.name': 'tiny_vit'})


@pytest.mark.parametrize(
  ('format', 'fold_norm', 'message'),
  [
    ('safetensors', False, 'tiny int8: its norms are folded, .*to onnx, or'),
    ('stablehlo', False, 'without the rounding they are another student'),
    ('onnx', True, 'tiny int8, whose norms are folded already: leave --fold'),
  ],
)
def test_what_it_cannot_be_exported_to(
  format, fold_norm, message, run, tmp_path, monkeypatch
):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
  out = tmp_path / f'student.{format}'
  with pytest.raises(UserError, match=message):
    export.export_run(run[0], format, out, fold_norm=fold_norm)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  'options',
  [{'quantize': 'int8'}, {'dtype': 'float16'}, {'with_preprocessing': True}],
)
def test_its_file_is_int8_already(options, run, tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
  out = tmp_path / 'student.onnx'
  with pytest.raises(UserError, match='tiny int8, whose file is of int8 as it'):
    export.export_run(run[0], 'onnx', out, **options)
  assert not out.exists()
