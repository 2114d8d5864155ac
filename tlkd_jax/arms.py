"""What `main` runs: one arm, or teacher, TL and TL+KD side by side.

`protocols.plan` says which runs that takes.
"""

import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import models, protocols
from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.report import tables
from tlkd_jax.runtime.errors import UserError, as_user_errors, unknown_name
from tlkd_jax.training import (
  build,
  checkpoints,
  mutual,
  objective,
  starting_point,
  targets,
  transfer,
)
from tlkd_jax.training.loop import fine_tune
from tlkd_jax.training.step import REMAT

ARMS = ('teacher', 'tl', 'kd', 'compare')
_LEAST = {
  'batch_size': 1,
  'num_steps': 1,
  'log_every_steps': 1,
  'eval_every_steps': 1,
  'keep_checkpoints': 1,
  'image_size': 8,
  'optimizer.accumulate_steps': 1,
  'optimizer.learning_rate': 0.0,
  'optimizer.warmup_fraction': 0.0,
}


def run(
  config: Any, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, dict[str, Any]]:
  """Runs config.arm; returns the key of each part of the plan -> summary.

  'kd' without config.teacher.checkpoint fine-tunes the teacher first, in
  WORKDIR/teacher; 'compare' has WORKDIR/teacher, WORKDIR/tl and WORKDIR/kd;
  the rest is in protocols.py.

  Raises:
    UserError, RunError, Interrupted: as train.fine_tune.
  """
  if config.arm not in ARMS:
    raise UserError(f'unknown arm {config.arm!r}; accepted: {", ".join(ARMS)}')
  with as_user_errors():
    check_models(config)
    check_values(config)
    plan = protocols.plan(config, workdir)
    for part in plan:
      build.check_workdir(part.workdir, part.config)
    for role in ('student', 'teacher'):
      if config[role].checkpoint:
        checkpoints.read_description(config[role].checkpoint)
    for teacher in config.distillation.more_teachers:
      checkpoints.read_description(teacher)
    dataset = build.load_dataset(config)
    _check_loading(config, plan, dataset.class_names)
  for note in dataset.notes:
    logging.info('%s: %s', config.dataset, note)
  summaries = {}
  for part in plan:
    if len(plan) > 1:
      logging.info('%s, in %s', protocols.label(part.key), part.workdir)
    summaries[part.key] = fine_tune(part.config, part.workdir, dataset, mesh)
  return summaries


def table(summaries: dict[str, dict[str, Any]]) -> str:
  """The closing table of a run, with what a reader must know of it."""
  rows = []
  guided = next((s for s in summaries.values() if 'teacher' in s), {})
  for key, summary in ({'teacher': guided} | summaries).items():
    role = 'teacher' if key == 'teacher' else 'student'
    peer = role == 'teacher' and 'mutual' in summary
    if role in summary:
      name = 'peer' if peer else protocols.label(key)
      rows.append((name, summary[role]))
  return '\n'.join([tables.closing_table(rows), *tables.remarks(summaries)])


def check_models(config: Any) -> None:
  """Fails on models that do not exist.

  Raises:
    ValueError: names the nearest ones.
  """
  names = [config[role].name for role in ('student', 'teacher')]
  for name in (*names, *config.distillation.assistants):
    models.create_model(name, num_classes=2)


def check_values(config: Any) -> None:
  """Fails on names and values before anything is decoded or trained.

  Raises:
    ValueError: an unknown name, or a value out of range.
  """
  loss = objective.make_objective(protocols.as_arm(config, 'kd'), None)
  mutual.check(config)
  targets.check(config, loss)
  build.norm_train(config)
  build.batch_chance(config)
  build.make_mixing(config)
  transfer.make_transfer(config)
  if config.remat not in REMAT:
    raise unknown_name('remat', config.remat, REMAT)
  if config.best_metric not in METRICS:
    raise unknown_name('best_metric', config.best_metric, METRICS)
  for name, least in _LEAST.items():
    section, _, key = name.rpartition('.')
    value = (config[section] if section else config)[key]
    if value < least:
      raise ValueError(f'{name} is {value}; it must be at least {least}')


def _check_loading(config: Any, plan: list, class_names: list[str]) -> None:
  """Loads now what would otherwise fail after an earlier run of the plan."""
  peer = config.distillation.mutual and config.arm in ('kd', 'compare')
  if len(plan) == 1 and not peer:
    return
  learner = build.load_model(config, 'student', class_names)
  kept = transfer.make_transfer(config)
  if kept is not None and kept.has_source_head:
    starting_point.load_source(config, learner)
  for part in plan:
    if part.key.startswith('assistant'):
      build.load_model(part.config, 'student', class_names)
  if peer:
    mutual.load_peer(config, learner, class_names)
  elif config.teacher.checkpoint:
    build.load_teacher(config, class_names)
