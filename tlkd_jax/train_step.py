"""One jitted function: teacher forward, student update. And its evaluation.

The batch is uint8; augmentation, resizing and each model's own normalisation
happen on the device inside the step, so student and teacher see the same view.
The teacher runs in evaluation mode under stop_gradient; its variables are an
argument of their own, never donated and never part of the state.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tlkd_jax import losses, optimizers, sharding
from tlkd_jax.data import augment
from tlkd_jax.errors import unknown_name
from tlkd_jax.losses import supervised
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.train_state import TrainState

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class View:
  """A model and the images it wants: side in pixels, dtype of the compute."""

  model: Model
  image_size: int
  dtype: Any

  def prepare(self, images: Array) -> Array:
    """Float images [B, S, S, 3] in 0..255 -> normalised, this model's size."""
    images = augment.resize_for(images, self.image_size)
    spec = self.model.spec
    images = augment.normalize(images, spec.mean, spec.std)
    return images.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Objective:
  """hard_weight * cross-entropy + soft_weight * distillation loss.

  Attributes:
    hard_weight: weight of the labels.
    label_smoothing: of the cross-entropy.
    soft_weight: weight of the distillation loss, 0 without a teacher.
    distillation: (student outputs, teacher outputs, labels, key, projector)
      -> scalar.
  """

  hard_weight: float = 1.0
  label_smoothing: float = 0.0
  soft_weight: float = 0.0
  distillation: Callable[..., Array] | None = None


def make_distillation(name: str, **hyperparameters) -> Callable[..., Array]:
  """Binds a distillation loss; keywords it does not have are an error.

  Raises:
    ValueError: unknown loss or hyper-parameter.
  """
  if name not in losses.DISTILLATION_LOSSES:
    known = losses.DISTILLATION_LOSSES
    raise unknown_name('distillation.loss', name, known)
  loss = losses.DISTILLATION_LOSSES[name]
  accepted = inspect.signature(loss).parameters
  for keyword in hyperparameters:
    if keyword not in accepted:
      raise ValueError(
        f'distillation loss {name!r} has no {keyword!r}; it has '
        + ', '.join(list(accepted)[3:])
      )
  return functools.partial(loss, **hyperparameters)


def make_train_step(
  student: View,
  teacher: View | None,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  objective: Objective,
  augmentation: Callable[[Array, Array, Array], Array],
  mesh: Mesh,
  *,
  seed: int,
  norm_train: bool,
  head_only: bool = False,
  ema_decay: float = 0.0,
) -> Callable:
  """Builds the update.

  Args:
    student: the model that learns.
    teacher: the model that guides, or None.
    optimizer: acts on state.params.
    schedule: update -> learning rate, for the metrics.
    objective: the loss.
    augmentation: (uint8 images, index, view) -> float images in 0..255.
    mesh: devices.
    seed: of dropout.
    norm_train: BatchNorm learns statistics (else they are frozen).
    head_only: no gradient flows into the student's backbone.
    ema_decay: of the weight average; used when state.ema is not empty.

  Returns:
    step(state, teacher_variables, batch) -> (state, metrics): state donated;
    teacher_variables is (params, model_state) or None; batch as in
    data.pipeline, sharded over "data"; metrics are replicated scalars.
  """

  def loss_fn(params, state, teacher_outputs, images, batch):
    if head_only:
      params = _stop_backbone(student.model, params)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    outputs, model_state = student.model.apply(
      params['student'],
      state.model_state,
      student.prepare(images),
      train=True,
      norm_train=norm_train,
      key=key,
    )
    labels = batch['label']
    hard = supervised.cross_entropy(
      outputs['logits'], labels, objective.label_smoothing
    )
    loss = objective.hard_weight * hard
    metrics = {'hard_loss': hard, 'accuracy': _accuracy(outputs, labels)}
    if teacher_outputs is not None:
      soft = objective.distillation(outputs, teacher_outputs, labels)
      loss = loss + objective.soft_weight * soft
      metrics |= {
        'soft_loss': soft,
        'teacher_accuracy': _accuracy(teacher_outputs, labels),
      }
    return loss, (model_state, metrics | {'loss': loss})

  def step(state: TrainState, teacher_variables, batch):
    images = augmentation(batch['image'], batch['index'], batch['view'])
    teacher_outputs = None
    if teacher is not None:
      teacher_outputs, _ = teacher.model.apply(
        *teacher_variables, teacher.prepare(images)
      )
      teacher_outputs = jax.lax.stop_gradient(teacher_outputs)
    grads, (model_state, metrics) = jax.grad(loss_fn, has_aux=True)(
      state.params, state, teacher_outputs, images, batch
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics['gradient_norm'] = optax.global_norm(grads)
    metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
    new_state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      ema=_average(state, params, ema_decay),
    )
    return new_state, metrics

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    step,
    donate_argnames='state',
    in_shardings=(copied, copied, split),
    out_shardings=(copied, copied),
  )


def make_eval_step(view: View, mesh: Mesh) -> Callable:
  """Builds eval(variables, images) -> outputs, without features.

  Args:
    view: the model.
    mesh: devices.

  Returns:
    A jitted function of ((params, model_state), uint8 [B, S, S, 3]) that gives
    {'logits': [B, K], 'pre_logits': [B, D]}, replicated.
  """

  def step(variables, images):
    outputs, _ = view.model.apply(*variables, view.prepare(images))
    return {name: outputs[name] for name in ('logits', 'pre_logits')}

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(step, in_shardings=(copied, split), out_shardings=copied)


def _accuracy(outputs, labels: Array) -> Array:
  return jnp.mean(jnp.argmax(outputs['logits'], -1) == labels)


def _average(state: TrainState, params: Tree, decay: float) -> Tree:
  """Weight average with a warm-up, so that early weights are forgotten."""
  if not state.ema:
    return {}
  step = state.step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(params['student'], state.ema, 1.0 - decay)


def _stop_backbone(model: Model, params: Tree) -> Tree:
  def stop(path, value):
    new = optimizers.is_new(model, path)
    return value if new else jax.lax.stop_gradient(value)

  return optimizers.map_with_path(stop, params)
