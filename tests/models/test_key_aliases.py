import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from tests.fixtures import fill_rule
from tests.marks import slow
from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.weights import pretrained, surgery
from tlkd_jax.models.weights.aliases import canonical_keys

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'

# Fixture of Hugging Face's transformers -> the variant that computes it.
CASES = {
  'transformers__resnet18': 'torchvision/resnet18',
  'transformers__vit_tiny_p16_224': 'transformers/vit_tiny_patch16_224',
  'transformers__convnext_tiny': 'transformers/convnext_tiny',
  'transformers__deit_tiny_distilled_p16_224': (
    'transformers/deit_tiny_distilled_patch16_224'
  ),
  # By tests/fixtures/make_transformers.py.
  'transformers__regnet_y_004': 'timm/regnety_004',
  'transformers__regnet_x_004': 'timm/regnetx_004',
  'transformers__efficientnet_b0': 'timm/tf_efficientnet_b0',
  'transformers__mobilenet_v2_0.35_96': 'transformers/mobilenet_v2_0.35_96',
  'transformers__convnextv2_atto': 'transformers/convnextv2_atto',
  'transformers__deit_tiny_one_head': (
    'transformers/deit_tiny_distilled_patch16_224'
  ),
}


def load(fixture):
  return parity.load(FIXTURES / f'{fixture}.npz')


def values(arrays) -> tuple[int, int]:
  """How many values there are, and a sum that tells any other values of them.

  Each is mixed as SplitMix64 does it (Steele et al., OOPSLA 2014), so that
  order alone does not matter. Sorting 25 million takes seconds.
  """
  count, total = 0, 0
  for array in arrays.values():
    bits = np.ravel(np.asarray(array, np.float32)).view(np.uint32)
    mixed = bits.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    count += len(bits)
    total += int(mixed.sum(dtype=np.uint64))
  return count, total % 2**64


def test_the_sum_tells_values_apart_and_not_their_order():
  some = {'a': np.array([1, 2, 3, 2], np.float32)}
  split = {'b': np.array([[2.0, 3.0]]), 'c': np.array([2.0, 1.0])}
  assert values(some) == values(split)
  for other in ([1, 2, 3, 3], [1, 3, 3, 1], [1, 2, 3], [-1, 2, 3, 2]):
    assert values(some) != values({'a': np.array(other, np.float32)})


# Of each way to name entries one; values that are used once are below.
QUICK = (
  'transformers__vit_tiny_p16_224',
  'transformers__regnet_y_004',
  'transformers__convnextv2_atto',
  'transformers__mobilenet_v2_0.35_96',
)
FURTHER = [fixture for fixture in CASES if fixture not in QUICK]


@pytest.mark.parametrize('fixture', [*QUICK, *slow(*FURTHER)])
def test_hugging_face_files_give_the_logits_of_transformers(fixture):
  meta, state_dict, arrays = load(fixture)
  model = models.create_model(CASES[fixture], num_classes=meta['num_classes'])
  canonical = canonical_keys(CASES[fixture], state_dict)
  canonical = surgery.adapt_state_dict(model, canonical)
  variables = pretrained.from_torch(model, canonical)
  with jax.enable_x64(True):
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    images = cast(fill_rule.make_input(*meta['input_hw']))
    apply = jax.jit(lambda p, s, x: model.apply(p, s, x)[0]['logits'])
    logits = np.asarray(apply(*cast(variables), images))
  reference = arrays['logits64']
  assert np.abs(logits - reference).max() < 1e-6 * reference.std()


@pytest.mark.parametrize(
  'fixture, name',
  [
    ('transformers__resnet50', 'resnet50'),
    ('transformers__vit_tiny_p16_224', 'timm/vit_tiny_patch16_224'),
    ('transformers__convnext_tiny', 'timm/convnext_tiny'),
    ('transformers__convnext_tiny', 'convnext_tiny'),
    ('transformers__regnet_y_004', 'torchvision/regnet_y_400mf'),
    ('transformers__convnextv2_atto', 'timm/convnextv2_atto'),
  ],
)
def test_every_value_of_a_hugging_face_file_is_used_once(fixture, name):
  meta, state_dict, _ = load(fixture)
  canonical = canonical_keys(name, state_dict)
  model = models.create_model(name, num_classes=meta['num_classes'])
  params, model_state = pretrained.from_torch(model, canonical)
  back = pretrained.to_torch(model, params, model_state)
  for key, value in canonical.items():
    np.testing.assert_array_equal(back[key], value, err_msg=key)

  assert values(back) == values(state_dict)


def test_query_key_and_value_are_stacked_in_this_order():
  _, state_dict, _ = load('transformers__vit_tiny_p16_224')
  name = 'timm/vit_tiny_patch16_224'
  fused = canonical_keys(name, state_dict)['blocks.3.attn.qkv.weight']
  prefix = 'vit.encoder.layer.3.attention.attention'
  for i, part in enumerate(('query', 'key', 'value')):
    np.testing.assert_array_equal(
      fused[192 * i : 192 * (i + 1)], state_dict[f'{prefix}.{part}.weight']
    )


@pytest.mark.parametrize('fixture', [f for f in CASES if '_p16_' in f])
def test_names_in_memory_of_transformers_5_are_read_too(fixture):
  meta, state_dict, _ = load(fixture)
  name = CASES[fixture]
  in_memory = {key: np.zeros(1) for key in meta['memory_names']}
  renamed = canonical_keys(name, in_memory)
  assert set(renamed) == set(canonical_keys(name, state_dict))


def test_a_pooler_and_a_missing_prefix_do_not_matter():
  _, state_dict, _ = load('transformers__vit_tiny_p16_224')
  name = 'timm/vit_tiny_patch16_224'
  bare = {key.removeprefix('vit.'): value for key, value in state_dict.items()}
  bare['pooler.dense.weight'] = np.zeros((192, 192), np.float32)
  expected = canonical_keys(name, state_dict)
  assert set(canonical_keys(name, bare)) == set(expected)


@pytest.mark.parametrize(
  'fixture, name',
  [
    ('timm__vit_tiny_patch16_224', 'timm/vit_tiny_patch16_224'),
    ('timm__convnext_tiny', 'timm/convnext_tiny'),
    ('torchvision__convnext_tiny', 'convnext_tiny'),
    ('torchvision__densenet121', 'densenet121'),
  ],
)
def test_files_with_the_variants_own_keys_are_not_changed(fixture, name):
  with np.load(FIXTURES / f'{fixture}.npz') as archive:
    entries = json.loads(str(archive['state_dict']))
  state_dict = {key: np.zeros(1) for key, _, _ in entries}
  result = canonical_keys(name, state_dict)
  assert list(result) == list(state_dict)
  assert all(result[key] is value for key, value in state_dict.items())


def old_densenet(key):
  return re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key)


def old_torchvision_vit(key):
  key = key.replace('.mlp.0.', '.mlp.linear_1.')
  return key.replace('.mlp.3.', '.mlp.linear_2.')


def old_deit3(key):
  return re.sub(r'\.ls([12])\.gamma$', r'.gamma_\1', key)


def old_convnext(key):
  key = re.sub(r'^stem\.', 'downsample_layers.0.', key)
  key = re.sub(r'^stages\.(\d)\.downsample', r'downsample_layers.\1', key)
  key = key.replace('.blocks.', '.').replace('conv_dw', 'dwconv')
  key = key.replace('mlp.fc', 'pwconv').replace('head.norm', 'norm')
  return key.replace('head.fc', 'head')


@pytest.mark.parametrize(
  'fixture, old',
  [
    ('torchvision__densenet121', old_densenet),
    ('torchvision__vit_b_16', old_torchvision_vit),
    ('timm__deit3_small_patch16_224', old_deit3),
    ('timm__convnext_tiny', old_convnext),
  ],
)
def test_older_names_become_the_present_ones(fixture, old):
  with np.load(FIXTURES / f'{fixture}.npz') as archive:
    entries = json.loads(str(archive['state_dict']))
  state_dict = {key: np.zeros(1) for key, _, _ in entries}
  aged = {old(key): value for key, value in state_dict.items()}
  assert len(set(aged) - set(state_dict)) > 20
  present = canonical_keys(fixture.replace('__', '/'), aged)
  assert set(present) == set(state_dict)


def test_an_incomplete_file_is_named_by_the_strict_reader():
  _, state_dict, _ = load('transformers__vit_tiny_p16_224')
  name = 'timm/vit_tiny_patch16_224'
  lost = 'vit.encoder.layer.0.attention.attention.key.bias'
  partial = {k: v for k, v in state_dict.items() if k != lost}
  model = models.create_model(name)
  with pytest.raises(ValueError, match='missing: blocks.0.attn.qkv.bias'):
    pretrained.from_torch(model, canonical_keys(name, partial))


def test_two_entries_of_one_meaning_are_refused():
  _, state_dict, _ = load('transformers__resnet18')
  doubled = {**state_dict, 'fc.bias': state_dict['classifier.1.bias']}
  with pytest.raises(ValueError, match='two entries of the file mean fc.bias'):
    canonical_keys('resnet18', doubled)
