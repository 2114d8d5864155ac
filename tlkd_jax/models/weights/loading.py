"""From the name of a weight file to the variables of a model."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
from absl import logging

from tlkd_jax.models import create_model, fused_name
from tlkd_jax.models.functional import (
  Array,
  Model,
  Tree,
  positions_of,
  with_positions,
)
from tlkd_jax.models.layers.branches import FUSED
from tlkd_jax.models.weights import (
  aliases,
  hub,
  look_alikes,
  prefixes,
  pretrained,
  sources,
  surgery,
  torch_files,
  twins,
)
from tlkd_jax.models.weights.sources import Source
from tlkd_jax.runtime.errors import listed, unknown_name
from tlkd_jax.runtime.trees import flatten, nest

# What becomes of the last layer.
HEADS = ('new', 'keep')


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that were read for a model.

  Attributes:
    model: with the mean and the standard deviation of images that the weights
      were trained with, where they are known, and the file's positions.
    params: nested dicts of float32 numpy arrays.
    model_state: likewise.
    source: what is known of them.
    look_alikes: variants that they may be of as well, as far as the file goes.
    licence: under which terms they are, after a name that gives them again.
  """

  model: Model
  params: Tree
  model_state: Tree
  source: Source
  look_alikes: tuple[str, ...]
  licence: str


def load(
  model: Model,
  source: str,
  key: Array,
  *,
  head: str = 'new',
  head_init: str = 'zero',
  classes: tuple[str, ...] | None = None,
  class_names: list[str] | None = None,
) -> Weights:
  """Reads weights, in whichever style they are named, for a model.

  Accepted are the keys of the variant's own library, of a twin (see twins) and
  of Hugging Face's transformers (see aliases), all behind one prefix or none.
  The stem is adapted to the model. Where it is known
  which network the weights are of (see sources), it must be the model's.

  Args:
    model: says the class count.
    source: a file, a folder or a name that `hub.resolve` knows.
    key: typed PRNG key of a new head.
    head: 'new', or 'keep' the file's.
    head_init: of a new head, one of surgery.HEAD_INITS.
    classes: names of the head's classes in its order; None are those that the
      source knows.
    class_names: those of the data, to whose order a head that is kept is
      brought; None leaves it as it is.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, not of this model, or its head cannot be
      kept; or `head` or `head_init` is unknown.
  """
  if head not in HEADS:
    raise unknown_name('head', head, HEADS)
  path, state_dict, found, others = _read(model, source)
  try:
    state_dict = surgery.adapt_state_dict(model, state_dict)
    if model.num_classes and pretrained.head_classes(model, state_dict) is None:
      logging.info('%s: it has no head, one is made', path)
    if head == 'keep':
      _check_head(model, state_dict, found, classes, class_names)
    variables = pretrained.from_torch(
      model, state_dict, reset_head=head == 'new'
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  # Files may hold float16 or float64; training keeps float32.
  params, model_state = jax.tree.map(
    lambda x: np.asarray(x, np.float32), variables
  )
  aside = pretrained.beside(model, state_dict)
  if aside:
    logging.info(
      '%s: %d entries are of no use to %s: %s',
      *(path, len(aside), model.name, listed(aside)),
    )
  model = with_preprocessing(model, found.mean, found.std)
  model = with_positions(model, positions_of(params))
  _say(model, path, found, others)
  if head == 'new':
    params = surgery.new_head(model, params, key, head_init)
  elif class_names is not None:
    params = _in_order(
      model, params, path, classes or found.classes, class_names
    )
  licence = f'{hub.pinned(source, path)}: {found.licence or "not stated"}'
  logging.info('licence of %s', licence)
  params = jax.device_get(params)
  return Weights(model, params, model_state, found, others, licence)


def load_weights(
  model: Model,
  source: str,
  key: Array,
  *,
  head: str = 'new',
  head_init: str = 'zero',
) -> tuple[Tree, Tree]:
  """(params, model_state) of `load`."""
  found = load(model, source, key, head=head, head_init=head_init)
  return found.params, found.model_state


def describe(source: str) -> Source:
  """What is known of weights without reading their arrays.

  Raises:
    FileNotFoundError, ValueError: as `load`.
  """
  return sources.find(source, hub.resolve(source))


def preprocessing(source: str) -> Source:
  """What is known of weights' interpolation and crop, without the network.

  Of a name on a hub it is the interpolation that its variant was published
  with, and no crop.
  """
  path = pathlib.Path(source).expanduser()
  if source and path.exists():
    return describe(source)
  return sources.of_name(source)


def with_preprocessing(
  model: Model,
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
) -> Model:
  """The model with another mean and standard deviation of images in 0..255."""
  if mean is None or std is None:
    return model
  return _with_preprocessing(model, tuple(mean), tuple(std))


def like(model: Model, other: Model) -> Model:
  """The model for weights of another: its mean, std and positions."""
  model = with_preprocessing(model, other.spec.mean, other.spec.std)
  return with_positions(model, positions_of(other.params_shape))


@functools.lru_cache(maxsize=64)
def _with_preprocessing(model: Model, mean: tuple, std: tuple) -> Model:
  # One for one variant, as models are compared.
  if (model.spec.mean, model.spec.std) == (mean, std):
    return model
  spec = dataclasses.replace(model.spec, mean=mean, std=std)
  return dataclasses.replace(model, spec=spec)


def head_classes(model: Model, source: str) -> int | None:
  """Number of classes of the head in a file; None where it has no head.

  Args:
    model: of the variant, with any number of classes.
    source: as in `load`.

  Raises:
    FileNotFoundError, ValueError: as `load`.
  """
  return pretrained.head_classes(model, _read(model, source)[1])


def _read(
  model: Model, source: str
) -> tuple[pathlib.Path, dict[str, np.ndarray], Source, tuple[str, ...]]:
  """(path, state dict under the variant's own keys, source, look-alikes)."""
  # Before anything is fetched.
  sources.check(model.name, sources.of_name(source))
  path = hub.resolve(source)
  found = sources.find(source, path)
  sources.check(model.name, found)
  selected = torch_files.read(path)
  if selected.entry:
    logging.info('%s: weights from its entry %r', path, selected.entry)
  if selected.beside:
    names = listed(selected.beside)
    logging.info('%s: beside them and not read: %s', path, names)
  try:
    if not found.known and selected.told:
      found = sources.told(
        f'the training script that wrote {path}', selected.told
      )
      sources.check(model.name, found)

    def arrange(state_dict):
      state_dict = aliases.canonical_keys(model.name, state_dict)
      return twins.adopt(model, state_dict)

    entries, prefix = prefixes.without(model, _wide(selected.tensors), arrange)
    if prefix:
      logging.info('%s: names without their prefix %r', path, prefix)
    kind = aliases.model_type(model.name, entries)
    if kind is not None and not found.known:
      config = {'model_type': kind}
      named = Source(f'its tensors are named so that it is clear: {path}')
      sources.check(model.name, dataclasses.replace(named, config=config))
    others: tuple[str, ...] = ()
    if kind is None and not found.known:
      others = tuple(look_alikes.of(twins.keyed_by(model, entries)))
    arranged = arrange(entries)
    _check_form(model, arranged)
    return path, arranged, found, others
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _check_form(model: Model, state_dict: dict[str, np.ndarray]) -> None:
  """Refuses a fused file for a variant in branches, and the other way."""
  fused = fused_name(model.name)
  if fused is not None:
    other, why = fused, 'whose branches cannot be told apart any more'
  elif model.name.endswith(FUSED):
    other = model.name.removesuffix(FUSED)
    why = 'in branches, which `python -m tlkd_jax.export --fold-norm` fuses'
  else:
    return
  if prefixes.needed(model) <= state_dict.keys():
    return
  if prefixes.needed(create_model(other)) <= state_dict.keys():
    raise ValueError(f'these weights are those of {other}, {why}: choose it')


def _wide(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """float8 as float32, since few functions know it."""
  return {
    name: value.astype(np.float32)
    if value.dtype.name.startswith('float8')
    else value
    for name, value in state_dict.items()
  }


def _say(
  model: Model, path: pathlib.Path, source: Source, others: tuple[str, ...]
) -> None:
  """Where the network and its preprocessing are known from, in the log."""
  spec = model.spec
  pixels = f'mean {_shown(spec.mean)} and std {_shown(spec.std)} of 0..255'
  if source.known:
    where = source.prepared_by or f'{model.name}, as none is said'
    logging.info(
      '%s: %s by %s; %s, by %s',
      *(path, model.name, source.said_by, pixels, where),
    )
    return
  logging.warning(
    '%s does not say which network it is of (no config.json beside it): taken '
    'for %s, whose names and shapes it has; %s are those of %s%s',
    *(path, model.name, pixels, model.name),
    f'. The same names and shapes has {listed(others)}' if others else '',
  )


def _shown(values: tuple[float, ...]) -> str:
  return '(' + ', '.join(f'{value:g}' for value in values) + ')'


def _check_head(
  model: Model,
  state_dict: dict[str, np.ndarray],
  source: Source,
  classes: tuple[str, ...] | None,
  class_names: list[str] | None,
) -> None:
  count = pretrained.head_classes(model, state_dict)
  if count is None:
    raise ValueError('the file has no head to keep; head "new" makes one')
  if classes is None and source.classes and len(source.classes) != count:
    raise ValueError(
      f'{source.said_by} names {len(source.classes)} classes, the head has '
      f'{count}'
    )
  names = classes or source.classes
  if names is not None and class_names is not None:
    problem = differing(list(names), class_names)
    if problem:
      raise ValueError(f'its classes are not those of the data: {problem}')
  if count != model.num_classes:
    raise ValueError(
      f'the head has {count} classes where {model.num_classes} are needed: '
      'it cannot be kept; head "new" makes another'
    )


def differing(theirs: list[str], ours: list[str]) -> str:
  """How two sets of class names differ, '' where they are equal."""
  if len(set(theirs)) != len(theirs):
    doubled = [name for name in dict.fromkeys(theirs) if theirs.count(name) > 1]
    return f'it has several classes called {listed(doubled, 5)}'
  parts = [f'{len(theirs)} classes there, {len(ours)} in the data']
  for place, some, others in (
    ('there', theirs, ours),
    ('in the data', ours, theirs),
  ):
    only = [name for name in some if name not in set(others)]
    if only:
      parts.append(f'only {place}: {listed(only, 5)}')
  return '; '.join(parts) if len(parts) > 1 else ''


def _in_order(
  model: Model,
  params: Tree,
  path: pathlib.Path,
  theirs: tuple[str, ...] | None,
  ours: list[str],
) -> Tree:
  """The head's classes in the order of the data's."""
  if theirs is None:
    logging.warning(
      '%s does not name its classes: taken to be in the order of the data, %s',
      *(path, listed(ours)),
    )
    return params
  if list(theirs) == list(ours):
    return params
  logging.info('%s: its classes are brought into the order of the data', path)
  order = np.array([theirs.index(name) for name in ours])
  return nest(
    {
      name: value[..., order] if pretrained.in_head(model, name) else value
      for name, value in flatten(params).items()
    }
  )
