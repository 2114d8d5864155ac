"""Numbers that are not finite: whose they are, and steps without them."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tlkd_jax.models.network import Loaded
from tlkd_jax.training import updating
from tlkd_jax.training.state import State
from tlkd_jax.training.updating import Placed

# Of the metrics of a step: whether it was left out.
SKIPPED = 'skipped'


def check(networks: Mapping[str, Loaded]) -> None:
  """Refuses networks with which no step could be finite.

  Args:
    networks: by the name that a run calls each by.

  Raises:
    ValueError: a weight or a statistic is not finite, or images would not be
      after normalisation; it is named.
  """
  for name, loaded in networks.items():
    trees = {'params': loaded.params, 'model_state': loaded.model_state}
    for path, value in jax.tree_util.tree_leaves_with_path(trees):
      array = np.asarray(value)
      bad = array.size - int(np.isfinite(array).sum())
      if bad:
        raise ValueError(
          f'the {name} begins with {bad} of {array.size} values that are not '
          f'finite in {jax.tree_util.keystr(path, simple=True, separator=".")}'
          ': take its weights from another file or run'
        )
    spec = loaded.network.model.spec
    if not (np.isfinite(spec.mean).all() and np.all(np.asarray(spec.std) > 0)):
      raise ValueError(
        f'the {name} normalises images by the mean {spec.mean} and the '
        f'standard deviation {spec.std}, which gives numbers that are not '
        'finite; accepted: numbers, of which the second are above 0'
      )


def skipping(
  step: Callable, mesh: Mesh, placed: Placed | None = None
) -> Callable:
  """A step that changes nothing but its number where a number is not finite.

  Looked at are the loss and the gradient of each learner and its parameters
  after the update; with them go statistics, memories and averages.

  Args:
    step: see step.make_step.
    mesh: devices.
    placed: where the state lies; None copies it.

  Returns:
    The same, with the metric 'skipped', 1 or 0.
  """

  def call(state: State, constants, batch):
    after, metrics = step(state, constants, batch)
    seen = [value for name, value in metrics.items() if _is_judged(name)]
    seen += [
      leaf
      for learner in after.learners.values()
      for leaf in jax.tree.leaves(learner.params)
    ]
    good = jnp.stack([jnp.isfinite(value).all() for value in seen]).all()
    learners = jax.tree.map(
      lambda new, old: jnp.where(good, new, old),
      after.learners,
      state.learners,
    )
    left_out = jnp.where(good, 0.0, 1.0)
    return State(after.step, learners), metrics | {SKIPPED: left_out}

  return updating.jitted(call, mesh, placed)


def _is_judged(name: str) -> bool:
  return name in ('loss', 'gradient_norm') or name.endswith(
    ('_loss', '_gradient_norm')
  )


def find(row: Mapping[str, float], learners: Mapping[str, str]) -> str:
  """What of a step is not finite, and whose it is; '' where all is.

  Args:
    row: its metrics.
    learners: name -> what stands before its metrics.
  """
  for name, prefix in learners.items():
    loss, norm = row[f'{prefix}loss'], row[f'{prefix}gradient_norm']
    whose = f' of the {name}' if prefix else ''
    if not math.isfinite(loss) or not math.isfinite(norm):
      blamed = _blamed(row, name, prefix, list(learners.values()))
      return f'the loss{whose} is {loss} (gradient norm {norm}): {blamed}'
  if row.get(SKIPPED):
    return 'the weights are not finite after the update'
  return ''


def _blamed(
  row: Mapping[str, float], name: str, prefix: str, prefixes: list[str]
) -> str:
  """The term where it began, by what it reads."""
  others = tuple(other for other in prefixes if other and other != prefix)
  terms = {
    key.removeprefix(prefix): value
    for key, value in row.items()
    if key.startswith(prefix)
    and key.endswith('_loss')
    and key != f'{prefix}loss'
    and not (others and key.startswith(others))
  }
  bad = [term for term, value in terms.items() if not math.isfinite(value)]
  if 'hard_loss' in bad:
    return (
      f'hard_loss is not finite, so the logits of the {name} are not: its '
      'weights left their range in the steps before'
    )
  if bad:
    return (
      f'{", ".join(bad)} is not finite and hard_loss is: what the guides say '
      'of these images, or the term itself'
    )
  if math.isfinite(row[f'{prefix}loss']):
    return 'every loss is finite, the gradient is not'
  return 'every term is finite, their weighted sum is not'
