"""DINOv2, CLIP, SigLIP and averaged ViTs against timm and transformers."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fixtures import fill_rule
from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.families import clip, dinov2, siglip, vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_variants import averaged
from tlkd_jax.models.functional import to_functional
from tlkd_jax.models.weights import aliases, loading, pretrained, torch_files

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'

_AVERAGED = averaged(Design(192, 3))
_QUICK = {'image_size': 64, 'activation': 'quick_gelu'}
# Of sizes that nobody has published.
GAP = vit_keys.spec(dataclasses.replace(_AVERAGED, norm_after_pool=True))
CLIP = clip.transformers_spec(clip.design(64, 2, 3, **_QUICK))
SIGLIP = siglip.transformers_spec(siglip.design(64, 2, 3, image_size=64))
NAFLEX = siglip.transformers_spec(
  siglip.design(64, 2, 3, image_size=128), naflex=True
)

# Fixture file -> the variant: one of each structure, at another size than that
# of the stored positions where there is such a fixture.
CASES = {
  'timm__vit_small_patch14_reg4_dinov2@98x70': (
    'timm/vit_small_patch14_reg4_dinov2'
  ),
  'timm__vit_tiny_patch16_224.gap': GAP,
  'transformers__clip_vision_proj_tiny@48x96': CLIP,
  'transformers__siglip_vision_tiny@48x96': SIGLIP,
  'transformers__siglip2_vision_tiny@96x64': NAFLEX,
}
LARGE = {
  'timm__vit_base_patch16_gap_224': 'timm/vit_base_patch16_gap_224',
  'timm__vit_base_patch16_siglip_224': 'timm/vit_base_patch16_siglip_224',
  'timm__vit_base_patch16_siglip_224@96x64': 'timm/vit_base_patch16_siglip_224',
  'timm__vit_base_patch32_clip_224': 'timm/vit_base_patch32_clip_224',
  'timm__vit_base_patch32_clip_224@160x288': 'timm/vit_base_patch32_clip_224',
  'timm__vit_base_patch32_clip_quickgelu_224': (
    'timm/vit_base_patch32_clip_quickgelu_224'
  ),
  'timm__vit_small_patch14_dinov2': 'timm/vit_small_patch14_dinov2',
  'timm__vit_small_patch14_dinov2@70x126': 'timm/vit_small_patch14_dinov2',
  'timm__vit_small_patch14_dinov2@98x70': 'timm/vit_small_patch14_dinov2',
  'timm__vit_small_patch14_reg4_dinov2': 'timm/vit_small_patch14_reg4_dinov2',
  'transformers__clip_vision_proj_base_p32_224': (
    'transformers/clip_vit_base_patch32'
  ),
  'transformers__clip_vision_proj_tiny': CLIP,
  'transformers__dinov2_model_small_p14_98': 'transformers/dinov2_small',
  'transformers__dinov2_model_small_p14_98@70x126': 'transformers/dinov2_small',
  'transformers__dinov2_reg_model_small_p14_98': (
    'transformers/dinov2_with_registers_small'
  ),
  'transformers__dinov2_reg_model_small_p14_98@70x126': (
    'transformers/dinov2_with_registers_small'
  ),
  'transformers__dinov2_small_p14_98': (
    'transformers/dinov2_small_imagenet1k_1_layer'
  ),
  'transformers__siglip_vision_tiny': SIGLIP,
  # Padding that is masked is as if it were not there.
  'transformers__siglip2_vision_tiny_padded@96x64': NAFLEX,
}
# Blocks of the reference that end our stages, where it has no other tokens.
STAGES = {
  GAP: [f'blocks.{i}' for i in (2, 5, 8, 11)],
  SIGLIP: [f'encoder.layers.{i}' for i in (0, 1, 2, 2)],
  'timm/vit_base_patch16_siglip_224': [f'blocks.{i}' for i in (2, 5, 8, 11)],
}


def assert_outputs_match(variant, path):
  assert parity.logits_error(variant, path, x64=True) < 1e-6
  outputs = parity.outputs(variant, path, x64=True)
  reference = parity.load(path)[2]
  # The reference computed these in float32.
  assert parity.error(outputs['pre_logits'], reference['features']) < 5e-5
  assert list(outputs['features']) == ['stage1', 'stage2', 'stage3', 'stage4']
  blocks = STAGES.get(variant, ())
  for mean, block in zip(
    outputs['features'].values(), blocks, strict=bool(blocks)
  ):
    assert parity.error(mean, reference[f'stage/{block}']) < 5e-5, block


@pytest.mark.parametrize('fixture', CASES)
def test_outputs_match_the_reference_in_float64(fixture):
  assert_outputs_match(CASES[fixture], FIXTURES / f'{fixture}.npz')


@pytest.mark.parametrize('fixture', CASES)
def test_weights_survive_the_round_trip(fixture):
  parity.assert_round_trip(CASES[fixture], FIXTURES / f'{fixture}.npz')


@pytest.mark.slow
@pytest.mark.parametrize('fixture', LARGE)
def test_further_outputs_match_the_reference(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  assert_outputs_match(LARGE[fixture], path)
  parity.assert_round_trip(LARGE[fixture], path)
  assert parity.logits_error(LARGE[fixture], path, x64=False) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize('fixture', CASES)
def test_logits_match_the_reference_in_float32(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(CASES[fixture], path, x64=False) < 5e-5


def hollow(shapes):
  """Arrays of these shapes that take no memory."""
  return {
    key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()
  }


def torch_shapes(variant, num_classes):
  """What a file of a variant holds: names and shapes."""
  model = models.create_model(variant, num_classes=num_classes)
  return {
    leaf.key: leaf.to_torch(np.empty(shape, np.bool_)).shape
    for shape, leaf in pretrained.leaf_table(model).values()
  }


# A variant with the names of transformers, its classes, what its file may hold
# besides, and the variant with timm's names that computes the same.
RENAMED = [
  (
    'transformers/clip_vit_base_patch32',
    512,
    {'text_model.final_layer_norm.bias': (512,), 'logit_scale': ()}
    | {'text_projection.weight': (512, 512)}
    | {'vision_model.embeddings.position_ids': (1, 50)},
    'timm/vit_base_patch32_clip_quickgelu_224',
  ),
  (
    'transformers/siglip_base_patch32_256',
    0,
    {'logit_bias': (1,), 'text_model.head.weight': (9, 9)},
    'timm/vit_base_patch32_siglip_256',
  ),
  ('transformers/dinov2_small', 0, {}, 'timm/vit_small_patch14_dinov2'),
  (
    'transformers/dinov2_with_registers_small',
    0,
    {},
    'timm/vit_small_patch14_reg4_dinov2',
  ),
]


@pytest.mark.parametrize(('theirs', 'classes', 'more', 'ours'), RENAMED)
def test_a_file_of_transformers_gets_the_names_of_timm(
  theirs, classes, more, ours
):
  names = torch_shapes(theirs, classes)
  if classes:
    del names['visual_projection.bias']
  state_dict = hollow(names | more)
  got = aliases.canonical_keys(ours, state_dict)
  assert {key: value.shape for key, value in got.items()} == torch_shapes(
    ours, classes
  )
  # It is left as it is for the variant that has its names.
  left = aliases.canonical_keys(theirs, state_dict)
  assert left.keys() == state_dict.keys()
  assert aliases.model_type(theirs, state_dict) is None
  assert aliases.model_type(ours, state_dict) in theirs.replace('_vit', '')


def test_a_class_tokens_position_is_added_to_it_where_timm_has_none():
  rng = np.random.default_rng(0)
  names = torch_shapes('transformers/dinov2_with_registers_small', 0)
  state_dict = hollow(names)
  token, position, registers = (
    f'embeddings.{name}'
    for name in ('cls_token', 'position_embeddings', 'register_tokens')
  )
  for key in (token, position, registers):
    state_dict[key] = rng.normal(size=names[key]).astype(np.float32)
  got = aliases.canonical_keys('vit_small_patch14_reg4_dinov2', state_dict)
  first = state_dict[position][:, :1]
  np.testing.assert_array_equal(got['cls_token'], state_dict[token] + first)
  np.testing.assert_array_equal(got['pos_embed'], state_dict[position][:, 1:])
  np.testing.assert_array_equal(got['reg_token'], state_dict[registers])
  # Meta's own file has timm's names for all but these.
  meta = {
    key: value for key, value in got.items() if not key.endswith('_token')
  }
  meta |= {
    'cls_token': state_dict[token],
    'register_tokens': state_dict[registers],
    'mask_token': np.zeros((1, 384), np.float32),
    'pos_embed': state_dict[position],
  }
  again = aliases.canonical_keys('vit_small_patch14_reg4_dinov2', meta)
  model = models.create_model('vit_small_patch14_reg4_dinov2', num_classes=5)
  params, _ = pretrained.from_torch(model, again, reset_head=True)
  for ours, theirs in (('class_token', 'cls_token'), ('position', 'pos_embed')):
    np.testing.assert_array_equal(params[ours], got[theirs])


def in_memory(key):
  """The names of transformers 5 for those of its files."""
  key = key.removeprefix('vision_model.')
  for theirs, memory in (
    ('attention.query.', 'q_proj.'),
    ('attention.key.', 'k_proj.'),
    ('attention.value.', 'v_proj.'),
    ('attention.output.dense.', 'attention.o_proj.'),
  ):
    key = key.replace(theirs, memory)
  return key


@pytest.mark.parametrize(
  'variant',
  [
    'transformers/dinov2_small',
    'transformers/dinov2_small_imagenet1k_1_layer',
    'transformers/siglip_base_patch16_224',
    'transformers/siglip2_base_patch16_naflex',
  ],
)
def test_names_in_memory_of_transformers_5_are_read_too(variant):
  names = torch_shapes(variant, 0)
  state_dict = hollow({in_memory(key): s for key, s in names.items()})
  assert not state_dict.keys() >= names.keys()
  got = aliases.canonical_keys(variant, state_dict)
  assert got.keys() == names.keys()


def saved(tmp_path, variant, spec, monkeypatch, **more):
  """(model, file) of a variant of no size, under a name."""
  monkeypatch.setitem(models.MODELS, variant, spec)
  state_dict = {
    key: fill_rule.fill(key, shape)
    for key, shape in torch_shapes(variant, 0).items()
  }
  path = tmp_path / 'w.safetensors'
  torch_files.write_safetensors(path, state_dict | more)
  return models.create_model(variant, num_classes=5), path


@pytest.mark.parametrize(
  ('variant', 'spec'),
  [('transformers/clip_tiny', CLIP), ('transformers/siglip_tiny', SIGLIP)],
)
def test_a_file_without_a_head_gets_one_and_another_tower_is_named(
  variant, spec, tmp_path, monkeypatch, caplog
):
  other = {'text_model.final_layer_norm.bias': np.zeros(3, np.float32)}
  model, path = saved(tmp_path, variant, spec, monkeypatch, **other)
  with caplog.at_level('INFO', 'absl'):
    got = loading.load(model, str(path), jax.random.key(0))
  assert f'{path}: it has no head, one is made' in caplog.text
  assert f'1 entries are of no use to {variant}: text_model.' in caplog.text
  assert got.params['head']['kernel'].shape == (64, 5)
  assert not np.any(got.params['head']['kernel'])
  with pytest.raises(ValueError, match='no head to keep; head "new" makes one'):
    loading.load(model, str(path), jax.random.key(0), head='keep')


def test_without_classes_the_logits_are_the_embedding():
  model = models.create_model('vit_small_patch14_dinov2', num_classes=0)
  assert 'head' not in model.params_shape
  images = jax.ShapeDtypeStruct((2, 28, 42, 3), jnp.float32)
  outputs, _ = jax.eval_shape(model.apply, model.params_shape, {}, images)
  assert outputs['logits'].shape == outputs['pre_logits'].shape == (2, 384)


def test_positions_of_another_square_grid_are_kept_and_no_others():
  model = models.create_model('vit_small_patch14_dinov2', num_classes=0)
  state_dict = hollow(torch_shapes('vit_small_patch14_dinov2', 0))
  for count, problem in ((1 + 49, None), (1 + 16, None), (1 + 48, 'wrong')):
    state_dict['pos_embed'] = np.zeros((1, count, 384), np.float32)
    if problem is None:
      params, _ = pretrained.from_torch(model, state_dict)
      assert params['position'].shape == (1, count, 384)
    else:
      with pytest.raises(ValueError, match='1 wrong: pos_embed: shape'):
        pretrained.from_torch(model, state_dict)


@pytest.mark.parametrize(
  ('variant', 'hw', 'width'),
  [
    ('timm/vit_small_patch14_reg4_dinov2', (42, 70), 384),
    ('transformers/dinov2_small_imagenet1k_1_layer', (28, 28), 768),
    ('timm/vit_base_patch16_clip_quickgelu_224', (64, 32), 768),
    # As published, the remainder of its pixels is left out.
    ('transformers/siglip_so400m_patch14_384', (30, 41), 1152),
    ('transformers/siglip2_base_patch16_naflex', (32, 80), 768),
    ('timm/vit_base_patch16_siglip_gap_384', (32, 32), 768),
  ],
)
def test_bfloat16_images_of_other_sizes_give_bfloat16_features(
  variant, hw, width
):
  model = models.create_model(variant, num_classes=7, in_channels=4)
  images = jax.ShapeDtypeStruct((2, *hw, 4), jnp.bfloat16)
  outputs, _ = jax.eval_shape(model.apply, model.params_shape, {}, images)
  assert outputs['logits'].dtype == jnp.float32
  assert outputs['pre_logits'].shape == (2, width)
  assert list(outputs['features']) == list(model.spec.stages)
  patch = model.params_shape['patch']['kernel'].shape[0]
  for value in [outputs['pre_logits'], *outputs['features'].values()]:
    assert value.dtype == jnp.bfloat16
  for value in outputs['features'].values():
    assert value.shape[1:3] == (hw[0] // patch, hw[1] // patch)


# Millions without a head, as timm's tables of results have them.
@pytest.mark.parametrize(
  ('variant', 'millions'),
  [
    ('timm/vit_small_patch14_dinov2', 22.06),
    ('timm/vit_base_patch14_dinov2', 86.58),
    pytest.param(
      'timm/vit_large_patch14_dinov2', 304.37, marks=pytest.mark.slow
    ),
    pytest.param(
      'timm/vit_large_patch14_reg4_dinov2', 304.37, marks=pytest.mark.slow
    ),
    ('timm/vit_base_patch16_siglip_224', 92.88),
    pytest.param(
      'timm/vit_large_patch16_siglip_256', 315.96, marks=pytest.mark.slow
    ),
    ('timm/vit_so400m_patch14_siglip_224', 427.68),
    ('timm/vit_so400m_patch14_siglip_gap_224', 412.44),
    ('timm/vit_base_patch32_clip_224', 87.46),
    ('timm/vit_base_patch16_clip_224', 85.80),
    pytest.param(
      'timm/vit_large_patch14_clip_224', 303.18, marks=pytest.mark.slow
    ),
    pytest.param(
      'timm/vit_huge_patch14_gap_224', 630.76, marks=pytest.mark.slow
    ),
    pytest.param(
      'timm/vit_giant_patch16_gap_224', 1011.37, marks=pytest.mark.slow
    ),
  ],
)
def test_parameters_are_those_published(variant, millions):
  model = models.create_model(variant, num_classes=0)
  count = pretrained.count_params(model.params_shape)
  assert abs(count / 1e6 - millions) < 0.01


DINOV2 = vit_keys.spec(
  dinov2.design(64, 2, 4, registers=4, class_position=False, image_size=56)
)


@pytest.mark.slow
@pytest.mark.parametrize(
  'spec',
  [DINOV2, CLIP, SIGLIP, NAFLEX, GAP],
  ids='dinov2 clip siglip naflex gap'.split(),
)
def test_the_loss_falls_in_twenty_steps(spec):
  model = to_functional('a variant without a name', spec, 3)
  params, model_state = model.init(jax.random.key(0))
  side = 56 if spec is DINOV2 else 64
  images = jax.random.normal(jax.random.key(1), (6, side, side, 3))
  labels = jnp.arange(6) % 3
  optimizer = optax.adam(1e-3)

  def loss_of(params):
    outputs, _ = model.apply(params, model_state, images, train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(
      outputs['logits'], labels
    )
    return loss.mean()

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for _ in range(20):
    params, state, loss = step(params, state)
    losses.append(float(loss))
  assert np.all(np.isfinite(losses))
  assert losses[-1] < 0.5 * losses[0]
