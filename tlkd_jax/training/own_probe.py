"""What a student knows before it learns: a probe of its pretrained features.

A teacher that knows less of the classes than logistic regression on the
student's own features has little to tell. Measured before the first step, with
the program that evaluates the student anyway, so that it takes seconds.
"""

import numpy as np
from absl import logging

from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import sharding
from tlkd_jax.training import logistic
from tlkd_jax.training import start as starts
from tlkd_jax.training.run import Run

# Of the training images, and of the folds and strengths that are compared.
_MAX_IMAGES = 512
_NUM_FOLDS = 3
_STRENGTHS = logistic.STRENGTHS[::2]


def predict(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
  """(logits, labels) of validation; None, and why in the log, without features.

  The probe is fitted to the training images as they are evaluated, 512 at
  most.

  Args:
    run: of a student.
  """
  section = run.settings.student
  if section.weights == 'scratch' and section.checkpoint is None:
    logging.info(
      'the student starts from scratch: there is no probe of its features to '
      'compare the teacher with'
    )
    return None
  labels = run.dataset.splits['train'].labels
  rows = spread(labels, _MAX_IMAGES)
  counts = np.bincount(labels[rows], minlength=len(run.dataset.class_names))
  if counts[counts > 0].min() < 2:
    logging.info(
      'of %d training images a class has but one: there is no probe of the '
      'student to compare the teacher with',
      rows.size,
    )
    return None
  loaded = run.learners[run.own]
  variables = sharding.replicate((loaded.params, loaded.model_state), run.mesh)

  def of_split(split):
    batches = pipeline.eval_batches(
      split, run.settings.batch_size, **sharding.this_process()
    )
    return evaluate.predict(run.eval_step, variables, batches, run.mesh)

  some = run.dataset.splits['train'].take(rows)
  train = of_split(starts.as_evaluated(run.dataset, some))
  validation = of_split(run.dataset.splits['validation'])
  folds = logistic.make_folds(train.labels, _NUM_FOLDS, run.settings.seed)
  given = train.pre_logits[:, None], train.labels
  # Balanced as the teacher that it is compared with.
  data = run.settings.data
  strength = logistic.choose(*given, folds, counts.size, _STRENGTHS, data)
  head = logistic.fit(*given, counts.size, strength, data=data)
  return head.logits(validation.pre_logits), validation.labels


def spread(labels: np.ndarray, most: int) -> np.ndarray:
  """Rows of labelled images, evenly chosen where there are more than `most`."""
  rows = np.flatnonzero(labels >= 0)
  if rows.size > most:
    rows = rows[np.linspace(0, rows.size - 1, most).astype(int)]
  return rows
