"""What a run says at its end: metrics of its best step and of its teacher."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tlkd_jax.data import pipeline
from tlkd_jax.evaluation import evaluate, records
from tlkd_jax.models.network import Network, make_eval_step
from tlkd_jax.runtime import devices, made, sealed, sharding
from tlkd_jax.training import networks, serving, shares
from tlkd_jax.training.checkpoints import abstract_like, folder_of, read_model
from tlkd_jax.training.metric_writers import METRICS
from tlkd_jax.training.run import Run

SPLITS = ('validation', 'test')
# What says.py measures of the teachers before a run.
SAYS = 'teacher_says.json'


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a run without steps of its own says of its course."""

  best_step: int
  seconds: float
  images: int
  skipped: int = 0


def finish(
  run: Run,
  progress,
  known: Mapping[str, evaluate.Predictions] = MappingProxyType({}),
  own: Mapping[str, evaluate.Predictions] = MappingProxyType({}),
) -> dict[str, Any]:
  """Final metrics of the best step and of the first guide, on both splits.

  Those of a guide that learned too are of the same step, the run's own best:
  the pair as it was.

  Args:
    run: its checkpoints hold a best step.
    progress: of the loop, or Spent.
    known: name of a frozen teacher -> its predictions on validation, where
      they are at hand.
    own: split -> predictions of the run's own network, of both or none.

  Returns:
    The summary, which is written to WORKDIR/summary.json.
  """
  settings, role = run.settings, networks.role(run.own)
  variables = None if own else _best(run, run.own, run.network)
  summary: dict[str, Any] = {'arm': settings.arm, role: {}}
  found: dict[str, evaluate.Predictions] = {}
  guide, guide_step, theirs = _first_guide(run)
  if settings.fit == 'fixmatch':
    summary['fixmatch'] = True
  if shares.alone(settings):
    summary['without_labels'] = True
  if guide is not None:
    summary['teacher'] = {}
    if guide in run.learners:
      summary['mutual'] = True
    if settings.distillation.self_training != 'none':
      summary['self_training'] = settings.distillation.self_training
  for split in SPLITS:
    predictions = (
      own[split] if own else predict(run, run.eval_step, variables, split)
    )
    found[split] = predictions
    teacher = None
    if guide_step is not None:
      at_hand = known.get(guide) if split == 'validation' else None
      teacher = at_hand or predict(run, guide_step, theirs, split, guide)
      found[f'teacher_{split}'] = teacher
      summary['teacher'][split] = evaluate.summarize(teacher)
    summary[role][split] = evaluate.summarize(predictions, teacher)
  loaded = run.learners | run.teachers
  shown = {role: run.network}
  if guide is not None:
    shown['teacher'] = loaded[guide].network
  summary |= {
    'prediction_cost': serving.counted(shown),
    'best_step': progress.best_step,
    'best_metric': run.best_metric,
    'device': devices.describe(run.mesh),
    'made': made.by(run.mesh),
    'seconds': progress.seconds,
    'images_per_second': progress.images / max(progress.seconds, 1e-9),
    'num_train': int(np.sum(run.dataset.splits['train'].labels >= 0)),
    'num_unlabelled': int(np.sum(run.dataset.splits['train'].labels < 0)),
    'licences': list(run.licences),
    'skipped_images': run.dataset.skipped,
    'notes': list(run.dataset.notes),
    'data': run.dataset.facts,
  }
  if settings.on_nonfinite == 'skip':
    summary['skipped_steps'] = progress.skipped
  said = run.workdir / SAYS
  if said.exists():
    summary['teacher_says'] = sealed.read_json(said)
  if run.cost is not None:
    summary['cost_matched'] = run.cost.as_json()
  summary = records.plain(summary)
  if sharding.is_lead():
    folder = run.workdir / 'predictions'
    for name, predictions in found.items():
      evaluate.save(folder / f'{name}.npz', predictions)
    evaluate.save_confusions(folder, found)
    if (run.workdir / METRICS).exists():
      sealed.seal(run.workdir / METRICS)
    records.write_json(run.workdir / 'summary.json', summary)
  return summary


def predict(
  run: Run, eval_step, variables, split: str, name: str = ''
) -> evaluate.Predictions:
  """Predictions of a network, by default the run's own, on a split."""
  loaded = (run.learners | run.teachers)[name or run.own]
  batches = pipeline.eval_batches(
    run.dataset.seen(loaded.network.look).splits[split],
    run.settings.batch_size,
    **sharding.this_process(),
  )
  return evaluate.predict(eval_step, variables, batches, run.mesh)


def _best(run: Run, name: str, network: Network):
  """(params, model_state) of a learner at the best step."""
  shapes = {
    'params': network.model.params_shape,
    'model_state': network.model.model_state_shape,
  }
  abstract = abstract_like(shapes, sharding.replicated(run.mesh))
  other = '' if name == run.own else name
  found = read_model(folder_of(run.workdir, other), abstract)
  return found['params'], found['model_state']


def _first_guide(run: Run):
  """(name, evaluation step, variables) of the first guide; None without."""
  names = run.lessons[run.own].guides
  if not names:
    return None, None, None
  name = names[0]
  if name in run.learners:
    network = run.learners[name].network
    variables = _best(run, name, network)
  else:
    teacher = run.teachers[name]
    network = teacher.network
    variables = sharding.place(
      (teacher.params, teacher.model_state), run.mesh, parts=run.in_parts
    )
  return name, make_eval_step(network, run.mesh), variables
