"""A teacher's weights in parts: the same training, less on each device."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests import tiny
from tests.test_train_step import (
  KD,
  constants_of,
  make_batch,
  make_step,
  variables,
)
from tlkd_jax import models
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import with_values
from tlkd_jax.training import placing

pytestmark = pytest.mark.usefixtures('tiny_models')


@pytest.mark.parametrize(
  ('shape', 'count', 'expected'),
  [
    ((64, 128), 8, (None, 'data')),
    ((128, 64), 8, ('data',)),
    ((3, 3, 64, 64), 4, (None, None, 'data')),
    # The largest axis that divides, not the largest.
    ((1001, 64), 8, (None, 'data')),
    ((3, 3, 100, 1001), 4, (None, None, 'data')),
    ((1001, 7), 8, ()),
    ((64, 128), 1, ()),
    # Small ones are copied.
    ((8, 64), 8, ()),
    ((1024,), 8, ('data',)),
    ((), 4, ()),
    ((0, 4096), 4, ()),
  ],
)
def test_along_which_axis_an_array_is_spread(shape, count, expected):
  assert sharding.part_of(shape, count) == PartitionSpec(*expected)


@pytest.mark.parametrize(
  'name',
  ['timm/vit_tiny_patch16_224', 'resnet50', 'convnext_atto', 'swin_tiny'],
)
def test_a_device_holds_its_part(name):
  """All but what is too small to be spread; of shapes alone."""
  name = {'swin_tiny': 'timm/swin_tiny_patch4_window7_224'}.get(name, name)
  model = models.create_model(name, num_classes=10)
  whole = placing.bytes_of(model)
  leaves = jax.tree.leaves((model.params_shape, model.model_state_shape))
  assert whole == 4 * sum(leaf.size for leaf in leaves)
  for count in (2, 4, 8):
    assert whole / count <= placing.bytes_of(model, count) < 1.1 * whole / count


def bytes_on_a_device(tree) -> int:
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )


def test_in_parts_they_are_the_same_arrays(monkeypatch):
  monkeypatch.setattr(sharding, '_LEAST', 1)
  mesh = sharding.make_mesh(4)
  draw = np.random.default_rng(0)
  tree = {'a': draw.normal(size=(8, 12)), 'b': draw.normal(size=5)}
  tree = jax.tree.map(lambda x: x.astype(np.float32), tree)
  parts = sharding.in_parts(tree, mesh)
  for name, value in tree.items():
    np.testing.assert_array_equal(parts[name], value)
  assert bytes_on_a_device(parts['a']) == tree['a'].nbytes // 4
  assert bytes_on_a_device(parts['b']) == tree['b'].nbytes
  copies = sharding.place(tree, mesh, parts=False)
  assert bytes_on_a_device(copies['a']) == tree['a'].nbytes


def test_a_step_and_an_evaluation_are_the_same(monkeypatch):
  """Bitwise: the parts are gathered before they are used."""
  monkeypatch.setattr(sharding, '_LEAST', 1)
  step, create, mesh, views = make_step(**KD, devices=4)
  copies = constants_of(mesh, teacher=variables(views[1], 2))
  given = jax.device_get(copies['guides'])
  parts = copies | {'guides': sharding.in_parts(given, mesh)}
  assert bytes_on_a_device(parts) < 0.3 * bytes_on_a_device(copies)
  states, rows = [create(), create()], [[], []]
  for number in range(2):
    batch = sharding.shard_batch(make_batch(number), mesh)
    for side, constants in enumerate((copies, parts)):
      states[side], metrics = step(states[side], constants, batch)
      rows[side].append(jax.device_get(metrics))
  assert rows[0] == rows[1] and rows[0][0]['soft_loss'] > 0
  jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))
  text = step.lower(states[1], parts, batch).compile().as_text()
  assert 'all-gather' in text

  teacher = given['teacher']
  images = sharding.shard_batch({'image': make_batch()['image']}, mesh)['image']
  evaluate = make_eval_step(views[1], mesh)
  outputs = [
    evaluate(
      sharding.place(
        (teacher['params'], teacher['model_state']), mesh, parts=spread
      ),
      images,
    )
    for spread in (False, True)
  ]
  jax.tree.map(np.testing.assert_array_equal, *jax.device_get(outputs))


def loaded_of(*names):
  found = {}
  for name in names:
    model = models.create_model(tiny_name(name), num_classes=10)
    found[name] = types.SimpleNamespace(
      network=types.SimpleNamespace(model=model)
    )
  return found


def tiny_name(name):
  return 'tiny' if name == 'student' else 'tiny_teacher'


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize(
  ('arm', 'fit', 'expected'),
  [
    ('kd', 'finetuned', True),
    ('tl', 'finetuned', False),
    ('teacher', 'probed', True),
    ('teacher', 'crossfitted', True),
    # It learns.
    ('teacher', 'finetuned', False),
  ],
)
def test_when_a_network_is_spread(arm, fit, expected, devices):
  mesh = sharding.make_mesh(devices)
  teachers = {'teacher': loaded_of('teacher')['teacher'].network}
  teachers = teachers if arm == 'kd' else {}
  own = 'teacher' if arm == 'teacher' else 'student'
  learners = loaded_of(own)
  frozen = placing.bytes_of(models.create_model('tiny_teacher', num_classes=10))
  learned = placing.bytes_of(models.create_model('tiny', num_classes=10))
  needed = frozen + 4 * learned if arm == 'kd' else frozen
  base = tiny.make_config(arm, teacher__fit=fit)

  def call(kind, free):
    settings = with_values(base, {'teacher.sharding': kind})
    return placing.in_parts(settings, learners, teachers, mesh, free=free)

  several = expected and devices > 1
  assert not call('none', 1)
  assert call('model', 2**40) == several
  assert not call('auto', 2 * needed)
  assert call('auto', 2 * needed - 2) == several
  assert not call('auto', 2**40)


def test_a_run_places_its_teachers(cache_dir, compare_run, tmp_path):
  """By the settings; what is stored of them is not touched by it."""
  from tlkd_jax.training import decoding
  from tlkd_jax.training import run as run_parts

  config = tiny.make_config(
    'kd',
    cache_dir,
    teacher__checkpoint=str(compare_run / 'teacher'),
    teacher__sharding='model',
  )
  dataset = decoding.load_dataset(config)
  run = run_parts.set_up(config, tmp_path, dataset, sharding.make_mesh())
  assert run.in_parts
  held = run_parts.make_constants(run)['guides']
  whole = run_parts.make_constants(dataclasses.replace(run, in_parts=False))
  assert bytes_on_a_device(held) < bytes_on_a_device(whole['guides'])
  jax.tree.map(np.testing.assert_array_equal, held, whole['guides'])
