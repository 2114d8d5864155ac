"""How well a run goes: its metrics, its validation, its best step, its end."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax.evaluation import calibration, evaluate
from tlkd_jax.evaluation.metrics import METRICS, goodness
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import RunError
from tlkd_jax.settings import Settings
from tlkd_jax.training import finished, nonfinite, shares
from tlkd_jax.training.metric_writers import MetricWriter
from tlkd_jax.training.progress import Progress
from tlkd_jax.training.run import Run
from tlkd_jax.training.state import State
from tlkd_jax.training.summary import SPLITS, finish, predict


@dataclasses.dataclass
class Position:
  """Where the loop is, beside the State; part of a checkpoint.

  Attributes:
    data: of the batches.
    pending: metrics of the steps since the last written row.
    best_value: of the metric that chooses the best step, None where it was
      undefined.
    best_step: the step that had it.
    since_best: evaluations since then.
    seconds: spent so far.
    images: seen so far.
    skipped: steps that were left out, up to the last written row.
  """

  data: Any = None
  pending: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best_value: float | None = None
  best_step: int = 0
  since_best: int = 0
  seconds: float = 0.0
  images: int = 0
  skipped: int = 0


def position_of(record: dict[str, Any], workdir: pathlib.Path) -> Position:
  """The position that a checkpoint holds.

  Raises:
    ValueError: it holds something else.
  """
  try:
    return Position(**record)
  except TypeError as error:
    raise ValueError(
      f"corrupt checkpoint in {workdir}: its record is no run's ({error})"
    ) from error


def is_stalled(settings: Settings, position: Position) -> bool:
  """Whether a run ends early, for want of gain."""
  patience = settings.early_stopping
  return patience > 0 and position.since_best >= patience


def left(run: Run, number: int) -> float:
  """What is left after a step, evaluations included, as so many steps.

  A forward pass is taken for a third of a step.
  """
  settings, steps = run.settings, run.num_steps - number
  evaluations = -(-steps // settings.eval_every_steps)
  sizes = {split: len(run.dataset.splits[split]) for split in SPLITS}
  images = evaluations * sizes['validation'] + sum(sizes.values())
  return steps + images / settings.batch_size / 3


def write(writer, step: int, split: str, values: dict[str, float]) -> None:
  """A row of metrics, by the process that writes."""
  if writer is not None:
    writer.write(step, split, values)


def collect(
  run, pending, number: int, checkpoints, position: Position
) -> list[dict[str, float]]:
  """The metrics of steps up to `number`, fetched at once.

  Raises:
    RunError: a loss is not finite, or too many steps had to be left out.
  """
  rows = [
    {name: float(value) for name, value in row.items()}
    for row in jax.device_get(pending)
  ]
  prefixes = {n: '' if n == run.own else f'{n}_' for n in run.learners}
  skipped, most = position.skipped, run.settings.most_nonfinite
  for step, row in enumerate(rows, start=number - len(rows) + 1):
    what = nonfinite.find(row, prefixes)
    if not what:
      continue
    what = f'at step {step}, learning rate {row["learning_rate"]:.3g}, {what}'
    if nonfinite.SKIPPED not in row:
      raise _diverged(run, what, checkpoints)
    skipped += 1
    if skipped > most:
      many = f'more than {most} steps are not finite (most_nonfinite)'
      raise _diverged(run, f'{many}; {what}', checkpoints)
    logging.warning('%s; the step is left out, %d so far', what, skipped)
  return rows


def mean(rows: list[dict[str, float]], position: Position) -> dict[str, float]:
  """The mean of each metric over steps; those left out are counted."""
  kept = [row for row in rows if not row.get(nonfinite.SKIPPED)]
  position.skipped += len(rows) - len(kept)
  names = [name for name in rows[0] if name != nonfinite.SKIPPED]
  means = {k: float(np.mean([r[k] for r in kept])) for k in names if kept}
  if nonfinite.SKIPPED in rows[0]:
    means['skipped_steps'] = float(position.skipped)
  return means


def validate(run, state, position, number, writer, checkpoints, shown):
  """Evaluates after a step, and keeps the networks where none was better.

  Raises:
    RunError: logits that are not finite.
  """
  variables = sharding.whole(state.learners[run.own].evaluated(), run.mesh)
  predictions = predict(run, run.eval_step, variables, 'validation')
  if not np.isfinite(predictions.logits).all():
    what = f'the validation logits after step {number} are not finite'
    raise _diverged(run, what, checkpoints)
  summary = evaluate.summarize(predictions)
  scalars = {k: v for k, v in summary.items() if isinstance(v, float)}
  write(writer, number, 'validation', scalars)
  shown.message(number, scalars)
  metric, logits = run.best_metric, predictions.logits
  if run.settings.fit == 'early':
    metric = 'nll'
    logits = logits / calibration.fit_temperature(logits, predictions.labels)
  value = METRICS[metric](logits, predictions.labels)
  best = goodness(metric, position.best_value)
  # The head of one that reads no label says nothing of its backbone.
  kept = not position.best_step or shares.alone(run.settings)
  if kept or goodness(metric, value) > best:
    position.best_value = value if np.isfinite(value) else None
    position.best_step = number
    position.since_best = 0
    _save_best(run, state, number, checkpoints)
  else:
    position.since_best += 1


def use_as_it_is(run: Run, state: State, position: Position, checkpoints):
  """Keeps and evaluates a network that does not learn."""
  writer = MetricWriter(run.workdir, 0) if sharding.is_lead() else None
  shown = Progress(run.settings.arm, 0, 1)
  try:
    validate(run, state, position, 0, writer, checkpoints, shown)
  finally:
    shown.close()
    if writer is not None:
      writer.close()
  summary = finish(run, position)
  found = [summary[run.own][split]['top1'] for split in SPLITS]
  logging.info(
    '%s, used as it is: top-1 %.3f on validation, %.3f on test',
    *(run.own, *found),
  )
  chance = 1 / len(run.dataset.class_names)
  if max(found) <= 1.5 * chance:
    logging.warning(
      '%s is hardly better than chance (%.3f): are its classes in the order '
      'that was said, and its images prepared as in its training?',
      *(run.own, chance),
    )
  return summary


def _save_best(run: Run, state: State, number: int, checkpoints) -> None:
  for name, learner in run.learners.items():
    found = state.learners[name].evaluated()
    params, model_state = sharding.whole(found, run.mesh)
    description = finished.describe(
      run.settings, learner.network, run.dataset, number, run.licences
    )
    model = {'params': params, 'model_state': model_state}
    other = '' if name == run.own else name
    checkpoints.save_best(model, description, other)


def _diverged(run: Run, what: str, checkpoints) -> RunError:
  saved = checkpoints.latest_step()
  return RunError(
    f'{what}; last good checkpoint: '
    f'{"none" if saved is None else f"step {saved}"} in {run.workdir}. A '
    'smaller optimizer.learning_rate or an optimizer.clip_norm may help'
  )
