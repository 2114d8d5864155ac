import pathlib

import pytest

from tests.models import parity

# Fixture file -> the name it has here.
CASES = {
  'efficientnet_lite_pytorch__efficientnet-lite0': 'efficientnet_lite0',
  'efficientnet_lite_pytorch__efficientnet-lite2': 'efficientnet_lite2',
  'timm__tf_efficientnet_lite0': 'timm/tf_efficientnet_lite0',
}

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'


@pytest.mark.parametrize('fixture', CASES)
def test_logits_match_the_reference_in_float64(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(CASES[fixture], path, x64=True) < 1e-6


@pytest.mark.parametrize(
  'fixture', ['efficientnet_lite_pytorch__efficientnet-lite0']
)
def test_logits_match_the_reference_in_float32(fixture):
  path = FIXTURES / f'{fixture}.npz'
  assert parity.logits_error(CASES[fixture], path, x64=False) < 5e-5


@pytest.mark.parametrize('fixture', CASES)
def test_weights_survive_the_round_trip(fixture):
  path = FIXTURES / f'{fixture}.npz'
  parity.assert_round_trip(CASES[fixture], path)
