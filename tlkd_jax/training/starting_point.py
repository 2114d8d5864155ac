"""Where a student starts, as the transfer baselines refer to it.

Made anew whenever a run starts or resumes, always from the same files.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tlkd_jax import data, models
from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.losses import transfer as formulas
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Loaded, last_layer, make_eval_step
from tlkd_jax.models.weights import loading
from tlkd_jax.runtime import sharding
from tlkd_jax.training.transfer import Transfer


def load(
  config: Any,
  transfer: Transfer | None,
  learner: Loaded,
  dataset: data.Dataset,
  mesh: Mesh,
) -> Tree:
  """What `transfer.penalty` calls the start, on the host.

  Args:
    config: the run's configuration.
    transfer: the terms, or None.
    learner: the student as it starts.
    dataset: for Co-Tuning: its table is of the clean training images.
    mesh: devices.

  Returns:
    {} without terms, else {'params', 'model_state', 'head', 'relationship'}:
    'head' is the head of config.student.weights and {} where no term needs it.

  Raises:
    ValueError: the weights have no head.
  """
  if transfer is None:
    return {}
  start = {'params': learner.params, 'model_state': learner.model_state}
  if not transfer.has_source_head:
    return start | {'head': {}, 'relationship': {}}
  source = load_source(config, learner)
  head = last_layer(source.network.model, source.params)
  relationship: Any = {}
  if transfer.co_tuning:
    relationship = _relationship(config, source, dataset, mesh)
  return start | {'head': head, 'relationship': relationship}


def load_source(config: Any, learner: Loaded) -> Loaded:
  """The student's backbone under the head of its pretrained weights.

  Raises:
    ValueError: the weights have no head, or the model has several.
  """
  section = config.student
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
  if len(model.spec.head) != 1:
    raise ValueError(
      f'transfer.lwf and transfer.co_tuning need one head; {section.name} has '
      f'{len(model.spec.head)}'
    )
  key = jax.random.key(0)
  params, model_state = loading.load_weights(model, source, key, head='keep')
  view = dataclasses.replace(learner.network, model=model)
  return Loaded(view, params, model_state)


def _relationship(config, source, dataset, mesh: Mesh) -> np.ndarray:
  """p(source class | class), from the source's view of the training images."""
  split = _clean(dataset)
  batches = pipeline.eval_batches(
    split,
    batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  predictions = evaluate.predict(
    make_eval_step(source.network, mesh),
    sharding.replicate((source.params, source.model_state), mesh),
    batches,
    mesh,
  )
  table = formulas.category_relationship(
    jax.nn.softmax(predictions.logits), split.labels, len(dataset.class_names)
  )
  return np.asarray(table)


def _clean(dataset: data.Dataset) -> data.Split:
  """The training images without the margin that random crops use."""
  split = dataset.splits['train']
  margin = (split.images.shape[1] - dataset.image_size) // 2
  inner = slice(margin, margin + dataset.image_size)
  return dataclasses.replace(split, images=split.images[:, inner, inner])
