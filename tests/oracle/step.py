"""One jitted function: teachers forward, student update. And its evaluation.

The batch is uint8; augmentation, resizing and each model's own normalisation
happen on the device inside the step, so student and teachers see the same view.
Teachers run in evaluation mode under stop_gradient; their variables are an
argument of their own, never donated and never part of the state. A batch with
'targets' (a tuple, for each teacher a dict of stored outputs: 'logits' [B, K],
perhaps 'pre_logits' and 'features') needs no teacher's forward pass.

A peer (mutual.py) is in training mode and in the state: student and peer each
run once, each is a constant in the other's loss, and both losses make one
update. So neither is ahead of the other, and the order of the two does not
matter.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from tests.oracle import objective as objectives
from tests.oracle import optimizers
from tests.oracle.objective import Objective
from tests.oracle.state import TrainState
from tests.oracle.transfer import Transfer, penalty
from tlkd_jax.losses import supervised
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import Network, last_layer
from tlkd_jax.runtime import sharding

Array = jax.Array
# What the backward pass computes again.
REMAT = ('none', 'blocks')

Mixing = Callable[[Array, Array, Array], tuple[Array, Array]]
# Sets the keys of mixing apart from those of dropout.
_MIXING = 2**31 - 1


def make_train_step(
  student: Network,
  teachers: tuple[Network, ...],
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  objective: Objective,
  augmentation: Callable[..., Array],
  mesh: Mesh,
  *,
  mixing: Mixing | None = None,
  seed: int | None,
  norm_train: bool,
  transfer: Transfer | None = None,
  batch_chance: float = 1.0,
  head_only: bool = False,
  ema_decay: float = 0.0,
  remat: str = 'none',
  peer: Network | None = None,
) -> Callable:
  """Builds the update.

  Args:
    student: the model that learns.
    teachers: the models that guide, () for none.
    optimizer: acts on state.params.
    schedule: step -> learning rate, for the metrics.
    objective: the loss.
    augmentation: (uint8 images, index, view) -> float images in 0..255.
    mesh: devices.
    mixing: (images, soft labels [B, K], key of the step) -> both, mixed; or
      None.
    seed: of dropout, compiled in; None reads constants['seed'] instead, for
      augmentation too, so that runs of other seeds share the program.
    norm_train: BatchNorm learns statistics (else they are frozen).
    transfer: terms that keep the student near its start, or None.
    batch_chance: see models.layers.Mode.
    head_only: no gradient flows into the student's backbone.
    ema_decay: of the weight average; used when state.ema is not empty.
    remat: of what learns, one of REMAT: for the backward pass keep
      everything, or the inputs of its blocks and compute the rest again.
    peer: the model that student and peer, both learning, have for teacher;
      then `teachers` is ().

  Returns:
    step(state, constants, batch) -> (state, metrics): state donated;
    constants is {'teachers': ((params, model_state), ...)}, with int32
    'seed' where `seed` is None and the 'start' of starting_point.load where
    there is a transfer; batch as in data.pipeline, sharded over "data"; metrics
    are replicated scalars. With 'targets' in the batch, a teacher's params may
    be `head_alone`.
  """

  def forward(view, params, model_state, images, key):
    return view.model.apply(
      params['student'],
      model_state,
      view.prepare(images),
      train=True,
      norm_train=norm_train,
      key=key,
      batch_chance=batch_chance,
      remat=remat == 'blocks',
    )

  def loss_fn(params, state, guidance, start, images, soft_labels, batch, root):
    if head_only:
      params = _stop_backbones(student, peer, params)
    key = jax.random.fold_in(jax.random.key(root), state.step)
    common = soft_labels, batch, jax.random.fold_in(key, 1), state.step
    outputs, model_state = forward(
      student, params, state.model_state, images, key
    )
    kept, theirs = {}, {}
    if peer is not None:
      theirs, kept['model_state'] = forward(
        peer,
        params['peer'],
        state.peer['model_state'],
        images,
        jax.random.fold_in(key, 2),
      )
      guidance = (_as_guide(peer, params['peer']['student'], theirs),)
    loss, memory, metrics = _lesson(
      objective, params, outputs, guidance, state.memory, *common
    )
    if guidance:
      logits = [teacher['outputs']['logits'] for teacher in guidance]
      together = objectives.mean_logits(logits, 1.0)
      metrics['teacher_accuracy'] = _accuracy(together, soft_labels)
    if transfer is not None:
      near, parts = penalty(
        transfer, student.model, params, outputs, *start, batch['label']
      )
      loss = loss + near
      metrics |= parts
    metrics['loss'] = loss
    if peer is not None:
      guidance = (_as_guide(student, params['student'], outputs),)
      more, kept['memory'], parts = _lesson(
        objective,
        params['peer'],
        theirs,
        guidance,
        state.peer['memory'],
        *common,
      )
      parts['loss'] = more
      metrics |= {f'peer_{name}': value for name, value in parts.items()}
      loss = loss + more
    return loss, (model_state, memory, kept, metrics)

  def step(state: TrainState, constants, batch):
    root = constants['seed'] if seed is None else seed
    views = batch['image'], batch['index'], batch['view']
    images = (
      augmentation(*views, seed=root) if seed is None else augmentation(*views)
    )
    soft_labels = supervised.soft_labels(
      batch['label'], student.model.num_classes, objective.label_smoothing
    )
    if mixing is not None:
      if 'targets' in batch:
        raise ValueError('stored targets are not those of mixed images')
      key = jax.random.fold_in(jax.random.key(root), _MIXING)
      key = jax.random.fold_in(key, state.step)
      images, soft_labels = mixing(images, soft_labels, key)
    guidance = _guidance(teachers, constants['teachers'], images, batch)
    start = ()
    if transfer is not None:
      start = _start(transfer, student, constants['start'], images)
    grads, (model_state, memory, kept, metrics) = jax.grad(
      loss_fn, has_aux=True
    )(state.params, state, guidance, start, images, soft_labels, batch, root)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics['gradient_norm'] = optax.tree.norm(grads)
    metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
    new_state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      memory=memory,
      ema=_average(state, params, ema_decay),
      peer=kept,
    )
    return new_state, metrics

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    step,
    donate_argnames='state',
    in_shardings=(copied, copied, split),
    out_shardings=(copied, copied),
  )


def guide(teacher: Network, variables: Any, images: Array) -> dict[str, Any]:
  """What a teacher says of a batch, cut off from every gradient.

  Args:
    teacher: the model.
    variables: its (params, model_state).
    images: float [B, S, S, 3] in 0..255, the views that the student sees.

  Returns:
    {'outputs': the model's outputs, 'head': its last linear layer}.
  """
  params, model_state = variables
  outputs, _ = teacher.model.apply(params, model_state, teacher.prepare(images))
  return _as_guide(teacher, params, outputs)


def _as_guide(view: Network, params: Tree, outputs: dict[str, Any]):
  head = last_layer(view.model, params)
  return jax.lax.stop_gradient({'outputs': outputs, 'head': head})


def as_int32(seed: int) -> np.ndarray:
  """A seed as an argument of the compiled step."""
  return np.asarray(seed, np.int64).astype(np.int32)


def _guidance(teachers, variables, images, batch) -> tuple[dict[str, Any], ...]:
  """From stored outputs where the batch has them, else from the teachers."""
  pairs = list(zip(teachers, variables, strict=True))
  if 'targets' not in batch:
    return tuple(guide(teacher, given, images) for teacher, given in pairs)
  stored = zip(pairs, batch['targets'], strict=True)
  return jax.lax.stop_gradient(
    tuple(
      {'outputs': outputs, 'head': last_layer(teacher.model, params)}
      for (teacher, (params, _)), outputs in stored
    )
  )


def _lesson(
  objective, params, outputs, guidance, memory, soft_labels, batch, key, step
):
  """(loss, new memory, metrics) of a network that learns from its guides."""
  hard = supervised.soft_cross_entropy(outputs['logits'], soft_labels)
  loss = objective.hard_weight * hard
  metrics = {
    'hard_loss': hard,
    'accuracy': _accuracy(outputs['logits'], soft_labels),
  }
  if guidance:
    soft, memory, parts = objectives.distill(
      objective, params, outputs, guidance, memory, batch, key, step
    )
    loss = loss + soft
    metrics |= parts
  return loss, memory, metrics


def _start(transfer: Transfer, student: Network, start: Tree, images: Array):
  """(the start, its outputs for the images or None)."""
  if not transfer.runs_start:
    return start, None
  variables = start['params'], start['model_state']
  return start, guide(student, variables, images)['outputs']


def _accuracy(logits: Array, soft_labels: Array) -> Array:
  """Share of the labelled images whose largest label is predicted."""
  labelled = jnp.sum(soft_labels, -1) > 0
  right = jnp.argmax(logits, -1) == jnp.argmax(soft_labels, -1)
  return jnp.sum(right & labelled) / jnp.maximum(jnp.sum(labelled), 1)


def _average(state: TrainState, params: Tree, decay: float) -> Tree:
  """Weight average with a warm-up, so that early weights are forgotten."""
  if not state.ema:
    return {}
  step = state.step.astype(jnp.float32)
  kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  new = params['student']
  return jax.tree.map(lambda e, p: kept * e + (1.0 - kept) * p, state.ema, new)


def _stop_backbones(
  student: Network, peer: Network | None, params: Tree
) -> Tree:
  if peer is not None:
    own = {name: part for name, part in params.items() if name != 'peer'}
    theirs = _stop_backbone(peer.model, params['peer'])
    return _stop_backbone(student.model, own) | {'peer': theirs}
  return _stop_backbone(student.model, params)


def _stop_backbone(model: Model, params: Tree) -> Tree:
  def stop(path, value):
    new = optimizers.is_new(model, path)
    return value if new else jax.lax.stop_gradient(value)

  return optimizers.map_with_path(stop, params)
