"""Runs whose networks together are the network of one run.

Each is a run like others in a folder of its own, resumed or skipped by itself.
Together they say the mean of their logits (models.side_by_side).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from tlkd_jax import models
from tlkd_jax.data import Dataset
from tlkd_jax.models import side_by_side
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Loaded, Network, make_eval_step
from tlkd_jax.models.weights import loading
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.training import finished, networks
from tlkd_jax.training.checkpoints import keep_best
from tlkd_jax.training.run import Run
from tlkd_jax.training.summary import Spent

Parts = Mapping[pathlib.Path, Settings]


def check(run: Run) -> None:
  """Raises ValueError where the run's own network has several heads."""
  model = run.network.model
  if not model.spec.linear_head:
    raise ValueError(
      f'{networks.role(run.own)}.fit is {run.settings.fit!r}, which puts '
      f'networks of one head together; {model.name} has '
      f'{model.spec.heads_in_words}'
    )


def fit(
  run: Run,
  dataset: Dataset,
  parts: Parts,
  fine_tune: Callable[..., dict[str, Any]],
) -> tuple[Run, Spent, list[Tree]]:
  """Runs what is left of the parts and keeps them as the run's best network.

  Args:
    run: of the whole.
    dataset: of its images, as fine_tune takes it.
    parts: folder of each part -> its settings.
    fine_tune: loop.fine_tune.

  Returns:
    (the run with the whole as its network, what its parts took, the head on
    the whole {'kernel', 'bias'} that is each part alone).

  Raises:
    UserError, RunError, Interrupted: as fine_tune.
  """
  single, found = run.network, []
  seconds, images = 0.0, 0.0
  for number, (folder, settings) in enumerate(parts.items(), 1):
    logging.info('%s %d of %d, in %s', run.own, number, len(parts), folder)
    summary = fine_tune(settings, folder, dataset, run.mesh)
    seconds += summary['seconds']
    images += summary['seconds'] * summary['images_per_second']
    with as_user_errors():
      _, *variables = finished.read_as(
        str(folder), single.model, run.dataset.class_names
      )
    found.append(tuple(jax.device_get(variables)))
  params, model_state, heads = side_by_side.join(single.model, found)
  network = as_one(single, len(parts))
  description = finished.describe(
    run.settings, network, run.dataset, 0, run.licences
  )
  keep_best(run.workdir, params, model_state, description)
  whole = dataclasses.replace(
    run,
    learners={
      run.own: Loaded(network, params, model_state, licences=run.licences)
    },
    eval_step=make_eval_step(network, run.mesh),
  )
  return whole, Spent(0, seconds, round(images)), heads


def as_one(single: Network, count: int) -> Network:
  """So many networks of a kind, which see images as one of them does."""
  model = models.create_model(
    side_by_side.name_of(single.model.name, count),
    num_classes=single.model.num_classes,
  )
  # Weights may have been trained otherwise than their variant was published.
  return dataclasses.replace(single, model=loading.like(model, single.model))
