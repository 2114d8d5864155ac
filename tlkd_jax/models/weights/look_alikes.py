"""Networks whose weights have the same names and shapes as another's.

timm's `efficientnet_lite0` and `tf_efficientnet_lite0` differ in padding and
in BatchNorm's epsilon, which no file shows. What a file does hold are
BatchNorm's running means. In the network that they were collected in, the means
of a batch of photographs come nearest to them, also of photographs of another
kind and size: docs/decisions.md has figures.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tlkd_jax import models
from tlkd_jax.data import augment
from tlkd_jax.models.functional import Array, Model, Tree
from tlkd_jax.models.weights import pretrained, twins
from tlkd_jax.runtime.trees import flatten

# A network fits better than another if its distance is this share of it.
CLEARLY = 0.97


# They differ from timm's by an epsilon of 1e-12 for 1e-6 in layer norms.
_ROUNDING = tuple(
  f'transformers/{family}' for family in ('vit', 'deit', 'convnext')
)


def of(name: str) -> list[str]:
  """Full names of other networks with a variant's names and shapes.

  Args:
    name: of the variant whose keys a file has.
  """
  same = {twins.full_name(name), *twins.of(name)}
  modules = models.MODELS[name].torch_modules()
  candidates = {
    twins.full_name(other): None
    for other, spec in models.MODELS.items()
    if '/' in other and spec.torch_modules() == modules
  }
  others = [
    other
    for other in candidates
    if other not in same and not other.startswith(_ROUNDING)
  ]
  own = _leaves(name) if others else set()
  return [other for other in others if _leaves(other) == own]


def _leaves(name: str) -> set[tuple]:
  """What a file must hold."""
  table = pretrained.leaf_table(models.create_model(name))
  return {(path, shape, leaf.key) for path, (shape, leaf) in table.items()}


def distance(
  model: Model, params: Tree, model_state: Tree, images: Array
) -> float:
  """How far the batch's BatchNorm means are from the running ones.

  Args:
    model: has BatchNorm.
    params: its parameters.
    model_state: its running statistics.
    images: [B, S, S, 3] in 0..255, photographs.

  Returns:
    The mean over layers of the root mean square over channels of
    (mean of the batch - running mean) / running standard deviation.
  """
  spec = model.spec

  @jax.jit
  def collect(params, model_state, images):
    prepared = augment.normalize(images, spec.mean, spec.std)
    return model.apply(params, model_state, prepared, norm_train=True)[1]

  # Without memory of the statistics there were, the new ones are the batch's.
  zero = jax.tree.map(jnp.zeros_like, model_state)
  new, old = flatten(collect(params, zero, images)), flatten(model_state)
  one = flatten(collect(params, jax.tree.map(jnp.ones_like, zero), images))
  found = []
  for path, before in old.items():
    if path.rpartition('.')[2] != 'mean':
      continue
    # new = (1 - momentum) * before + momentum * batch, for before = 0 and 1.
    momentum = 1.0 - (np.asarray(one[path]) - np.asarray(new[path]))
    mean = np.asarray(new[path]) / momentum
    variance = np.asarray(old[path.removesuffix('mean') + 'var'])
    found.append(np.sqrt(np.mean((mean - before) ** 2 / (variance + 1e-3))))
  return float(np.mean(found))


def verdict(name: str, distances: Mapping[str, float]) -> tuple[bool, str]:
  """What the distances of a variant and its look-alikes say.

  Args:
    name: of the variant that was chosen.
    distances: of it and of each look-alike.

  Returns:
    (whether another one fits better, a sentence).
  """
  shown = ', '.join(f'{n} {value:.4f}' for n, value in distances.items())
  own = distances[name]
  nearest = min(distances, key=lambda n: distances[n])
  others = [value for other, value in distances.items() if other != name]
  if nearest != name and distances[nearest] < CLEARLY * own:
    return True, (
      f'their BatchNorm statistics fit {nearest} better than {name} '
      f'(distance of means: {shown}): set the name to {nearest}, if they are '
      'of it'
    )
  if own < CLEARLY * min(others):
    return False, f'their BatchNorm statistics fit {name} best ({shown})'
  return False, f'their BatchNorm statistics do not tell which ({shown})'
