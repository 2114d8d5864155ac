"""What the teachers of a run say, measured before the student starts."""

import json
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax.data import Split, pipeline
from tlkd_jax.evaluation import records, teaching
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.training import guides, inputs
from tlkd_jax.training.run import Run, constants
from tlkd_jax.training.step import as_int32
from tlkd_jax.training.summary import SAYS, predict

# Of the training images; enough for p(label) to within a hundredth.
_MAX_IMAGES = 1024


def measure(run: Run) -> dict[str, Any]:
  """Measures the teachers' targets once, logs them and writes WORKDIR/SAYS.

  Returns:
    name of a teacher -> {'temperature', 'training views', 'validation',
    'warnings'}; {} without frozen teachers.
  """
  path = run.workdir / SAYS
  if not run.teachers:
    return {}
  if path.exists():
    return json.loads(path.read_text())
  found = {}
  for name in run.teachers:
    found[name] = _of_teacher(run, name)
  if sharding.is_lead():
    records.write_json(path, found)
  return found


def _of_teacher(run: Run, name: str) -> dict[str, Any]:
  temperature = run.settings.distillation.temperature
  split = _spread(run.dataset.seen(run.teachers[name].network.look))
  on_training = _on_views(run, name, split)
  teacher = run.teachers[name]
  on_validation = predict(
    run,
    make_eval_step(teacher.network, run.mesh),
    sharding.replicate((teacher.params, teacher.model_state), run.mesh),
    'validation',
    name,
  )
  said = {
    'training views': teaching.describe(on_training, split.labels, temperature),
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


def _spread(dataset) -> Split:
  """Labelled training images, evenly chosen where there are many."""
  split = dataset.splits['train']
  rows = np.flatnonzero(split.labels >= 0)
  if rows.size > _MAX_IMAGES:
    rows = rows[np.linspace(0, rows.size - 1, _MAX_IMAGES).astype(int)]
  return Split(
    split.images[rows],
    split.labels[rows],
    split.indices[rows],
    [split.names[row] for row in rows.tolist()],
  )


def _on_views(run: Run, name: str, split: Split) -> np.ndarray:
  """Logits [N, K] of the first random view of each image."""
  teacher = run.teachers[name]
  seen = run.dataset.seen(teacher.network.look)
  augmentation = inputs.make_augmentation(run.settings, seen)

  def compute(given, seed, batch):
    views = batch['image'], batch['index'], batch['view']
    images = augmentation(*views, seed=seed)
    said = guides.speak(teacher.network, given, images, batch['index'])
    return said['logits']

  copied, spread = (
    sharding.replicated(run.mesh),
    sharding.batch_sharded(run.mesh),
  )
  computed = jax.jit(
    compute, in_shardings=(copied, copied, spread), out_shardings=copied
  )
  given = sharding.replicate(
    (
      constants(teacher, run.dataset.splits['train']),
      as_int32(run.settings.seed),
    ),
    run.mesh,
  )
  batches = pipeline.eval_batches(
    split, run.settings.batch_size, **sharding.this_process()
  )
  rows = []
  for batch in batches:
    batch['view'] = np.zeros_like(batch['view'])
    shared = sharding.shard_batch(batch, run.mesh)
    rows.append(jax.device_get(computed(*given, shared)))
  return np.concatenate(rows)[: len(split)]
