"""NNX modules as pure functions of plain dicts.

Nothing outside this file splits or merges a module. Parameters and BatchNorm
statistics are nested dicts of arrays with string keys, e.g.
params['blocks']['0']['0']['project']['conv']['kernel'].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.spec import ModelSpec
from tlkd_jax.runtime.trees import flatten, nest

Array = jax.Array
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model variant as a pure function; holds no arrays.

  Itself alone is equal to it: `to_functional` gives one for one variant, so
  that programs can be kept by the network that they run.

  Attributes:
    name: its key in MODELS.
    spec: preprocessing and key tables.
    num_classes: length of the logits.
    graphdef: NNX structure.
    params_shape: shapes and dtypes of the parameters.
    model_state_shape: shapes and dtypes of the BatchNorm statistics.
  """

  name: str
  spec: ModelSpec
  num_classes: int
  graphdef: Any
  params_shape: Tree
  model_state_shape: Tree
  options: dict[str, Any]

  def init(self, key: Array) -> tuple[Tree, Tree]:
    """Random parameters and fresh statistics, from a typed PRNG key."""
    module = _build(self.spec, self.num_classes, self.options, key)
    _, params, model_state = nnx.split(module, nnx.Param, nnx.BatchStat)
    return _plain(params), _plain(model_state)

  def apply(
    self,
    params: Tree,
    model_state: Tree,
    images: Array,
    *,
    train: bool = False,
    norm_train: bool = False,
    key: Array | None = None,
    batch_chance: float = 1.0,
    remat: bool = False,
  ) -> tuple[dict[str, Any], Tree]:
    """Runs the model on normalised images.

    Args:
      params: parameters.
      model_state: BatchNorm statistics.
      images: float [B, H, W, C], normalised by the spec's mean and std; their
        dtype is the dtype of the computation.
      train: dropout and drop-path are on.
      norm_train: BatchNorm uses and updates batch statistics.
      key: for dropout; needed when train and a rate is positive.
      batch_chance: see layers.Mode; below 1 needs the key.
      remat: gradients compute the inside of each block again.

    Returns:
      ({'logits': [B, K] in the parameters' dtype, 'pre_logits': [B, D],
      'features': {'stage1': [B, h, w, c], ...}}, new model_state). Beside these
      the output of each further name in spec.embeddings, [B, D]; and of a
      network with a distillation token 'class_logits' and
      'distillation_logits', [B, K], of which 'logits' are the mean.
    """
    module = nnx.merge(
      self.graphdef, _state(params), _state(model_state), copy=True
    )
    rngs = layers.Rngs(key) if key is not None else None
    mode = layers.Mode(
      train=train,
      norm_train=norm_train,
      rngs=rngs,
      batch_chance=batch_chance,
      remat=remat,
    )
    outputs = module(images, mode)
    dtype = jax.tree.leaves(params)[0].dtype
    outputs['logits'] = outputs['logits'].astype(dtype)
    return outputs, _plain(nnx.state(module, nnx.BatchStat))


@functools.lru_cache(maxsize=256)
def to_functional(
  name: str, spec: ModelSpec, num_classes: int, **options
) -> Model:
  """Traces the structure of a variant without allocating its arrays, once."""
  module = structure(spec, num_classes, options)
  graphdef, params, model_state = nnx.split(module, nnx.Param, nnx.BatchStat)
  return Model(
    name=name,
    spec=spec,
    num_classes=num_classes,
    graphdef=graphdef,
    params_shape=_plain(params),
    model_state_shape=_plain(model_state),
    options=options,
  )


@functools.lru_cache(maxsize=64)
def with_positions(model: Model, count: int) -> Model:
  """The model with so many learned positions; 0 leaves it as it is.

  Weights may have them for images of another size than the variant's.
  """
  shapes = flatten(model.params_shape)
  others = {
    path: jax.ShapeDtypeStruct((1, count, leaf.shape[2]), leaf.dtype)
    for path, leaf in shapes.items()
    if _is_position(path) and count not in (0, leaf.shape[1])
  }
  if not others:
    return model
  return dataclasses.replace(model, params_shape=nest({**shapes, **others}))


def positions_of(params: Tree) -> int:
  """Number of learned positions, of each part where it has several; or 0."""
  for path, leaf in flatten(params).items():
    if _is_position(path):
      return leaf.shape[1]
  return 0


def _is_position(path: str) -> bool:
  return path.rpartition('.')[2] == 'position'


def structure(
  spec: ModelSpec, num_classes: int, options: dict[str, Any]
) -> nnx.Module:
  """The module of a variant, with shapes in place of arrays."""
  return nnx.eval_shape(lambda: _build(spec, num_classes, options, None))


@functools.lru_cache(maxsize=16)
def jitted_init(model: Model) -> Callable:
  """`model.init`, compiled once in a process."""
  return jax.jit(model.init)


def _build(spec, num_classes, options, key) -> nnx.Module:
  return spec.build(num_classes, rngs=layers.Rngs(key), **options)


def _plain(state: nnx.State) -> Tree:
  return _string_keys(nnx.to_pure_dict(state))


def _string_keys(tree):
  if isinstance(tree, dict):
    return {str(k): _string_keys(v) for k, v in tree.items()}
  return tree


def _state(tree: Tree) -> nnx.State:
  return nnx.State(nnx.restore_int_paths(tree))
