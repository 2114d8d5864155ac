"""Where a student starts, as a guide: what transfer baselines keep of it.

Each baseline is a weighted term beside the cross-entropy, alone or with
teachers. The start (its weights, the pretrained head, Co-Tuning's table) is a
constant of the step: not donated, not in the checkpoint. A run that resumes
makes it again from the same files by the same computation, so bit for bit.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict
from jax.sharding import Mesh

from tlkd_jax import data, models
from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.losses import transfer as formulas
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import Loaded, last_layer, make_eval_step
from tlkd_jax.models.weights import loading
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings
from tlkd_jax.training import optimizers, preparation
from tlkd_jax.training.objective import Term

NAME = 'start'
_AT_ONCE = 256


def make_terms(settings: Settings, model: Model) -> tuple[Term, ...]:
  """The transfer baselines of a student's objective, () where all are off."""
  section = settings.transfer
  heads = ','.join(f'{name}.*' for name in model.spec.head)
  l2_sp = {'alpha': section.l2_sp, 'beta': section.l2_sp_head, 'head': heads}
  # The two weights of L2-SP are in its formula.
  on = 1.0 if section.l2_sp or section.l2_sp_head else 0.0
  delta = {
    'stages': tuple(section.delta_stages) or None,
    'mean_over_positions': True,
  }
  terms: list[tuple[str, float, dict[str, Any]]] = [
    ('l2_sp', on, l2_sp),
    ('delta', section.delta, delta),
    ('bss', section.bss, {'k': section.bss_k}),
    ('lwf', section.lwf, {'temperature': section.lwf_temperature}),
    (
      'co_tuning',
      section.co_tuning,
      {'temperature': section.co_tuning_temperature},
    ),
  ]
  return tuple(
    Term(name, optimizers.constant(weight), FrozenDict(options), guide=NAME)
    for name, weight, options in terms
    if weight
  )


def has_source_head(terms: tuple[Term, ...]) -> bool:
  """Whether the pretrained head goes on learning beside the new one."""
  return any(term.name in ('lwf', 'co_tuning') for term in terms)


def load(
  settings: Settings,
  terms: tuple[Term, ...],
  learner: Loaded,
  dataset: data.Dataset,
  mesh: Mesh,
) -> Tree:
  """The start among the constants of a step, on the host.

  Args:
    settings: of the run.
    terms: from `make_terms`.
    learner: the student as it starts.
    dataset: for Co-Tuning: its table is of the clean training images.
    mesh: devices.

  Returns:
    {'params', 'model_state'}, with 'source_head', that of student.weights,
    and 'relationship' where a term needs them.

  Raises:
    ValueError: the weights have no head.
  """
  start: Tree = {'params': learner.params, 'model_state': learner.model_state}
  if not has_source_head(terms):
    return start
  source = load_source(settings, learner)
  start['source_head'] = last_layer(source.network.model, source.params)
  if any(term.name == 'co_tuning' for term in terms):
    start['relationship'] = _relationship(settings, source, dataset, mesh)
  return start


def load_source(settings: Settings, learner: Loaded) -> Loaded:
  """The student's backbone under the head of its pretrained weights.

  Raises:
    ValueError: the weights have no head, or the student has another backbone.
  """
  section = settings.student
  source = section.weights
  if source == 'pretrained':
    source = learner.network.model.spec.weights
  classes = None
  if source not in (None, 'scratch'):
    classes = loading.head_classes(learner.network.model, source)
  if not classes:
    raise ValueError(
      'transfer.lwf and transfer.co_tuning need pretrained weights with their '
      f'head; config.student.weights {section.weights!r} has none'
    )
  model = models.create_model(section.name, num_classes=classes)
  read = loading.load(model, source, jax.random.key(0), head='keep')
  if section.checkpoint and not _same_backbone(learner, read):
    raise ValueError(
      'transfer.lwf and transfer.co_tuning need the backbone that the head of '
      f'student.weights was trained on, and {section.checkpoint} '
      '(student.checkpoint) has another; accepted: 0 of both, a run in which '
      'the head alone learned, or student.checkpoint None'
    )
  network = dataclasses.replace(learner.network, model=read.model)
  return Loaded(network, read.params, read.model_state)


def _same_backbone(learner: Loaded, read: loading.Weights) -> bool:
  """Whether a student differs from weights in its head alone.

  A probe's does, up to the rounding of an average of weights that stay.
  """
  heads = tuple(f'{name}.' for name in read.model.spec.head)
  own = flatten(learner.params)
  return all(
    name.startswith(heads) or (name in own and _alike(own[name], value))
    for name, value in flatten(read.params).items()
  )


def _alike(own: np.ndarray, value: np.ndarray) -> bool:
  same = np.shape(own) == np.shape(value)
  return same and np.allclose(own, value, rtol=1e-4, atol=1e-6)


def _relationship(settings, source, dataset, mesh: Mesh) -> np.ndarray:
  """p(source class | class), from the source's view of the training images."""
  split = as_evaluated(dataset, dataset.splits['train'])
  temperature = settings.transfer.co_tuning_temperature
  predictions = evaluate.predict(
    make_eval_step(source.network, mesh),
    sharding.replicate((source.params, source.model_state), mesh),
    pipeline.eval_batches(
      split, settings.batch_size, **sharding.this_process()
    ),
    mesh,
  )
  table = formulas.category_relationship(
    jax.nn.softmax(predictions.logits / temperature),
    split.labels,
    len(dataset.class_names),
  )
  return np.asarray(table)


def as_evaluated(dataset: data.Dataset, split: data.Split) -> data.Split:
  """Training images as they would be evaluated, uint8 as those are."""
  cut = preparation.make_evaluated(dataset)
  parts = [
    np.rint(cut(split.images[start : start + _AT_ONCE])).astype(np.uint8)
    for start in range(0, len(split), _AT_ONCE)
  ]
  return dataclasses.replace(split, images=np.concatenate(parts))
