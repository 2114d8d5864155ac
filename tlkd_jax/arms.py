"""What `main` runs: one arm, or teacher, TL and TL+KD side by side.

`protocols.plan` says which runs that takes.
"""

import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax import chains, protocols
from tlkd_jax.answer.labels import label_of_part
from tlkd_jax.chains import Part
from tlkd_jax.runtime import devices
from tlkd_jax.runtime.errors import UserError, as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.training import (
  balance,
  data_record,
  decoding,
  defaults,
  finished,
  forecast,
  networks,
  serving,
  start,
)
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.loop import fine_tune

_RUNS = ('teacher', 'tl', 'kd', 'compare')


def run(
  settings: Settings, workdir: pathlib.Path, mesh: Mesh
) -> dict[str, dict[str, Any]]:
  """Runs settings.arm; returns the key of each part of the plan -> summary.

  'kd' without teacher.checkpoint fits the teacher first, in
  WORKDIR/teacher; 'compare' has WORKDIR/teacher, WORKDIR/tl and WORKDIR/kd;
  the rest is in protocols.py.

  Raises:
    UserError, RunError, Interrupted: as loop.fine_tune.
  """
  if settings.arm not in _RUNS:
    raise UserError(
      f'arm is {settings.arm!r}; accepted: {", ".join(_RUNS)}; a study is run '
      'by python -m tlkd_jax.study'
    )
  devices.say(mesh)
  with as_user_errors():
    settings = defaults.settled(settings)
    plan = _checked_plan(settings, workdir)
    finished.check_named(settings)
    dataset = decoding.load_dataset(
      _as_planned(settings, plan),
      # What too few steps exclude is told before minutes of decoding.
      listed=lambda counts: protocols.plan(
        defaults.for_counts(settings, counts), workdir
      ),
    )
    settings = defaults.for_data(settings, dataset)
    plan = _checked_plan(settings, workdir)
    about = balance.lines(settings, dataset) + defaults.lines(settings, dataset)
    for part in plan:
      decoding.check_unlabelled(part.settings, dataset)
    record = data_record.of_labelled(dataset)
    for part in plan:
      data_record.check(part.workdir, record)
    _check_loading(settings, plan, dataset.class_names)
  logging.info('%s', '\n  '.join([dataset.describe(), *about]))
  forecast.say([(part.workdir, part.settings) for part in plan], dataset, mesh)
  summaries = {}
  for part in plan:
    if len(plan) > 1:
      kind = part.settings.distillation.self_training
      name = label_of_part(part.key, self_trained=kind != 'none')
      logging.info('%s, in %s', name, part.workdir)
    summaries[part.key] = fine_tune(part.settings, part.workdir, dataset, mesh)
  serving.after_training([part.workdir for part in plan], settings.num_steps)
  return summaries


def _checked_plan(settings: Settings, workdir: pathlib.Path) -> list[Part]:
  """The runs, none of which is there with another configuration."""
  plan = protocols.plan(settings, workdir)
  # What comes last says most of what was meant.
  for part in reversed(plan):
    workdirs.check(part.workdir, part.settings)
  return plan


def _as_planned(settings: Settings, plan: list[Part]) -> Settings:
  """With the look of a teacher that is taken over from elsewhere."""
  first = plan[0].settings
  if not workdirs.is_adopted(first):
    return settings
  return chains.with_arm(first, settings.arm)


def _check_loading(
  settings: Settings, plan: list[Part], class_names: list[str]
) -> None:
  """Loads now what would otherwise fail after an earlier run of the plan."""
  last = plan[-1].settings
  together = len(networks.learner_names(last)) > 1
  if len(plan) == 1 and not together:
    return
  # A probe, which the last run may start from, is not there yet.
  own = chains.with_arm(chains.self_trained(settings), last.arm)
  learners = networks.load_learners(own, class_names)
  student = learners.get('student')
  if student is not None:
    terms = start.make_terms(own, student.network.model)
    if start.has_source_head(terms):
      start.load_source(own, student)
  for part in plan:
    if part.key.startswith('assistant'):
      networks.load(part.settings, 'student', class_names)
  if workdirs.is_adopted(plan[0].settings):
    networks.load(plan[0].settings, 'teacher', class_names)
  elif settings.teacher.checkpoint:
    networks.load_teachers(own, class_names)
