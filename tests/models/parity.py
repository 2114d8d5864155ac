"""Golden architectures: weights by a rule, logits by the reference library."""

import functools
import json
import pathlib

import jax
import numpy as np

from tests.fixtures import fill_rule
from tlkd_jax import models
from tlkd_jax.models import pretrained


@functools.cache
def load(path: pathlib.Path) -> tuple[dict, dict, dict]:
  """(meta, torch state dict, reference arrays) of one parity fixture."""
  with np.load(path) as archive:
    arrays = {k: archive[k] for k in archive.files}
  meta = json.loads(str(arrays.pop('meta')))
  entries = json.loads(str(arrays.pop('state_dict')))
  state_dict = {
    name: fill_rule.fill(name, shape, meta['gain'])
    for name, shape, _ in entries
  }
  return meta, state_dict, arrays


def logits_error(name: str, path: pathlib.Path, *, x64: bool) -> float:
  """Largest |ours - reference| / std of the reference's float64 logits."""
  meta, state_dict, arrays = load(path)
  model = models.create_model(name, num_classes=meta['num_classes'])
  params, model_state = pretrained.from_torch(model, state_dict)
  images = fill_rule.make_input(*meta['input_hw'])
  with jax.enable_x64(x64):
    dtype = np.float64 if x64 else np.float32
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    apply = jax.jit(lambda p, s, x: model.apply(p, s, x)[0]['logits'])
    logits = np.asarray(apply(cast(params), cast(model_state), cast(images)))
  assert logits.dtype == dtype
  reference = arrays['logits64']
  return float(np.abs(logits - reference).max() / reference.std())


def assert_round_trip(name: str, path: pathlib.Path) -> None:
  """to_torch(from_torch(sd)) == sd: every entry used once, bit for bit."""
  meta, state_dict, _ = load(path)
  model = models.create_model(name, num_classes=meta['num_classes'])
  params, model_state = pretrained.from_torch(model, state_dict)
  back = pretrained.to_torch(model, params, model_state)
  assert set(back) == set(state_dict)
  for key, value in state_dict.items():
    assert back[key].dtype == value.dtype, key
    np.testing.assert_array_equal(back[key], value, err_msg=key)
