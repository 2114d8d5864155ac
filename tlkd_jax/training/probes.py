"""A network that is not fine-tuned: its last layer is fitted to its features.

The backbone stays as it started. Its features of the training images, as they
are evaluated and in several random views, are computed once; logistic.py fits
the layer. The run is one like others: checkpoint, predictions, summary.

'crossfitted' leaves beside it folds.npz, the heads of the folds and which
images they did not see; the checkpoint's own head is their mean.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tlkd_jax.data import augment, pipeline
from tlkd_jax.models.network import with_last_layer
from tlkd_jax.runtime import bars, sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.training import finished, folds, inputs, logistic, networks
from tlkd_jax.training.checkpoints import Checkpoints
from tlkd_jax.training.run import Run
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.summary import finish

KINDS = ('probed', 'crossfitted')


@dataclasses.dataclass(frozen=True)
class _Spent:
  """What a run of no steps says of its course."""

  best_step: int
  seconds: float
  images: int


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
    if len(model.spec.head) > 1:
      raise ValueError(
        f'{networks.role(run.own)}.fit is {section.fit!r}, which fits one last '
        f'layer; {model.name} has {len(model.spec.head)}'
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
  description = finished.describe(run.settings, loaded.network, run.dataset, 0)
  checkpoints = Checkpoints(run.workdir)
  try:
    checkpoints.save_best(
      {'params': params, 'model_state': loaded.model_state}, description
    )
  finally:
    checkpoints.close()
  num_images = features.shape[0] * features.shape[1]
  return finish(run, _Spent(0, time.monotonic() - begun, num_images))


def compute_features(run: Run, num_views: int) -> np.ndarray:
  """What the network says before its last layer; float32 [N, 1 + V, D].

  Args:
    run: its own network, training images and augmentation.
    num_views: V; the first of the 1 + V is the image as it is evaluated, the
      others are the random views that a student of the seed sees.
  """
  loaded = run.learners[run.own]
  network, split = loaded.network, run.dataset.splits['train']
  augmentation = inputs.make_augmentation(run.settings, run.dataset)

  def compute(variables, seed, batch):
    views = batch['image'], seed, batch['index'], batch['view']
    images = augment.augment(
      *views, image_size=network.image_size, crop='centre', flip=False
    )
    if num_views:
      image, seed, index, view = views
      drawn = augmentation(image, index, view, seed=seed)
      evaluated = batch['view'][:, None, None, None] < 0
      images = jnp.where(evaluated, images, drawn)
    params, model_state = variables
    outputs, _ = network.model.apply(
      params, model_state, network.prepare(images)
    )
    return outputs['pre_logits'].astype(jnp.float32)

  copied, spread = (
    sharding.replicated(run.mesh),
    sharding.batch_sharded(run.mesh),
  )
  computed = jax.jit(
    compute, in_shardings=(copied, copied, spread), out_shardings=copied
  )
  given = sharding.replicate(
    ((loaded.params, loaded.model_state), as_int32(run.settings.seed)),
    run.mesh,
  )

  def batches():
    for view in range(-1, num_views):
      for batch in pipeline.eval_batches(
        split, run.settings.batch_size, **sharding.this_process()
      ):
        batch['view'] = np.full_like(batch['view'], view)
        yield computed(*given, sharding.shard_batch(batch, run.mesh))

  a_view = -(-len(split) // run.settings.batch_size)
  shown = bars.track(
    inputs.ahead(batches()), a_view * (1 + num_views), 'features'
  )
  rows = [jax.device_get(part) for part in shown]
  views = [
    np.concatenate(rows[start : start + a_view])[: len(split)]
    for start in range(0, len(rows), a_view)
  ]
  return np.stack(views, axis=1)
