"""From a configuration to the objects of a run: data, models, teacher.

Everything a user can get wrong is checked here, before long work starts; the
callers turn ValueError and FileNotFoundError into one message.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from tlkd_jax import data, models
from tlkd_jax.data import augment, mixing, unlabelled
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import DTYPES, Loaded, Network, output_shapes
from tlkd_jax.models.weights import loading
from tlkd_jax.runtime import sharding
from tlkd_jax.runtime.atomic import replace_text
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.training import checkpoints
from tlkd_jax.training.checkpoints import Description
from tlkd_jax.training.objective import Objective, bridges, init_extras
from tlkd_jax.training.step import Mixing


def data_key(config: Any) -> str:
  """Two configurations of one key have the same data, down to the pixel.

  Raises:
    FileNotFoundError, ValueError: a further teacher is not a finished run.
  """
  return json.dumps(_data_options(config))


def load_dataset(config: Any) -> data.Dataset:
  """Decodes the data set of a configuration, large enough for all models."""
  return data.load_splits(**_data_options(config))


def _data_options(config: Any) -> dict[str, Any]:
  """All that a configuration says of its data, as load_splits takes it."""
  more = [
    checkpoints.read_description(workdir).image_size
    for workdir in config.distillation.more_teachers
  ]
  return {
    'name': config.dataset,
    'image_size': max(config.image_size, config.teacher.image_size, *more),
    'crop_fraction': config.data.crop,
    'interpolation': config.data.interpolation,
    'num_train_per_class': config.num_train_per_class or None,
    'train_fraction': config.train_fraction,
    'num_eval_per_class': config.data.num_eval_per_class or None,
    'seed': config.seed,
    'on_bad_image': config.data.on_bad_image,
    'memory_budget_bytes': config.data.memory_budget_mib * 2**20,
    'data_dir': config.data.data_dir,
    'cache_dir': config.data.cache_dir,
  }


def training_data(config: Any, dataset: data.Dataset) -> data.Dataset:
  """The data of one run: under a teacher, unlabelled images too.

  Raises:
    ValueError, FileNotFoundError: see unlabelled.extend.
  """
  place = config.distillation.unlabelled
  if config.arm != 'kd' or not place:
    return dataset
  return unlabelled.extend(
    dataset,
    place,
    crop_fraction=config.data.crop,
    interpolation=config.data.interpolation,
    on_bad_image=config.data.on_bad_image,
  )


def image_size(config: Any, role: str) -> int:
  """Side of the images that 'student' or 'teacher' sees."""
  return (role == 'teacher' and config.teacher.image_size) or config.image_size


def make_network(config: Any, role: str, model: Model) -> Network:
  """How a model of this run looks at images."""
  if config.compute_dtype not in DTYPES:
    raise ValueError(
      f'compute_dtype {config.compute_dtype!r}; accepted: {", ".join(DTYPES)}'
    )
  return Network(model, image_size(config, role), DTYPES[config.compute_dtype])


def load_model(config: Any, role: str, class_names: list[str]) -> Loaded:
  """A model to fine-tune: from a run, pretrained weights, or from scratch.

  Args:
    config: the run's configuration.
    role: 'student' or 'teacher', the section that describes the model.
    class_names: of the data.

  Raises:
    ValueError: unknown model, wrong or missing weights.
  """
  section = config[role]
  model = models.create_model(
    section.name,
    num_classes=len(class_names),
    dropout=section.dropout,
    drop_path=section.drop_path,
  )
  view = make_network(config, role, model)
  if section.checkpoint:
    logging.info('%s: starts from the run %s', role, section.checkpoint)
    return Loaded(view, *_from_run(section, model, class_names))
  if section.weights == 'scratch':
    if section.head == 'keep':
      raise ValueError(
        f'{role}.head is "keep", and weights from scratch have no head to keep'
      )
    logging.info('%s: %s from scratch', role, section.name)
    params, model_state = jax.jit(model.init)(jax.random.key(config.seed))
    return Loaded(view, jax.device_get(params), jax.device_get(model_state))
  source = section.weights
  if source == 'pretrained':
    source = model.spec.weights
  if source is None:
    raise ValueError(
      f'no pretrained weights are known for {section.name}; give a file in '
      f'config.{role}.weights, or "scratch"'
    )
  logging.info('%s: %s from %s', role, section.name, source)
  variables = loading.load_weights(
    model,
    source,
    jax.random.fold_in(jax.random.key(config.seed), 2),
    head=section.head,
    head_init=section.head_init,
  )
  return Loaded(view, *variables)


def load_teacher(config: Any, class_names: list[str]) -> Loaded:
  """The fine-tuned teacher of a run, from the run config.teacher.checkpoint.

  Raises:
    FileNotFoundError: that run has no checkpoint.
    ValueError: it is corrupt, or of another model, class set or image size.
  """
  section = config.teacher
  model = models.create_model(section.name, num_classes=len(class_names))
  params, model_state = _from_run(section, model, class_names)
  return Loaded(make_network(config, 'teacher', model), params, model_state)


def load_teachers(config: Any, class_names: list[str]) -> tuple[Loaded, ...]:
  """config.teacher.checkpoint, then distillation.more_teachers.

  The further ones are what their own descriptions say, in model and size.

  Raises:
    FileNotFoundError, ValueError: as `load_teacher`.
  """
  loaded = [load_teacher(config, class_names)]
  for workdir in config.distillation.more_teachers:
    description = checkpoints.read_description(workdir)
    check_classes(workdir, description, class_names)
    loaded.append(restore_model(workdir, description))
  return tuple(loaded)


def describe(
  model: Model, config: Any, role: str, dataset: data.Dataset, step: int
) -> Description:
  """What the checkpoint of a model after `step` updates says of it."""
  return Description(
    model=model.name,
    num_classes=model.num_classes,
    class_names=tuple(dataset.class_names),
    image_size=image_size(config, role),
    crop=config.data.crop or data.default_crop(config.dataset),
    interpolation=config.data.interpolation,
    compute_dtype=config.compute_dtype,
    dataset=config.dataset,
    arm=config.arm,
    step=step,
  )


def restore_model(workdir: str, description: Description) -> Loaded:
  """The best model of a run, rebuilt from its own description."""
  model = models.create_model(
    description.model, num_classes=description.num_classes
  )
  restored = checkpoints.read_model(workdir, _abstract(model))
  dtype = DTYPES[description.compute_dtype]
  view = Network(model, description.image_size, dtype)
  return Loaded(view, restored['params'], restored['model_state'])


def check_classes(
  workdir: str, description: Description, class_names: list[str]
) -> None:
  """Raises ValueError where a run's classes are not those of the data."""
  theirs = list(description.class_names)
  if theirs == list(class_names):
    return
  message = (
    f'checkpoint {workdir} was trained on {len(theirs)} classes, the data has '
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


def check_workdir(workdir: pathlib.Path, config: Any) -> None:
  """Checks that a run's folder is new or holds the same configuration.

  Raises:
    ValueError: the folder holds a run of another configuration; the message
      lists the differing keys.
  """
  path = workdir / 'config.json'
  new = flatten(json.loads(config.to_json()))
  if path.exists():
    old = flatten(read_config(workdir))
    keys = sorted(
      k
      for k in old | new
      if _as_compared(k, old.get(k, '-')) != _as_compared(k, new.get(k, '-'))
    )
    if keys:
      lines = [f'  {k}: {old.get(k)!r} there, {new.get(k)!r} now' for k in keys]
      raise ValueError(
        f'{workdir} holds a run of another configuration:\n'
        + '\n'.join(lines)
        + '\nuse another --workdir, or delete that one'
      )


def _as_compared(key: str, value: Any) -> Any:
  """A run that is named by another path is the same run."""
  if key.endswith('.checkpoint') and isinstance(value, str):
    return str(pathlib.Path(value).resolve())
  if key.endswith('.more_teachers') and isinstance(value, list):
    return [str(pathlib.Path(place).resolve()) for place in value]
  return value


def write_config(workdir: pathlib.Path, config: Any) -> None:
  """Makes a run's folder with its config.json."""
  path = workdir / 'config.json'
  if sharding.is_lead() and not path.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(json.loads(config.to_json()), indent=1))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The configuration that `write_config` wrote, as plain nested dicts.

  Raises:
    FileNotFoundError: the folder is not a run.
    ValueError: the file is damaged.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{workdir} holds no config.json: not a run')
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def _from_run(section, model: Model, class_names) -> tuple[Tree, Tree]:
  description = checkpoints.read_description(section.checkpoint)
  where = f'checkpoint {section.checkpoint}'
  if description.model != model.name:
    raise ValueError(
      f'{where} holds a {description.model}, the configuration names '
      f'{model.name}'
    )
  check_classes(section.checkpoint, description, class_names)
  restored = checkpoints.read_model(section.checkpoint, _abstract(model))
  return restored['params'], restored['model_state']


def _abstract(model: Model) -> Tree:
  device = jax.local_devices()[0]
  sharding_ = jax.sharding.SingleDeviceSharding(device)
  return checkpoints.abstract_like(
    {'params': model.params_shape, 'model_state': model.model_state_shape},
    sharding_,
  )


def norm_train(config: Any) -> bool:
  """Whether BatchNorm learns statistics.

  Raises:
    ValueError: batch_norm is none of 'frozen', 'train' and 'stochastic'.
  """
  if config.batch_norm not in ('frozen', 'train', 'stochastic'):
    raise ValueError(
      f'batch_norm {config.batch_norm!r}; accepted: frozen, train, stochastic'
    )
  # A linear probe reads fixed features.
  probe = config.optimizer.train_only == 'head'
  return config.batch_norm != 'frozen' and not probe


def batch_chance(config: Any) -> float:
  """The chance of a BatchNorm channel to use the batch in training.

  Raises:
    ValueError: transfer.stoch_norm_p is not in 0..1.
  """
  chance = config.transfer.stoch_norm_p
  if not 0 <= chance <= 1:
    raise ValueError(f'transfer.stoch_norm_p is {chance}; it must be in 0..1')
  return chance if config.batch_norm == 'stochastic' else 1.0


def make_augmentation(config: Any, dataset: data.Dataset) -> Callable:
  """The random view of a run: (uint8 images, index, view) -> float images.

  Raises:
    ValueError: an unknown crop or flip.
  """
  section = config.augment
  flips = {'auto': dataset.flip_ok, 'on': True, 'off': False}
  if section.flip not in flips:
    raise ValueError(f'augment.flip {section.flip!r}; accepted: auto, on, off')
  if section.crop not in augment.CROPS:
    raise unknown_name('augment.crop', section.crop, augment.CROPS)
  if (
    section.randaugment_ops < 0 or not 0 <= section.randaugment_magnitude <= 10
  ):
    raise ValueError(
      f'augment.randaugment_ops {section.randaugment_ops} must not be negative '
      f'and augment.randaugment_magnitude {section.randaugment_magnitude} must '
      'be in 0..10'
    )
  return functools.partial(
    _draw_view,
    seed=config.seed,
    image_size=dataset.image_size,
    crop=section.crop,
    scale=tuple(section.scale),
    ratio=tuple(section.ratio),
    flip=flips[section.flip],
    brightness=section.brightness,
    contrast=section.contrast,
    saturation=section.saturation,
    randaugment_ops=section.randaugment_ops,
    randaugment_magnitude=section.randaugment_magnitude,
  )


def _draw_view(images, index, view, *, seed, **options):
  return augment.augment(images, seed, index, view, **options)


def make_mixing(config: Any) -> Mixing | None:
  """Mixup and CutMix of a run, None without.

  Raises:
    ValueError: a negative alpha.
  """
  section = config.augment
  alphas = section.mixup_alpha, section.cutmix_alpha
  if min(alphas) < 0:
    raise ValueError(
      'augment.mixup_alpha and cutmix_alpha must not be negative'
    )
  if max(alphas) == 0:
    return None
  return functools.partial(
    mixing.mix, mixup_alpha=alphas[0], cutmix_alpha=alphas[1]
  )


def distillation_extras(
  objective: Objective,
  student: Network,
  teachers: tuple[Network, ...],
  dataset: data.Dataset,
  seed: int,
) -> dict[str, Tree]:
  """{'projector', 'memory'} of the distillation losses; see init_extras."""
  size = dataset.image_size
  theirs = tuple(output_shapes(teacher, size) for teacher in teachers)
  own = output_shapes(student, size)
  for line in bridges(objective, own, theirs):
    logging.info('%s', line)
  key = jax.random.fold_in(jax.random.key(seed), 1)
  return init_extras(objective, key, own, theirs, dataset.splits['train'])
