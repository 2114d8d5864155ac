"""Learning-rate schedule, optimizer, and which parameters move how fast.

Paths are those of a Learner's params: 'weights.blocks.0.0.project.conv.kernel'
or 'projector...'. A projector is new, as the head is: it trains at the full
learning rate times the head's multiplier, and is never frozen.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tlkd_jax.models.functional import Model
from tlkd_jax.settings import Optimizer

Tree = dict[str, Any]

_STAGE = re.compile(r'^weights\.(?:blocks|stages)\.(\d+)\.')
# Between two stages: goes with the later one.
_BETWEEN = re.compile(r'^weights\.(?:transitions|downsamples)\.(\d+)\.')
_FOREVER = 2**31 - 1
_STEM = re.compile(
  r'^weights\.(?:stem|patch|position|class_token|distillation_token)\b'
)


# The same arguments give the same function, by which runs know that they have
# one program (step.shared_step).
constant = functools.lru_cache(maxsize=64)(optax.constant_schedule)


@functools.lru_cache(maxsize=64)
def learning_rate_schedule(
  peak: float, num_steps: int, warmup_fraction: float, final_fraction: float
) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine to `final_fraction` * peak."""
  warmup = round(num_steps * warmup_fraction)
  if warmup == 0:
    return optax.cosine_decay_schedule(peak, max(num_steps, 1), final_fraction)
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup, max(num_steps, warmup + 1), peak * final_fraction
  )


@functools.lru_cache(maxsize=64)
def make_optimizer(
  model: Model, schedule: optax.Schedule, options: Optimizer
) -> optax.GradientTransformation:
  """Builds the optimizer of a run.

  Args:
    model: the learner's, whose head and stages name the parameter groups.
    schedule: step -> learning rate. With accumulation a step is a batch, and
      every `accumulate_steps` of them make an update.
    options: the section `optimizer` of the settings.
  """
  every = options.accumulate_steps
  until = -(-options.freeze_until_step // every)
  parts = []
  if options.freeze_until_step:
    parts.append(_freeze_backbone(model, until))
  if options.clip_norm:
    parts.append(optax.clip_by_global_norm(options.clip_norm))
  if options.name == 'sgd':
    parts += [
      optax.add_decayed_weights(options.weight_decay, mask=decayed),
      optax.trace(options.momentum, nesterov=options.momentum > 0),
    ]
  else:
    parts += [
      *_moments(model, until, options),
      optax.add_decayed_weights(options.weight_decay, mask=decayed),
    ]
  parts.append(
    _scale_by_path(model, options.head_multiplier, options.layer_decay)
  )
  parts.append(
    optax.scale_by_learning_rate(lambda update: schedule(update * every))
  )
  if options.freeze_until_step:
    parts.append(_freeze_backbone(model, until))
  if options.train_only == 'head':
    # Weight decay moves what has no gradient.
    parts.append(_freeze_backbone(model, _FOREVER))
  optimizer = optax.chain(*parts)
  if every > 1:
    return optax.MultiSteps(optimizer, every).gradient_transformation()
  return optimizer


def _moments(
  model: Model, until: int, options: Optimizer
) -> list[optax.GradientTransformation]:
  """AdamW's; of everything old they begin at update number `until`.

  Counted from the first update, those of zeros before it would make the steps
  after it several times too large.
  """
  adam = optax.scale_by_adam(options.beta1, options.beta2)
  if not until:
    return [adam]

  def masked(new: bool) -> optax.GradientTransformation:
    return optax.masked(
      adam,
      functools.partial(map_with_path, lambda p, _: is_new(model, p) == new),
    )

  old = optax.transforms.conditionally_transform(
    masked(new=False), lambda update: update >= until
  )
  return [masked(new=True), old]


def decayed(params: Tree) -> Tree:
  """True for the leaves that weight decay acts on.

  These are the kernels: not biases, norms, layer scales, tokens or positions.
  """
  return map_with_path(
    lambda path, _: path.rpartition('.')[2] == 'kernel', params
  )


def is_new(model: Model, path: str) -> bool:
  """Whether a parameter is part of the head or of a projector."""
  if path.startswith('projector.'):
    return True
  return any(path.startswith(f'weights.{head}.') for head in model.spec.head)


def map_with_path(function, tree: Tree, prefix: str = '') -> Tree:
  """Maps function(path, leaf) over nested dicts."""
  return {
    key: map_with_path(function, value, f'{prefix}{key}.')
    if isinstance(value, dict)
    else function(f'{prefix}{key}', value)
    for key, value in tree.items()
  }


def average(before: Tree, params: Tree, step: jax.Array, decay: float) -> Tree:
  """Weight average with a warm-up, so that early weights are forgotten.

  Args:
    before: the average so far, {} where none is kept.
    params: of a learner after the update, {'weights': ...}.
    step: int32 scalar, updates done before.
    decay: in [0, 1).
  """
  if not before:
    return {}
  done = step.astype(jnp.float32)
  kept = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
  return jax.tree.map(
    lambda e, p: kept * e + (1.0 - kept) * p, before, params['weights']
  )


def stop_backbone(model: Model, params: Tree) -> Tree:
  """The same, where a gradient flows into new layers alone."""

  def stop(path: str, value: Any):
    return value if is_new(model, path) else jax.lax.stop_gradient(value)

  return map_with_path(stop, params)


def learning_rate_factor(
  model: Model, path: str, head_multiplier: float, layer_decay: float
) -> float:
  """What a parameter's learning rate is multiplied by.

  The head has factor `head_multiplier`; what follows the last stage has
  layer_decay ** 1, the last of n stages layer_decay ** 2, the first one
  layer_decay ** (n + 1), the stem layer_decay ** (n + 2) (Howard & Ruder 2018,
  arXiv 1801.06146, section 3.2).
  """
  if is_new(model, path):
    return head_multiplier
  if layer_decay == 1.0:
    return 1.0
  num_stages = 1 + max(
    (
      int(match.group(1))
      for match in map(_STAGE.match, _paths({'weights': model.params_shape}))
      if match
    ),
    default=0,
  )
  match = _STAGE.match(path)
  between = _BETWEEN.match(path)
  stage = None
  if match:
    stage = int(match.group(1))
  elif between:
    stage = int(between.group(1)) + 1
  if stage is not None:
    return layer_decay ** (num_stages + 1 - stage)
  return layer_decay ** (num_stages + 2 if _STEM.match(path) else 1)


def _paths(tree: Tree) -> list[str]:
  paths = []
  map_with_path(lambda path, _: paths.append(path), tree)
  return paths


def _scale_by_path(
  model: Model, head_multiplier: float, layer_decay: float
) -> optax.GradientTransformation:
  def factor(path, update):
    return update * learning_rate_factor(
      model, path, head_multiplier, layer_decay
    )

  return optax.stateless(lambda updates, _: map_with_path(factor, updates))


def _freeze_backbone(model: Model, until: int) -> optax.GradientTransformation:
  """Zeroes the updates of everything old before update number `until`."""

  def update(updates, state, params=None):
    del params
    gate = (state.count >= until).astype(jnp.float32)
    gated = map_with_path(
      lambda path, u: u if is_new(model, path) else u * gate.astype(u.dtype),
      updates,
    )
    return gated, optax.ScaleByScheduleState(state.count + 1)

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  return optax.GradientTransformation(init, update)
