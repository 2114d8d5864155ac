"""Grad-CAM against finite differences and closed forms; comparing maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax import models
from tlkd_jax.evaluation import gradcam

pytestmark = pytest.mark.usefixtures('tiny_models')
LABELS = jnp.array([2, 0])


def test_a_model_that_pools_and_projects_has_a_closed_form():
  kernel = jax.random.normal(jax.random.key(0), (4, 3))
  mix = jax.random.normal(jax.random.key(4), (3, 4))

  def forward(images):
    maps = jnp.tanh(images[:, ::2, ::2] @ mix)
    return maps.mean((1, 2)) @ kernel, maps

  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  maps, gradient = jax.jit(
    lambda images: gradcam.stage_gradient(forward, images, LABELS)
  )(images)
  np.testing.assert_allclose(maps, forward(images)[1], rtol=1e-6)
  expected = jnp.broadcast_to(
    kernel.T[LABELS][:, None, None, :] / 16, maps.shape
  )
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)
  cam = gradcam.class_activation(maps, gradient)
  by_hand = np.maximum((np.asarray(maps) * np.asarray(expected)).sum(-1), 0)
  np.testing.assert_allclose(cam, by_hand, rtol=1e-4, atol=1e-6)
  assert cam.shape == (2, 4, 4)


def test_convolutions_after_the_stage_count_and_pooling_ends_it():
  """The neck's values are linear in the logits: CAM in closed form."""
  model = models.create_model('tiny', num_classes=3)
  params, state = jax.jit(model.init)(jax.random.key(0))
  params['head']['kernel'] = jax.random.normal(jax.random.key(5), (16, 3))
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

  def forward(images):
    outputs, _ = model.apply(params, state, images)
    return outputs['logits'], outputs['features']['stage2']

  @jax.jit
  def run(images):
    outputs, _ = model.apply(params, state, images)
    return outputs, gradcam.stage_gradient(forward, images, LABELS)

  outputs, (maps, gradient) = run(images)
  grid = outputs['features']['stage2'].shape[1:3]
  assert maps.shape == gradient.shape == (2, *grid, 16)
  # What is pooled: its mean is pre_logits, and all of it has one gradient.
  np.testing.assert_allclose(
    maps.mean((1, 2)), outputs['pre_logits'], rtol=1e-5, atol=1e-6
  )
  weights = params['head']['kernel'].T[LABELS] / (grid[0] * grid[1])
  for place in np.ndindex(*grid):
    np.testing.assert_allclose(
      gradient[:, place[0], place[1]], weights, rtol=1e-5, atol=1e-7
    )


def test_a_path_around_a_later_value_forbids_it():
  """All influence of the stage must pass the value that is taken."""
  mix = jax.random.normal(jax.random.key(6), (3, 3))

  def forward(images):
    stage = jnp.tanh(images @ mix)
    later = jnp.sin(stage)
    return (later + 0 * later).mean((1, 2)) + stage.max((1, 2)), stage

  images = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
  run = jax.jit(gradcam.stage_gradient, static_argnums=0)
  maps, gradient = run(forward, images, LABELS)
  np.testing.assert_allclose(maps, forward(images)[1], rtol=1e-6)
  expected = jax.grad(
    lambda stage: (jnp.sin(stage).mean((1, 2)) + stage.max((1, 2)))[
      jnp.arange(2), LABELS
    ].sum()
  )(maps)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_transformers_tokens_are_a_grid():
  """The last block's patches no longer reach the class token's logits."""

  def forward_with(stage_index):
    def forward(images):
      tokens = images.reshape(2, 16, 12)
      tokens = jnp.concatenate([jnp.ones((2, 1, 12)), tokens], axis=1)
      grids = []
      for i in range(2):
        mixed = tokens + tokens.mean(1, keepdims=True)
        tokens = jnp.sin(mixed * (i + 1))
        grids.append(tokens[:, 1:].reshape(2, 4, 4, 12))
      return tokens[:, 0, :3], grids[stage_index]

    return forward

  images = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
  run = jax.jit(gradcam.stage_gradient, static_argnums=0)
  maps, gradient = run(forward_with(1), images, LABELS)
  assert maps.shape == (2, 4, 4, 12) and not gradient.any()
  maps, gradient = run(forward_with(0), images, LABELS)
  np.testing.assert_allclose(maps, forward_with(0)(images)[1], rtol=1e-5)
  # Only the token's own channel reaches the logit, by the mean of all.
  assert gradient.shape == maps.shape and (gradient[0, ..., 2] != 0).all()
  assert not gradient[0, ..., 3:].any()


def test_compare_maps():
  rng = np.random.default_rng(0)
  x = rng.random((4, 10, 10))
  same = gradcam.compare_maps(x, 3 * x + 1)
  np.testing.assert_allclose(same['rank_correlation'], 1.0)
  np.testing.assert_allclose(same['iou'], 1.0)
  against = gradcam.compare_maps(x, 1 - x)
  np.testing.assert_allclose(against['rank_correlation'], -1.0)
  np.testing.assert_allclose(against['iou'], 0.0)
  half = x[:1].copy()
  order = np.argsort(-half.ravel())
  half.ravel()[order[:10]] = -1.0
  # 10 of the 20 largest are shared, 30 are in either.
  found = gradcam.compare_maps(x[:1], half)
  np.testing.assert_allclose(found['iou'], 10 / 30)
  other_grid = gradcam.compare_maps(x, x[:, ::2, ::2])
  assert np.isfinite(other_grid['rank_correlation']).all()


def test_empty_maps_are_not_compared():
  x = np.stack([np.zeros((3, 3)), np.eye(3)])
  found = gradcam.compare_maps(x, np.stack([np.eye(3), np.eye(3)]))
  assert np.isnan(found['iou'][0]) and np.isnan(found['rank_correlation'][0])
  assert found['iou'][1] == 1
  with pytest.raises(ValueError, match='of 2 and of 1'):
    gradcam.compare_maps(x, x[:1])
