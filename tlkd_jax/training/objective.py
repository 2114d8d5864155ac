"""What a network minimises: labels, and what its guides say of the images.

  hard_weight * cross-entropy + sum over terms of weight(step) * loss

A term compares a learner with the guides of its lesson, or with its own start.
With several guides it is the mean of its losses ('losses'), or one loss against
the mean of their probabilities at the loss's temperature ('probabilities').
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from tlkd_jax import losses
from tlkd_jax.losses import supervised
from tlkd_jax.losses.numerics import mean_logits
from tlkd_jax.losses.shams import Sham
from tlkd_jax.losses.supervised import accuracy
from tlkd_jax.models.functional import Tree
from tlkd_jax.training.guides import ITSELF, Guide
from tlkd_jax.training.state import Learner

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Term:
  """One loss of the sum, with what it was bound to.

  Two terms are equal where their programs are, so that runs may share a step
  (step.shared_step): what is drawn or measured for a run is given to the
  program.

  Attributes:
    name: a key of losses.LOSSES.
    weight: step -> weight.
    hyperparameters: its keywords.
    temperature: step -> temperature, in place of the keyword; None keeps it.
    guide: the one that it is compared with, 'start' or 'itself'; None: those
      of the lesson.
  """

  name: str
  weight: optax.Schedule
  hyperparameters: Mapping[str, Any] = FrozenDict()
  temperature: optax.Schedule | None = None
  guide: str | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weighted sum.

  Attributes:
    hard_weight: weight of the labels.
    label_smoothing: of the cross-entropy.
    terms: losses beside the cross-entropy, () without guides.
    ensemble: of several guides, 'losses' or 'probabilities'.
    adjustment: of K classes, what the hard loss alone adds to the logits, see
      balance.adjustment; None is nothing.
    sham: what stands for the logits of every guide, see losses.shams; None is
      nothing. What it is given by name is 'sham' of the guide.
    by_token: labels are for the class token's head, the lesson's guides for
      that of the distillation token, where else all are for the mean.
  """

  hard_weight: float = 1.0
  label_smoothing: float = 0.0
  terms: tuple[Term, ...] = ()
  ensemble: str = 'probabilities'
  adjustment: tuple[float, ...] | None = None
  sham: Sham | None = None
  by_token: bool = False


@dataclasses.dataclass(frozen=True)
class Taught:
  """A learner on the images of which its guides speak.

  Attributes:
    outputs: of its model for them.
    soft_labels: [N, K], for the guides' accuracy.
    batch: for labels and rows of memories, [N].
  """

  outputs: Tree
  soft_labels: Array
  batch: Mapping[str, Array]


def evaluate(
  objective: Objective,
  names: tuple[str, ...],
  learner: Learner,
  outputs: Tree,
  guides: Mapping[str, Guide],
  soft_labels: Array,
  batch: Mapping[str, Array],
  key: Array,
  step: Array,
  taught: Taught | None = None,
) -> tuple[Array, Tree, dict[str, Array]]:
  """The objective of one learner on one batch.

  Args:
    objective: of its lesson.
    names: the lesson's guides.
    learner: as it is before the update.
    outputs: of its model for the batch.
    guides: all of the step, by name.
    soft_labels: [B, K], rows of zeros for unlabelled images.
    batch: for labels, and 'row', each example's in the losses' memories.
    key: for losses that draw a mask.
    step: int32 scalar, for the schedules.
    taught: of the terms of guides other than the start, where they are of
      other images, or of other views of them.

  Returns:
    (scalar, new memory, {'loss', 'hard_loss', 'accuracy', with guides
    'soft_loss': their first term unweighted and 'teacher_accuracy', and
    'NAME_loss' of each further term}).
  """
  logits = outputs['logits']
  judged = outputs['class_logits'] if objective.by_token else logits
  if objective.adjustment is not None:
    judged = supervised.adjusted(judged, objective.adjustment)
  hard = supervised.soft_cross_entropy(judged, soft_labels)
  metrics = {'hard_loss': hard, 'accuracy': accuracy(logits, soft_labels)}
  loss = objective.hard_weight * hard
  memory = {name: dict(parts) for name, parts in learner.memory.items()}
  plain = Taught(outputs, soft_labels, batch)
  taught = taught or plain
  of_lesson = [t for t in objective.terms if t.guide is None]
  of_itself = [t for t in objective.terms if t.guide == ITSELF]
  kept = [t for t in objective.terms if t.guide not in (None, ITSELF)]
  groups = ((of_lesson, taught), (of_itself, taught), (kept, plain))
  for terms, on in groups:
    said = {**on.outputs, 'params': learner.params}
    if terms is of_lesson and objective.by_token:
      said['logits'] = said['distillation_logits']
    total = jnp.float32(0.0)
    for number, term in enumerate(terms):
      chosen = [guides[name] for name in _guides_of(term, names)]
      if terms is of_lesson and objective.sham is not None:
        sham, labels = objective.sham, on.batch['label']
        chosen = [_shammed(g, sham, term, labels, step) for g in chosen]
      if len(chosen) > 1 and objective.ensemble == 'probabilities':
        chosen = [_mean_guide(chosen, term, step)]
      mean = _value(term, learner, said, chosen, memory, on.batch, key, step)
      soft = terms is of_lesson and number == 0
      metrics['soft_loss' if soft else f'{term.name}_loss'] = mean
      total = total + term.weight(step) * mean
    if terms:
      loss = loss + total
  if names:
    logits = mean_logits([guides[name]['logits'] for name in names], 1.0)
    metrics['teacher_accuracy'] = accuracy(logits, taught.soft_labels)
  return loss, memory, metrics | {'loss': loss}


def _guides_of(term: Term, names: tuple[str, ...]) -> tuple[str, ...]:
  return names if term.guide is None else (term.guide,)


def _hyperparameters(term: Term, step: Array) -> Mapping[str, Any]:
  if term.temperature is None:
    return term.hyperparameters
  return {**term.hyperparameters, 'temperature': term.temperature(step)}


def _value(
  term: Term,
  learner: Learner,
  said: Tree,
  guides: list[Guide],
  memory: Tree,
  batch: Mapping[str, Array],
  key: Array,
  step: Array,
) -> Array:
  """The mean over a term's guides; new memories go into `memory`."""
  total = jnp.float32(0.0)
  for which, guide in enumerate(guides):
    place = str(which)
    value, new = losses.compute(
      term.name,
      said,
      guide,
      batch['label'],
      projector=learner.params['projector'].get(term.name, {}).get(place, {}),
      memory=learner.memory.get(term.name, {}).get(place, {}),
      index=batch.get('row'),
      key=key,
      teacher_head=guide['head'],
      **_hyperparameters(term, step),
    )
    total = total + value
    if new:
      memory[term.name][place] = new
  return total / len(guides)


def _mean_guide(guides: list[Guide], term: Term, step: Array) -> Guide:
  """One guide whose softmax at the loss's temperature is the mean one."""
  temperature = _temperature(term, step)
  logits = mean_logits([guide['logits'] for guide in guides], temperature)
  return {'logits': logits, 'head': guides[0]['head']}


def _temperature(term: Term, step: Array) -> Any:
  """At which a term reads the teacher's logits; 1 of a loss without one."""
  return _hyperparameters(term, step).get('temperature', 1.0)


def _shammed(
  guide: Guide, sham: Sham, term: Term, labels: Array, step: Array
) -> Guide:
  """A guide with the sham's logits in place of its own."""
  at_one = losses.find(term.name).p_label_at == 'one'
  temperature = 1.0 if at_one else _temperature(term, step)
  given = guide.get('sham', {})
  logits = sham(guide['logits'], labels, temperature, **given)
  return {**guide, 'logits': jax.lax.stop_gradient(logits)}
