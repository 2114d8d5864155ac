"""DINOv2, CLIP, SigLIP and averaged ViTs against timm and transformers."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.families import clip, dinov2, siglip, vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_variants import averaged
from tlkd_jax.models.functional import to_functional

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
