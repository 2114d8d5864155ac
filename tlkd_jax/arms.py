"""What `main` runs: one arm, or teacher, TL and TL+KD side by side."""

import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import build, checkpoints, models
from tlkd_jax.data import Dataset
from tlkd_jax.errors import UserError, as_user_errors
from tlkd_jax.report import tables
from tlkd_jax.train import fine_tune

ARMS = ('teacher', 'tl', 'kd', 'compare')
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
  with as_user_errors():
    _check_names(config)
    if config.teacher.checkpoint:
      checkpoints.read_description(config.teacher.checkpoint)
    dataset = build.load_dataset(config)
  for note in dataset.notes:
    logging.info('%s: %s', config.dataset, note)
  if config.arm == 'compare':
    return _compare(config, workdir, dataset, mesh)
  if config.arm == 'kd':
    config = _with_teacher(config, workdir / 'teacher', dataset, mesh)
  return {config.arm: fine_tune(config, workdir, dataset, mesh)}


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


def _compare(config, workdir, dataset, mesh):
  summaries = {}
  teacher_dir = config.teacher.checkpoint or workdir / 'teacher'
  if not config.teacher.checkpoint:
    arm = _as_arm(config, 'teacher')
    summaries['teacher'] = fine_tune(arm, teacher_dir, dataset, mesh)
  for name in ('tl', 'kd'):
    arm = _as_arm(config, name)
    if name == 'kd':
      arm.teacher.checkpoint = str(teacher_dir)
    summaries[name] = fine_tune(arm, workdir / name, dataset, mesh)
  return summaries


def _with_teacher(config: Any, folder: pathlib.Path, dataset: Dataset, mesh):
  if config.teacher.checkpoint:
    return config
  logging.info('no teacher.checkpoint: fine-tunes the teacher in %s', folder)
  fine_tune(_as_arm(config, 'teacher'), folder, dataset, mesh)
  config = config.copy_and_resolve_references()
  config.teacher.checkpoint = str(folder)
  return config


def _as_arm(config: Any, arm: str) -> Any:
  config = config.copy_and_resolve_references()
  config.arm = arm
  return config


def _check_names(config: Any) -> None:
  """Fails on names and values before anything is decoded or trained."""
  for role in ('student', 'teacher'):
    models.create_model(config[role].name, num_classes=2)
  build.make_objective(_as_arm(config, 'kd'), None)
  build.norm_train(config)
