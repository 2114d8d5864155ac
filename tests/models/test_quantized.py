"""The int8 form of a network: which tensors are rounded, and their bounds."""

import jax
import numpy as np
import pytest

from tests import tiny
from tlkd_jax import models
from tlkd_jax.models import quantized
from tlkd_jax.models.functional import to_functional
from tlkd_jax.models.weights import folding
from tlkd_jax.runtime.trees import flatten

pytestmark = pytest.mark.usefixtures('tiny_models')

TINY = {
  'stem/input',
  'stem/output',
  'blocks/0/0/project/output',
  'blocks/0/0/output',
  'blocks/1/0/project/output',
  'neck/output',
  'head/input',
}


def tensors(name: str) -> set[str]:
  state = models.create_model(name, num_classes=5).model_state_shape
  assert set(state) == {'activations'}
  return set(state['activations'])


def test_a_tensor_is_rounded_once():
  """The image, behind each activation and each sum, and the mean."""
  assert tensors('tiny int8') == TINY


@pytest.mark.parametrize(
  ('name', 'some', 'none'),
  [
    # A linear convolution is rounded itself, one before ReLU6 behind it.
    (
      'efficientnet_lite0',
      {
        'blocks/1/1/expand/output',
        'blocks/1/1/depthwise/output',
        'blocks/1/1/project/conv/output',
        'blocks/1/1/output',
        'neck/output',
        'head/input',
      },
      {'blocks/1/1/expand/conv/output', 'head/output', 'stem/conv/output'},
    ),
    # What two convolutions and a sum read is rounded for all of them.
    (
      'resnet18',
      {'stages/0/0/input', 'stages/1/0/shortcut/project/conv/output'},
      {'stages/0/0/convs/0/input', 'stages/0/0/convs/0/conv/output'},
    ),
    # Hard swish is no bend: before it and after it.
    (
      'mobilenet_v3_small',
      {
        'blocks/2/0/expand/conv/output',
        'blocks/2/0/expand/output',
        'blocks/0/0/squeeze/reduce/input',
        'blocks/0/0/squeeze/output',
        'hidden/output',
      },
      {'blocks/1/0/expand/conv/output', 'blocks/0/0/squeeze/reduce/output'},
    ),
    # Fused first.
    ('mobileone_s0', {'stages/0/0/output'}, {'stages/0/0/conv/output'}),
  ],
)
def test_of_other_networks(name, some, none):
  found = tensors(f'{name} int8')
  assert some <= found
  assert not none & found


@pytest.mark.parametrize(
  ('name', 'word'),
  [
    ('tiny_vit', 'such as blocks.0'),
    ('densenet121', 'do not follow a convolution'),
    ('convnext_tiny', 'do not follow a convolution'),
    ('resnetv2_50', 'do not follow a convolution'),
    ('efficientnet_lite0', ''),
    ('squeezenet1_1', ''),
    ('vgg11_bn', ''),
  ],
)
def test_networks_whose_norms_stay_have_none(name, word):
  found = quantized.refusal(models.MODELS[name].build)
  assert word in found and bool(found) == bool(word)


def test_names():
  assert quantized.name_of('resnet18') == 'resnet18 int8'
  assert quantized.variant_of('resnet18 int8') == 'resnet18'
  assert quantized.variant_of('resnet18') is None
  with pytest.raises(ValueError, match='resnet19.*resnet18'):
    models.create_model('resnet19 int8')


def float_student(seed=0):
  """(model, params, model_state) in which no norm is the identity."""
  model = models.create_model('tiny', num_classes=5)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(np.float32)
    offset = 1.0 if name in ('scale', 'var') else 0.0
    return (offset + 0.2 * rng.uniform(size=leaf.shape)).astype(np.float32)

  shapes = model.params_shape, model.model_state_shape
  return model, *jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope='module')
def student():
  """(float student, its int8 form, images, that form's state for them)."""
  with tiny.registered():
    plain = float_student()
    whole = folding.to_int8(*plain)
  images = np.random.default_rng(2).normal(size=(8, 16, 16, 3))
  images = images.astype(np.float32)
  with quantized.calibrating():
    outputs, state = jax.jit(whole[0].apply)(*whole[1:], images)
  return plain, whole, images, jax.device_get(state), outputs


def test_before_the_rounding_it_is_the_float_student(student):
  (model, *variables), (whole, params, state), images, _, outputs = student
  assert flatten(params).keys() == flatten(whole.params_shape).keys()
  assert flatten(state).keys() == flatten(whole.model_state_shape).keys()
  assert not any('norm' in path for path in flatten(params))
  expected, _ = jax.jit(model.apply)(*variables, images)
  assert np.ptp(outputs['logits']) > 0.1
  for name in ('logits', 'pre_logits'):
    np.testing.assert_allclose(outputs[name], expected[name], atol=2e-5)


def test_bounds_are_those_of_the_tensors(student):
  *_, images, state, outputs = student
  found = state['activations']
  ends = [images.min(), images.max()]
  np.testing.assert_array_equal(found['stem/input']['bounds'], ends)
  pooled = outputs['pre_logits']
  np.testing.assert_array_equal(
    found['head/input']['bounds'], [pooled.min(), pooled.max()]
  )
  last = outputs['features']['stage1']
  np.testing.assert_array_equal(
    found['blocks/0/0/output']['bounds'], [last.min(), last.max()]
  )


def test_what_it_computes_is_on_the_grids(student):
  _, (whole, params, _), images, state, plain = student
  outputs, _ = jax.jit(whole.apply)(params, state, images)
  for stage, tensor in (
    ('stage1', 'blocks/0/0/output'),
    ('stage2', 'blocks/1/0/project/output'),
  ):
    low, high = state['activations'][tensor]['bounds']
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    steps = outputs['features'][stage] / scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert 10 < np.unique(np.rint(steps)).size <= 256
  difference = np.abs(outputs['logits'] - plain['logits'])
  assert 1e-4 < difference.max() < 0.1 * np.ptp(plain['logits'])


def test_bounds_follow_the_batches_while_steps_are_left(student):
  """And then stay, in training and evaluation alike."""
  _, (whole, params, _), images, state, _ = student
  apply = jax.jit(whole.apply)

  def with_left(count):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: np.int32(count) if path[-1].key == 'left' else x, state
    )

  _, after = apply(params, with_left(2), 3.0 * images)
  old = state['activations']['stem/input']['bounds']
  np.testing.assert_allclose(
    after['activations']['stem/input']['bounds'], 1.02 * old, rtol=1e-6
  )
  assert after['activations']['stem/input']['left'] == 1
  outputs, stayed = apply(params, with_left(0), 3.0 * images)
  jax.tree.map(np.testing.assert_array_equal, stayed, with_left(0))
  # What a batch shows is for the steps after it.
  before, _ = apply(params, with_left(2), 3.0 * images)
  np.testing.assert_array_equal(before['logits'], outputs['logits'])


def test_every_weight_learns(student):
  _, (whole, params, _), images, state, _ = student

  def value(params):
    outputs, _ = whole.apply(params, state, images)
    return (outputs['logits'] * np.arange(5.0, dtype=np.float32)[None]).sum()

  found = jax.jit(jax.grad(value))(params)
  for path, gradient in flatten(found).items():
    assert np.abs(gradient).max() > 0, path


def test_the_same_name_is_the_same_model():
  """So that its programs are compiled once."""
  first, second = (
    models.create_model('tiny int8', num_classes=5) for _ in range(2)
  )
  assert first == second
  assert to_functional.cache_info().hits
