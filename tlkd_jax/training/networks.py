"""The networks of a run, by name: which learn, which teach, and their weights.

  arm 'teacher'          learns: teacher
  arm 'tl'               learns: student
  arm 'kd'               learns: student; teaches: teacher, teacher2, ...
  distillation.mutual    learn: student and peer, each taught by the other

Mutual learning is that of Zhang et al. 2018, "Deep Mutual Learning", arXiv
1706.00384: config.teacher describes the peer, a student in all respects.
"""

import jax
import numpy as np
from absl import logging

from tlkd_jax import models
from tlkd_jax.data import Look
from tlkd_jax.models.functional import Model, jitted_init
from tlkd_jax.models.network import DTYPES, Loaded, Network
from tlkd_jax.models.weights import folding, hub, loading
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import checkpoints, elsewhere, finished, preparation
from tlkd_jax.training import workdir as workdirs

# Sets what is drawn for further learners apart from the first one's.
_OTHER_SEED = 2**30 - 1


def learner_names(settings: Settings) -> tuple[str, ...]:
  """The networks that learn, the run's own first."""
  if settings.arm == 'teacher':
    return ('teacher',)
  if settings.arm == 'kd' and settings.distillation.mutual:
    return ('student', 'peer')
  return ('student',)


def teacher_runs(settings: Settings) -> dict[str, str]:
  """The frozen teachers and the finished runs that they are, in order."""
  if settings.arm != 'kd' or settings.distillation.mutual:
    return {}
  more = settings.distillation.more_teachers
  runs = {f'teacher{n}': run for n, run in enumerate(more, 2)}
  if settings.teacher.checkpoint is None:
    return runs
  return {'teacher': settings.teacher.checkpoint, **runs}


def guide_names(settings: Settings, learner: str) -> tuple[str, ...]:
  """Who teaches a learner: the teachers, else the others that learn."""
  others = [name for name in learner_names(settings) if name != learner]
  return tuple(teacher_runs(settings)) or tuple(others)


def role(name: str) -> str:
  """The section of the settings that describes a network."""
  return 'student' if name == 'student' else 'teacher'


def seed_of(settings: Settings, name: str) -> int:
  """Of what is drawn for a learner's start."""
  number, seed = learner_names(settings).index(name), settings.seed_of_draws
  return seed ^ (_OTHER_SEED + number) if number else seed


def look(settings: Settings, name: str) -> Look:
  """How a network's images are cut from the files.

  Those of a finished teacher are cut as in its own run, where config.teacher
  leaves that open; all others as the run's.

  Raises:
    FileNotFoundError, ValueError: a teacher that is no finished run.
  """
  found = preparation.look_of_data(settings)
  run = teacher_runs(settings).get(name)
  if run is not None and not hub.is_weights(run):
    found = checkpoints.read_description(run).look
  if name not in ('teacher', 'peer'):
    return found
  teacher = settings.teacher
  return Look(
    teacher.image_size or found.image_size,
    teacher.crop or found.crop,
    teacher.interpolation or found.interpolation,
  )


def looks(settings: Settings) -> tuple[Look, ...]:
  """Those of all networks of a run, each once, its own network's first.

  Of several runs, as of 'compare', the student's are first.

  Raises:
    FileNotFoundError, ValueError: as `look`.
  """
  if settings.is_taught and settings.arm != 'kd':
    settings = with_values(settings, {'arm': 'kd', 'student.fit': 'finetuned'})
  names = [*learner_names(settings), *teacher_runs(settings)]
  if settings.arm == 'kd' and 'peer' not in names:
    # One that is not there is fine-tuned before, on the same data.
    names.append('teacher')
  return tuple(dict.fromkeys(look(settings, name) for name in names))


def load_learners(
  settings: Settings, class_names: list[str]
) -> dict[str, Loaded]:
  """The networks that learn, as they start.

  Raises:
    ValueError: unknown model, wrong or missing weights; or two that start as
      one network, which have nothing to tell each other.
  """
  found = {
    name: load(settings, name, class_names) for name in learner_names(settings)
  }
  first, *others = found.values()
  if any(_alike(first, other) for other in others):
    raise ValueError(
      'distillation.mutual: student and teacher start as one network, the same '
      'weights at the same image size, so that neither has anything to tell '
      'the other; choose another teacher.name or teacher.image_size, or '
      "teacher.head_init='small_random'"
    )
  return found


def load(settings: Settings, name: str, class_names: list[str]) -> Loaded:
  """A network to fine-tune: from a run, pretrained weights, or from scratch.

  Args:
    settings: of the run.
    name: of the network.
    class_names: of the data.

  Raises:
    ValueError: unknown model, wrong or missing weights.
  """
  place = role(name)
  section = settings.teacher if place == 'teacher' else settings.student
  model = models.create_model(
    section.name,
    num_classes=len(class_names),
    dropout=section.dropout,
    drop_path=section.drop_path,
  )
  if workdirs.stays_as_it_is(settings):
    read = elsewhere.read(settings, model, class_names)
    return elsewhere.loaded(make_network(settings, name, read.model), read)
  if section.checkpoint:
    logging.info('%s: starts from the run %s', place, section.checkpoint)
    model, *variables = finished.read_as(section.checkpoint, model, class_names)
    if place == 'student' and settings.quantize.mode == 'qat':
      model, *variables = folding.to_int8(model, *variables)
    network = make_network(settings, name, model)
    said = checkpoints.read_description(section.checkpoint).licences
    return Loaded(network, *variables, licences=said)
  key = jax.random.key(seed_of(settings, name))
  if section.weights == 'scratch':
    logging.info('%s: %s from scratch', place, section.name)
    params, model_state = jitted_init(model)(key)
    network = make_network(settings, name, model)
    return Loaded(network, jax.device_get(params), jax.device_get(model_state))
  source = preparation.weights_of(section)
  if source is None:
    raise ValueError(
      f'no pretrained weights are known for {section.name}; give a file in '
      f'config.{place}.weights, or "scratch"'
    )
  logging.info('%s: %s from %s', place, section.name, source)
  read = loading.load(
    model,
    source,
    jax.random.fold_in(key, 2),
    head=section.head,
    head_init=section.head_init,
    classes=section.classes or None,
    class_names=class_names,
  )
  return elsewhere.loaded(make_network(settings, name, read.model), read)


def load_teachers(
  settings: Settings, class_names: list[str]
) -> dict[str, Loaded]:
  """The frozen teachers, from the finished runs that the settings name.

  The first is the model that config.teacher says, the further ones are what
  their own descriptions say; see `look` for how they look at images.

  Raises:
    FileNotFoundError: a run has no checkpoint.
    ValueError: it is corrupt, not finished, or of another model or class set.
  """
  found = {}
  for name, run in teacher_runs(settings).items():
    if name == 'teacher':
      model = models.create_model(
        finished.variant(run, settings.teacher.name),
        num_classes=len(class_names),
      )
      model, params, model_state = finished.read_as(run, model, class_names)
      network = make_network(settings, name, model)
      logging.info('%s sees %s, as in %s', name, network.look, run)
      folds = finished.read_folds(run, class_names)
      said = checkpoints.read_description(run).licences
      found[name] = Loaded(network, params, model_state, folds, licences=said)
    else:
      description = checkpoints.read_description(run)
      finished.check_finished(run)
      found[name] = finished.restore(run, description, class_names)
  return found


def make_network(settings: Settings, name: str, model: Model) -> Network:
  """How a model of this run looks at images."""
  own = look(settings, name)
  dtype = settings.compute_dtype
  if role(name) == 'teacher':
    dtype = settings.teacher.compute_dtype or dtype
  return Network(model, own.image_size, DTYPES[dtype], own)


def _alike(first: Loaded, other: Loaded) -> bool:
  both = first.network, other.network
  if len({(network.model.name, network.look) for network in both}) > 1:
    return False
  same = jax.tree.map(np.array_equal, first.params, other.params)
  return all(jax.tree.leaves(same))
