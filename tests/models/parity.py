"""Golden architectures: weights by a rule, logits by the reference library."""

import contextlib
import functools
import json
import pathlib
from unittest import mock

import jax
import numpy as np
from flax import nnx

from tests.fixtures import fill_rule
from tlkd_jax import models
from tlkd_jax.models.functional import Model, to_functional
from tlkd_jax.models.layers import core
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
def port(name: Variant, path: pathlib.Path) -> tuple[Model, dict, dict]:
  """(model, params, model_state) of a fixture; not to be changed."""
  model = create(name, path)
  return model, *pretrained.from_torch(model, load(path)[1])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(graphdef, state, x, mode, *others):
  return nnx.merge(graphdef, state)(x, mode, *others)


@contextlib.contextmanager
def compiled_by_blocks():
  """Blocks are programs of their own, outside of which nothing is compiled.

  Blocks of one structure and size are compiled once, and XLA's time grows
  faster than the length of a program. For evaluation: no statistics change.
  """

  def run_block(block, x, mode, *others):
    assert not (mode.train or mode.norm_train)
    return _run(*nnx.split(block), x, mode, *others)

  with mock.patch.object(core, 'run_block', run_block):
    yield


@functools.lru_cache(maxsize=1)
def outputs(
  name: Variant, path: pathlib.Path, *, x64: bool, by_blocks: bool = False
) -> dict:
  """What the model returns for the fixture; features as means [B, C]."""
  meta = load(path)[0]
  model, params, model_state = port(name, path)
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
    if by_blocks:
      with compiled_by_blocks():
        result = apply(*jax.device_put(variables))
    else:
      result = jax.jit(apply)(*variables)
    result = jax.tree.map(np.asarray, result)
  assert result['logits'].dtype == dtype
  return result


def logits_error(
  name: Variant, path: pathlib.Path, *, x64: bool, by_blocks: bool = False
) -> float:
  """Largest |ours - reference| / std of the reference's float64 logits."""
  ours = outputs(name, path, x64=x64, by_blocks=by_blocks)['logits']
  return error(ours, load(path)[2]['logits64'])


def error(value: np.ndarray, reference: np.ndarray) -> float:
  """Largest difference / std of the reference."""
  difference = np.abs(value - reference.astype(np.float64)).max()
  return float(difference / reference.std())


def assert_round_trip(name: Variant, path: pathlib.Path) -> None:
  """to_torch(from_torch(sd)) == sd: every entry used once, bit for bit."""
  state_dict = load(path)[1]
  back = pretrained.to_torch(*port(name, path))
  assert set(back) == set(state_dict)
  for key, value in state_dict.items():
    assert back[key].dtype == value.dtype, key
    # The message of NumPy's own assertion takes several passes over a weight.
    assert np.array_equal(back[key], value), key
