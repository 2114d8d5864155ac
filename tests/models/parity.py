"""Golden architectures: weights by a rule, logits by the reference library."""

import functools
import json
import pathlib

import jax
import numpy as np

from tests.fixtures import fill_rule
from tlkd_jax import models
from tlkd_jax.models.functional import Model, to_functional
from tlkd_jax.models.spec import ModelSpec
from tlkd_jax.models.weights import pretrained

# A key of MODELS, or of a variant that has no name here.
Variant = str | ModelSpec


# Consecutive tests of one fixture share it; keeping all takes gigabytes.
@functools.lru_cache(maxsize=1)
def load(path: pathlib.Path) -> tuple[dict, dict, dict]:
  """(meta, torch state dict, reference arrays) of one parity fixture."""
  with np.load(path) as archive:
    arrays = {k: archive[k] for k in archive.files}
  meta = json.loads(str(arrays.pop('meta')))
  entries = json.loads(str(arrays.pop('state_dict')))
  state_dict = {
    name: window_index(shape)
    if name.endswith('.relative_position_index')
    else fill_rule.fill(name, shape, meta['gain'])
    for name, shape, _ in entries
  }
  return meta, state_dict, arrays


def create(variant: Variant, path: pathlib.Path) -> Model:
  """The model of a fixture, without a head where its file has none."""
  meta = load(path)[0]
  headless = meta.get('output') == 'pooler_output'
  num_classes = 0 if headless else meta['num_classes']
  if isinstance(variant, str):
    return models.create_model(variant, num_classes=num_classes)
  return to_functional('a variant without a name', variant, num_classes)


def window_index(shape: list[int]) -> np.ndarray:
  """Swin's index of a square window, as torch keeps it: flat or a square."""
  side = round(np.prod(shape) ** 0.25)
  index = [
    (y - v + side - 1) * (2 * side - 1) + (x - u + side - 1)
    for y in range(side)
    for x in range(side)
    for v in range(side)
    for u in range(side)
  ]
  return np.array(index).reshape(shape)


@functools.lru_cache(maxsize=1)
def outputs(name: Variant, path: pathlib.Path, *, x64: bool) -> dict:
  """What the model returns for the fixture; features as means [B, C]."""
  meta, state_dict, _ = load(path)
  model = create(name, path)
  params, model_state = pretrained.from_torch(model, state_dict)
  images = fill_rule.make_input(*meta['input_hw'])

  def apply(*variables):
    result, _ = model.apply(*variables)
    means = {k: v.mean((1, 2)) for k, v in result['features'].items()}
    return {**result, 'features': means}

  with jax.enable_x64(x64):
    dtype = np.float64 if x64 else np.float32
    variables = jax.tree.map(
      lambda x: np.asarray(x, dtype), (params, model_state, images)
    )
    result = jax.tree.map(np.asarray, jax.jit(apply)(*variables))
  assert result['logits'].dtype == dtype
  return result


def logits_error(name: Variant, path: pathlib.Path, *, x64: bool) -> float:
  """Largest |ours - reference| / std of the reference's float64 logits."""
  ours = outputs(name, path, x64=x64)['logits']
  return error(ours, load(path)[2]['logits64'])


def error(value: np.ndarray, reference: np.ndarray) -> float:
  """Largest difference / std of the reference."""
  difference = np.abs(value - reference.astype(np.float64)).max()
  return float(difference / reference.std())


def assert_round_trip(name: Variant, path: pathlib.Path) -> None:
  """to_torch(from_torch(sd)) == sd: every entry used once, bit for bit."""
  _, state_dict, _ = load(path)
  model = create(name, path)
  params, model_state = pretrained.from_torch(model, state_dict)
  back = pretrained.to_torch(model, params, model_state)
  assert set(back) == set(state_dict)
  for key, value in state_dict.items():
    assert back[key].dtype == value.dtype, key
    np.testing.assert_array_equal(back[key], value, err_msg=key)
