"""Several networks of one variant as one, with the mean of their logits.

Its embeddings are theirs side by side, and so are its feature maps; its head is
one linear layer on all of its pre_logits. A head that is the mean of theirs,
each of which reads its own part, gives the mean of their logits; another head
on the same pre_logits is one of them alone.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlkd_jax.losses.stages import EMBEDDINGS
from tlkd_jax.models.functional import Model, Tree, to_functional
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.spec import ModelSpec

_NAME = re.compile(r'(?P<variant>.+) x(?P<count>[1-9]\d*)')


def name_of(variant: str, count: int) -> str:
  """What so many networks of a variant are called: 'resnet18 x5'."""
  return f'{variant} x{count}'


def parts_of(name: str) -> tuple[str, int]:
  """(variant, count) of a name; the count of a single network is 0."""
  found = _NAME.fullmatch(name)
  return (found['variant'], int(found['count'])) if found else (name, 0)


class SideBySide(nnx.Module):
  """Networks that see the same images; their own heads are not read."""

  def __init__(self, networks, width: int, num_classes: int, rngs: layers.Rngs):
    self.networks = nnx.List(networks)
    self.head = layers.Linear(width, num_classes, rngs=rngs)

  def __call__(self, images: jax.Array, mode: layers.Mode):
    said = [network(images, mode) for network in self.networks]
    joined = {
      name: jnp.concatenate([one[name] for one in said], axis=-1)
      for name in EMBEDDINGS.values()
      if name in said[0]
    }
    features = {
      stage: jnp.concatenate([one['features'][stage] for one in said], axis=-1)
      for stage in said[0]['features']
    }
    logits = self.head(joined['pre_logits'])
    return joined | {'logits': logits, 'features': features}


def spec_of(single: ModelSpec, count: int) -> ModelSpec:
  """Of so many networks; there are no published weights for it."""

  def build(num_classes, *, rngs, **options):
    alone = to_functional('', single, num_classes, **options)
    width = count * head_of(alone, alone.params_shape)['kernel'].shape[0]
    networks = [
      single.build(num_classes, rngs=rngs, **options) for _ in range(count)
    ]
    return SideBySide(networks, width, num_classes, rngs)

  return dataclasses.replace(
    single,
    build=build,
    head=('head',),
    stem='networks.0.' + single.stem,
    more_stems=(),
    torch_modules=dict,
    torch_leaves=dict,
    weights=None,
    distilled=False,
  )


def head_of(model: Model, params: Tree) -> Tree:
  """{'kernel': [D, K], 'bias': [K]} of a single network."""
  for name in model.spec.head[0].split('.'):
    params = params[name]
  return params


def join(
  model: Model, networks: Sequence[tuple[Tree, Tree]]
) -> tuple[Tree, Tree, list[Tree]]:
  """Networks as one.

  Args:
    model: of each.
    networks: (params, model_state) of each, on the host.

  Returns:
    (params, model_state) of the whole, whose head is the mean of theirs; and
    the head {'kernel': [F D, K], 'bias': [K]} that is each one alone.
  """
  count = len(networks)
  heads = []
  for number, (params, _) in enumerate(networks):
    own = head_of(model, params)
    kernel = np.zeros((count, *own['kernel'].shape), np.float32)
    kernel[number] = own['kernel']
    heads.append(
      {
        'kernel': kernel.reshape(-1, kernel.shape[-1]),
        'bias': np.asarray(own['bias']),
      }
    )
  mean = {
    name: np.mean([head[name] for head in heads], axis=0, dtype=np.float32)
    for name in ('kernel', 'bias')
  }
  params = {str(n): params for n, (params, _) in enumerate(networks)}
  states = {str(n): state for n, (_, state) in enumerate(networks) if state}
  whole = {'networks': params, 'head': mean}
  return whole, {'networks': states} if states else {}, heads
