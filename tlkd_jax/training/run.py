"""The fixed parts of one run, made of its settings before the first step."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from absl import logging
from jax.sharding import Mesh

from tlkd_jax.data import Dataset, Look, Split
from tlkd_jax.losses import shams
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Loaded, Network, head_alone, make_eval_step
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.errors import as_user_errors
from tlkd_jax.settings import Settings
from tlkd_jax.training import (
  balance,
  costs,
  data_record,
  drawing,
  folds,
  inputs,
  lessons,
  memory,
  networks,
  nonfinite,
  optimizers,
  placing,
  quantization,
  shares,
  targets,
  updating,
)
from tlkd_jax.training import start as starts
from tlkd_jax.training import workdir as workdirs
from tlkd_jax.training.state import Beginning
from tlkd_jax.training.step import Lesson, Mode, as_int32, shared_step


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of one run.

  Attributes:
    settings: of the run.
    workdir: its folder.
    dataset: what it trains on and is evaluated on.
    mesh: devices.
    num_steps: its length.
    learners: the networks that learn, as they start, the run's own first.
    teachers: the frozen ones.
    lessons: what each learner learns, and from whom.
    beginnings: each learner before the first update.
    start: constants of the guide 'start', {} where no term needs it.
    recipes: of the teachers whose outputs are stored.
    cost: of a teacher that TL is given further steps for; None without.
    best_metric: of validation, that chooses the best step.
    in_parts: whether frozen teachers are spread over the devices.
    looks: of the other networks in the step that see images of their own.
    placed: where the state lies.
    step: from step.make_step.
    eval_step: of the run's own network.
  """

  settings: Settings
  workdir: pathlib.Path
  dataset: Dataset
  mesh: Mesh
  num_steps: int
  learners: dict[str, Loaded]
  teachers: dict[str, Loaded]
  lessons: dict[str, Lesson]
  beginnings: dict[str, Beginning]
  start: Tree
  recipes: dict[str, targets.Recipe]
  cost: costs.Cost | None
  best_metric: str
  in_parts: bool
  looks: tuple[Look, ...]
  placed: updating.Placed
  step: Callable
  eval_step: Callable

  @property
  def own(self) -> str:
    """The name of the network that the run is for."""
    return next(iter(self.learners))

  @property
  def licences(self) -> tuple[str, ...]:
    """Of all weights that go into what it learns, each once."""
    networks = [*self.learners.values(), *self.teachers.values()]
    lines = (line for loaded in networks for line in loaded.licences)
    return tuple(dict.fromkeys(lines))

  @property
  def network(self) -> Network:
    """That network."""
    return self.learners[self.own].network


def set_up(
  settings: Settings, workdir: pathlib.Path, dataset: Dataset, mesh: Mesh
) -> Run:
  """Loads the networks of a run and builds its step.

  Raises:
    ValueError, FileNotFoundError: a value, a file or a run that is named.
  """
  sharding.check_batch_size(settings.batch_size, mesh)
  if settings.memory_check:
    stored = dataset.splits['train'].images.shape[1]
    memory.check_images(settings.batch_size, stored, dataset.image_size, mesh)
  for place in (
    settings.student.checkpoint,
    *networks.teacher_runs(settings).values(),
  ):
    if place:
      data_record.check_taught(place, dataset)
  dataset = inputs.training_data(settings, dataset)
  for line in shares.about(settings, dataset):
    logging.info('%s', line)
  learners = networks.load_learners(settings, dataset.class_names)
  teachers = networks.load_teachers(settings, dataset.class_names)
  cost = costs.count(settings, dataset) if settings.cost_matched else None
  num_steps = cost.total_steps if cost else workdirs.num_steps(settings)
  if not (num_steps or workdirs.stays_as_it_is(settings)):
    raise ValueError(
      'num_steps is 0: training.defaults.for_data says how many the data take'
    )
  schedule = optimizers.learning_rate_schedule(
    settings.optimizer.learning_rate,
    num_steps,
    settings.optimizer.warmup_fraction,
    settings.optimizer.final_fraction,
  )
  learned = lessons.make_lessons(settings, learners, dataset, schedule)
  own, first = next(iter(learners.items()))
  dataset = dataset.seen(first.network.look)
  learners = quantization.calibrated(settings, learners, dataset, num_steps)
  # A student that learns to round starts with the bounds that it has now.
  first = learners[own]
  kept = lessons.start_terms(learned[own])
  start = starts.load(settings, kept, first, dataset, mesh) if kept else {}
  frozen = {name: teacher.network for name, teacher in teachers.items()}
  in_parts = placing.in_parts(settings, learners, frozen, mesh)
  recipes = targets.recipes(
    settings, learned[own].objective, frozen, dataset, in_parts=in_parts
  )
  online = [learner.network for learner in learners.values()]
  online += [network for n, network in frozen.items() if n not in recipes]
  looks = dict.fromkeys(network.look for network in online)
  del looks[first.network.look]
  nonfinite.check(learners | teachers)
  beginnings = lessons.begin(
    settings, learned, learners | teachers, dataset, start
  )
  optimizer_of = {name: lesson.optimizer for name, lesson in learned.items()}
  placed = updating.placed(settings, beginnings, optimizer_of, mesh)
  step = shared_step(
    learned,
    frozen | ({starts.NAME: first.network} if kept else {}),
    drawing.make_views(settings, dataset, looks),
    schedule,
    make_mode(settings),
    mesh,
    placed,
  )
  if settings.on_nonfinite == 'skip':
    step = nonfinite.skipping(step, mesh, placed)
  return Run(
    settings=settings,
    workdir=workdir,
    dataset=dataset,
    mesh=mesh,
    num_steps=num_steps,
    learners=learners,
    teachers=teachers,
    lessons=learned,
    beginnings=beginnings,
    start=start,
    recipes=recipes,
    cost=cost,
    best_metric=balance.best_metric(settings, dataset),
    in_parts=in_parts,
    looks=tuple(looks),
    placed=placed,
    step=step,
    eval_step=make_eval_step(first.network, mesh),
  )


def make_mode(settings: Settings) -> Mode:
  """How the learners of a run are run."""
  head_only = settings.optimizer.train_only == 'head'
  stochastic = settings.batch_norm == 'stochastic'
  return Mode(
    # A linear probe reads fixed features.
    norm_train=settings.batch_norm != 'frozen' and not head_only,
    batch_chance=settings.transfer.stoch_norm_p if stochastic else 1.0,
    head_only=head_only,
    remat=settings.remat == 'blocks',
    ema_decay=settings.ema_decay,
  )


def stored_targets(run: Run) -> dict[str, targets.Targets]:
  """Of each teacher, computed if need be; none where teachers are online."""
  with as_user_errors():
    return {
      name: targets.prepare(
        recipe,
        constants(run.teachers[name], run.dataset.splits['train']),
        run.num_steps,
        run.mesh,
      )
      for name, recipe in run.recipes.items()
    }


def make_constants(run: Run) -> dict[str, Any]:
  """What the step reads beside state and batch, on the devices."""
  split = run.dataset.splits['train']
  guides = {
    name: sharding.place(
      constants(teacher, split, head_only=name in run.recipes),
      run.mesh,
      parts=run.in_parts,
    )
    for name, teacher in run.teachers.items()
  }
  if run.start:
    guides[starts.NAME] = sharding.replicate(run.start, run.mesh)
  seed = as_int32(run.settings.seed_of_draws)
  given = {'seed': seed, 'sham': sham_drawn(run)}
  given |= lessons.rows(run.lessons, run.dataset)
  return {'guides': guides, **sharding.replicate(given, run.mesh)}


def sham_drawn(run: Run) -> dict[str, Any]:
  """What the run's sham is given beside logits, {} of most and without one."""
  settings, classes = run.settings, len(run.dataset.class_names)
  return shams.drawn(settings.distillation.sham, classes, settings.seed)


def constants(loaded: Loaded, split: Split, *, head_only: bool = False) -> Tree:
  """A frozen network among the constants of a step on a split."""
  if head_only:
    params = head_alone(loaded.network.model, loaded.params)
    return {'params': params, 'model_state': {}}
  found = {'params': loaded.params, 'model_state': loaded.model_state}
  if loaded.folds is not None:
    found['folds'] = folds.place(loaded.folds, split)
  return found
