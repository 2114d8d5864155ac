"""The embeddings of token networks, by name; their patches as maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax import losses, models
from tlkd_jax.losses.stages import EMBEDDINGS
from tlkd_jax.models import side_by_side
from tlkd_jax.models.families import vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.functional import to_functional
from tlkd_jax.models.network import Network, output_shapes

pytestmark = pytest.mark.usefixtures('tiny_models')

_NUMBERS = {'width': 8, 'heads': 2, 'depth': 1, 'patch': 4, 'image_size': 16}
POOLS = {
  'token': {'registers': 2},
  'distilled': {'distilled': True},
  'mean': {'pool': 'mean'},
  'mean, without class token': {'pool': 'mean', 'class_token': False},
  'mean, then norm': {'pool': 'mean', 'norm_after_pool': True},
  'token and mean': {'pool': 'token_mean'},
  'attention': {'pool': 'attention', 'class_token': False},
  'attention, with class token': {'pool': 'attention'},
}


def make(num_classes=0, **fields):
  spec = vit_keys.spec(Design(**_NUMBERS | fields))
  return to_functional('', spec, num_classes)


def names_of(outputs):
  return {name for name, output in EMBEDDINGS.items() if output in outputs}


@pytest.mark.parametrize('pool', POOLS)
def test_a_variant_gives_the_embeddings_that_it_names(pool):
  model = make(3, **POOLS[pool])
  for one in (model, to_functional('', side_by_side.spec_of(model.spec, 2), 3)):
    shapes = output_shapes(Network(one, 16, jnp.float32), 16)
    assert names_of(shapes) == set(one.spec.embeddings)
    both = {'class_logits', 'distillation_logits'} <= shapes.keys()
    assert both == one.spec.distilled
    for name in one.spec.embeddings:
      width = 8 * (1 if one is model else 2)
      pooled = name == 'pooled' and pool == 'token and mean'
      assert shapes[EMBEDDINGS[name]].shape == (1, width * (2 if pooled else 1))


@pytest.mark.parametrize('name', ['tiny', 'resnet18', 'timm/convnext_tiny'])
def test_convolutional_networks_have_the_pooled_one_alone(name):
  network = Network(models.create_model(name, num_classes=3), 32, jnp.float32)
  assert names_of(output_shapes(network, 32)) == {'pooled'}
  assert models.MODELS[name].embeddings == ('pooled',)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('timm/eva02_tiny_patch14_224', {'pooled', 'mean'}),
    ('timm/vit_small_patch16_dinov3', {'pooled', 'class', 'mean'}),
    ('transformers/dinov3_vit_small_patch16', {'pooled', 'class', 'mean'}),
  ],
)
def test_networks_of_rotary_positions_give_what_they_name(name, expected):
  side = models.MODELS[name].side_near(32)
  network = Network(models.create_model(name, num_classes=3), side, jnp.float32)
  shapes = output_shapes(network, side)
  assert names_of(shapes) == set(models.MODELS[name].embeddings) == expected


@functools.cache
def drawn():
  """Weights for every pool, with two registers, and a way to run them."""
  shapes = make(registers=2, pool='attention').params_shape
  leaves, structure = jax.tree.flatten(shapes)
  rng = np.random.default_rng(3)
  params = jax.tree.unflatten(
    structure,
    [rng.normal(size=x.shape).astype(np.float32) / 2 for x in leaves],
  )

  def run(pool, images):
    model = make(registers=2, pool=pool)
    given = {name: params[name] for name in model.params_shape}
    return jax.jit(model.apply)(given, {}, images)[0]

  return run


def test_they_are_what_networks_of_these_pools_pool():
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
  found = {
    pool: jax.device_get(drawn()(pool, images.astype(np.float32)))
    for pool in ('token', 'mean', 'token_mean', 'attention')
  }
  token, mean = found['token']['pre_logits'], found['mean']['pre_logits']
  assert np.abs(token - mean).max() > 0.1
  for outputs in found.values():
    np.testing.assert_allclose(outputs['class_token'], token, atol=1e-5)
    np.testing.assert_allclose(outputs['patch_mean'], mean, atol=1e-5)
  both = found['token_mean']['pre_logits']
  np.testing.assert_allclose(both, np.concatenate([token, mean], 1), atol=1e-5)
  attention = found['attention']
  np.testing.assert_array_equal(
    attention['attention_pool'], attention['pre_logits']
  )


def test_the_grid_of_patches_lies_as_the_image():
  """Rows are rows: on an image that is wider than high, one patch differs."""
  rng = np.random.default_rng(1)
  images = rng.normal(size=(1, 16, 24, 3)).astype(np.float32)
  other = images.copy()
  other[:, 4:8, 16:20] *= -1
  grids = [
    np.asarray(drawn()('token', x)['features']['stage1'][0])
    for x in (images, other)
  ]
  assert grids[0].shape == (4, 6, 8)
  change = np.abs(grids[0] - grids[1]).max(-1)
  assert np.unravel_index(change.argmax(), change.shape) == (1, 4)


PAIRS = [
  ('timm/vit_small_patch14_dinov2', 224, 'mobilenet_v2', 224),
  ('timm/vit_small_patch14_reg4_dinov2', 98, 'resnet18', 64),
]
MAPS = [
  name
  for name, loss in losses.LOSSES.items()
  if loss.reads == 'maps' and loss.guide == 'teacher' and not loss.same_as
]


@pytest.mark.parametrize('pair', PAIRS, ids=lambda pair: pair[0])
def test_patches_are_compared_with_maps(pair):
  """Every loss on maps, with a projector of the shapes that it makes."""
  theirs, their_side, ours, our_side = pair
  batch = 2

  def shapes(name, side):
    network = Network(models.create_model(name), side, jnp.bfloat16)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype),
      output_shapes(network, side),
    )

  student, teacher = shapes(ours, our_side), shapes(theirs, their_side)
  for name in MAPS:
    key = jax.random.key(0)

    def value_and_gradient(student, teacher, name=name, key=key):
      extras = losses.init_extras(name, key, student, teacher, batch)

      def loss(student, projector):
        return losses.compute(
          name, student, teacher, None, projector=projector, key=key
        )[0]

      return jax.value_and_grad(loss, argnums=(0, 1))(
        student, extras['projector']
      )

    value, (gradient, _) = jax.eval_shape(value_and_gradient, student, teacher)
    assert value.shape == () and value.dtype == jnp.float32, name
    assert gradient['features'].keys() == student['features'].keys()
    lines = losses.bridges(name, student, teacher)
    assert len(lines) == 4 and 'pooled to' in lines[0], name
