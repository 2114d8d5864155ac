"""The loop of one fine-tuning run: set up, resume, step, evaluate, save.

No arithmetic happens here. A run lives in its workdir; calling it again with
the same configuration resumes it, or returns the summary of a finished one.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset
from tlkd_jax.evaluation import evaluate
from tlkd_jax.runtime import locked, sealed, sharding
from tlkd_jax.runtime.errors import Interrupted, as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.training import (
  costs,
  crossfit,
  data_record,
  elsewhere,
  ensemble,
  inputs,
  judging,
  memory,
  probes,
  says,
  shares,
)
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.checkpoints import Checkpoints, abstract_like
from tlkd_jax.training.judging import Position
from tlkd_jax.training.metric_writers import MetricWriter
from tlkd_jax.training.progress import Progress
from tlkd_jax.training.run import Run, make_constants, set_up, stored_targets
from tlkd_jax.training.signals import StopRequest
from tlkd_jax.training.state import State
from tlkd_jax.training.step import shared_start
from tlkd_jax.training.summary import finish

# Between these steps of a run or of what is left of it its pace is measured.
_PACED = (1, 6)
# Runs that consist of others, which are run first.
_JOINED = {crossfit.KIND: crossfit.fit, ensemble.KIND: ensemble.fit}


def fine_tune(
  settings: Settings, workdir: pathlib.Path, dataset: Dataset, mesh: Mesh
) -> dict[str, Any]:
  """Runs settings.arm 'teacher', 'tl' or 'kd' to its end; returns the summary.

  Args:
    settings: of the run; for 'kd' its teacher.checkpoint names a finished run.
    workdir: folder of the run, created if need be.
    dataset: from decoding.load_dataset.
    mesh: devices.

  Raises:
    UserError: a mistake in the configuration or the files it names.
    RunError: a loss that is not finite, or a checkpoint that cannot be saved.
    Interrupted: SIGTERM or SIGINT arrived; the state is saved.
  """
  with as_user_errors():
    workdirs.check(workdir, settings)
    record = data_record.of_labelled(dataset)
    data_record.check(workdir, record)
    summary_path = workdir / 'summary.json'
    if summary_path.exists():
      data_record.write(workdir, record)
      logging.info('%s is finished; its summary is returned', workdir)
      return sealed.read_json(summary_path)
  with locked.held(workdir, wanted=sharding.is_lead()):
    return _fit(settings, workdir, dataset, mesh, record)


def _fit(
  settings: Settings, workdir: pathlib.Path, dataset, mesh, record
) -> dict[str, Any]:
  with as_user_errors():
    run = set_up(settings, workdir, dataset, mesh)
    # Not before: a mistake leaves no folder that the mended command would
    # find to be of another configuration.
    workdirs.write(workdir, settings)
    data_record.write(workdir, record)
    if run.cost is not None:
      workdirs.write_cost(workdir, run.cost.as_json())
      costs.say(run.cost)
    if shares.learns_without_labels(settings):
      more = data_record.of_unlabelled(run.dataset)
      data_record.check(workdir, more, data_record.UNLABELLED)
      data_record.write(workdir, more, data_record.UNLABELLED)
  if settings.fit in probes.KINDS:
    return probes.fit(run)
  if settings.fit in _JOINED:
    return _JOINED[settings.fit](run, dataset, fine_tune)
  checkpoints = Checkpoints(workdir, settings.keep_checkpoints)
  try:
    state, position = _start(run, checkpoints)
    if not run.num_steps:
      return judging.use_as_it_is(run, state, position, checkpoints)
    heard: dict[str, evaluate.Predictions] = {}
    left = int(state.step) < run.num_steps
    if left and not judging.is_stalled(settings, position):
      state, position, heard = _loop(run, state, position, checkpoints)
    return finish(run, position, heard)
  finally:
    checkpoints.close()


def _start(run: Run, checkpoints: Checkpoints) -> tuple[State, Position]:
  """The state to go on from: the workdir's newest, else the beginning."""

  begin = shared_start(run.lessons, run.placed)
  step = checkpoints.latest_step()
  if step is None:
    # The jitted copy owns its buffers, so that donating them is safe.
    elsewhere.compare_look_alikes(run.learners, run.dataset)
    on_device = sharding.replicate(run.beginnings, run.mesh)
    return begin(on_device), Position()
  logging.info('resumes from step %d of %s', step, run.workdir)
  abstract = abstract_like(jax.eval_shape(begin, run.beginnings), run.placed)
  with as_user_errors():
    state, record = checkpoints.restore(abstract)
    return state, judging.position_of(record, run.workdir)


def _loop(run: Run, state: State, position: Position, checkpoints):
  start = int(state.step)
  begun = time.monotonic()
  stored = stored_targets(run)
  batches = inputs.train_batches(
    run.settings, run.dataset, run.num_steps, stored, run.looks
  )
  if position.data is not None:
    batches.set_state(position.data)
  # The teacher's stored targets are part of what the run costs.
  position.seconds += time.monotonic() - begun
  heard = says.on_validation(run)
  says.measure(run, stored, heard)
  with as_user_errors():
    writer = MetricWriter(run.workdir, start) if sharding.is_lead() else None
  shown = Progress(run.settings.arm, start, run.num_steps)
  try:
    with StopRequest() as stop:
      state, position = _steps(
        run, state, position, checkpoints, batches, writer, shown, stop
      )
      return state, position, heard
  finally:
    batches.close()
    shown.close()
    if writer is not None:
      writer.close()


def _steps(run, state, position, checkpoints, batches, writer, shown, stop):
  settings = run.settings
  constants = make_constants(run)
  ahead = inputs.one_ahead(batches, run.mesh)
  pending: list[dict[str, Any]] = list(position.pending)
  clock = time.monotonic() - position.seconds
  first = int(state.step) + 1
  on_cpu = run.mesh.devices.flat[0].platform == 'cpu'
  for number in range(first, run.num_steps + 1):
    batch, after = next(ahead)
    if number == first:
      shown.compiling()
      if settings.memory_check:
        with as_user_errors():
          memory.check(run.step, (state, constants), batch, run.mesh)
    if on_cpu and pending:
      # There a step's temporaries are taken when it is sent, not when it runs.
      jax.block_until_ready(pending[-1])
    with jax.transfer_guard('disallow'):
      state, metrics = run.step(state, constants, batch)
    pending.append(metrics)
    shown.update(number)
    if number - first in _PACED and run.num_steps - first > 4 * _PACED[-1]:
      jax.block_until_ready(metrics)
      shown.pace(number, judging.left(run, number))
    evaluating = (
      number % settings.eval_every_steps == 0 or number == run.num_steps
    )
    writing = evaluating or number % settings.log_every_steps == 0
    stopping = stop.requested(number)
    if not (writing or stopping):
      continue
    pending = judging.collect(run, pending, number, checkpoints, position)
    position.seconds = time.monotonic() - clock
    if writing:
      row, pending = judging.mean(pending, position), []
      judging.write(
        writer, number, 'train', row | {'seconds': position.seconds}
      )
      shown.message(number, row)
    with shown.paused():
      if evaluating:
        judging.validate(
          run, state, position, number, writer, checkpoints, shown
        )
      if evaluating or stopping:
        position.data = after
        position.pending = pending
        position.images = number * settings.batch_size
        checkpoints.save(state, dataclasses.asdict(position))
    if stopping:
      raise Interrupted(
        f'stopped at step {number} of {run.num_steps}, saved in '
        f'{run.workdir}; resume with the same command'
      )
    if judging.is_stalled(settings, position):
      logging.info(
        'no gain in %d evaluations: stops at step %d',
        *(position.since_best, number),
      )
      break
  return state, position
