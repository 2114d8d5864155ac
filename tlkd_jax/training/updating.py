"""What an update changes of one learner, and on which devices it lies.

Copied, each device updates all of a learner. In parts
(`optimizer.sharding = 'state'`; ZeRO's first two stages, Rajbhandari et al.
2020, arXiv 1910.02054) it holds its part of the optimizer's state and of the
average, takes its part of the gradients, updates its part of the weights and
receives the others' parts of those. The weights themselves are whole everywhere
between two updates, as every device needs all of them in its forward pass.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from tlkd_jax.runtime import sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import optimizers
from tlkd_jax.training.state import Beginning, Learner, State, Tree, create

# One for all arrays of a State, or a State of one for each.
Placed = NamedSharding | State


def placed(
  settings: Settings,
  beginnings: Mapping[str, Beginning],
  optimizer_of: Mapping[str, optax.GradientTransformation],
  mesh: Mesh,
) -> Placed:
  """Where each array of a run's state lies.

  Args:
    settings: of the run.
    beginnings: name -> a learner before the first update.
    optimizer_of: name -> its optimizer.
    mesh: devices.
  """
  copied = sharding.replicated(mesh)
  if settings.optimizer.sharding == 'none' or mesh.size == 1:
    return copied
  shapes = jax.eval_shape(
    functools.partial(create, optimizers=dict(optimizer_of)), dict(beginnings)
  )
  return State(
    copied,
    {
      name: Learner(
        params=copied,
        model_state=copied,
        opt_state=sharding.parts_of(learner.opt_state, mesh),
        memory=copied,
        ema=sharding.parts_of(learner.ema, mesh),
      )
      for name, learner in shapes.learners.items()
    },
  )


def summed(grads: Tree, mesh: Mesh, where: Placed | None) -> Tree:
  """The gradients as an update reads them, inside a program.

  Whole before they are in parts: else the compiler takes the forward pass apart
  too, and gathers each piece.

  Args:
    grads: name of a learner -> of its params.
    mesh: devices.
    where: from `placed`, None copies the state.
  """
  if not isinstance(where, State):
    return grads
  return sharding.spread(sharding.gather(grads, mesh), mesh)


def update(
  optimizer: optax.GradientTransformation,
  before: Learner,
  grads: Tree,
  model_state: Tree,
  memory: Tree,
  step: jax.Array,
  decay: float,
) -> Learner:
  """A learner after an update, where its optimizer's state lies.

  Args:
    optimizer: acts on its params.
    before: the learner.
    grads: of its params, from `summed`.
    model_state: statistics after the step.
    memory: of its losses, likewise.
    step: int32 scalar, batches seen before.
    decay: of its average.
  """
  change, opt_state = optimizer.update(grads, before.opt_state, before.params)
  after: Any = optax.apply_updates(before.params, change)
  if not isinstance(opt_state, optax.MultiStepsState):
    average = optimizers.average(before.ema, after, step, decay)
    return Learner(after, model_state, opt_state, memory, average)
  # Batches that make an update together are one to the average too.
  done, whole = before.opt_state.gradient_step, opt_state.mini_step == 0
  average = jax.tree.map(
    lambda new, old: jnp.where(whole, new, old),
    optimizers.average(before.ema, after, done, decay),
    before.ema,
  )
  return Learner(after, model_state, opt_state, memory, average)


def jitted(step: Callable, mesh: Mesh, where: Placed | None = None) -> Callable:
  """Compiles a step of a run.

  Args:
    step: (state, constants, batch) -> (state, metrics); its state is donated.
    mesh: devices; batches are split over it, metrics copied.
    where: from `placed`; None copies the state.
  """
  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  where = copied if where is None else where
  return jax.jit(
    step,
    donate_argnames='state',
    in_shardings=(where, None, split),
    out_shardings=(where, copied),
  )
