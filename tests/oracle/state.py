"""All that one update reads and writes, and all that a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of a run; a teacher is not in it, a peer (mutual.py) is.

  Attributes:
    step: int32 scalar, updates done.
    params: {'student': ..., 'projector': ...}; the projector (learnable part
      of a distillation loss) is {} where the loss has none. With a peer also
      'peer': the same two of it, as it is a student of this student.
    model_state: the student's BatchNorm statistics.
    opt_state: Optax state.
    ema: moving average of params['student'], {} when off.
    memory: state of the distillation loss (CRD's bank), {} where it has none.
    peer: {'model_state': ..., 'memory': ...} of a peer, {} without one.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Any
  ema: Tree
  memory: Tree
  peer: Tree = dataclasses.field(default_factory=dict)


def create(
  params: Tree,
  model_state: Tree,
  optimizer,
  *,
  ema: bool,
  memory: Tree,
  peer: Tree | None = None,
) -> TrainState:
  """The state before the first update.

  Args:
    params: as in TrainState, owned by the state from here on.
    model_state: BatchNorm statistics.
    optimizer: an optax.GradientTransformation.
    ema: keep a moving average of the student's weights.
    memory: initial state of the distillation loss, {} where it has none.
    peer: as in TrainState; None without one.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params['student']) if ema else {},
    memory=memory,
    peer=peer or {},
  )


def evaluation_params(state: TrainState) -> Tree:
  """The student's weights to evaluate: the average where one is kept."""
  return state.ema or state.params['student']
