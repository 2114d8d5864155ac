"""EVA-02, DINOv3, Swin and ConvNeXt V2 against the libraries they follow."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models import parity
from tests.models.test_key_aliases import values
from tlkd_jax import models
from tlkd_jax.models.families import rotary_vit, swin, swin_variants
from tlkd_jax.models.layers import rotary, windows
from tlkd_jax.models.layers.rngs import Rngs
from tlkd_jax.models.weights import aliases, loading, pretrained, torch_files

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'

# One of each structure. Fixture file -> the name it has here.
CASES = {
  'timm__eva02_tiny_patch14_224@98x70': 'timm/eva02_tiny_patch14_224',
  'timm__vit_small_patch16_dinov3': 'timm/vit_small_patch16_dinov3',
  'timm__swin_tiny_patch4_window7_224@96x72': (
    'timm/swin_tiny_patch4_window7_224'
  ),
}
# The same computation under other keys, or a part of it that has a test below.
# Those at other sizes are by tests/fixtures/make_sizes.py.
MORE = {
  'timm__eva02_base_patch14_224@56x42': 'timm/eva02_base_patch14_224',
  'timm__vit_small_patch16_dinov3_qkvb': 'timm/vit_small_patch16_dinov3_qkvb',
  'timm__vit_small_plus_patch16_dinov3': 'timm/vit_small_plus_patch16_dinov3',
  'timm__convnextv2_atto': 'timm/convnextv2_atto',
  'torchvision__swin_t@90x75': 'torchvision/swin_t',
  'transformers__dinov3_convnext_tiny': 'transformers/dinov3_convnext_tiny',
  'transformers__dinov3_vit_small_p16': (
    'transformers/dinov3_vit_small_patch16'
  ),
  'transformers__dinov3_vit_small_plus_p16': (
    'transformers/dinov3_vit_small_plus_patch16'
  ),
  'transformers__swin_tiny_p4_w7_224@250x230': (
    'transformers/swin_tiny_patch4_window7_224'
  ),
}
# Windows as small as the maps of images of this size.
_SMALL = dataclasses.replace(
  models.MODELS['timm/swin_tiny_patch4_window7_224'].build.args[0],
  native=(96, 72),
)
SIZES = {
  'timm__swin_tiny_patch4_window7_224@272x96': (
    'timm/swin_tiny_patch4_window7_224'
  ),
  'timm__swin_tiny_patch4_window7_224@96x72_img_size': swin_variants.spec(
    _SMALL, image_size=96
  ),
  'torchvision__swin_t@272x96': 'torchvision/swin_t',
}
# In the shared folder alone.
SHARED = {
  'timm__eva02_tiny_patch14_224': 'timm/eva02_tiny_patch14_224',
  'timm__swin_tiny_patch4_window7_224': 'timm/swin_tiny_patch4_window7_224',
  'timm__vit_small_patch16_dinov3@128x80': 'timm/vit_small_patch16_dinov3',
  'torchvision__swin_t': 'torchvision/swin_t',
  'transformers__dinov3_vit_small_p16@128x80': (
    'transformers/dinov3_vit_small_patch16'
  ),
  'transformers__swin_tiny_p4_w7_224': (
    'transformers/swin_tiny_patch4_window7_224'
  ),
}
STAGES = {
  'timm__swin_tiny_patch4_window7_224': [f'layers.{i}' for i in range(4)],
  'timm__convnextv2_atto': [f'stages.{i}' for i in range(4)],
  'torchvision__swin_t': [f'features.{i}' for i in (1, 3, 5, 7)],
  'transformers__dinov3_convnext_tiny': [f'model.stages.{i}' for i in range(4)],
}


def assert_equal_to_the_reference(variant, path, *, x64):
  bound = 1e-6 if x64 else 5e-5
  assert parity.logits_error(variant, path, x64=x64) < bound
  ours = parity.outputs(variant, path, x64=x64)
  reference = parity.load(path)[2]
  # The reference computed these, and the stages, in float32.
  if 'features' in reference:
    assert parity.error(ours['pre_logits'], reference['features']) < 5e-5
  if 'features_token' in reference:
    assert parity.error(ours['class_token'], reference['features_token']) < 5e-5
  assert list(ours['features']) == ['stage1', 'stage2', 'stage3', 'stage4']
  modules = STAGES.get(path.stem, ())
  for (stage, mean), module in zip(
    ours['features'].items(), modules, strict=bool(modules)
  ):
    assert parity.error(mean, reference[f'stage/{module}']) < 5e-5, stage


@pytest.mark.parametrize('fixture', CASES)
def test_logits_and_features_match_the_reference_in_float64(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert_equal_to_the_reference(CASES[fixture], path, x64=True)


@pytest.mark.slow
@pytest.mark.parametrize('fixture', {**MORE, **SIZES})
def test_other_files_of_these_structures_match_in_float64(fixture):
  variant = {**MORE, **SIZES}[fixture]
  path = FIXTURES / f'{fixture}.npz'
  assert_equal_to_the_reference(variant, path, x64=True)
  parity.assert_round_trip(variant, path)


@pytest.mark.slow
@pytest.mark.parametrize('fixture', SHARED)
def test_other_sizes_match_in_float64(fixture, shared_dir):
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  assert_equal_to_the_reference(SHARED[fixture], path, x64=True)
  parity.assert_round_trip(SHARED[fixture], path)


@pytest.mark.slow
@pytest.mark.parametrize('fixture', {**CASES, **MORE})
def test_logits_match_the_reference_in_float32(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert_equal_to_the_reference({**CASES, **MORE}[fixture], path, x64=False)


@pytest.mark.slow
def test_the_class_token_is_what_dinov3_gives_where_it_is_asked_for():
  fixture = 'timm__vit_small_patch16_dinov3'
  design = models.MODELS[CASES[fixture]].build.args[0]
  by_class = dataclasses.replace(design, pool='class')
  spec = rotary_vit.spec(by_class, image_size=256)
  path = FIXTURES / f'{fixture}.npz'
  ours = parity.outputs(spec, path, x64=True)['pre_logits']
  assert parity.error(ours, parity.load(path)[2]['features_token']) < 5e-5


# --- Names of files ---


# The base is 87 million values.
@pytest.mark.parametrize(
  'fixture', [f for f in (*CASES, *MORE) if 'base' not in f]
)
def test_weights_survive_the_round_trip(fixture):
  path = FIXTURES / f'{fixture}.npz'
  parity.assert_round_trip({**CASES, **MORE}[fixture], path)


# A fixture of transformers, and timm's variant that may have its file.
@pytest.mark.parametrize(
  ('fixture', 'name'),
  [
    ('transformers__dinov3_convnext_tiny', 'timm/convnext_tiny'),
    ('transformers__dinov3_convnext_tiny', 'torchvision/convnext_tiny'),
    (
      'transformers__dinov3_vit_small_p16',
      'timm/vit_small_patch16_dinov3_qkvb',
    ),
    (
      'transformers__dinov3_vit_small_plus_p16',
      'timm/vit_small_plus_patch16_dinov3_qkvb',
    ),
    (
      'transformers__swin_tiny_p4_w7_224@250x230',
      'timm/swin_tiny_patch4_window7_224',
    ),
  ],
)
def test_timm_reads_every_value_of_a_file_of_transformers_once(fixture, name):
  meta, state_dict, _ = parity.load(FIXTURES / f'{fixture}.npz')
  headless = meta.get('output') == 'pooler_output'
  num_classes = 0 if headless else meta['num_classes']
  model = models.create_model(name, num_classes=num_classes)
  canonical = aliases.canonical_keys(name, state_dict)
  variables = pretrained.from_torch(model, canonical)
  back = pretrained.to_torch(model, *variables)
  assert back.keys() == canonical.keys()
  # Of masked patches, which only pretraining has.
  state_dict = dict(state_dict)
  state_dict.pop('embeddings.mask_token', None)
  back = {k: v for k, v in back.items() if not k.endswith('position_index')}
  assert values(back) == values(state_dict)


@pytest.mark.parametrize(
  'fixture',
  [
    'transformers__dinov3_convnext_tiny',
    'transformers__dinov3_vit_small_plus_p16',
    'transformers__swin_tiny_p4_w7_224',
  ],
)
def test_names_in_memory_of_transformers_5_are_read_too(fixture, shared_dir):
  name = {**MORE, **SHARED}[fixture]
  path = shared_dir / 'fixtures' / 'parity' / f'{fixture}.npz'
  meta, state_dict, _ = parity.load(path)
  in_memory = {key: np.zeros(1) for key in meta['memory_names']}
  assert in_memory.keys() != state_dict.keys()
  assert aliases.canonical_keys(name, in_memory).keys() == state_dict.keys()


def names_of(name):
  """Torch names of a variant with arrays of nothing."""
  table = pretrained.leaf_table(models.create_model(name))
  return {leaf.key: np.zeros(1) for _, leaf in table.values()}


def first_swin(key):
  """A name as in the files of Swin's authors."""
  if key.startswith('layers.') and '.downsample.' in key:
    stage = int(key.split('.')[1])
    return key.replace(f'layers.{stage}', f'layers.{stage - 1}')
  return key.replace('head.fc.', 'head.')


@pytest.mark.parametrize(
  ('name', 'old', 'beside'),
  [
    (
      'timm/swin_tiny_patch4_window7_224',
      first_swin,
      (
        'layers.0.blocks.0.attn.relative_position_index',
        'layers.0.blocks.1.attn_mask',
      ),
    ),
    (
      'timm/eva02_tiny_patch14_224',
      lambda key: key.removeprefix('fc_'),
      ('mask_token', 'lm_head.weight', 'lm_head.bias'),
    ),
  ],
)
def test_names_of_earlier_files_and_what_lies_beside(name, old, beside):
  names = names_of(name)
  aged = {old(key): value for key, value in names.items()}
  assert aged.keys() != names.keys()
  aged |= {key: np.zeros(1) for key in beside}
  found = aliases.canonical_keys(name, aged)
  unread = pretrained.beside(models.create_model(name), found)
  assert len(unread) == len(beside)
  assert found.keys() - set(unread) == names.keys()


def test_indices_of_another_window_are_refused():
  name = 'torchvision/swin_t'
  _, state_dict, _ = parity.load(FIXTURES / 'torchvision__swin_t@90x75.npz')
  model = models.create_model(name, num_classes=10)
  key = 'features.5.3.attn.relative_position_index'
  without = {k: v for k, v in state_dict.items() if k != key}
  pretrained.from_torch(model, without)
  with pytest.raises(ValueError, match=f'1 wrong: {key}: values'):
    pretrained.from_torch(model, {**without, key: state_dict[key][::-1]})


def test_a_file_without_a_head_is_loaded_and_the_log_says_so(
  monkeypatch, tmp_path, caplog
):
  design = rotary_vit.Design(
    8, 2, 16, rotary.Rotary(100.0, centred=True), depth=4, patch=4, registers=1
  )
  spec = rotary_vit.spec(design, image_size=8, beside=('^mask_token$',))
  monkeypatch.setitem(models.MODELS, 'small', spec)
  model = models.create_model('small', num_classes=3)
  params, _ = model.init(jax.random.key(0))
  entries = pretrained.to_torch(model, params, {})
  headless = {k: v for k, v in entries.items() if not k.startswith('head.')}
  assert len(entries) == len(headless) + 2
  path = tmp_path / 'weights.safetensors'
  torch_files.write_safetensors(
    path, headless | {'mask_token': np.zeros((1, 1, 8), np.float32)}, {}
  )
  with caplog.at_level('INFO'):
    got = loading.load(model, str(path), jax.random.key(0))
  assert 'it has no head, one is made' in caplog.text
  assert not np.any(got.params['head']['kernel'])
  np.testing.assert_array_equal(got.params['registers'], params['registers'])
  with pytest.raises(ValueError, match='no head to keep; head "new" makes'):
    loading.load(model, str(path), jax.random.key(0), head='keep')


# --- Variants ---


# As timm, and torchvision, publish them, in millions.
@pytest.mark.parametrize(
  ('name', 'millions'),
  [
    ('timm/eva02_small_patch14_336', 22.13),
    ('timm/eva02_base_patch14_448', 87.12),
    ('timm/vit_base_patch16_dinov3', 86.41),
    ('timm/vit_large_patch16_dinov3', 304.10),
    ('timm/convnextv2_base', 88.72),
    ('timm/convnext_large', 197.77),
    ('timm/swin_base_patch4_window12_384', 87.90),
    ('torchvision/swin_s', 49.606258),
    ('torchvision/swin_b', 87.768224),
  ],
)
def test_parameters_of_larger_variants(name, millions):
  shapes = models.create_model(name).params_shape
  assert abs(pretrained.count_params(shapes) / 1e6 - millions) < 0.006


@pytest.mark.parametrize(
  ('name', 'size'),
  [
    ('eva02_base_patch14_224', (42, 28)),
    ('vit_small_plus_patch16_dinov3_qkvb', (48, 32)),
    ('transformers/swin_tiny_patch4_window7_224', (61, 45)),
    ('swin_t', (61, 45)),
    ('convnextv2_pico', (64, 32)),
  ],
)
def test_bfloat16_images_give_bfloat16_features(name, size):
  model = models.create_model(name, num_classes=7, in_channels=4)
  images = jax.ShapeDtypeStruct((2, *size, 4), jnp.bfloat16)
  outputs, _ = jax.eval_shape(model.apply, model.params_shape, {}, images)
  assert outputs['logits'].shape == (2, 7)
  assert outputs['logits'].dtype == jnp.float32
  assert outputs['pre_logits'].dtype == jnp.bfloat16
  for value in outputs['features'].values():
    assert value.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('name', 'side'),
  [('eva02_tiny_patch14_224', 14), ('vit_small_patch16_dinov3', 16)],
)
def test_images_that_do_not_split_into_patches_are_refused(name, side):
  model = models.create_model(name)
  images = jax.ShapeDtypeStruct((1, 112, 100, 3), jnp.float32)
  with pytest.raises(ValueError, match=f'112 x 100 .* multiples of {side}'):
    jax.eval_shape(model.apply, model.params_shape, {}, images)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'side'),
  [
    ('eva02_tiny_patch14_224', 28),
    ('vit_small_plus_patch16_dinov3', 32),
    ('swin_tiny_patch4_window7_224', 64),
    ('convnextv2_atto', 32),
    ('transformers/dinov3_convnext_tiny', 32),
  ],
)
def test_a_network_learns_by_heart_what_it_sees(name, side):
  model = models.create_model(name, num_classes=4, drop_path=0.05)
  params, _ = model.init(jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (8, side, side, 3))
  labels = jnp.arange(8) % 4
  optimizer = optax.adam(1e-3)

  def loss_of(params, key):
    outputs, _ = model.apply(
      params, {}, images, train=True, norm_train=True, key=key, remat=True
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      outputs['logits'], labels
    )
    return losses.mean()

  @jax.jit
  def step(params, state, key):
    loss, grads = jax.value_and_grad(loss_of)(params, key)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for key in jax.random.split(jax.random.key(2), 20):
    params, state, loss = step(params, state, key)
    losses.append(float(loss))
  assert np.all(np.isfinite(losses))
  assert np.mean(losses[-3:]) < 0.8 * losses[0]


# --- EVA-02 base, of which there is no fixture ---


def layer_norm(entries, name, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * entries[f'{name}.weight'] + entries[f'{name}.bias']


def linear(entries, name, x):
  y = x @ entries[f'{name}.weight'].T
  return y + entries.get(f'{name}.bias', 0.0)


def turned(x, grid, reference=16):
  """Patches [h * w, d] of one head, each pair of channels a complex number."""
  count = x.shape[-1] // 4
  frequencies = 10000.0 ** -(np.arange(count) / count)
  result = []
  for number, patch in enumerate(x):
    place = np.array(divmod(number, grid[1])) / grid * reference
    angles = np.outer(place, frequencies).ravel()
    pairs = (patch[::2] + 1j * patch[1::2]) * np.exp(1j * angles)
    result.append(np.stack([pairs.real, pairs.imag], -1).ravel())
  return np.array(result)


def base_by_numpy(entries, patches, grid, heads, depth):
  """Pooled features of EVA-02 base from patches [h * w, channels * p * p]."""
  weight = entries['patch_embed.proj.weight']
  x = patches @ weight.reshape(len(weight), -1).T
  x = np.concatenate(
    [entries['cls_token'][0], x + entries['patch_embed.proj.bias']]
  )
  x = x + entries['pos_embed'][0]
  for i in range(depth):
    block = f'blocks.{i}'
    y = layer_norm(entries, f'{block}.norm1', x)
    q, k, v = (
      np.split(linear(entries, f'{block}.attn.{part}_proj', y), heads, -1)
      for part in 'qkv'
    )
    outputs = []
    for head in range(heads):
      query, key = (
        np.concatenate([t[head][:1], turned(t[head][1:], grid)]) for t in (q, k)
      )
      scores = np.exp(query @ key.T / np.sqrt(query.shape[-1]))
      outputs.append(scores / scores.sum(-1, keepdims=True) @ v[head])
    y = np.concatenate(outputs, -1)
    x = x + linear(entries, f'{block}.attn.proj', y)
    y = layer_norm(entries, f'{block}.norm2', x)
    gate = linear(entries, f'{block}.mlp.fc1_g', y)
    y = gate / (1 + np.exp(-gate)) * linear(entries, f'{block}.mlp.fc1_x', y)
    y = layer_norm(entries, f'{block}.mlp.norm', y)
    x = x + linear(entries, f'{block}.mlp.fc2', y)
  return layer_norm(entries, 'fc_norm', x[1:].mean(0))


def test_base_has_a_norm_behind_its_gate_and_layers_of_their_own(monkeypatch):
  base = models.MODELS['timm/eva02_base_patch14_224'].build.args[0]
  design = dataclasses.replace(
    base, width=16, heads=2, hidden=24, depth=4, patch=2, native=6
  )
  monkeypatch.setitem(
    models.MODELS, 'base', rotary_vit.spec(design, image_size=6)
  )
  model = models.create_model('base', num_classes=3)
  params, _ = model.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape), params)
  image = rng.normal(size=(1, 6, 6, 3))
  patches = image[0].reshape(3, 2, 3, 2, 3).transpose(0, 2, 4, 1, 3)
  entries = pretrained.to_torch(model, params, {})
  with jax.enable_x64(True):
    outputs = jax.jit(lambda p, x: model.apply(p, {}, x)[0])(params, image)
    ours = np.asarray(outputs['pre_logits'][0])
  expected = base_by_numpy(entries, patches.reshape(9, 12), (3, 3), 2, 4)
  np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


# --- Windows ---


def by_pixels(module, x, library, window, shift):
  """Attention of a map [H, W, C] pixel by pixel, as the libraries cut it."""
  hw = x.shape[:2]
  if library == 'torchvision':
    shift = [s if n > window else 0 for n, s in zip(hw, shift, strict=True)]
  if library == 'transformers' and min(hw) <= window:
    shift = [0, 0]
  members = {}
  padded = [-(-n // window) * window for n in hw]
  for place in np.ndindex(*padded):
    key, source, region = [], [], []
    for at, n, long, s in zip(place, hw, padded, shift, strict=True):
      key.append(at // window)
      region.append(bool(s) and at >= long - s)
      if library == 'timm':  # Padded behind the roll.
        source.append((at + s) % n if at < n else None)
      else:
        origin = (at + s) % long
        source.append(origin if origin < n else None)
    inside = [at % window for at in place]
    members.setdefault(tuple(key), []).append((source, inside, region))
  table, heads = np.asarray(module.table[...]), module.heads
  result = np.zeros(x.shape)
  for pixels in members.values():
    rows = np.array(
      [np.zeros(x.shape[2]) if None in s else x[tuple(s)] for s, _, _ in pixels]
    )
    if library == 'transformers':
      qkv = [
        rows @ np.asarray(part.kernel[...]) + np.asarray(part.bias[...])
        for part in (module.query, module.key, module.value)
      ]
    else:
      qkv = rows @ np.asarray(module.qkv.kernel[...])
      qkv = np.split(qkv + np.asarray(module.qkv.bias[...]), 3, -1)
    parts = [np.split(part, heads, -1) for part in qkv]
    for i, (source, inside, region) in enumerate(pixels):
      if None in source:
        continue
      outputs = []
      for h, (query, key, value) in enumerate(zip(*parts, strict=True)):
        scores = key @ query[i] / np.sqrt(query.shape[-1])
        for j, (_, other, theirs) in enumerate(pixels):
          down, right = (
            a - b + window - 1 for a, b in zip(inside, other, strict=True)
          )
          scores[j] += table[down * (2 * window - 1) + right, h]
          scores[j] -= 100.0 * (theirs != region)
        weights = np.exp(scores - scores.max())
        outputs.append(weights / weights.sum() @ value)
      y = np.concatenate(outputs) @ np.asarray(module.project.kernel[...])
      result[tuple(source)] = y + module.project.bias[...]
  return result


@pytest.mark.parametrize('library', ['timm', 'torchvision', 'transformers'])
@pytest.mark.parametrize('hw', [(3, 3), (4, 7), (2, 5)])
def test_windows_of_a_map_of_any_size(library, hw):
  with jax.enable_x64(True):
    cut = windows.Windows((3, 3), (1, 1), library)
    module = swin.WindowAttention(4, 2, cut, rngs=Rngs(jax.random.key(0)))
    rng = np.random.default_rng(0)
    graph, state = nnx.split(module)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape), state)
    module = nnx.merge(graph, state)
    x = rng.normal(size=(*hw, 4))
    ours = jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, x[None])[0]
  expected = by_pixels(module, x, library, 3, [1, 1])
  np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shift', [(0, 0), (1, 1)])
def test_windows_by_the_attention_of_other_backends(monkeypatch, shift, dtype):
  cut = windows.Windows((3, 3), shift, 'timm')
  module = swin.WindowAttention(4, 2, cut, rngs=Rngs(jax.random.key(0)))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 4)), dtype)
  graph, state = nnx.split(module)

  def forward():
    # A new function each time: a cached trace would be that of the other one.
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)

  expected = forward()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  got = forward()
  assert got.dtype == dtype
  bound = 1e-5 if dtype == jnp.float32 else 0.02
  scale = np.abs(np.asarray(expected, np.float32)).max()
  np.testing.assert_allclose(
    *(np.asarray(y, np.float32) for y in (got, expected)), atol=bound * scale
  )


@pytest.mark.parametrize(
  ('native', 'sizes', 'shifts'),
  [
    ((56, 24), [(7, 6), (7, 3)], [(3, 0), (0, 0)]),
    # Maps of 16 by 9, then of 8 by 5: odd sides are padded.
    ((64, 36), [(7, 7), (7, 5)], [(3, 3), (3, 0)]),
    (224, [(7, 7), (7, 7)], [(3, 3), (3, 3)]),
  ],
)
def test_windows_of_timm_are_no_larger_than_its_native_maps(
  native, sizes, shifts
):
  design = swin.Design(8, (2, 2), (1, 1), native=native)
  made = [swin._windows(design, stage, 1) for stage in (0, 1)]
  assert [w.size for w in made] == sizes
  assert [w.shift for w in made] == shifts


def test_an_index_of_windows_that_are_not_square():
  index = windows.relative_index((7, 3))
  assert index.shape == (21, 21) and index.max() == 13 * 5 - 1
  assert len(np.unique(index)) == 13 * 5
