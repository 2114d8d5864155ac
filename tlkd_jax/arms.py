"""What `main` runs: one arm, or teacher, TL and TL+KD side by side.

`protocols.plan` says which runs that takes.
"""

import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import protocols, settings
from tlkd_jax.report import tables
from tlkd_jax.runtime.errors import UserError, as_user_errors
from tlkd_jax.training import (
  build,
  checkpoints,
  mutual,
  starting_point,
  transfer,
)
from tlkd_jax.training.loop import fine_tune

_RUNS = ('teacher', 'tl', 'kd', 'compare')


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
  if config.arm not in _RUNS:
    raise UserError(f'unknown arm {config.arm!r}; accepted: {", ".join(_RUNS)}')
  with as_user_errors():
    settings.from_config(config)
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
