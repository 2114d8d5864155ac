"""The network of a finished run: described, checked, rebuilt."""

import jax

from tlkd_jax import data, models
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import DTYPES, Loaded, Network
from tlkd_jax.settings import Settings
from tlkd_jax.training import checkpoints
from tlkd_jax.training.checkpoints import Description


def describe(
  settings: Settings, network: Network, dataset: data.Dataset, step: int
) -> Description:
  """What a checkpoint says of its model; the network knows its look."""
  look = network.look
  assert look is not None
  return Description(
    model=network.model.name,
    num_classes=network.model.num_classes,
    class_names=tuple(dataset.class_names),
    image_size=look.image_size,
    crop=look.crop,
    interpolation=look.interpolation,
    dataset=settings.dataset,
    arm=settings.arm,
    compute_dtype=settings.compute_dtype,
    step=step,
  )


def restore(run: str, description: Description) -> Loaded:
  """The best model of a run, rebuilt from its own description."""
  model = models.create_model(
    description.model, num_classes=description.num_classes
  )
  dtype = DTYPES[description.compute_dtype]
  look = description.look
  network = Network(model, look.image_size, dtype, look)
  return Loaded(network, *_read(run, model))


def check_classes(
  run: str, description: Description, class_names: list[str]
) -> None:
  """Raises ValueError where a run's classes are not those of the data."""
  theirs = list(description.class_names)
  if theirs == list(class_names):
    return
  message = (
    f'checkpoint {run} was trained on {len(theirs)} classes, the data has '
    f'{len(class_names)}'
  )
  for place, ours, other in (
    ('the checkpoint', theirs, class_names),
    ('the data', class_names, theirs),
  ):
    only = [name for name in ours if name not in set(other)]
    if only:
      dots = ', ...' if len(only) > 5 else ''
      message += f'; only in {place}: {", ".join(only[:5])}{dots}'
  raise ValueError(message)


def read_as(
  run: str, model: Model, class_names: list[str]
) -> tuple[Tree, Tree]:
  """The best (params, model_state) of a run that must be of this model.

  Raises:
    FileNotFoundError: the run has no checkpoint.
    ValueError: it is corrupt, or of another model or class set.
  """
  description = checkpoints.read_description(run)
  if description.model != model.name:
    raise ValueError(
      f'checkpoint {run} holds a {description.model}, the configuration names '
      f'{model.name}'
    )
  check_classes(run, description, class_names)
  return _read(run, model)


def _read(run: str, model: Model) -> tuple[Tree, Tree]:
  device = jax.local_devices()[0]
  abstract = checkpoints.abstract_like(
    {'params': model.params_shape, 'model_state': model.model_state_shape},
    jax.sharding.SingleDeviceSharding(device),
  )
  restored = checkpoints.read_model(run, abstract)
  return restored['params'], restored['model_state']
