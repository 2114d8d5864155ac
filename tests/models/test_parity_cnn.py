"""MobileNetV4, BiT and further convolutional families; MLP-Mixer."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fixtures import fill_rule
from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.describe import describe
from tlkd_jax.models.families import ghostnetv2, resnetv2, squeezenet
from tlkd_jax.models.functional import to_functional
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.models.layers.rngs import Rngs
from tlkd_jax.models.spec import ModelSpec
from tlkd_jax.models.weights import folding, pretrained
from tlkd_jax.runtime.trees import flatten

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'


def numbered(form, numbers):
  return [form.format(number) for number in numbers]


# Fixture -> modules of the reference whose output is the end of our stages.
STAGES = {
  'timm__efficientvit_b0': numbered('stages.{}', range(4)),
  'timm__ghostnetv2_100': numbered('blocks.{}', range(9)),
  'timm__lcnet_050': numbered('blocks.{}', range(6)),
  'timm__mixer_s32_224': numbered('blocks.{}', (1, 3, 5, 7)),
  'timm__mobilenetv4_conv_small': numbered('blocks.{}', range(4)),
  'timm__mobilenetv4_hybrid_medium': numbered('blocks.{}', range(4)),
  'timm__resnetv2_50x1_bit': numbered('stages.{}', range(4)),
  'timm__seresnet50': numbered('layer{}', range(1, 5)),
  'torchvision__shufflenet_v2_x1_0': numbered('stage{}', range(2, 5)),
  'torchvision__squeezenet1_1': numbered('features.{}', (4, 7, 12)),
}
# Of a structure that is there already; the slow tests alone compile them.
FURTHER = {
  'timm__mobilenetv4_conv_medium': numbered('blocks.{}', range(4)),
  'timm__resnetv2_50': numbered('stages.{}', range(4)),
}
# Of blocks so much alike that each once compiles faster than the whole.
BY_BLOCKS = {'timm/seresnet50'}
# In the BiT ones torch itself differs by up to 2.3e-4 with the number of its
# threads.
FLOAT32 = {'timm__resnetv2_50x1_bit': 1e-3}


def name_of(fixture: str) -> str:
  return fixture.partition('@')[0].replace('__', '/')


def check_float64(fixture: str, path: pathlib.Path, modules: list[str]) -> None:
  """Logits, pooled features and the means of feature maps."""
  name = name_of(fixture)
  options = {'x64': True, 'by_blocks': name in BY_BLOCKS}
  assert parity.logits_error(name, path, **options) < 1e-6
  outputs = parity.outputs(name, path, **options)
  reference = parity.load(path)[2]
  # The reference computed these in float32.
  limit = FLOAT32.get(fixture, 5e-5)
  assert parity.error(outputs['pre_logits'], reference['features']) < limit
  assert tuple(outputs['features']) == models.MODELS[name].stages
  for (stage, mean), module in zip(
    outputs['features'].items(), modules, strict=True
  ):
    assert parity.error(mean, reference[f'stage/{module}']) < limit, stage


@pytest.mark.parametrize('fixture', STAGES)
def test_logits_and_features_match_the_reference_in_float64(fixture):
  check_float64(fixture, FIXTURES / f'{fixture}.npz', STAGES[fixture])


@pytest.mark.slow
@pytest.mark.parametrize('fixture', FURTHER)
def test_further_sizes_match_the_reference_in_float64(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  check_float64(fixture, path, FURTHER[fixture])


@pytest.mark.slow
@pytest.mark.parametrize('fixture', [*STAGES, *FURTHER])
def test_logits_match_the_reference_in_float32(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  found = parity.logits_error(name_of(fixture), path, x64=False)
  assert found < FLOAT32.get(fixture, 5e-5)


@pytest.mark.parametrize('fixture', STAGES)
def test_weights_survive_the_round_trip(fixture):
  parity.assert_round_trip(name_of(fixture), FIXTURES / f'{fixture}.npz')


@pytest.mark.slow
@pytest.mark.parametrize('fixture', FURTHER)
def test_further_weights_survive_the_round_trip(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  parity.assert_round_trip(name_of(fixture), path)


@pytest.mark.slow
@pytest.mark.parametrize('fixture', [*STAGES, *FURTHER])
def test_macs_are_those_of_the_reference(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  meta = parity.load(path)[0]
  figures = describe(name_of(fixture), tuple(meta['input_hw']))
  assert figures.parameters == meta['params']
  # The reference sums keys by a product with ones.
  ones = {'timm__efficientvit_b0': 12288}.get(fixture, 0)
  found = figures.macs + figures.attention_macs + ones
  assert found == meta['macs_per_image']


# As published: in torchvision's documentation, or in timm's table of results,
# there to 10,000.
PARAMETERS = {
  'timm/efficientvit_b1': 9_100_000,
  'timm/efficientvit_b2': 24_330_000,
  'timm/efficientvit_b3': 48_650_000,
  'timm/ghostnetv2_130': 8_960_000,
  'timm/ghostnetv2_160': 12_390_000,
  'timm/lcnet_075': 2_360_000,
  'timm/lcnet_100': 2_950_000,
  'timm/mixer_b16_224': 59_880_000,
  'timm/mixer_l16_224': 208_200_000,
  'timm/mobilenetv4_conv_large': 32_590_000,
  'timm/mobilenetv4_conv_small_050': 2_240_000,
  'timm/mobilenetv4_hybrid_large': 37_760_000,
  'timm/resnetv2_101': 44_540_000,
  'timm/resnetv2_101x1_bit': 44_540_000,
  'timm/resnetv2_101x3_bit': 387_930_000,
  'timm/resnetv2_152x2_bit': 236_340_000,
  'timm/resnetv2_50x3_bit': 217_320_000,
  'timm/seresnet152d': 66_840_000,
  'timm/seresnext101_32x4d': 48_960_000,
  'timm/seresnext101_32x8d': 93_570_000,
  'timm/seresnext101_64x4d': 88_230_000,
  'timm/seresnext101d_32x8d': 93_590_000,
  'timm/seresnext26d_32x4d': 16_810_000,
  'timm/seresnext26t_32x4d': 16_810_000,
  'timm/seresnext50_32x4d': 27_560_000,
  'torchvision/shufflenet_v2_x0_5': 1_366_792,
  'torchvision/shufflenet_v2_x1_5': 3_503_624,
  'torchvision/shufflenet_v2_x2_0': 7_393_996,
  'torchvision/squeezenet1_0': 1_248_424,
}


@pytest.mark.slow
@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_are_as_many_as_published(name):
  model = models.create_model(name)
  found = pretrained.count_params(model.params_shape)
  exact = name.startswith('torchvision/')
  assert abs(found - PARAMETERS[name]) <= (0 if exact else 5_000)


# The others are of convolutions and gates that test_layers.py has.
OWN_LAYERS = {
  'timm__efficientvit_b0',
  'timm__mixer_s32_224',
  'timm__mobilenetv4_hybrid_medium',
  'timm__resnetv2_50x1_bit',
  'torchvision__squeezenet1_1',
}


@pytest.mark.parametrize(
  'fixture',
  [
    pytest.param(name, marks=() if name in OWN_LAYERS else pytest.mark.slow)
    for name in STAGES
  ],
)
def test_bfloat16_images_give_bfloat16_features(fixture):
  model = models.create_model(name_of(fixture), num_classes=5)
  side = 224 if model.spec.fixed_size else 64
  outputs, _ = jax.eval_shape(
    model.apply,
    model.params_shape,
    model.model_state_shape,
    jax.ShapeDtypeStruct((1, side, side, 3), jnp.bfloat16),
  )
  assert outputs['logits'].dtype == jnp.float32
  assert outputs['pre_logits'].dtype == jnp.bfloat16
  for stage, value in outputs['features'].items():
    assert value.dtype == jnp.bfloat16, stage


@pytest.mark.slow
@pytest.mark.parametrize('fixture', STAGES)
def test_the_loss_falls_in_twenty_steps(fixture):
  """With BatchNorm's running statistics, from the reference's weights."""
  _, state_dict, _ = parity.load(FIXTURES / f'{fixture}.npz')
  model = models.create_model(name_of(fixture), num_classes=4)
  params, model_state = pretrained.from_torch(
    model, state_dict, reset_head=True
  )
  if model.spec.rectified:
    params['head']['bias'] += 0.1
  side = 224 if model.spec.fixed_size else 64
  images = fill_rule.make_input(side, side, n=4)
  labels = np.arange(4)
  optimizer = optax.adam(1e-3)

  def loss_of(params):
    outputs, _ = model.apply(
      params, model_state, images, train=True, key=jax.random.key(0)
    )
    log_probs = jax.nn.log_softmax(outputs['logits'])
    return -log_probs[jnp.arange(4), labels].mean()

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss, grads

  state = optimizer.init(params)
  losses = []
  for _ in range(20):
    params, state, loss, grads = step(params, state)
    losses.append(float(loss))
  assert np.isfinite(losses).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert losses[-1] < 0.5 * losses[0], losses


# --- Parts ---


def test_a_window_that_is_not_square_keeps_the_size():
  conv = layers.Conv(2, 3, (1, 5), rngs=Rngs(jax.random.key(0)))
  assert conv.kernel.shape == (1, 5, 2, 3)
  x = np.random.default_rng(0).normal(size=(1, 4, 7, 2)).astype(np.float32)
  y = conv(jnp.asarray(x))
  padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (0, 0)))
  kernel = np.asarray(conv.kernel[...])[0]
  expected = sum(padded[:, :, i : i + 7] @ kernel[i] for i in range(5))
  np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize('window', [(1, 5), (5, 1)])
def test_gradients_of_depthwise_windows_that_are_not_square(window):
  conv = layers.Conv(6, 6, window, groups=6, rngs=Rngs(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(0), (2, 4, 7, 6))

  def total(x, kernel):
    return jnp.square(conv.convolve(x, kernel, None)).sum()

  def gradients():
    # A new function each time: a cached trace would ignore the context.
    return jax.jit(jax.grad(functools.partial(total), (0, 1)))(
      x, conv.kernel[...]
    )

  ours = gradients()
  with lax_convolutions():
    expected = gradients()
  for found, value in zip(ours, expected, strict=True):
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('old', [1, 2, 3, 7, 28])
@pytest.mark.parametrize('odd', [0, 1])
def test_a_doubled_map_takes_the_pixel_at_the_floor(old, odd):
  new = 2 * old + odd
  x = np.arange(old, dtype=np.float32).reshape(1, 1, old, 1)
  double = jax.jit(ghostnetv2.double, static_argnums=1)
  found = np.asarray(double(x, (2, new)))[0, :, :, 0]
  expected = [i * old // new for i in range(new)]
  np.testing.assert_array_equal(found, [expected] * 2)


def test_standardised_kernels_do_not_depend_on_scale_and_mean():
  conv = resnetv2.StandardConv(4, 3, 3, rngs=Rngs(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(0), (1, 5, 5, 4))
  first = conv(x)
  conv.kernel[...] = 7.0 * conv.kernel[...] + 2.0
  np.testing.assert_allclose(conv(x), first, atol=1e-4)


def test_group_norm_is_that_of_its_formula():
  rng = np.random.default_rng(0)
  norm = resnetv2.GroupNorm(64)
  norm.scale[...] = jnp.asarray(rng.normal(1, 0.1, 64), jnp.float32)
  norm.bias[...] = jnp.asarray(rng.normal(0, 1, 64), jnp.float32)
  x = rng.normal(5, 2, (2, 3, 4, 64)).astype(np.float32)
  groups = x.astype(np.float64).reshape(2, 12, 32, 2)
  mean, var = (f(groups, (1, 3), keepdims=True) for f in (np.mean, np.var))
  expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
  np.testing.assert_allclose(norm(x, layers.EVAL), expected, atol=1e-4)


@pytest.mark.parametrize('size, pooled', [(7, 3), (8, 4), (9, 4)])
def test_the_last_window_may_hang_over_the_edge(size, pooled):
  x = -1.0 - np.arange(size, dtype=np.float32).reshape(1, 1, size, 1)
  x = np.broadcast_to(x, (1, 3, size, 1))
  y = squeezenet._pool(jnp.asarray(x))
  assert y.shape == (1, 1, pooled, 1)
  np.testing.assert_array_equal(y[0, 0, :, 0], -1.0 - 2 * np.arange(pooled))


@pytest.mark.parametrize('side', [128, 256])
def test_a_mixer_of_another_size_is_a_message(side):
  model = models.create_model('timm/mixer_s32_224')
  images = jax.ShapeDtypeStruct((1, side, 224, 3), jnp.float32)
  with pytest.raises(ValueError, match=rf'224 x 224 pixels, not of {side}'):
    jax.eval_shape(model.apply, model.params_shape, {}, images)


@pytest.mark.parametrize(
  'name', ['lcnet_050', 'shufflenet_v2_x0_5', 'squeezenet1_1']
)
def test_drop_path_without_residual_branches_is_an_error(name):
  with pytest.raises(ValueError, match='no residual branch'):
    models.create_model(name, drop_path=0.1)


def pre_activated(**options):
  design = resnetv2.Design((1, 1, 1, 1), **options)
  build = functools.partial(resnetv2.ResNetV2, design)
  return to_functional('tiny', ModelSpec(build, 32, dict), 5)


def test_norms_behind_convolutions_of_a_pre_activated_block_are_folded():
  model = pre_activated()
  rng = np.random.default_rng(0)

  def draw(low, high):
    return lambda x: rng.uniform(low, high, x.shape).astype(np.float32)

  params = jax.tree.map(draw(-0.1, 0.1), model.params_shape)
  model_state = jax.tree.map(draw(0.5, 1.5), model.model_state_shape)
  folded, less, state = folding.fold_norms(model, params, model_state)
  # Of each block the first norm stays, and the last of all.
  assert len(flatten(model_state)) == 2 * 13
  assert len(flatten(state)) == 2 * 5
  images = jnp.asarray(fill_rule.make_input(32, 32))
  expected = jax.jit(model.apply)(params, model_state, images)[0]['logits']
  found = jax.jit(folded.apply)(less, state, images)[0]['logits']
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_big_transfer_has_nothing_to_fold():
  model = pre_activated(big_transfer=True)
  with pytest.raises(ValueError, match='no BatchNorm after a convolution'):
    folding.fold_norms(model, model.params_shape, {})
