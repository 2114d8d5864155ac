"""The loop of one fine-tuning run: build, resume, step, evaluate, save.

No arithmetic happens here. A run lives in its workdir; calling it again with
the same configuration resumes it, or returns the summary of a finished one.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER, METRICS
from tlkd_jax.models.network import make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import Interrupted, RunError, as_user_errors
from tlkd_jax.training import (
  build,
  memory,
  mutual,
  objective,
  optimizers,
  starting_point,
  targets,
  transfer,
)
from tlkd_jax.training import (
  state as train_state,
)
from tlkd_jax.training import (
  step as train_step,
)
from tlkd_jax.training.checkpoints import Checkpoints, abstract_like
from tlkd_jax.training.metric_writers import MetricWriter
from tlkd_jax.training.progress import Progress
from tlkd_jax.training.run import (
  Run,
  finish,
  make_constants,
  predict_split,
  stored_targets,
)
from tlkd_jax.training.signals import StopRequest


@dataclasses.dataclass
class _Progress:
  """What the loop remembers beside the TrainState; part of a checkpoint.

  `pending` are the metrics of the steps since the last written row.
  """

  data: Any = None
  pending: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best_value: float | None = None
  best_step: int = 0
  since_best: int = 0
  seconds: float = 0.0
  images: int = 0


def fine_tune(
  config: Any, workdir: pathlib.Path, dataset: Dataset, mesh: Mesh
) -> dict[str, Any]:
  """Runs config.arm 'teacher', 'tl' or 'kd' to its end; returns the summary.

  Args:
    config: locked configuration, see tlkd_jax.settings; for 'kd' its
      teacher.checkpoint names a finished run.
    workdir: folder of the run, created if need be.
    dataset: from build.load_dataset.
    mesh: devices.

  Raises:
    UserError: a mistake in the configuration or the files it names.
    RunError: a loss that is not finite, or a checkpoint that cannot be saved.
    Interrupted: SIGTERM or SIGINT arrived; the state is saved.
  """
  with as_user_errors():
    build.check_workdir(workdir, config)
    build.write_config(workdir, config)
    summary_path = workdir / 'summary.json'
    if summary_path.exists():
      logging.info('%s is finished; its summary is returned', workdir)
      return json.loads(summary_path.read_text())
    run, optimizer, extras = _build(config, workdir, dataset, mesh)
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  try:
    state, progress = _start(run, optimizer, extras, checkpoints)
    if int(state.step) < run.num_steps and not _stalled(config, progress):
      state, progress = _loop(run, state, progress, checkpoints)
    return finish(run, progress, summary_path)
  finally:
    checkpoints.close()


def _build(config, workdir, dataset, mesh):
  role = 'teacher' if config.arm == 'teacher' else 'student'
  sharding.check_batch_size(config.batch_size, mesh)
  dataset = build.training_data(config, dataset)
  learner = build.load_model(config, role, dataset.class_names)
  teachers, peer = (), None
  if config.arm == 'kd' and config.distillation.mutual:
    peer = mutual.load_peer(config, learner, dataset.class_names)
  elif config.arm == 'kd':
    teachers = build.load_teachers(config, dataset.class_names)
  views = tuple(teacher.network for teacher in teachers)
  num_steps = config.num_steps
  if role == 'teacher':
    num_steps = config.teacher.num_steps or num_steps
  schedule = optimizers.learning_rate_schedule(
    config.optimizer.learning_rate,
    num_steps,
    config.optimizer.warmup_fraction,
    config.optimizer.final_fraction,
  )
  optimizer = optimizers.make_optimizer(
    learner.network.model, schedule, config.optimizer
  )
  if peer is not None:
    theirs = optimizers.make_optimizer(
      peer.network.model, schedule, config.optimizer
    )
    optimizer = optimizers.side_by_side(optimizer, theirs)
  loss = objective.make_objective(config, dataset)
  augmentation = build.make_augmentation(config, dataset)
  kept = transfer.make_transfer(config) if role == 'student' else None
  step = train_step.make_train_step(
    learner.network,
    views,
    optimizer,
    schedule,
    loss,
    augmentation,
    mesh,
    mixing=build.make_mixing(config),
    # Not compiled in: the runs of a study share one program.
    seed=None,
    norm_train=build.norm_train(config),
    transfer=kept,
    batch_chance=build.batch_chance(config),
    head_only=config.optimizer.train_only == 'head',
    ema_decay=config.ema_decay,
    remat=config.remat,
    peer=None if peer is None else peer.network,
  )
  eval_step = make_eval_step(learner.network, mesh)
  start = starting_point.load(config, kept, learner, dataset, mesh)
  run = Run(
    config,
    role,
    workdir,
    dataset,
    mesh,
    num_steps,
    learner,
    teachers,
    targets.recipes(config, loss, views, augmentation, dataset),
    step,
    eval_step,
    start,
    peer,
  )
  return run, optimizer, _extras(run, loss)


def _extras(run: Run, loss: objective.Objective) -> dict[str, Any]:
  """What learns or is kept beside the student, as it starts."""
  guides = run.teachers if run.peer is None else (run.peer,)
  views = tuple(guide.network for guide in guides)
  own, seed = run.learner.network, run.config.seed
  extras = build.distillation_extras(loss, own, views, run.dataset, seed)
  if run.start.get('head'):
    extras['source_head'] = run.start['head']
  if run.peer is not None:
    extras |= mutual.peer_extras(loss, run.peer, own, run.dataset, seed)
  return extras


def _start(run, optimizer, extras, checkpoints):
  """The state to go on from: the workdir's newest, else the given weights."""

  def create(params, model_state, extras):
    kept = ('memory', 'peer_state')  # Not learned.
    learned = {k: v for k, v in extras.items() if k not in kept}
    return train_state.create(
      {'student': params, **learned},
      model_state,
      optimizer,
      ema=run.config.ema_decay > 0,
      memory=extras['memory'],
      peer=extras.get('peer_state'),
    )

  weights = run.learner.params, run.learner.model_state, extras
  step = checkpoints.latest_step()
  copied = sharding.replicated(run.mesh)
  if step is None:
    # The jitted copy owns its buffers, so that donating them is safe.
    on_device = sharding.replicate(weights, run.mesh)
    state = jax.jit(create, out_shardings=copied)(*on_device)
    return state, _Progress()
  logging.info('resumes from step %d of %s', step, run.workdir)
  abstract = abstract_like(jax.eval_shape(create, *weights), copied)
  with as_user_errors():
    state, record = checkpoints.restore(abstract)
  return state, _Progress(**record)


def _loop(run, state, progress, checkpoints):
  start = int(state.step)
  begun = time.monotonic()
  batches = _train_batches(run, progress)
  # The teacher's stored targets are part of what the run costs.
  progress.seconds += time.monotonic() - begun
  writer = MetricWriter(run.workdir, start) if sharding.is_lead() else None
  shown = Progress(run.config.arm, start, run.num_steps)
  try:
    with StopRequest() as stop:
      return _steps(
        run, state, progress, checkpoints, batches, writer, shown, stop
      )
  finally:
    batches.close()
    shown.close()
    if writer is not None:
      writer.close()


def _train_batches(run: Run, progress: _Progress):
  batches = pipeline.train_iterator(
    run.dataset.splits['train'],
    batch_size=run.config.batch_size,
    seed=run.config.seed,
    num_batches=run.num_steps,
    num_views=run.config.targets.views if run.role == 'student' else 0,
    targets=stored_targets(run),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  if progress.data is not None:
    batches.set_state(progress.data)
  return batches


def _one_ahead(batches, mesh: Mesh) -> Iterator[tuple[Any, Any]]:
  """(batch on the devices, where to go on after it).

  The next batch is sent before this one is used, so that it is there when the
  devices are done.
  """
  ahead = None
  for batch in batches:
    upcoming = sharding.shard_batch(batch, mesh), batches.get_state()
    if ahead is not None:
      yield ahead
    ahead = upcoming
  if ahead is not None:
    yield ahead


def _steps(run, state, progress, checkpoints, batches, writer, shown, stop):
  config = run.config
  constants = make_constants(run)
  ahead = _one_ahead(batches, run.mesh)
  pending: list[dict[str, Any]] = list(progress.pending)
  clock = time.monotonic() - progress.seconds
  first = int(state.step) + 1
  on_cpu = run.mesh.devices.flat[0].platform == 'cpu'
  for number in range(first, run.num_steps + 1):
    batch, position = next(ahead)
    if config.memory_check and number == first:
      with as_user_errors():
        memory.check(run.step, (state, constants), batch, run.mesh)
    if on_cpu and pending:
      # There a step's temporaries are taken when it is sent, not when it runs.
      jax.block_until_ready(pending[-1])
    with jax.transfer_guard('disallow'):
      state, metrics = run.step(state, constants, batch)
    pending.append(metrics)
    shown.update(number)
    evaluating = (
      number % config.eval_every_steps == 0 or number == run.num_steps
    )
    writing = evaluating or number % config.log_every_steps == 0
    stopping = stop.requested(number)
    if not (writing or stopping):
      continue
    pending = _collect(run, pending, number, checkpoints)
    progress.seconds = time.monotonic() - clock
    if writing:
      row = {k: float(np.mean([r[k] for r in pending])) for k in pending[0]}
      pending = []
      _write(writer, number, 'train', row | {'seconds': progress.seconds})
      shown.message(number, row)
    if evaluating:
      _evaluate(run, state, progress, number, writer, checkpoints, shown)
    if evaluating or stopping:
      progress.data = position
      progress.pending = pending
      progress.images = number * config.batch_size
      checkpoints.save(state, dataclasses.asdict(progress))
    if stopping:
      raise Interrupted(
        f'stopped at step {number} of {run.num_steps}, saved in '
        f'{run.workdir}; resume with the same command'
      )
    if _stalled(config, progress):
      logging.info(
        'no gain in %d evaluations: stops at step %d',
        *(progress.since_best, number),
      )
      break
  return state, progress


def _stalled(config: Any, progress: _Progress) -> bool:
  patience = config.early_stopping
  return patience > 0 and progress.since_best >= patience


def _collect(run, pending, number: int, checkpoints) -> list[dict[str, float]]:
  """The metrics of steps up to `number`, fetched at once.

  Raises:
    RunError: a loss is not finite.
  """
  rows = [
    {name: float(value) for name, value in row.items()}
    for row in jax.device_get(pending)
  ]
  for step, row in enumerate(rows, start=number - len(rows) + 1):
    loss = row['loss'] + row.get('peer_loss', 0.0)
    if not (np.isfinite(loss) and np.isfinite(row['gradient_norm'])):
      raise _diverged(
        run,
        f'the loss is {loss} (gradient norm {row["gradient_norm"]}) at '
        f'step {step}, learning rate {row["learning_rate"]:.3g}',
        checkpoints,
      )
  return rows


def _diverged(run: Run, what: str, checkpoints) -> RunError:
  saved = checkpoints.latest_step()
  return RunError(
    f'{what}; last good checkpoint: '
    f'{"none" if saved is None else f"step {saved}"} in {run.workdir}. A '
    'smaller optimizer.learning_rate or an optimizer.clip_norm may help'
  )


def _evaluate(run, state, progress, number, writer, checkpoints, shown):
  params = train_state.evaluation_params(state)
  predictions = predict_split(run, (params, state.model_state), 'validation')
  if not np.isfinite(predictions.logits).all():
    what = f'the validation logits after step {number} are not finite'
    raise _diverged(run, what, checkpoints)
  summary = evaluate.summarize(predictions)
  scalars = {k: v for k, v in summary.items() if isinstance(v, float)}
  _write(writer, number, 'validation', scalars)
  shown.message(number, scalars)
  value = METRICS[run.config.best_metric](
    predictions.logits, predictions.labels
  )
  sign = -1.0 if run.config.best_metric in LOWER_IS_BETTER else 1.0
  if progress.best_value is None or sign * value > sign * progress.best_value:
    progress.best_value = value
    progress.best_step = number
    progress.since_best = 0
    _save_best(run, state, number, checkpoints)
  else:
    progress.since_best += 1


def _save_best(run, state, number: int, checkpoints) -> None:
  params = train_state.evaluation_params(state)
  _save_model(run, params, state.model_state, number, checkpoints.save_best)
  if run.peer is not None:
    peer = dataclasses.replace(run, learner=run.peer, role='teacher')
    params = state.params['peer']['student']
    kept = state.peer['model_state']
    _save_model(peer, params, kept, number, checkpoints.save_peer)


def _save_model(run, params, model_state, number: int, save) -> None:
  model = {'params': params, 'model_state': model_state}
  description = build.describe(
    run.learner.network.model, run.config, run.role, run.dataset, number
  )
  save(model, description)


def _write(writer, step: int, split: str, values: dict[str, float]) -> None:
  if writer is not None:
    writer.write(step, split, values)
