"""A teacher of several fine-tuned networks, each without a fold of the images.

WORKDIR/fold1, fold2, ... are runs like others, one for each fold, of the images
of the other folds; each is resumed or skipped by itself. Together they are the
network of the run (models.side_by_side), which says the mean of their logits;
folds.npz says which of them never saw an image, as of a cross-fitted probe.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from tlkd_jax import models
from tlkd_jax.data import Dataset
from tlkd_jax.models import side_by_side
from tlkd_jax.models.network import Loaded, make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import finished, folds, inputs
from tlkd_jax.training.checkpoints import Checkpoints
from tlkd_jax.training.logistic import Head
from tlkd_jax.training.run import Run
from tlkd_jax.training.summary import Spent, finish

KIND = 'crossfitted_finetuned'


def folder_of(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """Of the run without the fold of this number, from 1 on."""
  return workdir / f'fold{number}'


def without(settings: Settings, number: int) -> Settings:
  """The settings of the run without a fold."""
  return with_values(
    settings,
    {'teacher.fit': 'finetuned', 'teacher.without_fold': number},
  )


def fit(
  run: Run,
  dataset: Dataset,
  fine_tune: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
  """Runs what is left of the folds and puts them together; the summary.

  Args:
    run: of the teacher.
    dataset: of its images, as fine_tune takes it.
    fine_tune: loop.fine_tune.

  Raises:
    UserError: a model with several heads, or a class with too few images.
    RunError, Interrupted: as fine_tune.
  """
  settings, mesh = run.settings, run.mesh
  single = run.network
  count = settings.teacher.probe_folds
  split = run.dataset.splits['train']
  with as_user_errors():
    if len(single.model.spec.head) > 1:
      raise ValueError(
        f'teacher.fit is {KIND!r}, which puts networks of one head together; '
        f'{single.model.name} has {len(single.model.spec.head)}'
      )
    of_image = inputs.folds_of(settings, split.labels)
  found, seconds, images = [], 0.0, 0.0
  for number in range(1, count + 1):
    folder = folder_of(run.workdir, number)
    logging.info('teacher without fold %d of %d, in %s', number, count, folder)
    summary = fine_tune(without(settings, number), folder, dataset, mesh)
    seconds += summary['seconds']
    images += summary['seconds'] * summary['images_per_second']
    with as_user_errors():
      _, *variables = finished.read_as(
        str(folder), single.model, run.dataset.class_names
      )
    found.append(tuple(jax.device_get(variables)))
  params, model_state, heads = side_by_side.join(single.model, found)
  model = models.create_model(
    side_by_side.name_of(single.model.name, count),
    num_classes=single.model.num_classes,
  )
  network = dataclasses.replace(single, model=model)
  if sharding.is_lead():
    parts = [Head(head['kernel'], head['bias']) for head in heads]
    folds.write(run.workdir, parts, split, of_image)
  description = finished.describe(settings, network, run.dataset, 0)
  checkpoints = Checkpoints(run.workdir)
  try:
    checkpoints.save_best(
      {'params': params, 'model_state': model_state}, description
    )
  finally:
    checkpoints.close()
  whole = dataclasses.replace(
    run,
    learners={run.own: Loaded(network, params, model_state)},
    eval_step=make_eval_step(network, mesh),
  )
  return finish(whole, Spent(0, seconds, round(images)))
