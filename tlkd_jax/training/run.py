"""The fixed parts of one run, and what a run makes with them at its end."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, pipeline
from tlkd_jax.evaluation import evaluate
from tlkd_jax.models.network import Loaded, Network, head_alone, make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.training import step as train_step
from tlkd_jax.training import targets
from tlkd_jax.training.checkpoints import abstract_like, read_model

SPLITS = ('validation', 'test')


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of one run; `peer` is the teacher that learns too."""

  config: Any
  role: str
  workdir: pathlib.Path
  dataset: Dataset
  mesh: Mesh
  num_steps: int
  learner: Loaded
  teachers: tuple[Loaded, ...]
  recipes: tuple[targets.Recipe, ...]
  step: Any
  eval_step: Any
  start: Any
  peer: Loaded | None = None


def stored_targets(run: Run) -> list[targets.Targets]:
  """Of each teacher, computed if need be; none where teachers are online."""
  with as_user_errors():
    return [
      targets.prepare(
        recipe, (teacher.params, teacher.model_state), run.num_steps, run.mesh
      )
      for recipe, teacher in zip(run.recipes, run.teachers, strict=False)
    ]


def make_constants(run: Run) -> dict[str, Any]:
  """What the step reads beside state and batch, on the devices."""
  if run.recipes:
    heads = tuple(
      (head_alone(teacher.network.model, teacher.params), {})
      for teacher in run.teachers
    )
    guides = sharding.replicate(heads, run.mesh)
  else:
    guides = teacher_variables(run)
  seed = sharding.replicate(train_step.as_int32(run.config.seed), run.mesh)
  start = sharding.replicate(run.start, run.mesh)
  return {'teachers': guides, 'seed': seed, 'start': start}


def teacher_variables(run: Run):
  """((params, model_state), ...) of the teachers, on the devices."""
  variables = tuple((t.params, t.model_state) for t in run.teachers)
  return sharding.replicate(variables, run.mesh)


def predict_split(run: Run, variables, split: str) -> evaluate.Predictions:
  """The learner's predictions on a split."""
  batches = pipeline.eval_batches(
    run.dataset.splits[split],
    batch_size=run.config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return evaluate.predict(run.eval_step, variables, batches, run.mesh)


def finish(run: Run, progress, summary_path: pathlib.Path) -> dict[str, Any]:
  """Final metrics of the best step and of the teacher, on both splits.

  A peer's are those of the same step, the student's best: the pair as it was.

  Args:
    run: its checkpoints hold a best step.
    progress: of the loop, see train.py.
    summary_path: where they are written.
  """
  learner = _best(run, run.learner.network, run.workdir)
  summary: dict[str, Any] = {'arm': run.config.arm, run.role: {}}
  teacher_run, guide = _teacher_run(run)
  if teacher_run is not None:
    summary['teacher'] = {}
  if run.peer is not None:
    summary['mutual'] = True
  for split in SPLITS:
    predictions = predict_split(run, learner, split)
    teacher = None
    if teacher_run is not None:
      teacher = predict_split(teacher_run, guide, split)
      summary['teacher'][split] = evaluate.summarize(teacher)
    summary[run.role][split] = evaluate.summarize(predictions, teacher)
    if sharding.is_lead():
      folder = run.workdir / 'predictions'
      evaluate.save(folder / f'{split}.npz', predictions)
      if teacher is not None:
        evaluate.save(folder / f'teacher_{split}.npz', teacher)
  summary |= {
    'best_step': progress.best_step,
    'seconds': progress.seconds,
    'images_per_second': progress.images / max(progress.seconds, 1e-9),
    'num_train': int(np.sum(run.dataset.splits['train'].labels >= 0)),
    'skipped_images': run.dataset.skipped,
    'notes': list(run.dataset.notes),
  }
  if sharding.is_lead():
    replace_text(summary_path, json.dumps(summary, indent=1))
  return summary


def _best(run: Run, view: Network, workdir: pathlib.Path):
  """(params, model_state) of the best step that `workdir` holds."""
  shapes = {
    'params': view.model.params_shape,
    'model_state': view.model.model_state_shape,
  }
  found = read_model(
    workdir, abstract_like(shapes, sharding.replicated(run.mesh))
  )
  return found['params'], found['model_state']


def _teacher_run(run: Run) -> tuple[Run | None, Any]:
  """(the run with its teacher for learner, the teacher's variables)."""
  if run.peer is not None:
    view, guide = (
      run.peer.network,
      _best(run, run.peer.network, run.workdir / 'peer'),
    )
  elif run.teachers:
    view, guide = run.teachers[0].network, teacher_variables(run)[0]
  else:
    return None, None
  eval_step = make_eval_step(view, run.mesh)
  return dataclasses.replace(run, eval_step=eval_step), guide
