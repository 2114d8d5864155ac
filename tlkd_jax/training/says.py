"""What the teachers of a run say, measured before the student starts."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax.evaluation import evaluate, records, teaching
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sealed, sharding
from tlkd_jax.training import drawing, own_probe, targets, views
from tlkd_jax.training.run import Run, constants, sham_drawn
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.summary import SAYS, predict

# Of the training views; enough for p(label) to within a hundredth.
_MAX_IMAGES = 1024


def on_validation(run: Run) -> dict[str, evaluate.Predictions]:
  """Name of each teacher -> its predictions; {} where `measure` was done."""
  if (run.workdir / SAYS).exists():
    return {}
  return {
    name: predict(
      run,
      make_eval_step(teacher.network, run.mesh),
      sharding.place(
        (teacher.params, teacher.model_state), run.mesh, parts=run.in_parts
      ),
      'validation',
      name,
    )
    for name, teacher in run.teachers.items()
  }


def measure(
  run: Run,
  stored: Mapping[str, targets.Targets],
  unseen: Mapping[str, evaluate.Predictions],
) -> dict[str, Any]:
  """Measures the teachers' targets once, logs them and writes WORKDIR/SAYS.

  Args:
    run: of a student.
    stored: name of a teacher -> its stored outputs, which are not computed
      again; {} where all are online.
    unseen: from `on_validation`.

  Returns:
    name of a teacher -> {'temperature', 'sham', 'training views',
    'validation', 'scaled_nll' of the teacher itself on validation and
    'student_probe_nll' beside it (None where the student has no pretrained
    features), 'warnings'}; {} without frozen teachers. Under a sham both places
    are of what the student hears.
  """
  path = run.workdir / SAYS
  if not run.teachers:
    return {}
  if path.exists():
    return sealed.read_json(path)
  probe = own_probe.predict(run)
  probe_nll = None if probe is None else teaching.scaled_nll(*probe)
  found = {
    name: _of_teacher(run, name, stored, unseen[name], probe_nll)
    for name in run.teachers
  }
  if sharding.is_lead():
    records.write_json(path, found)
  return found


def _of_teacher(
  run: Run,
  name: str,
  stored: Mapping[str, targets.Targets],
  on_validation: evaluate.Predictions,
  probe_nll: float | None,
) -> dict[str, Any]:
  temperature = run.settings.distillation.temperature
  rows = own_probe.spread(run.dataset.splits['train'].labels, _MAX_IMAGES)
  labels = run.dataset.splits['train'].labels[rows]
  if name in stored:
    on_training = stored[name](rows, np.zeros_like(rows))['logits']
  else:
    on_training = _on_views(run, name, rows)
  sham, given = run.lessons[run.own].objective.sham, sham_drawn(run)

  def describe(logits, labels):
    heard = logits
    if sham is not None:
      heard = sham(logits, labels, temperature, **given)
    return teaching.describe(heard, labels, temperature)

  on_unseen = on_validation.logits, on_validation.labels
  said = {
    'training views': describe(on_training, labels),
    'validation': describe(*on_unseen),
  }
  scaled_nll = teaching.scaled_nll(*on_unseen)
  places = said['training views'], said['validation']
  worries = teaching.warnings(*places, scaled_nll, probe_nll)
  kind = run.settings.distillation.sham
  what = '' if sham is None else f' (a sham, {kind})'
  logging.info('%s%s says, at temperature %g:', name, what, temperature)
  for line in teaching.lines(said):
    logging.info('  %s', line)
  if probe_nll is not None:
    logging.info(
      '  validation NLL after temperature scaling: %.3f, of a probe of the '
      "student's own features %.3f",
      *(scaled_nll, probe_nll),
    )
  for worry in worries:
    logging.warning('%s: %s', name, worry)
  return {
    'temperature': temperature,
    'sham': kind,
    **said,
    'scaled_nll': scaled_nll,
    'student_probe_nll': probe_nll,
    'warnings': worries,
  }


def _on_views(run: Run, name: str, rows: np.ndarray) -> np.ndarray:
  """Logits [N, K] of the first random view of each image."""
  teacher = run.teachers[name]
  seen = run.dataset.seen(teacher.network.look)
  augmentation = drawing.heard_through(run.settings, seen)
  compute = views.make_compute(
    teacher.network, augmentation, ('logits',), run.mesh
  )
  split = run.dataset.splits['train']
  given = (
    sharding.place(constants(teacher, split), run.mesh, parts=run.in_parts),
    sharding.replicate(as_int32(run.settings.seed), run.mesh),
  )
  said = views.of_view(
    compute,
    given,
    seen.splits['train'].take(rows),
    0,
    run.settings.batch_size,
    run.mesh,
  )
  logits = [jax.device_get(outputs['logits']) for outputs in said]
  return np.concatenate(logits)[: rows.size]
