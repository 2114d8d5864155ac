"""The convolutional families against the libraries they follow."""

import pathlib
import re

import jax
import numpy as np
import pytest

from tests.marks import slow
from tests.models import parity
from tlkd_jax import models
from tlkd_jax.models.weights import pretrained

# Fixture file -> the name it has here.
CASES = {
  'efficientnet_lite_pytorch__efficientnet-lite0': 'efficientnet_lite0',
  'efficientnet_lite_pytorch__efficientnet-lite2': 'efficientnet_lite2',
  'timm__efficientnet_b0': 'timm/efficientnet_b0',
  'timm__efficientnet_lite0': 'timm/efficientnet_lite0',
  'timm__mobilenetv2_100': 'timm/mobilenetv2_100',
  'timm__mobilenetv3_large_100': 'timm/mobilenetv3_large_100',
  'timm__regnety_004': 'timm/regnety_004',
  'timm__resnet18': 'timm/resnet18',
  'timm__resnet50': 'timm/resnet50',
  'timm__tf_efficientnet_b0': 'timm/tf_efficientnet_b0',
  'timm__tf_efficientnet_lite0': 'timm/tf_efficientnet_lite0',
  'timm__tf_efficientnetv2_b0': 'timm/tf_efficientnetv2_b0',
  'torchvision__densenet121': 'torchvision/densenet121',
  'torchvision__efficientnet_b0': 'torchvision/efficientnet_b0',
  'torchvision__efficientnet_v2_s': 'torchvision/efficientnet_v2_s',
  'torchvision__mobilenet_v2': 'torchvision/mobilenet_v2',
  'torchvision__mobilenet_v3_large': 'torchvision/mobilenet_v3_large',
  'torchvision__regnet_y_400mf': 'torchvision/regnet_y_400mf',
  'torchvision__resnet18': 'torchvision/resnet18',
  'torchvision__resnet34': 'torchvision/resnet34',
  'torchvision__resnet50': 'torchvision/resnet50',
  'torchvision__resnext50_32x4d': 'torchvision/resnext50_32x4d',
  'torchvision__vgg11_bn@96x72': 'torchvision/vgg11_bn',
}
LARGE = {'torchvision__vgg11_bn': 'torchvision/vgg11_bn'}
# Modules of the reference whose output is the end of one of our stages.
STAGES = {
  'timm__efficientnet_b0': [f'blocks.{i}' for i in range(7)],
  'timm__mobilenetv3_large_100': [f'blocks.{i}' for i in range(6)],
  'timm__regnety_004': ['s1', 's2', 's3', 's4'],
  'timm__resnet50': [f'layer{i}' for i in range(1, 5)],
  'timm__tf_efficientnetv2_b0': [f'blocks.{i}' for i in range(6)],
  'torchvision__densenet121': [f'features.denseblock{i}' for i in range(1, 5)],
  'torchvision__efficientnet_v2_s': [f'features.{i}' for i in range(1, 7)],
  'torchvision__mobilenet_v2': [
    f'features.{i}' for i in (1, 3, 6, 10, 13, 16, 17)
  ],
  'torchvision__vgg11_bn@96x72': [f'features.{i}' for i in (3, 7, 14, 21, 28)],
}
# Of each structure a smaller one, or the other library's, is compared in every
# run; what differs between libraries is the names of entries, and all of these
# are in the round trip.
MORE_OF_A_STRUCTURE = (
  'efficientnet_lite_pytorch__efficientnet-lite2',
  'timm__efficientnet_lite0',
  'timm__mobilenetv2_100',
  'timm__resnet18',
  'timm__resnet50',
  'timm__tf_efficientnet_b0',
  'timm__tf_efficientnet_lite0',
  'torchvision__efficientnet_b0',
  'torchvision__efficientnet_v2_s',
  'torchvision__mobilenet_v3_large',
  'torchvision__regnet_y_400mf',
  'torchvision__resnet34',
)
QUICK = [fixture for fixture in CASES if fixture not in MORE_OF_A_STRUCTURE]
# One of each structure; in every run the first and the last.
FLOAT32 = [
  'efficientnet_lite_pytorch__efficientnet-lite0',
  *slow(
    'timm__mobilenetv3_large_100',
    'timm__regnety_004',
    'timm__tf_efficientnetv2_b0',
    'torchvision__densenet121',
    'torchvision__efficientnet_b0',
    'torchvision__mobilenet_v2',
  ),
  'torchvision__resnet18',
]

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'


# One test, since parallel workers would compile the model once each.
@pytest.mark.parametrize('fixture', [*QUICK, *slow(*MORE_OF_A_STRUCTURE)])
def test_logits_and_features_match_the_reference_in_float64(fixture):
  name, path = CASES[fixture], FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(name, path, x64=True) < 1e-6
  outputs = parity.outputs(name, path, x64=True)
  reference = parity.load(path)[2]
  # The reference computed these in float32.
  assert parity.error(outputs['pre_logits'], reference['features']) < 5e-5
  assert tuple(outputs['features']) == models.MODELS[name].stages
  modules = STAGES.get(path.stem, ())
  for (stage, mean), module in zip(
    outputs['features'].items(), modules, strict=bool(modules)
  ):
    assert parity.error(mean, reference[f'stage/{module}']) < 5e-5, stage


@pytest.mark.parametrize('fixture', CASES)
def test_weights_survive_the_round_trip(fixture):
  parity.assert_round_trip(CASES[fixture], FIXTURES / f'{fixture}.npz')


@pytest.mark.parametrize('fixture', FLOAT32)
def test_logits_match_the_reference_in_float32(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(CASES[fixture], path, x64=False) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize('fixture', LARGE)
def test_large_models_at_their_native_size(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(LARGE[fixture], path, x64=True) < 1e-6


def test_dense_net_files_with_old_names_are_read():
  path = FIXTURES / 'torchvision__densenet121.npz'
  _, state_dict, _ = parity.load(path)
  old = {
    re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', key): value
    for key, value in state_dict.items()
  }
  assert 'features.denseblock1.denselayer1.norm.1.weight' in old
  model = models.create_model('densenet121')
  expected = pretrained.from_torch(model, state_dict)
  got = pretrained.from_torch(model, old)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(n for n in models.MODELS if '/' in n))
def test_every_variant_has_a_torch_key_for_every_array(name):
  model = models.create_model(name, num_classes=7)
  shapes = pretrained.leaf_table(model)
  assert model.spec.stem + '.kernel' in shapes
  assert all(f'{head}.kernel' in shapes for head in model.spec.head)
