"""A teacher of several fine-tuned networks, each without a fold of the images.

WORKDIR/fold1, fold2, ... are runs like others, one for each fold, of the images
of the other folds. Together they are the network of the run (training.joined),
which says the mean of their logits; folds.npz says which of them never saw an
image, as of a cross-fitted probe.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from tlkd_jax.data import Dataset
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import folds, joined
from tlkd_jax.training.logistic import Head
from tlkd_jax.training.run import Run
from tlkd_jax.training.summary import finish

KIND = 'crossfitted_finetuned'


def folder_of(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """Of the run without the fold of this number, from 1 on."""
  return workdir / f'fold{number}'


def folders(workdir: pathlib.Path, count: int) -> list[pathlib.Path]:
  """Of so many runs, each without a fold, in the order of the folds."""
  return [folder_of(workdir, number) for number in range(1, count + 1)]


def without(settings: Settings, number: int) -> Settings:
  """The settings of the run without a fold."""
  return with_values(
    settings,
    {'teacher.fit': 'finetuned', 'teacher.without_fold': number},
  )


def parts(settings: Settings, workdir: pathlib.Path) -> joined.Parts:
  """The folders and settings of the runs, each without a fold."""
  found = folders(workdir, settings.teacher.probe_folds)
  return {
    folder: without(settings, number) for number, folder in enumerate(found, 1)
  }


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
  split = run.dataset.splits['train']
  with as_user_errors():
    joined.check(run)
    of_image = folds.of_images(run.settings, split.labels)
  runs = parts(run.settings, run.workdir)
  whole, spent, heads = joined.fit(run, dataset, runs, fine_tune)
  if sharding.is_lead():
    each = [Head(head['kernel'], head['bias']) for head in heads]
    folds.write(run.workdir, each, split, of_image)
  return finish(whole, spent)
