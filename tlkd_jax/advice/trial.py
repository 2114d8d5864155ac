"""Step 4: arms at equal cost, a study that adds seeds until it is sure."""

import pathlib
from typing import Any

from tlkd_jax.advice.choosing import PROBE_FOLDS, Choice, views
from tlkd_jax.advice.request import Candidate, Request
from tlkd_jax.runtime import devices
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.study import designs

# Evaluated in every cell, of each split at most.
MOST_VALIDATION = 500
MOST_TEST = 5000


def make(
  request: Request, looked: dict[str, Any], choice: Choice, cores: int
) -> Settings:
  """The settings of the study.

  Args:
    request: of the advice.
    looked: from looking.look.
    choice: what the arms have.
    cores: that a cell runs on.

  Raises:
    ValueError: a value that is not accepted.
  """
  student, teacher = (
    Candidate(name, weights or 'pretrained')
    for name, _, weights in (
      choice.student.partition('='),
      choice.teacher.partition('='),
    )
  )
  counts, classes, folds = looked['counts'], looked['classes'], looked['folds']
  made = designs.make(
    dataset=request.dataset,
    group='advise',
    student=student.name,
    teacher=teacher.name,
  )
  train = round(counts['train'] * choice.train_fraction)
  return with_values(
    made,
    {
      **request.values,
      'student.weights': student.weights,
      'teacher.weights': teacher.weights,
      'image_size': choice.image_size,
      'teacher.image_size': choice.teacher_size,
      'teacher.probe_views': views(train),
      'teacher.probe_folds': PROBE_FOLDS,
      'num_steps': choice.num_steps,
      'data.folds': folds,
      'data.num_validation_per_class': _at_most(
        MOST_VALIDATION, counts['validation'], classes
      ),
      'data.num_test_per_class': _at_most(MOST_TEST, counts['test'], classes),
      'study.sizes': (
        choice.train_fraction if choice.train_fraction < 1 else 0,
      ),
      'study.run_arms': (),
      'study.cores': cores,
    },
  )


def half(config: Settings) -> Settings:
  """The same with half of the training images, for the worth in labels."""
  assert config.study is not None
  (size,) = config.study.sizes
  return with_values(config, {'study.sizes': ((size or 1.0) / 2,)})


def cores() -> int:
  """That a cell runs on here."""
  return 1 if devices.has_card() else devices.cores()


def folder(root: pathlib.Path) -> pathlib.Path:
  """The study of an advice's folder."""
  return root / 'study'


def _at_most(most: int, count: int, classes: int) -> int:
  """Images of each class, so that there are about `most`; 0 is all."""
  return 0 if count <= most else -(-most // classes)
