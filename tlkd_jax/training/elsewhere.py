"""Networks that learn elsewhere, or nothing, in a run's place; look-alikes."""

from collections.abc import Mapping

import jax
import numpy as np
from absl import logging

from tlkd_jax import data, models
from tlkd_jax.models.functional import Model
from tlkd_jax.models.network import Loaded, Network
from tlkd_jax.models.weights import hub, loading, look_alikes
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.settings.networks import OPEN, ZERO_SHOT
from tlkd_jax.training import preparation, zero_shot

_IMAGES_LOOKED_AT = 32


def adopted(settings: Settings) -> Settings:
  """The settings of the run that takes a teacher over from elsewhere.

  Where config.teacher leaves it open, it sees images as what lies beside its
  weights says, else as its variant was published.

  Raises:
    ValueError: teacher.head is not 'keep'.
  """
  section = settings.teacher
  place = section.checkpoint
  assert place is not None
  if section.head != 'keep':
    raise ValueError(
      f'teacher.checkpoint names weights, {place}, and no run; with '
      'config.teacher.head=keep they are used as they are, with their head. To '
      'fine-tune them first give them as teacher.weights'
    )
  if section.fit not in (OPEN, 'finetuned'):
    raise ValueError(
      f'teacher.fit is {section.fit!r}, and teacher.checkpoint names weights, '
      f"{place}, which are used as they are; accepted: 'finetuned', or the "
      'weights as teacher.weights'
    )
  source = loading.describe(place)
  spec = models.MODELS[section.name]
  return with_values(
    settings,
    {
      'arm': 'teacher',
      'teacher.image_size': (
        section.image_size or source.image_size or spec.image_size
      ),
      'teacher.crop': section.crop or source.crop or spec.crop,
      'teacher.interpolation': (
        section.interpolation or source.interpolation or spec.interpolation
      ),
    },
  )


def read(
  settings: Settings, model: Model, class_names: list[str]
) -> loading.Weights:
  """A teacher that learns nothing here, with its head.

  It was fine-tuned elsewhere; or it knows the classes by their names.

  Raises:
    ValueError: it does not name its classes, or they are not those of the data;
      of a zero-shot one see zero_shot.read.
  """
  section = settings.teacher
  if section.fit == ZERO_SHOT:
    return zero_shot.read(section, class_names)
  place = section.checkpoint
  assert place is not None
  logging.info('teacher: %s, as it is', place)
  known = section.classes or loading.describe(place).classes
  if not known:
    raise ValueError(
      f'{place} does not name its classes (no id2label or label_names in a '
      'config.json beside it); give them in the order of its head: '
      "config.teacher.classes=('a', 'b', ...)"
    )
  return loading.load(
    model,
    place,
    jax.random.key(0),
    head='keep',
    classes=section.classes or None,
    class_names=class_names,
  )


def loaded(network: Network, read: loading.Weights) -> Loaded:
  """A network with weights that were read for its model."""
  return Loaded(
    network,
    read.params,
    read.model_state,
    look_alikes=read.look_alikes,
    licences=(read.licence,),
  )


def check_checkpoints(settings: Settings) -> None:
  """Raises ValueError where weights are given in the place of a run."""
  place = settings.student.checkpoint
  if place and hub.is_weights(place):
    raise ValueError(
      f'student.checkpoint names weights, {place}, and no run; accepted: the '
      'workdir of a finished run. Give them as student.weights'
    )
  for place in settings.distillation.more_teachers:
    if hub.is_weights(place):
      raise ValueError(
        f'distillation.more_teachers names weights, {place}, and no run; make '
        'a run of them: --config configs/teacher.py --config.teacher.head=keep '
        f'--config.teacher.checkpoint={place} --workdir=RUN'
      )
  place = settings.teacher.checkpoint
  if place and settings.distillation.mutual and hub.is_weights(place):
    raise ValueError(
      f'teacher.checkpoint names weights, {place}, which are used as they are; '
      'with distillation.mutual the teacher learns: give them as '
      'teacher.weights'
    )


def compare_look_alikes(
  learners: Mapping[str, Loaded], dataset: data.Dataset
) -> None:
  """Says in the log whether weights fit another network better.

  Args:
    learners: name -> a network as it starts.
    dataset: whose training images are looked at.
  """
  for name, learner in learners.items():
    if not learner.look_alikes or not learner.model_state:
      continue
    network = learner.network
    images = _some_images(dataset.seen(network.look))
    variables = learner.params, learner.model_state
    distances = {
      model.name: look_alikes.distance(model, *variables, images)
      for model in (
        network.model,
        *(
          models.create_model(other, num_classes=network.model.num_classes)
          for other in learner.look_alikes
        ),
      )
    }
    doubtful, sentence = look_alikes.verdict(network.model.name, distances)
    level = logging.WARNING if doubtful else logging.INFO
    logging.log(level, '%s: of its weights, %s', name, sentence)


def _some_images(dataset: data.Dataset) -> np.ndarray:
  """float32[N, S, S, 3]: training images as they would be evaluated."""
  images = dataset.splits['train'].images
  count = min(len(images), _IMAGES_LOOKED_AT)
  rows = np.linspace(0, len(images) - 1, count).astype(int)
  return np.asarray(preparation.make_evaluated(dataset)(images[rows]))
