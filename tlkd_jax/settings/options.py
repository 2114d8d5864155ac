"""What the hyper-parameters of a distillation loss accept."""

from collections.abc import Mapping
from typing import Any

from tlkd_jax import losses
from tlkd_jax.losses import logits, relations, stages
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.settings.rules import (
  Rule,
  flag,
  number,
  one_of,
  problem,
  several,
  text,
  whole,
)

_ABOVE_ZERO = number(0, above=True)
_RATE = number(0, 1, below=True)

# Where the type of the default is not enough.
_RULES: dict[str, Rule] = {
  'embedding': one_of(stages.EMBEDDINGS),
  'feat_dim': whole(1),
  'kernel': one_of(relations.CC_KERNELS),
  'kind': one_of(logits.BV_KINDS),
  'label_smoothing': _RATE,
  'lambda_mgd': number(0, 1),
  'max_p': whole(1),
  'nce_k': whole(1),
  'nce_m': _RATE,
  'nce_t': _ABOVE_ZERO,
  'p': whole(1),
  'p1': whole(1),
  'p2': whole(1),
  'smooth_l1_beta': _ABOVE_ZERO,
  'smoothing': _RATE,
  'temperature': _ABOVE_ZERO,
}
# Of a default by its type; bool is an int, so that it comes first.
_BY_TYPE: dict[type, Rule] = {
  bool: flag(),
  int: whole(0),
  float: number(0),
  str: text(),
}


def check_options(
  loss: str, options: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[str]]:
  """Checks hyper-parameters, and gives them the types of their defaults.

  Args:
    loss: an existing one.
    options: name -> value.
    place: of the options in the configuration.

  Returns:
    (name -> value, in the order of the loss, one line for each wrong one).
  """
  defaults = losses.hyperparameters_of(loss)
  kept, problems = {}, []
  for name in sorted(options.keys() - defaults.keys()):
    unknown = unknown_name(f'hyperparameter of {loss!r}', name, defaults)
    problems.append(f'{place}: {unknown}')
  for name, default in defaults.items():
    if name not in options:
      continue
    rule = _rule_of(name, default)
    try:
      kept[name] = rule.accept(options[name])
    except (TypeError, ValueError):
      problems.append(problem(f'{place}.{name}', options[name], rule))
  return kept, problems


def _rule_of(name: str, default: Any) -> Rule:
  if name in _RULES:
    return _RULES[name]
  if default is None:
    return _free()
  if isinstance(default, tuple):
    return several(_rule_of('', default[0]), empty=False)
  return _BY_TYPE[type(default)]


def _free() -> Rule:
  """None, a finite number, a text, or several of them."""
  finite = number(-float('inf'))

  def accept(value):
    if value is None or (isinstance(value, str) and value):
      return value
    if isinstance(value, int) and not isinstance(value, bool):
      return value
    if isinstance(value, tuple | list) and value:
      return tuple(accept(item) for item in value)
    return finite.accept(value)

  return Rule(object, accept, 'None, a number, a name, or a tuple of them')
