"""A network that is not fine-tuned: its last layer is fitted to its features.

The backbone stays as it started. Its features of the training images, as they
are evaluated and in several random views, are computed once; logistic.py fits
the layer. The run is one like others: checkpoint, predictions, summary.

'crossfitted' leaves beside it folds.npz, the heads of the folds and which
images they did not see; the checkpoint's own head is their mean.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tlkd_jax.models.network import with_last_layer
from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.training import (
  drawing,
  finished,
  folds,
  inputs,
  logistic,
  networks,
  preparation,
  views,
)
from tlkd_jax.training.checkpoints import keep_best
from tlkd_jax.training.run import Run
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.summary import Spent, finish

KINDS = ('probed', 'crossfitted')


def fit(run: Run) -> dict[str, Any]:
  """Fits the last layer of the run's own network; returns the summary.

  Raises:
    UserError: a model with several heads, or a class with too few images.
  """
  section = run.settings.network(networks.role(run.own))
  loaded = run.learners[run.own]
  model = loaded.network.model
  split = run.dataset.splits['train']
  num_classes = len(run.dataset.class_names)
  begun = time.monotonic()
  with as_user_errors():
    if not model.spec.linear_head:
      raise ValueError(
        f'{networks.role(run.own)}.fit is {section.fit!r}, which fits one last '
        f'layer; {model.name} has {model.spec.heads_in_words}'
      )
    of_image = logistic.make_folds(
      split.labels, section.probe_folds, run.settings.seed
    )
  features = compute_features(run, section.probe_views)
  fitted = features, split.labels, of_image, num_classes
  if section.fit == 'probed':
    strength = logistic.choose(*fitted)
    head = logistic.fit(features, split.labels, num_classes, strength)
    said = f'{strength:.2g}'
  else:
    heads, strengths = logistic.cross_fit(*fitted)
    head = logistic.mean(heads)
    said = ', '.join(f'{strength:.2g}' for strength in strengths)
    if sharding.is_lead():
      folds.write(run.workdir, heads, split, of_image)
  logging.info(
    '%s: %s on %d views of %d images, strength %s',
    *(run.own, section.fit, features.shape[1], len(split), said),
  )
  params = with_last_layer(model, loaded.params, dataclasses.asdict(head))
  description = finished.describe(
    run.settings, loaded.network, run.dataset, 0, run.licences
  )
  keep_best(run.workdir, params, loaded.model_state, description)
  num_images = features.shape[0] * features.shape[1]
  return finish(run, Spent(0, time.monotonic() - begun, num_images))


def compute_features(run: Run, num_views: int) -> np.ndarray:
  """What the network says before its last layer; float32 [N, 1 + V, D].

  Args:
    run: its own network, training images and augmentation.
    num_views: V; the first of the 1 + V is the image as it is evaluated, the
      others are the random views that a student of the seed sees.
  """
  loaded = run.learners[run.own]
  split, size = run.dataset.splits['train'], run.settings.batch_size
  augmentation = _evaluated_or_drawn(run) if num_views else _centre(run)
  compute = views.make_compute(
    loaded.network, augmentation, ('pre_logits',), run.mesh
  )
  given = sharding.replicate(
    (
      {'params': loaded.params, 'model_state': loaded.model_state},
      as_int32(run.settings.seed),
    ),
    run.mesh,
  )
  said = itertools.chain.from_iterable(
    views.of_view(compute, given, split, view, size, run.mesh)
    for view in range(-1, num_views)
  )
  a_view = -(-len(split) // size)
  shown = bars.track(inputs.ahead(said), a_view * (1 + num_views), 'features')
  rows = [
    np.asarray(jax.device_get(outputs['pre_logits']), np.float32)
    for outputs in shown
  ]
  features = [
    np.concatenate(rows[start : start + a_view])[: len(split)]
    for start in range(0, len(rows), a_view)
  ]
  return np.stack(features, axis=1)


def _centre(run: Run) -> Callable[..., jax.Array]:
  """Training images as they are evaluated."""

  as_evaluated = preparation.make_evaluated(run.dataset)

  def cut(images, index, view, *, seed):
    del index, view, seed
    return as_evaluated(images)

  return cut


def _evaluated_or_drawn(run: Run) -> Callable[..., jax.Array]:
  """View -1 is the image as it is evaluated: one program for both."""
  centre = _centre(run)
  drawn = drawing.make_augmentation(run.settings, run.dataset)

  def cut(images, index, view, *, seed):
    given = images, index, view
    evaluated = view[:, None, None, None] < 0
    return jnp.where(
      evaluated, centre(*given, seed=seed), drawn(*given, seed=seed)
    )

  return cut
