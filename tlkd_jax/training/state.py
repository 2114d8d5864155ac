"""All that one update reads and writes, and all that a checkpoint holds.

A run is networks by name. Those that learn are in the state; a teacher is not.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learner:
  """All that an update changes of one network.

  Attributes:
    params: {'weights': the network's, 'projector': the learnable parts of its
      losses, {} without}, and 'source_head' where the head of its pretrained
      weights goes on learning.
    model_state: BatchNorm statistics.
    opt_state: Optax state.
    memory: state of its losses (CRD's bank), {} without.
    ema: moving average of params['weights'], {} when off.
  """

  params: Tree
  model_state: Tree
  opt_state: Any
  memory: Tree
  ema: Tree

  def evaluated(self) -> tuple[Tree, Tree]:
    """(weights, statistics) to evaluate: the average where one is kept."""
    return self.ema or self.params['weights'], self.model_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """State of a run.

  Attributes:
    step: int32 scalar, updates done.
    learners: name -> Learner, the run's own network first.
  """

  step: jax.Array
  learners: dict[str, Learner]


@dataclasses.dataclass(frozen=True)
class Beginning:
  """A learner before the first update, without its optimizer's state."""

  params: Tree
  model_state: Tree
  memory: Tree
  averaged: bool = False


jax.tree_util.register_dataclass(
  Beginning, ['params', 'model_state', 'memory'], ['averaged']
)


def create(
  beginnings: dict[str, Beginning],
  optimizers: dict[str, optax.GradientTransformation],
) -> State:
  """The state before the first update; it owns the arrays from here on."""
  return State(
    step=jnp.zeros((), jnp.int32),
    learners={
      name: Learner(
        params=given.params,
        model_state=given.model_state,
        opt_state=optimizers[name].init(given.params),
        memory=given.memory,
        ema=jax.tree.map(jnp.copy, given.params['weights'])
        if given.averaged
        else {},
      )
      for name, given in beginnings.items()
    },
  )
