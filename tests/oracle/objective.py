"""What a run minimises: labels, and what teachers say of the same images.

  hard_weight * cross-entropy + sum over terms of weight(step) * loss

Guidance is a tuple, one entry per teacher: {'outputs': what the model gives
(or what a cache kept of it), 'head': its last linear layer}. With several
teachers a term is the mean of its losses ('losses'), or one loss against the
mean of their probabilities at the loss's temperature ('probabilities').
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlkd_jax import data, losses
from tlkd_jax.losses.numerics import LOGIT_LIMIT, as_float32, log_softmax
from tlkd_jax.models.functional import Tree
from tlkd_jax.runtime.errors import unknown_name

Array = jax.Array

ENSEMBLES = ('losses', 'probabilities')


@dataclasses.dataclass(frozen=True)
class Term:
  """One distillation loss of the sum, with what it was bound to.

  Attributes:
    name: a key of losses.DISTILLATION_LOSSES.
    weight: step -> weight.
    hyperparameters: its keywords.
    temperature: step -> temperature, in place of the keyword; None keeps it.
    positions: int32, example index -> its row of the loss's memory; None for
      losses without one.
  """

  name: str
  weight: optax.Schedule
  hyperparameters: dict[str, Any]
  temperature: optax.Schedule | None = None
  positions: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weighted sum.

  Attributes:
    hard_weight: weight of the labels.
    label_smoothing: of the cross-entropy.
    terms: distillation losses, () without a teacher.
    ensemble: of several teachers, one of ENSEMBLES.
  """

  hard_weight: float = 1.0
  label_smoothing: float = 0.0
  terms: tuple[Term, ...] = ()
  ensemble: str = 'probabilities'


def make_objective(config: Any, dataset: data.Dataset | None) -> Objective:
  """The loss of a run: of labels alone, or with teachers.

  Args:
    config: the run's configuration.
    dataset: for losses that remember examples; None only checks the names.

  Raises:
    ValueError: unknown loss, hyper-parameter or ensemble, or an ensemble that
      the loss cannot use.
  """
  if config.arm != 'kd':
    return Objective(label_smoothing=config.label_smoothing)
  section = config.distillation
  if section.ensemble not in ENSEMBLES:
    raise unknown_name('distillation.ensemble', section.ensemble, ENSEMBLES)
  terms = [
    _make_term(
      config, section.loss, section, section.soft_weight, 'distillation'
    )
  ]
  for name, extra in section.extra.items():
    place = f'distillation.extra.{name}'
    terms.append(_make_term(config, name, extra, extra.weight, place))
  for term in terms:
    _check_possible(config, term.name)
  return Objective(
    hard_weight=section.hard_weight,
    label_smoothing=config.label_smoothing,
    terms=tuple(
      dataclasses.replace(term, positions=_positions(term.name, dataset))
      for term in terms
    ),
    ensemble=section.ensemble,
  )


def _make_term(config, name: str, section, weight: float, place: str) -> Term:
  common = config.distillation
  hyperparameters = dict(section.options)
  has_temperature = 'temperature' in losses.hyperparameters_of(name)
  if has_temperature and name == common.loss:
    hyperparameters.setdefault('temperature', common.temperature)
  losses.check_hyperparameters(name, hyperparameters)
  coldest = min(hyperparameters.get('temperature', 1.0), common.end_temperature)
  if coldest <= 0:
    raise ValueError(f'{place}: a temperature is {coldest}; it must be above 0')
  temperature = None
  if has_temperature and common.temperature_schedule != 'constant':
    temperature = make_schedule(
      common.temperature_schedule,
      hyperparameters['temperature'],
      common.end_temperature,
      config.num_steps,
      'distillation.temperature_schedule',
    )
  return Term(
    name,
    make_schedule(
      section.schedule,
      weight,
      section.end_weight,
      config.num_steps,
      f'{place}.schedule',
      warmup=round(section.warmup_fraction * config.num_steps),
    ),
    hyperparameters,
    temperature,
  )


def make_schedule(
  kind: str,
  start: float,
  end: float,
  num_steps: int,
  place: str,
  *,
  warmup: int = 0,
) -> optax.Schedule:
  """A number as a function of the step, for use inside the jitted update.

  Args:
    kind: a key of SCHEDULES.
    start: value at step 0.
    end: value from step `num_steps` on, unless constant.
    num_steps: length of the run.
    place: the configuration key, for the message.
    warmup: first steps in which the value is multiplied with (step + 1) /
      warmup, as the published DKD and ReviewKD do by epochs.

  Raises:
    ValueError: unknown kind.
  """
  if kind not in SCHEDULES:
    raise unknown_name(place, kind, SCHEDULES)

  def value(step):
    share = SCHEDULES[kind](jnp.clip(step / num_steps, 0.0, 1.0))
    ramp = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
    return (start + (end - start) * share) * ramp

  return value


# Share of the way from start to end, at a share of the run.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
  'constant': jnp.zeros_like,
  'linear': lambda done: done,
  'cosine': lambda done: 0.5 * (1.0 - jnp.cos(jnp.pi * done)),
}


def _check_possible(config: Any, name: str) -> None:
  section = config.distillation
  several = bool(section.more_teachers)
  if (
    several
    and section.ensemble == 'probabilities'
    and losses.find(name).reads != 'logits'
  ):
    raise ValueError(
      f'distillation.loss {name!r} reads more than logits, of which there is '
      "no mean over teachers; distillation.ensemble='losses' averages losses"
    )
  mixed = config.augment.mixup_alpha > 0 or config.augment.cutmix_alpha > 0
  if mixed and losses.find(name).needs_labels:
    raise ValueError(
      f'distillation.loss {name!r} needs the one class of each image, and '
      'augment.mixup_alpha or augment.cutmix_alpha mixes images; set both to 0 '
      'or choose another loss'
    )
  if section.unlabelled and losses.find(name).needs_labels:
    raise ValueError(
      f'distillation.loss {name!r} needs labels, and distillation.unlabelled '
      'adds images without'
    )


def _positions(name: str, dataset: data.Dataset | None) -> np.ndarray | None:
  if dataset is None or losses.find(name).memory is None:
    return None
  indices = dataset.splits['train'].indices
  positions = np.zeros(indices.max() + 1, np.int32)
  positions[indices] = np.arange(indices.size)
  return positions


def init_extras(
  objective: Objective,
  key: Array,
  student_shapes: Tree,
  teacher_shapes: tuple[Tree, ...],
  split: data.Split,
) -> dict[str, Tree]:
  """The learnable parts and the memories of all terms.

  Args:
    objective: from `make_objective`.
    key: PRNG key.
    student_shapes: model outputs as jax.ShapeDtypeStruct.
    teacher_shapes: likewise, one for each teacher.
    split: the training examples.

  Returns:
    {'projector': {term: {teacher number: ...}}, 'memory': likewise}, without
    the entries of losses that have none.
  """
  extras: dict[str, Tree] = {'projector': {}, 'memory': {}}
  for number, shapes in enumerate(teacher_shapes):
    for term in objective.terms:
      made = losses.init_extras(
        term.name,
        jax.random.fold_in(key, number),
        student_shapes,
        shapes,
        len(split),
        split.labels,
        **term.hyperparameters,
      )
      for part, value in made.items():
        if value:
          extras[part].setdefault(term.name, {})[str(number)] = value
  return extras


def bridges(
  objective: Objective,
  student_shapes: Tree,
  teacher_shapes: tuple[Tree, ...],
) -> list[str]:
  """What is compared with what, for the log; arguments as `init_extras`."""
  return [
    line
    for shapes in teacher_shapes
    for term in objective.terms
    for line in losses.bridges(
      term.name, student_shapes, shapes, **term.hyperparameters
    )
  ]


def distill(
  objective: Objective,
  params: Tree,
  outputs: dict[str, Any],
  guidance: tuple[dict[str, Any], ...],
  memory: Tree,
  batch: dict[str, Any],
  key: Array,
  step: Array,
) -> tuple[Array, Tree, dict[str, Array]]:
  """The weighted sum of the distillation losses of a batch.

  Args:
    objective: which losses.
    params: of the state, for the projectors.
    outputs: the student's.
    guidance: one entry per teacher, see the top of this file.
    memory: state of the losses, {} where they have none.
    batch: for labels and example indices.
    key: for losses that draw a mask.
    step: int32 scalar, for the schedules.

  Returns:
    (scalar, new memory, {'soft_loss': the first term unweighted, 'NAME_loss':
    each further one}).
  """
  total, metrics = jnp.float32(0.0), {}
  new_memory = {name: dict(parts) for name, parts in memory.items()}
  for number, term in enumerate(objective.terms):
    hyperparameters = dict(term.hyperparameters)
    if term.temperature is not None:
      hyperparameters['temperature'] = term.temperature(step)
    teachers = guidance
    if len(guidance) > 1 and objective.ensemble == 'probabilities':
      teachers = (_mean_teacher(guidance, hyperparameters),)
    index = None
    if term.positions is not None:
      index = jnp.asarray(term.positions)[batch['index']]
    values = []
    for which, teacher in enumerate(teachers):
      place = str(which)
      value, new = losses.compute(
        term.name,
        outputs,
        teacher['outputs'],
        batch['label'],
        projector=params['projector'].get(term.name, {}).get(place, {}),
        memory=memory.get(term.name, {}).get(place, {}),
        index=index,
        key=key,
        teacher_head=teacher['head'],
        **hyperparameters,
      )
      values.append(value)
      if new:
        new_memory[term.name][place] = new
    mean = sum(values) / len(values)
    metrics[f'{term.name}_loss' if number else 'soft_loss'] = mean
    total = total + term.weight(step) * mean
  return total, new_memory, metrics


def _mean_teacher(guidance, hyperparameters) -> dict[str, Any]:
  """One teacher whose softmax at the loss's temperature is the mean one."""
  temperature = hyperparameters.get('temperature', 1.0)
  logits = mean_logits([g['outputs']['logits'] for g in guidance], temperature)
  return {'outputs': {'logits': logits}, 'head': guidance[0]['head']}


def mean_logits(logits: list[Array], temperature) -> Array:
  """Logits whose softmax at T is the mean of the given ones' at T.

  T log(mean_i softmax(z_i / T)), in log space.

  Args:
    logits: [B, K] of each teacher.
    temperature: T.

  Returns:
    [B, K] float32.
  """
  logs = jnp.stack(
    [log_softmax(as_float32(z, LOGIT_LIMIT) / temperature) for z in logits]
  )
  return temperature * (jax.nn.logsumexp(logs, axis=0) - np.log(len(logits)))
