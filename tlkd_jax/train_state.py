"""All that one update reads and writes, and all that a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of a run; the teacher is not in it.

  Attributes:
    step: int32 scalar, updates done.
    params: {'student': ..., 'projector': ...}; the projector (learnable part
      of a distillation loss) is {} where the loss has none.
    model_state: the student's BatchNorm statistics.
    opt_state: Optax state.
    ema: moving average of params['student'], {} when off.
    memory: state of the distillation loss (CRD's bank), {} where it has none.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Any
  ema: Tree
  memory: Tree


def create(
  params: Tree, model_state: Tree, optimizer, *, ema: bool, memory: Tree
) -> TrainState:
  """The state before the first update.

  Args:
    params: as in TrainState, owned by the state from here on.
    model_state: BatchNorm statistics.
    optimizer: an optax.GradientTransformation.
    ema: keep a moving average of the student's weights.
    memory: initial state of the distillation loss, {} where it has none.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params['student']) if ema else {},
    memory=memory,
  )


def evaluation_params(state: TrainState) -> Tree:
  """The student's weights to evaluate: the average where one is kept."""
  return state.ema or state.params['student']
