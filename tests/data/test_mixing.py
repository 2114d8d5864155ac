import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.data import mixing

BATCH = 6
TARGETS = jnp.eye(BATCH)
# Every image is constant and tells its number.
IMAGES = jnp.broadcast_to(
  jnp.arange(BATCH, dtype=jnp.float32).reshape(BATCH, 1, 1, 1) * 10,
  (BATCH, 8, 8, 3),
)


@pytest.mark.parametrize('seed', range(5))
def test_mixup_mixes_images_as_targets(seed):
  images, targets = mixing.mixup(IMAGES, TARGETS, jax.random.key(seed), 1.0)
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  expected = jnp.einsum('ij,jhwc->ihwc', targets, IMAGES)
  np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_cutmix_targets_are_the_shares_of_pixels(seed):
  images, targets = mixing.cutmix(IMAGES, TARGETS, jax.random.key(seed), 1.0)
  for i in range(BATCH):
    shares = [(images[i] == 10 * j).mean() for j in range(BATCH)]
    np.testing.assert_allclose(targets[i], shares, atol=1e-6)


def test_mixing_depends_on_the_key_and_does_mix():
  images = [
    mixing.mix(IMAGES, TARGETS, jax.random.key(seed), mixup_alpha=1.0)[0]
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(images[0], images[1])
  assert jnp.abs(images[0] - images[2]).max() > 1
  assert jnp.abs(images[0] - IMAGES).max() > 1


def test_off_and_either():
  key = jax.random.key(0)
  images, targets = mixing.mix(IMAGES, TARGETS, key)
  assert images is IMAGES and targets is TARGETS
  kinds = set()
  mix = jax.jit(
    lambda key: mixing.mix(
      IMAGES, TARGETS, key, mixup_alpha=1.0, cutmix_alpha=1.0
    )
  )
  for seed in range(12):
    images, _ = mix(jax.random.key(seed))
    constant = bool((images == images[:, :1, :1]).all())
    kinds.add('mixup' if constant else 'cutmix')
  assert kinds == {'mixup', 'cutmix'}
