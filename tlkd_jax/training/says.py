"""What the teachers of a run say, measured before the student starts."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax.evaluation import records, teaching
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.training import inputs, targets, views
from tlkd_jax.training.run import Run, constants
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.summary import SAYS, predict

# Of the training images; enough for p(label) to within a hundredth.
_MAX_IMAGES = 1024


def measure(run: Run, stored: Mapping[str, targets.Targets]) -> dict[str, Any]:
  """Measures the teachers' targets once, logs them and writes WORKDIR/SAYS.

  Args:
    run: of a student.
    stored: name of a teacher -> its stored outputs, which are not computed
      again; {} where all are online.

  Returns:
    name of a teacher -> {'temperature', 'training views', 'validation',
    'warnings'}; {} without frozen teachers.
  """
  path = run.workdir / SAYS
  if not run.teachers:
    return {}
  if path.exists():
    return json.loads(path.read_text())
  found = {name: _of_teacher(run, name, stored) for name in run.teachers}
  if sharding.is_lead():
    records.write_json(path, found)
  return found


def _of_teacher(run: Run, name: str, stored) -> dict[str, Any]:
  temperature = run.settings.distillation.temperature
  rows = _spread(run.dataset.splits['train'].labels)
  labels = run.dataset.splits['train'].labels[rows]
  if name in stored:
    on_training = stored[name](rows, np.zeros_like(rows))['logits']
  else:
    on_training = _on_views(run, name, rows)
  teacher = run.teachers[name]
  on_validation = predict(
    run,
    make_eval_step(teacher.network, run.mesh),
    sharding.replicate((teacher.params, teacher.model_state), run.mesh),
    'validation',
    name,
  )
  said = {
    'training views': teaching.describe(on_training, labels, temperature),
    'validation': teaching.describe(
      on_validation.logits, on_validation.labels, temperature
    ),
  }
  worries = teaching.warnings(*said.values())
  logging.info('%s says, at temperature %g:', name, temperature)
  for line in teaching.lines(said):
    logging.info('  %s', line)
  for worry in worries:
    logging.warning('%s: %s', name, worry)
  return {'temperature': temperature, **said, 'warnings': worries}


def _spread(labels: np.ndarray) -> np.ndarray:
  """Rows of labelled training images, evenly chosen where there are many."""
  rows = np.flatnonzero(labels >= 0)
  if rows.size > _MAX_IMAGES:
    rows = rows[np.linspace(0, rows.size - 1, _MAX_IMAGES).astype(int)]
  return rows


def _on_views(run: Run, name: str, rows: np.ndarray) -> np.ndarray:
  """Logits [N, K] of the first random view of each image."""
  teacher = run.teachers[name]
  seen = run.dataset.seen(teacher.network.look)
  augmentation = inputs.make_augmentation(run.settings, seen)
  compute = views.make_compute(
    teacher.network, augmentation, ('logits',), run.mesh
  )
  given = (
    constants(teacher, run.dataset.splits['train']),
    as_int32(run.settings.seed),
  )
  said = views.of_view(
    compute,
    sharding.replicate(given, run.mesh),
    seen.splits['train'].take(rows),
    0,
    run.settings.batch_size,
    run.mesh,
  )
  logits = [jax.device_get(outputs['logits']) for outputs in said]
  return np.concatenate(logits)[: rows.size]
