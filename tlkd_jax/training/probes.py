"""A network that is not fine-tuned: its last layer is fitted to its features.

The backbone stays as it started. Its features of the training images, as they
are evaluated and in several random views, are computed once and stored for
other probes (features.py); logistic.py fits the layer. The run is one like
others: checkpoint, predictions, summary.

'crossfitted' leaves beside it folds.npz, the heads of the folds and which
images they did not see; the checkpoint's own head is their mean.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax.evaluation.evaluate import Predictions
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import with_last_layer
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.training import (
  drawing,
  feature_heads,
  features,
  finished,
  folds,
  logistic,
  memory,
  networks,
)
from tlkd_jax.training.checkpoints import keep_best
from tlkd_jax.training.run import Run
from tlkd_jax.training.summary import SPLITS, Spent, finish

KINDS = features.KINDS
_OUTPUTS = ('pre_logits',)
_SPLITS = ('train', *SPLITS)


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
  backbone = Backbone(run, section.probe_views)
  with as_user_errors():
    if run.settings.memory_check:
      backbone.check_memory()
    found = backbone.of_training()
  fitted, data = (found, split.labels, of_image, num_classes), run.settings.data
  if section.fit == 'probed':
    strength = logistic.choose(*fitted, data=data)
    given = found, split.labels, num_classes, strength
    head = logistic.fit(*given, data=data)
    said = f'{strength:.2g}'
  else:
    heads, strengths = logistic.cross_fit(*fitted, data=data)
    head = logistic.mean(heads)
    said = ', '.join(f'{strength:.2g}' for strength in strengths)
    if sharding.is_lead():
      folds.write(run.workdir, heads, split, of_image)
  logging.info(
    '%s: %s on %d views of %d images, strength %s',
    *(run.own, section.fit, found.shape[1], len(split), said),
  )
  params = with_last_layer(model, loaded.params, dataclasses.asdict(head))
  description = finished.describe(
    run.settings, loaded.network, run.dataset, 0, run.licences
  )
  keep_best(run.workdir, params, loaded.model_state, description)
  num_images = found.shape[0] * found.shape[1]
  spent = Spent(0, time.monotonic() - begun, num_images)
  own = {name: backbone.predict(params, name) for name in SPLITS}
  return finish(run, spent, own=own)


def compute_features(run: Run, num_views: int) -> np.ndarray:
  """What the network says before its last layer; float32 [N, 1 + V, D].

  Args:
    run: its own network, training images and augmentation.
    num_views: V; the first of the 1 + V is the image as it is evaluated, the
      others are the random views that a student of the seed sees.
  """
  return Backbone(run, num_views).of_training()


class Backbone:
  """A run's own network before its last layer, on the images of its splits.

  What it says is stored for other probes where that takes no more than the
  settings allow.
  """

  def __init__(self, run: Run, num_views: int):
    """Takes the run, and the random views of its training images."""
    self._run, self._num_views = run, num_views
    loaded = run.learners[run.own]
    self._variables = {
      'params': loaded.params,
      'model_state': loaded.model_state,
    }
    self._say = features.make_say(loaded.network, _OUTPUTS, run.mesh)
    self._clean = self._recipe('train')
    train, *others = (len(run.dataset.splits[name]) for name in _SPLITS)
    images = train * (1 + num_views) + sum(others)
    size = features.bytes_of(images, 1, self._clean.row)
    self._root = features.root_of(run.settings, size, run.own)

  def check_memory(self) -> None:
    """Raises ValueError where there is no memory for fitting a head."""
    split = self._run.dataset.splits['train']
    width = self._clean.row['pre_logits'].shape[0]
    memory.check_features(len(split), 1 + self._num_views, width)

  def of_training(self) -> np.ndarray:
    """As `compute_features`."""
    drawn = self._recipe('train', drawn=True)
    rows = np.arange(len(drawn.split))
    centre = self._prepare(self._clean, 1)
    if not self._num_views:
      return centre(rows, 0)['pre_logits'][:, None]
    random = self._prepare(drawn, self._num_views)
    several = [random(rows, v)['pre_logits'] for v in range(self._num_views)]
    return np.stack([centre(rows, 0)['pre_logits'], *several], axis=1)

  def predict(self, params: Tree, split: str) -> Predictions:
    """What the network with this head says of validation or test.

    Args:
      params: the network's own, with another last layer.
      split: its name.
    """
    run, network = self._run, self._run.network
    recipe = self._recipe(split)
    said = feature_heads.batches(
      self._prepare(recipe, 1),
      feature_heads.make_head(network, run.mesh),
      sharding.replicate(
        feature_heads.of_head(network, {'params': params}), run.mesh
      ),
      recipe.split,
      view=0,
      start=0,
      batch_size=recipe.batch_size,
      mesh=run.mesh,
    )
    host = jax.device_get(list(said))
    joined = {
      name: np.concatenate([np.asarray(one[name]) for one in host])
      for name in ('logits', 'pre_logits')
    }
    size = len(recipe.split)
    return Predictions(
      joined['logits'][:size].astype(np.float32),
      joined['pre_logits'][:size],
      recipe.split.labels,
      recipe.split.indices,
    )

  def _recipe(self, split: str, *, drawn: bool = False) -> features.Recipe:
    run = self._run
    settings, dataset = run.settings, run.dataset
    return features.Recipe(
      None,
      run.network,
      _OUTPUTS,
      drawing.make_augmentation(settings, dataset)
      if drawn
      else features.as_evaluated(settings, dataset, split),
      dataset.splits[split],
      settings.batch_size,
      settings.targets.features_dtype,
      run.in_parts,
    )

  def _prepare(self, recipe: features.Recipe, num_views: int):
    recipe = dataclasses.replace(recipe, root=self._root)
    return features.prepare(
      recipe, self._variables, num_views, self._run.mesh, self._say
    )
