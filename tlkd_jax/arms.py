"""What `main` runs: one arm, or teacher, TL and TL+KD side by side."""

import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import build, checkpoints, models, objective, targets, transfer
from tlkd_jax.errors import UserError, as_user_errors, unknown_name
from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.report import tables
from tlkd_jax.train import fine_tune

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
_LABELS = {'teacher': 'teacher', 'tl': 'TL', 'kd': 'TL+KD'}


def run(
  config: Any, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, dict[str, Any]]:
  """Runs config.arm; returns arm -> summary.

  'kd' without config.teacher.checkpoint fine-tunes the teacher first, in
  WORKDIR/teacher; 'compare' has WORKDIR/teacher, WORKDIR/tl and WORKDIR/kd.

  Raises:
    UserError, RunError, Interrupted: as train.fine_tune.
  """
  if config.arm not in ARMS:
    raise UserError(f'unknown arm {config.arm!r}; accepted: {", ".join(ARMS)}')
  plan = _plan(config, workdir)
  with as_user_errors():
    check_models(config)
    check_values(config)
    for folder, arm in plan:
      build.check_workdir(folder, arm)
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
  for folder, arm in plan:
    if len(plan) > 1:
      logging.info('%s, in %s', _LABELS[arm.arm], folder)
    summaries[arm.arm] = fine_tune(arm, folder, dataset, mesh)
  return summaries


def table(summaries: dict[str, dict[str, Any]]) -> str:
  """The closing table of a run, with what a reader must know of it."""
  rows = []
  kd_teacher = summaries.get('kd', {}).get('teacher')
  if 'teacher' in summaries or kd_teacher:
    teacher = kd_teacher or summaries['teacher']['teacher']
    rows.append((_LABELS['teacher'], teacher))
  rows += [
    (_LABELS[arm], summaries[arm]['student'])
    for arm in ('tl', 'kd')
    if arm in summaries
  ]
  return '\n'.join([tables.closing_table(rows), *tables.remarks(summaries)])


def _plan(config: Any, workdir: pathlib.Path) -> list[tuple[pathlib.Path, Any]]:
  """The runs that an arm consists of, in order: (workdir, configuration)."""
  if config.arm in ('teacher', 'tl'):
    return [(workdir, config)]
  plan = []
  guided = _as_arm(config, 'kd')
  if not config.teacher.checkpoint:
    plan.append((workdir / 'teacher', _as_arm(config, 'teacher')))
    guided.teacher.checkpoint = str(workdir / 'teacher')
  if config.arm == 'kd':
    return [*plan, (workdir, guided)]
  tl = _as_arm(config, 'tl')
  return [*plan, (workdir / 'tl', tl), (workdir / 'kd', guided)]


def _as_arm(config: Any, arm: str) -> Any:
  config = config.copy_and_resolve_references()
  config.arm = arm
  return config


def check_models(config: Any) -> None:
  """Fails on models that do not exist.

  Raises:
    ValueError: names the nearest ones.
  """
  for role in ('student', 'teacher'):
    models.create_model(config[role].name, num_classes=2)


def check_values(config: Any) -> None:
  """Fails on names and values before anything is decoded or trained.

  Raises:
    ValueError: an unknown name, or a value out of range.
  """
  loss = objective.make_objective(_as_arm(config, 'kd'), None)
  targets.check(config, loss)
  build.norm_train(config)
  build.batch_chance(config)
  build.make_mixing(config)
  transfer.make_transfer(config)
  if config.best_metric not in METRICS:
    raise unknown_name('best_metric', config.best_metric, METRICS)
  for name, least in _LEAST.items():
    section, _, key = name.rpartition('.')
    value = (config[section] if section else config)[key]
    if value < least:
      raise ValueError(f'{name} is {value}; it must be at least {least}')


def _check_loading(config: Any, plan: list, class_names: list[str]) -> None:
  """Loads now what would otherwise fail after an earlier run of the plan."""
  if len(plan) > 1:
    build.load_model(config, 'student', class_names)
    if config.teacher.checkpoint:
      build.load_teacher(config, class_names)
