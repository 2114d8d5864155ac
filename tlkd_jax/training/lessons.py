"""From settings to lessons: what each network learns, and from whom."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.core import FrozenDict

from tlkd_jax import data, losses
from tlkd_jax.losses import shams
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Loaded, Network, output_shapes
from tlkd_jax.settings import Settings
from tlkd_jax.training import balance, networks, optimizers, shares
from tlkd_jax.training import start as starts
from tlkd_jax.training.guides import ITSELF
from tlkd_jax.training.objective import Objective, Term
from tlkd_jax.training.state import Beginning
from tlkd_jax.training.step import Lesson

Array = jax.Array

# Share of the way from start to end, at a share of the run.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
  'constant': jnp.zeros_like,
  'linear': lambda done: done,
  'cosine': lambda done: 0.5 * (1.0 - jnp.cos(jnp.pi * done)),
}


def make_objective(
  settings: Settings, dataset: data.Dataset | None, *, guided: bool
) -> Objective:
  """The loss of a network: of labels alone, or with guides.

  Args:
    settings: of the run.
    dataset: for losses that remember examples, and the classes' sizes; None
      where neither is needed.
    guided: whether the network has guides.
  """
  adjustment = balance.adjustment(settings, dataset)
  if not guided:
    own = settings.teacher if settings.arm == 'teacher' else settings
    return Objective(label_smoothing=own.label_smoothing, adjustment=adjustment)
  section = settings.distillation
  terms = [_make_term(settings, section.loss, section, section.soft_weight)]
  for name, extra in section.extra.items():
    terms.append(_make_term(settings, name, extra, extra.weight))
  return Objective(
    hard_weight=section.hard_weight,
    label_smoothing=settings.label_smoothing,
    terms=tuple(terms),
    ensemble=section.ensemble,
    adjustment=adjustment,
    sham=_sham(settings, dataset),
    by_token=section.token,
  )


def _sham(settings: Settings, dataset: data.Dataset | None):
  kind = settings.distillation.sham
  if dataset is None or kind == 'off':
    return None
  return shams.make(kind, len(dataset.class_names))


def _make_term(
  settings: Settings, name: str, section: Any, weight: float
) -> Term:
  """`section` is the distillation or the one of a further loss."""
  common, num_steps = settings.distillation, settings.num_steps
  hyperparameters = dict(section.options)
  published = losses.hyperparameters_of(name)
  has_temperature = 'temperature' in published
  if has_temperature:
    # Also what stands for several guides, or for a teacher, is formed at it.
    own = (
      common.temperature if name == common.loss else published['temperature']
    )
    hyperparameters.setdefault('temperature', own)
  temperature = None
  if has_temperature and common.temperature_schedule != 'constant':
    temperature = make_schedule(
      common.temperature_schedule,
      hyperparameters['temperature'],
      common.end_temperature,
      num_steps,
    )
  weights = make_schedule(
    section.schedule,
    weight,
    section.end_weight,
    num_steps,
    warmup=round(section.warmup_fraction * num_steps),
  )
  weights = until(weights, shares.finish_step(settings))
  return Term(name, weights, FrozenDict(hyperparameters), temperature)


@functools.lru_cache(maxsize=64)
def make_schedule(
  kind: str, start: float, end: float, num_steps: int, *, warmup: int = 0
) -> optax.Schedule:
  """A number as a function of the step, for use inside the jitted update.

  The same function of the same arguments, as all schedules here are, by which
  runs know that they have one program.

  Args:
    kind: a key of SCHEDULES.
    start: value at step 0.
    end: value from step `num_steps` on, unless constant.
    num_steps: length of the run.
    warmup: first steps in which the value is multiplied with (step + 1) /
      warmup, as the published DKD and ReviewKD do by epochs.
  """

  def value(step):
    share = SCHEDULES[kind](jnp.clip(step / num_steps, 0.0, 1.0))
    ramp = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
    return (start + (end - start) * share) * ramp

  return value


@functools.lru_cache(maxsize=64)
def until(weight: optax.Schedule, finish_step: int) -> optax.Schedule:
  """The same weight before a step, and 0 from it on."""

  def value(step):
    return jnp.where(step < finish_step, weight(step), 0.0)

  return value


def consistency(settings: Settings) -> Term:
  """FixMatch's loss of unlabelled images; see losses.logits.pseudo_label."""
  section = settings.distillation
  weight = optimizers.constant(section.fixmatch_weight)
  return Term(
    'pseudo_label',
    until(weight, shares.finish_step(settings)),
    FrozenDict(threshold=section.fixmatch_threshold),
    guide=ITSELF,
  )


def rows(
  lessons: Mapping[str, Lesson], dataset: data.Dataset
) -> dict[str, np.ndarray]:
  """What a step is given for the losses that remember examples.

  Returns:
    {'rows': int32, example index -> its row of a memory}, {} without such
    losses.
  """
  terms = (t for lesson in lessons.values() for t in lesson.objective.terms)
  if all(losses.find(term.name).memory is None for term in terms):
    return {}
  indices = dataset.splits['train'].indices
  positions = np.zeros(indices.max() + 1, np.int32)
  positions[indices] = np.arange(indices.size)
  return {'rows': positions}


def make_lessons(
  settings: Settings,
  learners: Mapping[str, Loaded],
  dataset: data.Dataset,
  schedule: optax.Schedule,
) -> dict[str, Lesson]:
  """The lesson of every network that learns.

  Args:
    settings: of the run.
    learners: from networks.load_learners.
    dataset: of the run.
    schedule: step -> learning rate.
  """
  lessons = {}
  for name, loaded in learners.items():
    guides = networks.guide_names(settings, name)
    model = loaded.network.model
    objective = make_objective(settings, dataset, guided=bool(guides))
    if name == 'student':
      kept = starts.make_terms(settings, model)
      terms = objective.terms + kept
      if settings.fit == 'fixmatch':
        terms += (consistency(settings),)
      objective = dataclasses.replace(objective, terms=terms)
    optimizer = optimizers.make_optimizer(model, schedule, settings.optimizer)
    lessons[name] = Lesson(loaded.network, objective, optimizer, guides)
  return lessons


def start_terms(lesson: Lesson) -> tuple[Term, ...]:
  """The transfer baselines among a lesson's terms."""
  return tuple(t for t in lesson.objective.terms if t.guide == starts.NAME)


def begin(
  settings: Settings,
  lessons: Mapping[str, Lesson],
  loaded: Mapping[str, Loaded],
  dataset: data.Dataset,
  start: Tree,
) -> dict[str, Beginning]:
  """What learns or is kept of every learner, as it is before the first update.

  Args:
    settings: of the run.
    lessons: from `make_lessons`.
    loaded: the networks of the run, learners and teachers.
    dataset: of the run.
    start: of the student, from start.load; {} without transfer baselines.
  """
  found = {}
  for number, (name, lesson) in enumerate(lessons.items()):
    extras = make_extras(
      lesson.objective,
      lesson.network,
      tuple(loaded[guide].network for guide in lesson.guides),
      dataset,
      networks.seed_of(settings, name),
    )
    params = {'weights': loaded[name].params, 'projector': extras['projector']}
    if name == 'student' and 'source_head' in start:
      params['source_head'] = start['source_head']
    found[name] = Beginning(
      params,
      loaded[name].model_state,
      extras['memory'],
      averaged=settings.ema_decay > 0 and number == 0,
    )
  return found


def make_extras(
  objective: Objective,
  own: Network,
  guides: tuple[Network, ...],
  dataset: data.Dataset,
  seed: int,
) -> dict[str, Tree]:
  """The learnable parts and the memories of the terms that guides are for.

  Args:
    objective: from `make_objective`.
    own: the learner.
    guides: of its lesson, in order.
    dataset: of the run.
    seed: of the learner.

  Returns:
    {'projector': {term: {guide number: ...}}, 'memory': likewise}, without
    the entries of losses that have none.
  """
  extras: dict[str, Tree] = {'projector': {}, 'memory': {}}
  terms = [term for term in objective.terms if _asks_shapes(term)]
  if not (guides and terms):
    return extras
  split, size = dataset.splits['train'], dataset.image_size
  key = jax.random.fold_in(jax.random.key(seed), 1)
  mine = output_shapes(own, size)
  for number, guide in enumerate(guides):
    theirs = output_shapes(guide, size)
    for term in terms:
      options = term.hyperparameters
      for line in losses.bridges(term.name, mine, theirs, **options):
        logging.info('%s', line)
      made = losses.init_extras(
        term.name,
        jax.random.fold_in(key, number),
        mine,
        theirs,
        len(split),
        split.labels,
        **options,
      )
      for part, value in made.items():
        if value:
          extras[part].setdefault(term.name, {})[str(number)] = value
  return extras


def _asks_shapes(term: Term) -> bool:
  """Else a network need not be traced to begin with a term."""
  if term.guide is not None:
    return False
  return losses.find(term.name).asks_shapes(term.hyperparameters)
