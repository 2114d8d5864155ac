"""From the name of a weight file to the variables of a model."""

import jax
import numpy as np

from tlkd_jax.models.functional import Array, Model, Tree
from tlkd_jax.models.weights import (
  aliases,
  hub,
  pretrained,
  surgery,
  torch_files,
  twins,
)
from tlkd_jax.runtime.errors import unknown_name

# What becomes of the last layer.
HEADS = ('new', 'keep')


def load_weights(
  model: Model,
  source: str,
  key: Array,
  *,
  head: str = 'new',
  head_init: str = 'zero',
) -> tuple[Tree, Tree]:
  """Reads weights, in whichever style they are named, for a model.

  Accepted are the keys of the variant's own library, of a twin (see twins) and
  of Hugging Face's transformers (see aliases). Stem and position embeddings
  are adapted to the model.

  Args:
    model: says the class count.
    source: a file or a name that `hub.resolve` knows.
    key: typed PRNG key of a new head.
    head: 'new', or 'keep' the file's.
    head_init: of a new head, a key of surgery.HEAD_INITS.

  Returns:
    (params, model_state) as nested dicts of float32 numpy arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, not of this model, or its head cannot be
      kept; or `head` or `head_init` is unknown.
  """
  if head not in HEADS:
    raise unknown_name('head', head, HEADS)
  path, state_dict = _read(model, source)
  try:
    state_dict = surgery.adapt_state_dict(model, state_dict)
    if head == 'keep':
      _check_head(model, state_dict)
    variables = pretrained.from_torch(
      model, state_dict, reset_head=head == 'new'
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  # Files may hold float16 or float64; training keeps float32.
  params, model_state = jax.tree.map(
    lambda x: np.asarray(x, np.float32), variables
  )
  if head == 'new':
    params = surgery.new_head(model, params, key, head_init)
  return jax.device_get(params), model_state


def head_classes(model: Model, source: str) -> int | None:
  """Number of classes of the head in a file; None where it has no head.

  Args:
    model: of the variant, with any number of classes.
    source: as in `load_weights`.

  Raises:
    FileNotFoundError, ValueError: as `load_weights`.
  """
  _, state_dict = _read(model, source)
  return pretrained.head_classes(model, state_dict)


def _read(model: Model, source: str):
  """(path, state dict under the variant's own keys)."""
  path = hub.resolve(source)
  state_dict = torch_files.read_state_dict(path)
  try:
    state_dict = aliases.canonical_keys(model.name, state_dict)
    return path, twins.adopt(model, state_dict)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _check_head(model: Model, state_dict: dict[str, np.ndarray]) -> None:
  classes = pretrained.head_classes(model, state_dict)
  if classes is None:
    raise ValueError('the file has no head to keep; head "new" makes one')
  if classes != model.num_classes:
    raise ValueError(
      f'the head has {classes} classes where {model.num_classes} are needed: '
      'it cannot be kept; head "new" makes another'
    )
