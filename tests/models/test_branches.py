"""Branches that are trained together are those trained one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.branches import Branches
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.layers.rngs import Rngs

# Sizes, groups, stride: MobileOne's three kinds of layer, RepViT's, FastViT's.
KINDS = [
  ((3, 3, 3, 1), 8, 1),
  ((3, 3, 1), 8, 2),
  ((1, 1, 1), 1, 1),
  ((3, 1), 1, 2),
  ((7, 3), 8, 1),
  ((3,), 8, 1),
]


def draw(tree):
  """Other numbers than those of a fresh layer, positive ones for variances."""
  rng = np.random.default_rng(0)

  def values(x):
    return jnp.asarray(rng.uniform(0.5, 1.5, x.shape))

  return jax.tree.map(values, tree)


@pytest.mark.parametrize('norm_train', [True, False])
@pytest.mark.parametrize(('sizes', 'groups', 'stride'), KINDS)
def test_outputs_gradients_and_statistics(
  sizes, groups, stride, norm_train, monkeypatch
):
  module = Branches(
    8,
    8,
    sizes,
    stride=stride,
    groups=groups,
    identity=True,
    activation='relu',
    fused=False,
    rngs=Rngs(jax.random.key(0)),
  )
  mode = Mode(train=True, norm_train=norm_train)
  with jax.enable_x64(True):
    graph, params, stats = nnx.split(module, nnx.Param, ...)
    params, stats = draw(params), draw(stats)
    x = np.random.default_rng(1).normal(size=(4, 6, 5, 8))

    def run(params, x):
      made = nnx.merge(graph, params, stats, copy=True)
      y = made(x, mode)
      weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
      return (y * weights).sum(), (y, nnx.state(made, nnx.BatchStat))

    def found():
      differ = jax.value_and_grad(run, (0, 1), has_aux=True)
      return jax.tree.leaves(jax.jit(differ)(params, x))

    together = found()
    monkeypatch.setattr(Branches, '_gains', lambda self, mode: False)
    alone = found()
  for a, b in zip(together, alone, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_only_training_computes_them_together(monkeypatch):
  """An exported network has the layers that its file says."""
  module = Branches(
    8, 8, (3, 3, 1), groups=8, fused=False, rngs=Rngs(jax.random.key(0))
  )
  count = []
  convolve = layers.conv2d

  def counted(*arguments, **options):
    count.append(1)
    return convolve(*arguments, **options)

  monkeypatch.setattr(layers, 'conv2d', counted)
  x = jnp.ones((2, 4, 4, 8))
  for mode, expected in (
    (Mode(), 3),
    (Mode(train=True), 1),
    (Mode(train=True, norm_train=True), 2),
  ):
    count.clear()
    module(x, mode)
    assert len(count) == expected, mode
