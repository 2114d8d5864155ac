"""Weight files through networks.load and the command line."""

import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

from tests import tiny
from tests.fixtures import fill_rule
from tlkd_jax import evaluating, models, settings
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.weights import pretrained, torch_files, twins
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import (
  checkpoints,
  decoding,
  finished,
  loop,
  networks,
)

CLASSES = ['a', 'b', 'c']


def filled(name, num_classes=10):
  """A state dict of a variant by the fill rule, its head included."""
  model = models.create_model(name, num_classes=num_classes)
  empty = {
    path: np.empty(shape, np.bool_)
    for path, (shape, _) in pretrained.leaf_table(model).items()
  }
  return {
    leaf.key: fill_rule.fill(leaf.key, leaf.to_torch(empty[path]).shape)
    for path, (_, leaf) in pretrained.leaf_table(model).items()
  }


def load(name, weights, class_names=CLASSES, **student):
  values = {'name': name, 'weights': str(weights), **student}
  config = settings.with_values(
    settings.make('tl', smoke=True),
    {f'student.{key}': value for key, value in values.items()},
  )
  return networks.load(config, 'student', class_names)


def write(path, state_dict):
  torch_files.write_safetensors(path, state_dict)
  return path


def assert_equal(got, expected, but=('head',)):
  got, expected = flatten(got), flatten(expected)
  assert got.keys() == expected.keys()
  for path, value in expected.items():
    if path.partition('.')[0] not in but:
      np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.fixture(scope='module')
def resnet18(tmp_path_factory):
  """(file of 10 classes, its variables)."""
  path = tmp_path_factory.mktemp('weights') / 'resnet18.safetensors'
  state_dict = filled('resnet18')
  model = models.create_model('resnet18', num_classes=10)
  return write(path, state_dict), pretrained.from_torch(model, state_dict)


class TestHead:
  def test_a_new_head_is_zero_and_the_rest_is_the_file(self, resnet18):
    path, (params, model_state) = resnet18
    loaded = load('resnet18', path)
    assert loaded.params['head']['kernel'].shape == (512, 3)
    assert not np.any(loaded.params['head']['kernel'])
    assert_equal(loaded.params, params)
    assert_equal(loaded.model_state, model_state)

  def test_a_small_random_head_follows_the_seed(self, resnet18):
    path, (params, _) = resnet18
    loaded = load('resnet18', path, head_init='small_random')
    kernel = loaded.params['head']['kernel']
    assert 0.005 < kernel.std() < 0.02
    assert_equal(loaded.params, params)
    again = load('resnet18', path, head_init='small_random')
    np.testing.assert_array_equal(again.params['head']['kernel'], kernel)

  def test_keep_keeps_it(self, resnet18):
    path, (params, _) = resnet18
    names = [str(i) for i in range(10)]
    loaded = load('resnet18', path, names, head='keep')
    assert_equal(loaded.params, params, but=())

  def test_another_class_count_cannot_be_kept(self, resnet18):
    with pytest.raises(ValueError, match='10 classes where 3 are needed'):
      load('resnet18', resnet18[0], head='keep')

  def test_a_file_without_a_head(self, resnet18, tmp_path):
    state_dict = torch_files.read_state_dict(resnet18[0])
    headless = {k: v for k, v in state_dict.items() if not k.startswith('fc.')}
    path = write(tmp_path / 'headless.safetensors', headless)
    assert_equal(load('resnet18', path).params, resnet18[1][0])
    with pytest.raises(ValueError, match='no head to keep'):
      load('resnet18', path, head='keep')

  def test_from_scratch_there_is_no_head_to_keep(self):
    with pytest.raises(ValueError, match="student.head is 'keep'"):
      load('resnet18', 'scratch', head='keep')

  @pytest.mark.parametrize(
    ('key', 'value', 'near'),
    [('head', 'keap', 'keep'), ('head_init', 'zeros', 'zero')],
  )
  def test_other_words_are_refused(self, key, value, near, resnet18):
    with pytest.raises(ValueError, match=f"{value}'.*{near}"):
      load('resnet18', resnet18[0], **{key: value})


class TestTwins:
  def test_the_lite_keys_are_those_of_the_published_table(self, shared_dir):
    path = shared_dir / 'fixtures' / 'parity' / 'lite_to_timm_keys.json'
    for suffix, table in json.loads(path.read_text()).items():
      model = models.create_model(f'efficientnet_{suffix}')
      timm = models.create_model(f'timm/tf_efficientnet_{suffix}')
      leaves = list(pretrained.leaf_table(model).values())
      # Every entry holds its own number instead of values.
      ours = {
        leaf.key: leaf.to_torch(np.full(shape, i, np.int16))
        for i, (shape, leaf) in enumerate(leaves)
      }
      renamed = twins.rename(model, timm, ours)
      pairs = {
        leaves[value.flat[0]][1].key: key for key, value in renamed.items()
      }
      expected = {
        ours: theirs
        for ours, theirs in table.items()
        if not ours.endswith('num_batches_tracked')
      }
      assert pairs == expected

  @pytest.mark.parametrize(
    ('name', 'twin'),
    [
      ('efficientnet_lite0', 'timm/tf_efficientnet_lite0'),
      ('timm/tf_efficientnet_lite0', 'efficientnet_lite0'),
      ('mobilenet_v2', 'timm/mobilenetv2_100'),
      ('timm/mobilenetv2_100', 'torchvision/mobilenet_v2'),
    ],
  )
  def test_a_twins_file_is_read(self, name, twin, tmp_path):
    state_dict = filled(twin)
    model = models.create_model(twin, num_classes=10)
    params, model_state = pretrained.from_torch(model, state_dict)
    path = write(tmp_path / 'twin.safetensors', state_dict)
    names = [str(i) for i in range(10)]
    loaded = load(name, path, names, head='keep')
    assert_equal(loaded.params, params, but=())
    assert_equal(loaded.model_state, model_state)

  def test_rename_there_and_back_is_the_same_file(self):
    source = models.create_model('torchvision/convnext_tiny')
    target = models.create_model('timm/convnext_tiny')
    state_dict = filled('torchvision/convnext_tiny', 1000)
    there = twins.rename(source, target, state_dict)
    back = twins.rename(target, source, there)
    assert back.keys() == state_dict.keys() and there.keys() != back.keys()
    for key, value in state_dict.items():
      np.testing.assert_array_equal(back[key], value)

  @pytest.mark.parametrize('name', twins.TIMM_TWINS)
  def test_twins_are_one_network(self, name):
    ours = models.MODELS[name].build
    theirs = models.MODELS[twins.TIMM_TWINS[name]].build
    assert ours.func is theirs.func
    # The momentum of statistics is no part of the function.
    a, b = (
      {**vars(build.args[0]), 'momentum': None, 'dropout': None}
      for build in (ours, theirs)
    )
    assert a == b and ours.keywords == theirs.keywords

  def test_names(self):
    assert twins.full_name('resnet18') == 'torchvision/resnet18'
    assert twins.full_name('vit_tiny_patch16_224').startswith('timm/')
    assert twins.full_name('efficientnet_lite0') == 'efficientnet_lite0'
    assert twins.timm_name('mobilenet_v2') == 'timm/mobilenetv2_100'
    assert twins.timm_name('efficientnet_v2_s') is None
    assert twins.of('efficientnet_v2_s') == []
    assert twins.of('timm/resnet18') == ['torchvision/resnet18']


def test_half_precision_files_are_trained_in_float32(resnet18, tmp_path):
  halves = {
    key: value.astype(np.float16)
    for key, value in torch_files.read_state_dict(resnet18[0]).items()
  }
  loaded = load('resnet18', write(tmp_path / 'half.safetensors', halves))
  assert {x.dtype.name for x in jax.tree.leaves(loaded.params)} == {'float32'}
  assert {x.dtype.name for x in jax.tree.leaves(loaded.model_state)} == {
    'float32'
  }


# --- Bad checkpoints: each is one error that names the file ---


def _truncated(path, good):
  path.write_bytes(good.read_bytes()[:-1000])


def _nan(path, good):
  state_dict = torch_files.read_state_dict(good)
  state_dict['layer1.0.conv1.weight'][0, 0, 0, 0] = np.nan
  write(path, state_dict)


def _other_architecture(path, good):
  write(path, filled('timm/mobilenetv2_050'))


def _other_depth(path, good):
  write(path, filled('resnet34'))


def _other_shape(path, good):
  state_dict = torch_files.read_state_dict(good)
  state_dict['layer1.0.conv1.weight'] = np.zeros((64, 64, 1, 1), np.float32)
  write(path, state_dict)


def _integers(path, good):
  state_dict = torch_files.read_state_dict(good)
  state_dict['bn1.weight'] = np.ones(64, np.int32)
  write(path, state_dict)


class _Hostile:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path.with_name('harm')),)


def _hostile_pickle(path, good):
  path.write_bytes(pickle.dumps(_Hostile(path), protocol=2))


def _hostile_archive(path, good):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', pickle.dumps(_Hostile(path), protocol=2))


def _zip_bomb(path, good):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a/data.pkl', bytes(50 << 20))


def _web_page(path, good):
  path.write_text('<!DOCTYPE html><html>404</html>')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_truncated, 'safetensors cannot read it'),
    (_nan, 'layer1.0.conv1.weight has 1 values .* that are NaN'),
    (_other_architecture, 'not those of resnet18.*missing: .*unexpected: '),
    (_other_depth, r'not those of resnet18: \d+ unexpected: '),
    (_other_shape, r'layer1.0.conv1.weight: shape \(64, 64, 1, 1\), expected'),
    (_integers, 'bn1.weight: dtype int32, expected a float'),
    (_hostile_pickle, 'mkdir'),
    (_hostile_archive, 'mkdir'),
    (_zip_bomb, 'compressed'),
    (_web_page, 'an HTML'),
  ],
)
def test_a_bad_checkpoint_is_one_error(damage, message, resnet18, tmp_path):
  path = tmp_path / 'bad.safetensors'
  damage(path, resnet18[0])
  with pytest.raises(ValueError, match=message) as caught:
    load('resnet18', path)
  assert str(caught.value).startswith(str(path))
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'harm').exists()


@pytest.fixture
def larger(tiny_models, tmp_path_factory):
  """tiny_vit with positions for images of 24 px, where it has 16 px."""
  state_dict = filled('tiny_vit')
  position = np.random.default_rng(0).normal(size=(1, 1 + 36, 8))
  state_dict['pos_embed'] = position.astype(np.float32)
  path = tmp_path_factory.mktemp('weights') / 'larger.safetensors'
  return write(path, state_dict)


@pytest.mark.parametrize('arm', ['tl', 'teacher'])
def test_a_run_keeps_the_positions_of_its_file(
  arm, larger, cache_dir, tmp_path
):
  """They are checkpointed and restored, and start and teach other runs."""
  role = 'student' if arm == 'tl' else 'teacher'
  changes = {f'{role}__name': 'tiny_vit', f'{role}__weights': str(larger)}
  config = tiny.make_config(arm, cache_dir, image_size=24, **changes)
  dataset = decoding.load_dataset(config)
  loop.fine_tune(config, tmp_path, dataset, sharding.make_mesh(1))
  place = str(tmp_path)
  description = checkpoints.read_description(place)
  assert description.positions == 1 + 36
  stored = finished.restore(place, description)
  assert stored.params['position'].shape == (1, 1 + 36, 8)
  model = models.create_model('tiny_vit', num_classes=10)
  names = description.class_names
  again, params, _ = finished.read_as(place, model, names)
  assert again.params_shape['position'].shape == (1, 1 + 36, 8)
  assert_equal(params, stored.params, ())
  before = evaluate.load(tmp_path / 'predictions' / 'test.npz')
  evaluating.evaluate_run(place, sharding.make_mesh(1))
  after = evaluate.load(tmp_path / 'predictions' / 'test.npz')
  np.testing.assert_array_equal(before.logits, after.logits)
  if arm == 'teacher':
    changes = {'teacher__name': 'tiny_vit', 'teacher__checkpoint': place}
    config = tiny.make_config('kd', cache_dir, image_size=24, **changes)
    (teacher,) = networks.load_teachers(config, names).values()
    assert_equal(teacher.params, stored.params, ())


def test_a_missing_file():
  with pytest.raises(FileNotFoundError, match='nowhere.pth'):
    load('resnet18', 'nowhere.pth')


# --- The configuration argument and the command ---


@pytest.mark.parametrize(
  ('arg', 'student', 'teacher'),
  [
    ('smoke', 'efficientnet_lite0', 'efficientnet_lite0'),
    ('smoke,student=resnet18', 'resnet18', 'resnet18'),
    (
      'teacher=resnet50,student=mobilenet_v2,smoke',
      'mobilenet_v2',
      'resnet50',
    ),
    ('', 'efficientnet_lite0', 'efficientnet_lite2'),
    ('teacher=resnet18', 'efficientnet_lite0', 'resnet18'),
  ],
)
def test_a_given_teacher_stays_in_a_smoke_run(arg, student, teacher):
  config = settings.config_of('kd', arg)
  assert (config.student.name, config.teacher.name) == (student, teacher)


def run_kd(start_main, cache_dir, tmp_path, teacher, student, *more, arg=''):
  """Runs TL+KD from files by the fill rule; returns the finished process."""
  files = {
    role: write(tmp_path / f'{role}.safetensors', filled(name))
    for role, name in (('teacher', teacher), ('student', student))
  }
  process = start_main(
    f'--config=configs/kd.py:teacher={teacher},student={student},smoke{arg}',
    f'--config.teacher.weights={files["teacher"]}',
    f'--config.student.weights={files["student"]}',
    f'--config.data.cache_dir={cache_dir}',
    f'--workdir={tmp_path / "run"}',
    *more,
  )
  output, errors = process.communicate(timeout=1500)
  assert process.returncode == 0, errors
  return output, errors, files


def test_the_command_starts_from_files(start_main, cache_dir, tmp_path):
  with tiny.registered():
    output, errors, files = run_kd(
      start_main,
      cache_dir,
      tmp_path,
      'tiny_teacher',
      'tiny',
      '--config.image_size=16',
    )
  assert 'TL+KD' in output
  for role, path in files.items():
    assert f'from {path}' in errors, role


@pytest.mark.slow
def test_the_command_with_resnet50_and_mobilenet(
  start_main, cache_dir, tmp_path
):
  output, _, _ = run_kd(
    start_main, cache_dir, tmp_path, 'resnet50', 'mobilenet_v2'
  )
  assert 'TL+KD' in output


@pytest.mark.slow
@pytest.mark.parametrize(
  'more',
  [
    ['--config.teacher.fit=probed'],
    ['--config.teacher.fit=crossfitted'],
    [
      '--config.teacher.fit=probed',
      '--config.distillation.unlabelled=rest',
      '--config.distillation.pretrain_steps=4',
      '--config.distillation.pretrain_options.embedding=class',
    ],
  ],
  ids=['probed', 'crossfitted', 'embeddings first'],
)
def test_the_command_with_a_foundation_model_and_a_mobile_student(
  start_main, cache_dir, tmp_path, more
):
  output, errors, _ = run_kd(
    start_main,
    cache_dir,
    tmp_path,
    'timm/vit_small_patch14_dinov2',
    'timm/mobilenetv4_conv_small',
    '--config.image_size=32',
    '--config.teacher.probe_folds=3',
    *more,
    arg=',pretrain=cosine' * (len(more) > 1),
  )
  assert 'TL+KD' in output
  assert 'teacher sees 28 px' in errors
  stages = {path.parent.name for path in tmp_path.glob('run/*/summary.json')}
  assert stages == {'teacher', *['pretrain'] * (len(more) > 1)}
