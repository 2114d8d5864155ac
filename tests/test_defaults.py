"""What is taken of images of one's own unless the settings say otherwise."""

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.data.pictures import make_classes
from tlkd_jax import arms, data, protocols, settings
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import UserError
from tlkd_jax.settings import WrongSettings
from tlkd_jax.study import arms as study_arms
from tlkd_jax.study import designs
from tlkd_jax.study.matrix import make_config, make_matrix
from tlkd_jax.training import defaults, judging, loop, preparation, progress
from tlkd_jax.training import workdir as workdirs

pytestmark = pytest.mark.usefixtures('tiny_models')


def numbers(made) -> tuple:
  return (
    made.image_size,
    made.num_train_per_class,
    made.num_steps,
    made.eval_every_steps,
  )


# Arm, its argument, values, labelled images -> the numbers that are used.
CASES = [
  ('kd', {}, {}, 200, (64, 20, 200, 50)),
  ('kd', {}, {}, None, (64, 20, 200, 50)),
  ('compare', {'student': 'efficientnet_lite2'}, {}, 7, (64, 20, 200, 50)),
  ('tl', {}, {'train_fraction': 0.5}, 600, (64, 0, 200, 50)),
  ('tl', {}, {'num_train_per_class': 0}, 1169, (64, 0, 200, 50)),
  ('tl', {}, {'image_size': 32, 'num_steps': 2000}, 9, (32, 20, 2000, 100)),
  # 20 epochs, 200 to 5,000 steps.
  ('kd', {'dataset': 'folder:x'}, {}, None, (224, 0, 0, 0)),
  ('kd', {'dataset': 'folder:x'}, {}, 100, (224, 0, 200, 50)),
  ('kd', {'dataset': 'csv:x.csv'}, {}, 320, (224, 0, 200, 50)),
  ('tl', {'dataset': 'cifar10'}, {}, 321, (224, 0, 201, 50)),
  ('compare', {'dataset': 'folder:x'}, {}, 3200, (224, 0, 2000, 100)),
  ('teacher', {'dataset': 'arrays:x'}, {}, 8000, (224, 0, 5000, 250)),
  ('kd', {'dataset': 'folder:x'}, {}, 50000, (224, 0, 5000, 250)),
  ('kd', {'dataset': 'folder:x'}, {'batch_size': 8}, 400, (224, 0, 1000, 50)),
  (
    'tl',
    {'dataset': 'folder:x', 'student': 'efficientnet_lite2'},
    {},
    100,
    (260, 0, 200, 50),
  ),
  (
    'tl',
    {'dataset': 'folder:x', 'student': 'tiny'},
    {'student.weights': 'scratch'},
    100,
    (32, 0, 200, 50),
  ),
  # What is said is done.
  (
    'kd',
    {'dataset': 'folder:x'},
    {
      'image_size': 96,
      'num_train_per_class': 20,
      'num_steps': 100,
      'eval_every_steps': 7,
    },
    50000,
    (96, 20, 100, 7),
  ),
  (
    'kd',
    {'dataset': 'folder:x'},
    {'train_fraction': 0.1},
    3200,
    (224, 0, 2000, 100),
  ),
  ('kd', {'dataset': 'folder:x', 'smoke': True}, {}, 5000, (32, 4, 6, 6)),
]


@pytest.mark.parametrize(('arm', 'names', 'values', 'count', 'found'), CASES)
def test_what_is_left_open_is_settled(arm, names, values, count, found):
  made = settings.with_values(settings.make(arm, **names), values)
  done = defaults.settled(made, count)
  assert numbers(done) == found
  # Once, and by nothing else.
  assert defaults.settled(done, 10**6) == done or count is None
  assert preparation.look_of_data(made) == preparation.look_of_data(done)


def test_weights_that_say_their_size(tmp_path):
  (tmp_path / 'config.json').write_text(
    json.dumps(
      {
        'architecture': 'resnet18',
        'pretrained_cfg': {'input_size': [3, 96, 96]},
      }
    )
  )
  (tmp_path / 'model.safetensors').write_bytes(b'')
  made = settings.with_values(
    settings.make('tl', dataset='folder:x', student='resnet18'),
    {'student.weights': str(tmp_path)},
  )
  assert preparation.image_size(made) == 96


@pytest.mark.parametrize(
  ('arm', 'changes', 'side'),
  [
    ('kd', {'image_size': 96}, 160),
    ('compare', {'image_size': 64}, 112),
    ('kd', {'image_size': 32, 'teacher.fit': 'crossfitted'}, 48),
    ('kd', {'image_size': 16}, 32),
    # No further than it was trained at, and never less than the student.
    ('kd', {'image_size': 224}, 260),
    ('kd', {'image_size': 384}, 384),
    ('kd', {'image_size': 96, 'teacher.image_size': 96}, 96),
    ('kd', {'image_size': 96, 'teacher.fit': 'finetuned'}, 0),
    ('kd', {'image_size': 96, 'teacher.fit': 'early'}, 0),
    ('kd', {'image_size': 96, 'teacher.checkpoint': 'runs/t'}, 0),
    ('kd', {'image_size': 96, 'distillation.mutual': True}, 0),
    ('teacher', {'image_size': 96, 'teacher.fit': 'probed'}, 0),
    ('tl', {'image_size': 96}, 0),
    ('kd', {'image_size': 96, 'dataset': 'digits'}, 0),
    # Whole patches of 14 pixels.
    ('kd', {'image_size': 96, 'teacher.name': 'vit_small_patch14_dinov2'}, 154),
    (
      'kd',
      {
        'image_size': 64,
        'teacher.name': 'vit_small_patch14_dinov2',
        'teacher.fit': 'finetuned',
      },
      70,
    ),
    (
      'teacher',
      {'image_size': 64, 'teacher.name': 'vit_small_patch14_dinov2'},
      70,
    ),
    ('kd', {'image_size': 64, 'teacher.name': 'vit_small_patch16_224'}, 112),
    # Of one size, however it learns.
    ('kd', {'image_size': 96, 'teacher.name': 'mixer_b16_224'}, 224),
    (
      'compare',
      {
        'image_size': 96,
        'teacher.name': 'mixer_b16_224',
        'teacher.fit': 'finetuned',
      },
      224,
    ),
    (
      'kd',
      {
        'image_size': 96,
        'teacher.name': 'mixer_b16_224',
        'teacher.checkpoint': 'runs/t',
      },
      0,
    ),
  ],
)
def test_what_a_teacher_sees(arm, changes, side):
  made = settings.with_values(settings.make(arm, dataset='folder:x'), changes)
  done = defaults.settled(made)
  assert done.teacher.image_size == side
  assert defaults.settled(done, 600, 50).teacher.image_size == side


def test_too_few_steps_are_refused_when_they_are_known():
  made = settings.with_values(
    settings.make('tl', dataset='folder:x'),
    {'optimizer.freeze_until_step': 300},
  )
  assert defaults.settled(made).num_steps == 0
  with pytest.raises(WrongSettings, match='freeze_until_step is 300, so that'):
    defaults.settled(made, 100)


@pytest.mark.parametrize(
  ('arm', 'changes', 'told'),
  [
    ('tl', {'freeze_until_step': 200}, 'freeze_until_step is 200, so that'),
    (
      'teacher',
      {'accumulate_steps': 201},
      'so that 200 steps .num_steps',
    ),
    ('kd', {'accumulate_steps': 500}, 'optimizer.accumulate_steps is 500'),
    ('compare', {'freeze_until_step': 9999}, 'accepted: a whole number below'),
  ],
)
@pytest.mark.parametrize('kind', ['folder', 'zip', 'csv'])
def test_they_are_refused_before_an_image_is_decoded(
  arm, changes, told, kind, folder, tmp_path, monkeypatch
):
  root = pathlib.Path(folder.removeprefix('folder:'))
  if kind == 'zip':
    folder = 'folder:' + shutil.make_archive(tmp_path / 'own', 'zip', root)
  elif kind == 'csv':
    rows = [
      f'{path},{path.parent.name},{path.parent.parent.name}'
      for path in sorted(root.glob('*/*/*'))
    ]
    table = tmp_path / 'own.csv'
    table.write_text('\n'.join(['path,label,split', *rows]))
    folder = f'csv:{table}'

  def decode(*_, **__):
    raise AssertionError('images are decoded')

  monkeypatch.setattr(data.decode, 'decode', decode)
  config = settings.with_values(
    tiny.make_config(arm, tmp_path, dataset=folder),
    {
      'num_train_per_class': None,
      'num_steps': 0,
      'eval_every_steps': 0,
      **{f'optimizer.{key}': value for key, value in changes.items()},
    },
  )
  with pytest.raises(UserError, match=told):
    arms.run(config, tmp_path / 'run', sharding.make_mesh())
  assert not (tmp_path / 'run').exists()


def test_a_study_of_images_of_ones_own():
  made = designs.make(dataset='folder:x/mine')
  assert made.study.arms['teacher_high_res'].changes == {
    'teacher.image_size': 16 * round(224 * study_arms.HIGH_RESOLUTION / 16)
  }
  matrix = make_matrix(made)
  own = make_config(made, matrix[0], {})
  done = defaults.settled(own, 30)
  assert numbers(done) == (224, matrix[0].size, 200, 50)
  known = designs.make(dataset='folder:x/trashnet.zip')
  assert numbers(defaults.settled(known, 99))[::2] == (64, 100)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('own')
  make_classes(root / 'train', {'cat': 13, 'dog': 11})
  make_classes(root / 'test', {'cat': 2, 'dog': 2})
  return f'folder:{root}'


def test_a_run_says_and_records_what_it_takes(
  folder, cache_dir, tmp_path, caplog, monkeypatch
):
  """The whole command, but for the most of its steps."""
  monkeypatch.setattr(defaults, '_LEAST_STEPS', 30)
  monkeypatch.setattr(loop, '_PACED', (1, 3))
  monkeypatch.setattr(progress.bars, 'wanted', lambda: False)
  config = settings.with_values(
    tiny.make_config('tl', cache_dir, dataset=folder),
    {
      'image_size': 0,
      'num_train_per_class': None,
      'num_steps': 0,
      'eval_every_steps': 0,
    },
  )
  with caplog.at_level(logging.INFO, logger='absl'):
    arms.run(config, tmp_path / 'run', sharding.make_mesh())
  # A validation image is cut from each class; 20 epochs of 22 images.
  said = '22 training images at 32 px (kept at 36 px), 55 steps of 8: 20 epochs'
  assert said in caplog.text
  (guess,) = [m for m in caplog.messages if 'on this machine, comp' in m]
  assert guess.startswith('about ')
  messages = caplog.messages
  (paced,) = [r for r in messages if ' to go' in r]
  first = next(m for m in messages if m.startswith('student: '))
  assert messages.index(guess) < messages.index(first)
  assert paced.startswith('tl: ') and ' s a step, about ' in paced
  recorded = settings.from_config(workdirs.read(tmp_path / 'run'))
  assert numbers(recorded) == (32, 0, 55, 50)
  # The same command resumes it, and that of what it took too.
  for again in (config, recorded):
    arms.run(again, tmp_path / 'run', sharding.make_mesh())
  longer = settings.with_values(config, {'num_steps': 60})
  with pytest.raises(Exception, match='num_steps: 55 there, 60 now'):
    arms.run(longer, tmp_path / 'run', sharding.make_mesh())


def test_the_rest_is_counted_with_its_evaluations():
  split = {'validation': 96, 'test': 64, 'train': 9}
  run = type('Run', (), {})()
  run.settings = settings.make('tl')
  run.settings = defaults.settled(run.settings)
  run.num_steps = 200
  images = {
    name: data.Split(
      np.zeros((count, 1, 1, 3), np.uint8),
      np.zeros(count, np.int32),
      np.arange(count),
      [''] * count,
    )
    for name, count in split.items()
  }
  run.dataset = data.Dataset('x', ['a'], images, 1, True, {}, [])
  # Two evaluations of 3 batches, the last one of both splits, 5 batches.
  assert judging.left(run, 100) == pytest.approx(100 + (2 * 3 + 5) / 3)


@pytest.mark.parametrize(
  ('arm', 'changes', 'smallest', 'expected'),
  [
    ('kd', {}, 20, 'probed'),
    ('compare', {}, 5, 'probed'),
    ('kd', {}, None, 'auto'),
    ('kd', {}, 4, 'finetuned'),
    ('teacher', {}, 20, 'finetuned'),
    ('tl', {}, 20, 'finetuned'),
    ('tl', {'cost_matched': True}, 20, 'probed'),
    ('kd', {'teacher.fit': 'early'}, 20, 'early'),
    ('kd', {'teacher.num_steps': 50}, 20, 'finetuned'),
    ('kd', {'teacher.label_smoothing': 0.1}, 20, 'finetuned'),
    ('kd', {'teacher.weights': 'scratch'}, 20, 'finetuned'),
    ('kd', {'teacher.checkpoint': 'runs/a'}, 20, 'finetuned'),
    ('kd', {'distillation.mutual': True}, 20, 'finetuned'),
    (
      'kd',
      {'teacher.name': 'deit_tiny_distilled_patch16_224'},
      20,
      'finetuned',
    ),
  ],
)
def test_how_a_teacher_is_fitted_where_that_is_open(
  arm, changes, smallest, expected
):
  made = settings.with_values(settings.make(arm), changes)
  done = defaults.settled(made, 200, smallest)
  assert done.teacher.fit == expected


@pytest.mark.parametrize('dataset', ['digits', 'folder:birds'])
@pytest.mark.parametrize(('of_each', 'fit'), [(20, 'probed'), (3, 'finetuned')])
def test_a_teacher_that_was_left_open_is_gone_on_with(
  dataset, of_each, fit, tmp_path, monkeypatch
):
  """The same command again, which does not know the data when it compares."""
  monkeypatch.chdir(tmp_path)
  given = defaults.settled(settings.make('compare', dataset=dataset))
  taken = defaults.for_counts(given, np.full(4, of_each))
  assert taken.teacher.fit == fit and given.teacher.fit == 'auto'
  for part in protocols.plan(taken, pathlib.Path('run')):
    part.workdir.mkdir(parents=True)
    text = json.dumps(workdirs.as_json(part.settings))
    (part.workdir / 'config.json').write_text(text)
  for again in (given, taken):
    for part in protocols.plan(again, pathlib.Path('run')):
      workdirs.check(part.workdir, part.settings)
  # When they are known it is compared.
  other = settings.with_values(taken, {'teacher.fit': 'crossfitted'})
  with pytest.raises(ValueError, match='teacher.fit'):
    for part in protocols.plan(other, pathlib.Path('run')):
      workdirs.check(part.workdir, part.settings)
