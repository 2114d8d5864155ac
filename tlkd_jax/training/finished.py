"""The network of a finished run: described, checked, rebuilt."""

import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tlkd_jax import data, models
from tlkd_jax.models.functional import (
  Model,
  Tree,
  positions_of,
  with_positions,
)
from tlkd_jax.models.network import DTYPES, Loaded, Network
from tlkd_jax.models.weights import hub, loading
from tlkd_jax.settings import Settings, conflicts, from_config
from tlkd_jax.training import checkpoints, folds, workdir
from tlkd_jax.training.descriptions import Description


def describe(
  settings: Settings,
  network: Network,
  dataset: data.Dataset,
  step: int,
  licences: tuple[str, ...],
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
    compute_dtype=jnp.dtype(network.dtype).name,
    step=step,
    mean=tuple(network.model.spec.mean),
    std=tuple(network.model.spec.std),
    licences=licences,
    positions=positions_of(network.model.params_shape),
  )


def restore(
  run: str, description: Description, class_names: Sequence[str] | None = None
) -> Loaded:
  """The best model of a run, rebuilt from its own description.

  Args:
    run: its workdir.
    description: of its checkpoint.
    class_names: of the data, in the order that the logits shall have; None is
      the run's own.

  Raises:
    ValueError: the files are corrupt, or the classes are others.
  """
  model = models.create_model(
    description.model, num_classes=description.num_classes
  )
  model = _as_trained(model, description)
  dtype = DTYPES[description.compute_dtype]
  look = description.look
  network = Network(model, look.image_size, dtype, look)
  order = class_order(run, description, class_names or description.class_names)
  variables = _read(run, model, order)
  heads = folds.read(run, order)
  return Loaded(network, *variables, heads, licences=description.licences)


def check_finished(run: str) -> None:
  """Raises ValueError where a run was stopped before its end."""
  reason = unfinished(run)
  if reason:
    raise ValueError(
      f'checkpoint {reason}; finish it with its own command, or name one that '
      'is finished'
    )


def check_named(settings: Settings) -> None:
  """Of the runs that settings name, before any work.

  Raises:
    FileNotFoundError: a run has no checkpoint.
    ValueError: it is not finished; or a further teacher does not give an
      embedding that a loss reads. Of config.teacher settings know that.
  """
  section = settings.distillation
  own = settings.student.checkpoint, settings.teacher.checkpoint
  for run in (*own, *section.more_teachers):
    if not run or hub.is_weights(run):
      continue
    name = models.variant_of(checkpoints.read_description(run).model)
    check_finished(run)
    if run == settings.student.checkpoint:
      _check_rounded(settings, run)
    guides = settings.arm in ('kd', 'compare') and run not in own
    if guides and name in models.MODELS:
      wrong = conflicts.of_embeddings(section, [name])
      if wrong:
        raise ValueError(f'{wrong[0]} (distillation.more_teachers, {run})')


def _check_rounded(settings: Settings, run: str) -> None:
  """Raises ValueError where a run has not the student that shall round."""
  found = checkpoints.read_description(run).model
  if settings.quantize.mode == 'qat' and found != settings.student.name:
    raise ValueError(
      f"quantize.mode is 'qat', and student.checkpoint {run} holds a {found}; "
      f'accepted: a run of student.name, {settings.student.name}, in float'
    )


def unfinished(run: str | pathlib.Path) -> str | None:
  """What is to be said of a run that has no end yet; None of a finished one.

  A folder of another network of a run is as finished as the run.
  """
  folder = pathlib.Path(run).absolute()
  if not (folder / 'config.json').exists():
    folder = folder.parent
  config = folder / 'config.json'
  if not config.exists() or (folder / 'summary.json').exists():
    return None
  step = checkpoints.read_description(run).step
  settings = from_config(workdir.read(folder))
  return (
    f'{run} is of a run that was stopped before its end: the best so far is '
    f'step {step} of {workdir.length(folder, settings)}'
  )


def say_if_unfinished(run: str | os.PathLike) -> None:
  """Logs a warning where a run has no end yet."""
  reason = unfinished(pathlib.Path(run))
  if reason:
    logging.warning('%s', reason)


def class_order(
  run: str, description: Description, class_names: Sequence[str]
) -> np.ndarray | None:
  """Where each class of the data is among a run's; None: in its own place.

  Args:
    run: its workdir, for messages.
    description: of its checkpoint.
    class_names: of the data.

  Returns:
    int[K]; the difference is logged.

  Raises:
    ValueError: the classes are not the same; the message names which.
  """
  theirs = list(description.class_names)
  if theirs == list(class_names):
    return None
  if sorted(theirs) != sorted(class_names):
    raise ValueError(_other_classes(run, theirs, class_names))
  logging.info(
    '%s has the classes of the data in another order (%s there, %s here); '
    'they are matched by name',
    *(run, _listed(theirs), _listed(class_names)),
  )
  return np.asarray([theirs.index(name) for name in class_names])


def _other_classes(
  run: str, theirs: Sequence[str], class_names: Sequence[str]
) -> str:
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
      message += f'; only in {place}: {_listed(only)}'
  return message


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:5]) + ', ...' * (len(names) > 5)


def _as_trained(model: Model, description: Description) -> Model:
  """The model with mean and std of a run's images, and its positions."""
  mean, std = description.mean or None, description.std or None
  model = loading.with_preprocessing(model, mean, std)
  return with_positions(model, description.positions)


def read_as(
  run: str, model: Model, class_names: list[str]
) -> tuple[Model, Tree, Tree]:
  """The best (model, params, model_state) of a finished run of this model.

  Its logits have the order of `class_names`; the model normalises images as it
  did in the run.

  Raises:
    FileNotFoundError: the run has no checkpoint.
    ValueError: it is corrupt, not finished, or of another model or class set.
  """
  description = checkpoints.read_description(run)
  check_finished(run)
  if description.model != model.name:
    raise ValueError(
      f'checkpoint {run} holds a {description.model}, the configuration names '
      f'{model.name}'
    )
  order = class_order(run, description, class_names)
  model = _as_trained(model, description)
  return model, *_read(run, model, order)


def variant(run: str, name: str) -> str:
  """What a run's model is called: `name`, or what is made of it.

  That is several of it side by side, or it under a head of texts.

  Raises:
    FileNotFoundError, ValueError: see checkpoints.read_description.
  """
  found = checkpoints.read_description(run).model
  return found if models.variant_of(found) == name else name


def read_folds(run: str, class_names: list[str]) -> Tree | None:
  """The heads of a cross-fitted run; None of another.

  Raises:
    FileNotFoundError, ValueError: as `read_as`.
  """
  description = checkpoints.read_description(run)
  return folds.read(run, class_order(run, description, class_names))


def _read(
  run: str, model: Model, order: np.ndarray | None
) -> tuple[Tree, Tree]:
  device = _host()
  abstract = checkpoints.abstract_like(
    {'params': model.params_shape, 'model_state': model.model_state_shape},
    jax.sharding.SingleDeviceSharding(device),
  )
  restored = checkpoints.read_model(run, abstract)
  params = restored['params']
  if order is not None:
    for head in model.spec.head:
      params = _with_order(params, head.split('.'), order)
  # On the host: a teacher may be more than one device holds.
  return jax.device_get((params, restored['model_state']))


def _host() -> jax.Device:
  """A CPU device; where JAX was told to use none, the first device."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]


def _with_order(params: Tree, path: list[str], order: np.ndarray) -> Tree:
  """The last axis of what is at `path` in another order."""
  if not path:
    return jax.tree.map(lambda x: x[..., order], params)
  name, *rest = path
  return params | {name: _with_order(params[name], rest, order)}
