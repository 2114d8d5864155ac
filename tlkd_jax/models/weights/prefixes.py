"""Names in front of all keys of a file, such as Lightning's `model.`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from tlkd_jax.models.functional import Model
from tlkd_jax.models.weights import pretrained
from tlkd_jax.runtime.errors import listed

StateDict = dict[str, np.ndarray]


def without(
  model: Model,
  state_dict: StateDict,
  arrange: Callable[[StateDict], StateDict],
) -> tuple[StateDict, str]:
  """The entries under the one prefix that makes them the model's.

  What is not under it (a loss's weights, a head of another kind) is left out
  with a warning.

  Args:
    model: whose keys are wanted.
    state_dict: of a file.
    arrange: names of a file -> the model's own, of any style it knows.

  Returns:
    (entries without the prefix, the prefix with its dot); all entries and ''
    where none fits better than none.

  Raises:
    ValueError: several prefixes fit.
  """
  wanted = needed(model)

  def found(entries: StateDict) -> int:
    try:
      return len(wanted & arrange(entries).keys())
    except ValueError:
      return 0

  best, most = '', found(state_dict)
  if most == len(wanted):
    return state_dict, ''
  fitting = []
  for prefix in _prefixes(state_dict):
    count = found(_under(state_dict, prefix))
    if count == len(wanted):
      fitting.append(prefix)
    if count > most:
      best, most = prefix, count
  if len(fitting) > 1:
    raise ValueError(
      f'{len(fitting)} of its parts are {model.name}: those that begin with '
      f'{listed(fitting)}; save one of them alone'
    )
  if not best:
    return state_dict, ''
  left = [key for key in state_dict if not key.startswith(best)]
  if left:
    logging.warning(
      '%d entries that do not begin with %r are left out: %s',
      *(len(left), best, listed(left)),
    )
  return _under(state_dict, best), best


def needed(model: Model) -> set[str]:
  """Keys of all but the head, which may be of another task."""
  return {
    leaf.key
    for path, (_, leaf) in pretrained.leaf_table(model).items()
    if not pretrained.in_head(model, path)
  }


def _prefixes(state_dict: dict[str, Any]) -> list[str]:
  """'a.', 'a.b.', ... of every key, in the order of the file."""
  found: dict[str, None] = {}
  for key in state_dict:
    parts = key.split('.')[:-1]
    for count in range(1, len(parts) + 1):
      found.setdefault('.'.join(parts[:count]) + '.')
  few = len(state_dict) // 20
  return [
    prefix
    for prefix in found
    if sum(key.startswith(prefix) for key in state_dict) > few
  ]


def _under(state_dict: StateDict, prefix: str) -> StateDict:
  return {
    key[len(prefix) :]: value
    for key, value in state_dict.items()
    if key.startswith(prefix)
  }
