"""Images of any size: shape, dtype, determinism, and something happens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from tlkd_jax.evaluation import corruptions

# Odd, oblong, at and between the tables' sizes.
SIZES = ((32, 32), (48, 48), (33, 57), (96, 96), (224, 224), (300, 300))


def photographs(height, width):
  pictures = load_sample_images().images
  return jnp.asarray(
    np.stack([p[60 : 60 + height, 90 : 90 + width] for p in pictures])
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', corruptions.CORRUPTIONS)
def test_every_size(name):
  for size in SIZES:
    images = photographs(*size)
    keys = corruptions.corruption_keys(0, [3, 9], name, 5)
    for severity in (1, 5):
      out = corruptions.corrupt_batch(name, images, severity, keys)
      assert out.shape == images.shape and out.dtype == jnp.uint8
      assert np.asarray(out).std() > 1
    # Mud hides few places of a small image.
    assert (np.asarray(out) != np.asarray(images)).mean() > 0.02, size
    again = corruptions.corrupt_batch(name, images[::-1], 5, keys[::-1])
    np.testing.assert_array_equal(out, again[::-1])


@pytest.mark.parametrize('name', ['fog', 'snow', 'glass_blur', 'pixelate'])
def test_an_odd_oblong_image(name):
  images = photographs(33, 57)
  keys = corruptions.corruption_keys(0, [3, 9], name, 3)
  out = jax.block_until_ready(corruptions.corrupt_batch(name, images, 3, keys))
  assert out.shape == images.shape and out.dtype == jnp.uint8
  assert (np.asarray(out) != np.asarray(images)).mean() > 0.05
