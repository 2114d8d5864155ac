"""Networks that are trained in branches, in both forms, against timm."""

import pathlib

import pytest

from tests.models import parity
from tlkd_jax import models

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures' / 'parity'
# Fixture -> the modules of timm whose outputs are the ends of our stages.
CASES = {
  'timm__fastvit_t8': 'stages.{}',
  'timm__mobileone_s0': 'stages.{}',
  'timm__repvit_m0_9': 'stages.{}',
}


@pytest.fixture(params=CASES, scope='module')
def case(request) -> tuple[str, pathlib.Path]:
  fixture = request.param
  return fixture.replace('__', '/'), FIXTURES / f'{fixture}.npz'


def test_logits_and_features_match_the_reference_in_float64(case):
  name, path = case
  e = parity.logits_error(name, path, x64=True)
  print(e)
  assert e < 1e-6
  outputs = parity.outputs(name, path, x64=True)
  reference = parity.load(path)[2]
  assert parity.error(outputs['pre_logits'], reference['features']) < 5e-5
  assert tuple(outputs['features']) == models.MODELS[name].stages
  for i, mean in enumerate(outputs['features'].values()):
    assert parity.error(mean, reference[f'stage/stages.{i}']) < 5e-5, i


def test_weights_survive_the_round_trip(case):
  parity.assert_round_trip(*case)
