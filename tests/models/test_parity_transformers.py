import fnmatch
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fixtures import fill_rule
from tests.marks import slow
from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.layers.positions import resize_position
from tlkd_jax.models.layers.rngs import Rngs
from tlkd_jax.models.weights import pretrained

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'

# Fixture file -> the name it has here.
CASES = {
  'timm__convnext_tiny': 'timm/convnext_tiny',
  'torchvision__convnext_tiny': 'torchvision/convnext_tiny',
  'timm__vit_tiny_patch16_224': 'timm/vit_tiny_patch16_224',
  'timm__vit_tiny_patch16_224@64x96': 'timm/vit_tiny_patch16_224',
  'timm__deit_tiny_distilled_patch16_224': (
    'timm/deit_tiny_distilled_patch16_224'
  ),
  'timm__deit3_small_patch16_224': 'timm/deit3_small_patch16_224',
}
LARGE = {'torchvision__vit_b_16': 'torchvision/vit_b_16'}

# Modules of the reference whose output is the end of one of our stages.
STAGES = {
  'timm__convnext_tiny': [f'stages.{i}' for i in range(4)],
  'torchvision__convnext_tiny': [f'features.{i}' for i in (1, 3, 5, 7)],
}

# A 4 x 4 grid of n ** 2 % 7 in 3 x 5, by torch.nn.functional.interpolate of
# torch 2 in float64, mode 'bicubic', neither antialiased nor align_corners.
RESAMPLED = [
  [0.235984, 0.882459, 2.772569, 3.26318, 1.564405],
  [1.214508, 4.029883, 3.327148, 0.918773, 0.875875],
  [3.680966, 2.146621, 0.586661, 0.424041, 1.231327],
]

# Variants of one structure, under different keys, are compiled once.
FORWARD = {}


def path_of(fixture):
  return FIXTURES / 'parity' / f'{fixture}.npz'


@functools.cache
def outputs64(name, fixture):
  """Everything the model returns in float64."""
  meta, state_dict, _ = parity.load(path_of(fixture))
  model = models.create_model(name)
  params, model_state = pretrained.from_torch(model, state_dict)
  with jax.enable_x64(True):
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    images = cast(fill_rule.make_input(*meta['input_hw']))
    apply = FORWARD.setdefault(
      model.graphdef, jax.jit(lambda p, x: model.apply(p, model_state, x)[0])
    )
    return jax.tree.map(np.asarray, apply(cast(params), images))


@pytest.mark.parametrize('fixture', CASES)
def test_logits_and_pooled_features_match_the_reference_in_float64(fixture):
  arrays = parity.load(path_of(fixture))[2]
  ours = outputs64(CASES[fixture], fixture)
  reference = arrays['logits64']
  error = np.abs(ours['logits'] - reference).max() / reference.std()
  assert error < 1e-6
  if 'features' in arrays:  # float32
    np.testing.assert_allclose(
      ours['pre_logits'], arrays['features'], atol=2e-5
    )


@pytest.mark.parametrize('fixture', STAGES)
def test_stages_end_where_those_of_the_reference_end(fixture):
  arrays = parity.load(path_of(fixture))[2]
  ours = outputs64(CASES[fixture], fixture)['features']
  assert list(ours) == ['stage1', 'stage2', 'stage3', 'stage4']
  for value, module in zip(ours.values(), STAGES[fixture], strict=True):
    reference = arrays[f'stage/{module}']
    np.testing.assert_allclose(value.mean((1, 2)), reference, atol=2e-5)


# The others share these models' computation.
@pytest.mark.parametrize(
  'fixture',
  [
    'timm__vit_tiny_patch16_224',
    *slow(
      'timm__convnext_tiny',
      'timm__deit_tiny_distilled_patch16_224',
      'timm__deit3_small_patch16_224',
    ),
  ],
)
def test_logits_match_the_reference_in_float32(fixture):
  error = parity.logits_error(CASES[fixture], path_of(fixture), x64=False)
  assert error < 5e-5


@pytest.mark.parametrize('fixture', CASES)
def test_weights_survive_the_round_trip(fixture):
  parity.assert_round_trip(CASES[fixture], path_of(fixture))


@pytest.mark.slow
@pytest.mark.parametrize('fixture', LARGE)
def test_large_models_match_the_reference(fixture):
  name, path = LARGE[fixture], path_of(fixture)
  assert parity.logits_error(name, path, x64=True) < 1e-6
  assert parity.logits_error(name, path, x64=False) < 5e-5
  parity.assert_round_trip(name, path)


def test_training_gradients_match_the_reference():
  name = 'timm__vit_tiny_patch16_224'
  _, state_dict, _ = parity.load(path_of(name))
  with np.load(FIXTURES / 'parity_train' / f'{name}.npz') as archive:
    expected = dict(archive)
  meta = json.loads(str(expected['meta']))
  model = models.create_model('timm/vit_tiny_patch16_224')
  params, model_state = pretrained.from_torch(model, state_dict)

  def loss_of(params, images):
    outputs, _ = model.apply(
      params, model_state, images, train=True, norm_train=True
    )
    log_p = jax.nn.log_softmax(outputs['logits'])
    return -jnp.mean(log_p[jnp.arange(2), jnp.asarray(meta['labels'])])

  with jax.enable_x64(True):
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    images = cast(fill_rule.make_input(*meta['input_hw']))
    loss, grads = jax.jit(jax.value_and_grad(loss_of))(cast(params), images)
    loss = float(loss)
  grads = pretrained.to_torch(model, grads, model_state)
  assert abs(loss - expected['loss']) < 1e-9 * expected['loss']
  names = json.loads(str(expected['param_names']))
  assert set(names) == set(grads)
  norms = [np.linalg.norm(grads[n]) for n in names]
  np.testing.assert_allclose(norms, expected['grad_norm'], rtol=1e-8)
  sums = [grads[n].sum() for n in names]
  np.testing.assert_allclose(sums, expected['grad_sum'], atol=1e-9)


def test_vit_features_are_the_patch_grid_at_each_quarter():
  ours = outputs64(
    'timm/vit_tiny_patch16_224', 'timm__vit_tiny_patch16_224@64x96'
  )
  shapes = {k: v.shape for k, v in ours['features'].items()}
  assert shapes == {f'stage{i}': (2, 4, 6, 192) for i in (1, 2, 3, 4)}


def test_vit_refuses_images_that_do_not_split_into_patches():
  model = models.create_model('timm/vit_tiny_patch16_224')
  images = jax.ShapeDtypeStruct((1, 64, 100, 3), jnp.float32)
  with pytest.raises(ValueError, match='64 x 100 pixels.* multiples of 16'):
    jax.eval_shape(model.apply, model.params_shape, {}, images)


@pytest.mark.parametrize('name', ['convnext_atto', 'deit3_small_patch16_224'])
def test_bfloat16_images_give_bfloat16_features(name):
  model = models.create_model(name, num_classes=7, in_channels=4)
  images = jax.ShapeDtypeStruct((2, 64, 32, 4), jnp.bfloat16)
  outputs, _ = jax.eval_shape(model.apply, model.params_shape, {}, images)
  assert outputs['logits'].shape == (2, 7)
  assert outputs['logits'].dtype == jnp.float32
  for value in outputs['features'].values():
    assert value.dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['convnext_atto', 'vit_tiny_patch16_224'])
def test_drop_path_rises_linearly_with_depth(name):
  spec = models.MODELS[name]
  module = nnx.eval_shape(lambda: spec.build(5, drop_path=0.3, rngs=Rngs(None)))
  blocks = [
    block
    for group in (module.stages if name == 'convnext_atto' else [module.blocks])
    for block in group
  ]
  rates = [block.rate for block in blocks]
  assert len(rates) == 12
  np.testing.assert_allclose(rates, np.linspace(0, 0.3, 12))


class TestResizePosition:
  def position(self, side, prefix=1):
    values = np.random.default_rng(0).normal(size=(1, prefix + side**2, 3))
    return values.astype(np.float32)

  def test_native_grid_is_returned_as_it_is(self):
    position = self.position(14)
    assert resize_position(position, (14, 14), 1) is position

  @pytest.mark.parametrize('grid', [(3, 5), (20, 9)])
  def test_agrees_with_antialiased_cubic_resizing(self, grid):
    position = self.position(8, prefix=2)
    ours = resize_position(position, grid, 2)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
    expected = jax.image.resize(
      position[0, 2:].reshape(8, 8, 3), (*grid, 3), 'cubic', antialias=True
    )
    np.testing.assert_array_equal(ours[:, :2], position[:, :2])
    np.testing.assert_allclose(
      ours[0, 2:].reshape(*grid, 3), expected, atol=1e-5
    )

  def test_agrees_with_the_plain_filter_of_torch(self):
    position = np.arange(16.0).reshape(1, 16, 1) ** 2 % 7
    ours = resize_position(position, (3, 5), 0, 'plain_cubic')
    expected = np.reshape(RESAMPLED, (1, 15, 1))
    np.testing.assert_allclose(ours, expected, atol=1e-6)

  @pytest.mark.parametrize(
    ('pattern', 'filter'),
    [
      ('transformers/vit_*', 'plain_cubic'),
      ('transformers/deit_*', 'plain_cubic'),
      # A twin of timm's.
      ('torchvision/vit_*', 'cubic'),
      ('timm/vit_*_patch16_224', 'cubic'),
    ],
  )
  def test_a_variant_resamples_as_its_library_does(self, pattern, filter):
    names = fnmatch.filter(models.MODELS, pattern)
    filters = {models.MODELS[name].build.args[0].filter for name in names}
    assert filters == {filter}

  def test_a_grid_that_is_not_square_is_refused(self):
    with pytest.raises(ValueError, match='198 position embeddings'):
      resize_position(np.zeros((1, 198, 4)), (7, 7), 1)
