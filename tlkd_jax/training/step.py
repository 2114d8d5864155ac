"""One jitted update of the networks that learn, each from its guides.

A run is networks by name. Some learn, each by its Lesson; the others are
frozen, or their outputs are stored. Every network runs once on the batch; what
a learner says is a constant in the loss of another that it guides, so that
none is ahead of the others and their order does not matter.

The batch is uint8; augmentation and each model's own normalisation happen on
the device inside the step. Frozen networks run in evaluation mode; their
variables are an argument of their own, never donated and never part of the
state.
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from tlkd_jax.losses import supervised
from tlkd_jax.models.network import Network
from tlkd_jax.runtime import sharding
from tlkd_jax.training import guides as guidance
from tlkd_jax.training import objective as objectives
from tlkd_jax.training import optimizers, showing, updating
from tlkd_jax.training.objective import Objective, Taught
from tlkd_jax.training.showing import Views
from tlkd_jax.training.state import State, create
from tlkd_jax.training.updating import Placed

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Lesson:
  """How one network learns, and from whom.

  Attributes:
    network: the model and how it looks at images.
    objective: what it minimises.
    optimizer: acts on its params.
    guides: names of frozen networks or of other learners, () for none.
  """

  network: Network
  objective: Objective
  optimizer: optax.GradientTransformation
  guides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mode:
  """How all learners of a run are run and updated.

  Attributes:
    norm_train: BatchNorm learns statistics (else they are frozen).
    batch_chance: see models.layers.core.Mode.
    head_only: no gradient flows into a backbone.
    remat: keep the inputs of blocks only, and compute the rest again for the
      backward pass.
    ema_decay: of the weight average, where a learner keeps one.
  """

  norm_train: bool = False
  batch_chance: float = 1.0
  head_only: bool = False
  remat: bool = False
  ema_decay: float = 0.0


def make_step(
  lessons: Mapping[str, Lesson],
  frozen: Mapping[str, Network],
  views: Views,
  schedule: optax.Schedule,
  mode: Mode,
  mesh: Mesh,
  placed: Placed | None = None,
) -> Callable:
  """Builds the update.

  Args:
    lessons: of the networks that learn, the run's own first.
    frozen: the networks that do not.
    views: how the images of a batch are drawn.
    schedule: step -> learning rate, for the metrics.
    mode: of all learners.
    mesh: devices.
    placed: where the state lies; None copies it.

  Returns:
    step(state, constants, batch) -> (state, metrics): state donated;
    constants is {'seed': int32, 'guides': {name: {'params', 'model_state'}},
    'sham': what a sham is given, 'rows': from lessons.rows; both may be
    absent}, an argument so that runs of other seeds share the program; batch
    as in data.pipeline, sharded over "data"; metrics are replicated scalars,
    those of every learner but the first with its name before them.
  """
  own = next(iter(lessons.values()))
  networks = {name: lesson.network for name, lesson in lessons.items()}
  # Other frozen networks, such as the start, go with the hard loss.
  teachers = {name for lesson in lessons.values() for name in lesson.guides}
  first = views.taught_from

  def loss_fn(params, state, guides, shown, batch, constants):
    if mode.head_only:
      params = {
        name: optimizers.stop_backbone(lessons[name].network.model, part)
        for name, part in params.items()
      }
    key = jax.random.fold_in(jax.random.key(constants['seed']), state.step)
    outputs, model_states = {}, {}
    for number, (name, lesson) in enumerate(lessons.items()):
      outputs[name], model_states[name] = lesson.network.model.apply(
        params[name]['weights'],
        state.learners[name].model_state,
        lesson.network.prepare(shown.learners[name]),
        train=True,
        norm_train=mode.norm_train,
        # 1 is the losses' own.
        key=jax.random.fold_in(key, number + 1) if number else key,
        batch_chance=mode.batch_chance,
        remat=mode.remat,
      )
    outputs, taught = showing.split(views, outputs, batch['label'].size)
    own_params = {n: {'params': params[n]['weights']} for n in lessons}
    guides = guides | {
      name: guidance.from_outputs(network, own_params[name], taught[name])
      for name, network in networks.items()
    }
    if views.strong is not None:
      name, network = next(iter(networks.items()))
      plain = guidance.rows_from(outputs[name], first)
      guides[guidance.ITSELF] = guidance.from_outputs(
        network, own_params[name], plain
      )
    if constants.get('sham'):
      given = {'sham': constants['sham']}
      guides = {name: guide | given for name, guide in guides.items()}
    read = [key for key in ('label', 'row') if key in batch]
    rest = {key: batch[key][first:] for key in read}
    total, memories, metrics = jnp.float32(0.0), {}, {}
    for name, lesson in lessons.items():
      loss, memories[name], values = objectives.evaluate(
        lesson.objective,
        lesson.guides,
        dataclasses.replace(state.learners[name], params=params[name]),
        outputs[name],
        guides,
        shown.soft_labels,
        batch,
        jax.random.fold_in(key, 1),
        state.step,
        Taught(taught[name], shown.taught_labels, rest),
      )
      total = total + loss
      metrics[name] = values
    return total, (model_states, memories, metrics)

  def step(state: State, constants, batch):
    constants, root = sharding.gather(constants, mesh), constants['seed']
    if 'rows' in constants:
      batch = {**batch, 'row': constants['rows'][batch['index']]}
    soft_labels = supervised.soft_labels(
      batch['label'],
      own.network.model.num_classes,
      own.objective.label_smoothing,
    )
    shown = showing.show(
      views, batch, networks, frozen, teachers, soft_labels, root, state.step
    )
    guides = guidance.frozen(
      frozen,
      constants['guides'],
      shown.frozen,
      batch.get('targets', {}),
      batch['index'],
      dict.fromkeys(teachers, first),
    )
    params = {name: part.params for name, part in state.learners.items()}
    grads, (model_states, memories, metrics) = jax.grad(loss_fn, has_aux=True)(
      params, state, guides, shown, batch, constants
    )
    grads, learners = updating.summed(grads, mesh, placed), {}
    for name, before in state.learners.items():
      learners[name] = updating.update(
        lessons[name].optimizer,
        before,
        grads[name],
        model_states[name],
        memories[name],
        state.step,
        mode.ema_decay,
      )
      metrics[name]['gradient_norm'] = optax.tree.norm(grads[name])
    rate = jnp.asarray(schedule(state.step), jnp.float32)
    return (
      State(state.step + 1, learners),
      _named({n: metrics[n] for n in lessons}) | {'learning_rate': rate},
    )

  return updating.jitted(step, mesh, placed)


def shared_step(
  lessons: Mapping[str, Lesson],
  frozen: Mapping[str, Network],
  views: Views,
  schedule: optax.Schedule,
  mode: Mode,
  mesh: Mesh,
  placed: Placed,
) -> Callable:
  """The update of `make_step`, one program for all equal runs of a process.

  Raises:
    TypeError: a part that cannot be compared.
  """
  where, structure = jax.tree.flatten(placed)
  named = tuple(lessons.items()), tuple(frozen.items())
  return kept(*named, views, schedule, mode, mesh, tuple(where), structure)


# EfficientNet-Lite0's takes 185 MiB on CPU.
@functools.lru_cache(maxsize=8)
def kept(lessons, frozen, views, schedule, mode, mesh, where, structure):
  """The step of `shared_step`, of what can be compared."""
  placed = jax.tree.unflatten(structure, where)
  given = dict(lessons), dict(frozen)
  return make_step(*given, views, schedule, mode, mesh, placed)


def shared_start(lessons: Mapping[str, Lesson], placed: Placed) -> Callable:
  """begin(name -> Beginning) -> State, compiled, one likewise."""
  where, structure = jax.tree.flatten(placed)
  optimizer_of = tuple((n, one.optimizer) for n, one in lessons.items())
  return kept_start(optimizer_of, tuple(where), structure)


@functools.lru_cache(maxsize=8)
def kept_start(optimizer_of, where, structure):
  """The start of `shared_start`, likewise."""
  begin = functools.partial(create, optimizers=dict(optimizer_of))
  return jax.jit(begin, out_shardings=jax.tree.unflatten(structure, where))


def forget() -> None:
  """Drops all that is kept but for what runs hold."""
  kept.cache_clear()
  kept_start.cache_clear()
  gc.collect()


def as_int32(seed: int) -> np.ndarray:
  """A seed as an argument of the compiled step."""
  return np.asarray(seed, np.int64).astype(np.int32)


def _named(metrics: dict[str, dict[str, Array]]) -> dict[str, Array]:
  """One dict: the first learner's as they are, the others' NAME_metric."""
  return {
    f'{name}_{key}' if number else key: value
    for number, (name, values) in enumerate(metrics.items())
    for key, value in values.items()
  }
