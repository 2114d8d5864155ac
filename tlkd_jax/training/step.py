"""One jitted update of the networks that learn, each from its guides.

A run is networks by name. Some learn, each by its Lesson; the others are
frozen, or their outputs are stored. Every network runs once on the batch; what
a learner says is a constant in the loss of another that it guides, so that
none is ahead of the others and their order does not matter.

The batch is uint8; augmentation and each model's own normalisation happen on
the device inside the step. All see the same view, each in pixels that were cut
from the files for it. Frozen networks
run in evaluation mode; their variables are an argument of their own, never
donated and never part of the state.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from tlkd_jax.data import Look
from tlkd_jax.losses import supervised
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import Network
from tlkd_jax.runtime import sharding
from tlkd_jax.training import guides as guidance
from tlkd_jax.training import objective as objectives
from tlkd_jax.training import optimizers
from tlkd_jax.training.objective import Objective
from tlkd_jax.training.state import Learner, State

Array = jax.Array
Mixing = Callable[[Array, Array, Array], tuple[Array, Array]]
# Sets the keys of mixing apart from those of dropout.
_MIXING = 2**31 - 1


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
    mixing: (images, soft labels [B, K], key of the step) -> both, mixed; or
      None.
    mixed_apart: only guides' terms are of mixed images, in a forward pass of
      their own; the hard loss is of the images as they are.
    taught_from: guides' terms are of the batch's images from this one on.
    strong: in place of the augmentation, for the terms of the guide 'itself';
      None without such terms.
    clean: by look, None for that of the run's own, what frozen guides see in
      place of the learners' views; {} for the same views.
  """

  norm_train: bool = False
  batch_chance: float = 1.0
  head_only: bool = False
  remat: bool = False
  ema_decay: float = 0.0
  mixing: Mixing | None = None
  mixed_apart: bool = False
  taught_from: int = 0
  strong: Callable[..., Array] | None = None
  clean: Mapping[Look | None, Callable[..., Array]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def apart(self) -> bool:
    """Whether guides' terms have images of their own."""
    return self.mixed_apart or self.strong is not None


def make_step(
  lessons: Mapping[str, Lesson],
  frozen: Mapping[str, Network],
  augmentation: Callable[..., Array],
  schedule: optax.Schedule,
  mode: Mode,
  mesh: Mesh,
  others: Mapping[Look, Callable[..., Array]] | None = None,
) -> Callable:
  """Builds the update.

  Args:
    lessons: of the networks that learn, the run's own first.
    frozen: the networks that do not.
    augmentation: (uint8 images, index, view, seed=) -> float images in 0..255.
    schedule: step -> learning rate, for the metrics.
    mode: of all learners.
    mesh: devices.
    others: likewise `augmentation`, of the looks of networks that have images
      of their own in the batch.

  Returns:
    step(state, constants, batch) -> (state, metrics): state donated;
    constants is {'seed': int32, 'guides': {name: {'params', 'model_state'}}},
    an argument so that runs of other seeds share the program; batch as in
    data.pipeline, sharded over "data"; metrics are replicated scalars, those
    of every learner but the first with its name before them.
  """
  own = next(iter(lessons.values()))
  networks = {name: lesson.network for name, lesson in lessons.items()}
  # Other frozen networks, such as the start, go with the hard loss.
  teachers = {name for lesson in lessons.values() for name in lesson.guides}
  first = mode.taught_from

  def loss_fn(params, state, guides, images, labels, batch, root):
    if mode.head_only:
      params = {
        name: _stop_backbone(lessons[name].network.model, part)
        for name, part in params.items()
      }
    key = jax.random.fold_in(jax.random.key(root), state.step)
    outputs, model_states = {}, {}
    for number, (name, lesson) in enumerate(lessons.items()):
      outputs[name], model_states[name] = lesson.network.model.apply(
        params[name]['weights'],
        state.learners[name].model_state,
        lesson.network.prepare(images[name]),
        train=True,
        norm_train=mode.norm_train,
        # 1 is the losses' own.
        key=jax.random.fold_in(key, number + 1) if number else key,
        batch_chance=mode.batch_chance,
        remat=mode.remat,
      )
    soft_labels, taught_labels = labels
    outputs, taught = _split(outputs, batch['label'].size, mode)
    own_params = {n: {'params': params[n]['weights']} for n in lessons}
    guides = guides | {
      name: guidance.from_outputs(network, own_params[name], taught[name])
      for name, network in networks.items()
    }
    if mode.strong is not None:
      name, network = next(iter(networks.items()))
      plain = guidance.rows_from(outputs[name], first)
      guides[guidance.ITSELF] = guidance.from_outputs(
        network, own_params[name], plain
      )
    rest = {key: batch[key][first:] for key in ('label', 'index')}
    total, memories, metrics = jnp.float32(0.0), {}, {}
    for name, lesson in lessons.items():
      loss, memories[name], values = objectives.evaluate(
        lesson.objective,
        lesson.guides,
        dataclasses.replace(state.learners[name], params=params[name]),
        outputs[name],
        guides,
        soft_labels,
        batch,
        jax.random.fold_in(key, 1),
        state.step,
        objectives.Taught(taught[name], taught_labels[first:], rest),
      )
      total = total + loss
      metrics[name] = values
    return total, (model_states, memories, metrics)

  def step(state: State, constants, batch):
    root = constants['seed']
    views = draw_views(batch, augmentation, others or {}, root)
    soft_labels = supervised.soft_labels(
      batch['label'],
      own.network.model.num_classes,
      own.objective.label_smoothing,
    )
    stored = batch.get('targets', {})
    taught, taught_labels = views, soft_labels
    if mode.mixing is not None:
      if stored:
        raise ValueError('stored targets are not those of mixed images')
      key = jax.random.fold_in(jax.random.key(root), _MIXING)
      key = jax.random.fold_in(key, state.step)
      mixed = {
        look: mode.mixing(images, soft_labels, key)
        for look, images in views.items()
      }
      taught = {look: images for look, (images, _) in mixed.items()}
      _, taught_labels = mixed[None]
      if not mode.mixed_apart:
        views, soft_labels = taught, taught_labels
    if mode.strong is not None:
      taught = draw_views(batch, mode.strong, {}, root)
    heard = taught
    if mode.clean:
      clean = {look: draw for look, draw in mode.clean.items() if look}
      heard = draw_views(batch, mode.clean[None], clean, root)
    images = {name: _seen(views, network) for name, network in networks.items()}
    if mode.apart:
      for name, network in networks.items():
        more = _seen(taught, network)[first:]
        images[name] = jnp.concatenate([images[name], more])
    shown = {
      name: _seen(heard if name in teachers else views, network)
      for name, network in frozen.items()
    }
    guides = guidance.frozen(
      frozen,
      constants['guides'],
      shown,
      stored,
      batch['index'],
      dict.fromkeys(teachers, first),
    )
    params = {name: part.params for name, part in state.learners.items()}
    grads, (model_states, memories, metrics) = jax.grad(loss_fn, has_aux=True)(
      params, state, guides, images, (soft_labels, taught_labels), batch, root
    )
    learners = {}
    for name, before in state.learners.items():
      updates, opt_state = lessons[name].optimizer.update(
        grads[name], before.opt_state, before.params
      )
      after = optax.apply_updates(before.params, updates)
      learners[name] = Learner(
        after,
        model_states[name],
        opt_state,
        memories[name],
        _average(before, after, state.step, mode.ema_decay),
      )
      metrics[name]['gradient_norm'] = optax.tree.norm(grads[name])
    rate = jnp.asarray(schedule(state.step), jnp.float32)
    return (
      State(state.step + 1, learners),
      _named({n: metrics[n] for n in lessons}) | {'learning_rate': rate},
    )

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    step,
    donate_argnames='state',
    in_shardings=(copied, copied, split),
    out_shardings=(copied, copied),
  )


def _seen(views: Mapping[Look | None, Array], network: Network) -> Array:
  return views.get(network.look, views[None])


def _split(outputs: Tree, size: int, mode: Mode) -> tuple[Tree, Tree]:
  """Learners' outputs for the batch, and for what guides' terms are of."""
  if not mode.apart:
    return outputs, guidance.rows_from(outputs, mode.taught_from)
  return (
    jax.tree.map(lambda x: x[:size], outputs),
    jax.tree.map(lambda x: x[size:], outputs),
  )


def draw_views(
  batch: Mapping[str, Any],
  augmentation: Callable[..., Array],
  others: Mapping[Look, Callable[..., Array]],
  seed: Array,
) -> dict[Look | None, Array]:
  """One view of each example, for each look; None is that of the run's own."""

  def draw(augmentation, images):
    return augmentation(images, batch['index'], batch['view'], seed=seed)

  views: dict[Look | None, Array] = {None: draw(augmentation, batch['image'])}
  for look, other in others.items():
    views[look] = draw(other, batch['others'][str(look)])
  return views


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


def _average(before: Learner, params: Tree, step: Array, decay: float) -> Tree:
  """Weight average with a warm-up, so that early weights are forgotten."""
  if not before.ema:
    return {}
  done = step.astype(jnp.float32)
  kept = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
  return jax.tree.map(
    lambda e, p: kept * e + (1.0 - kept) * p, before.ema, params['weights']
  )


def _stop_backbone(model: Model, params: Tree) -> Tree:
  def stop(path: str, value: Any):
    new = optimizers.is_new(model, path)
    return value if new else jax.lax.stop_gradient(value)

  return optimizers.map_with_path(stop, params)
