import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tlkd_jax.data import augment, randaugment

SIZE = 24


@pytest.fixture(scope='module')
def image():
  rng = np.random.default_rng(0)
  small = rng.integers(30, 220, (4, 4, 3), dtype=np.uint8)
  large = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
  return np.asarray(large)


@functools.cache
def _operation(name):
  return jax.jit(randaugment.OPERATIONS[name])


def _apply(name, image, strength, sign=1.0):
  pixels = image.astype(np.float32)
  strength, sign = np.float32(strength), np.float32(sign)
  return np.asarray(_operation(name)(pixels, strength, sign))


@pytest.mark.parametrize('sign', [-1.0, 1.0])
@pytest.mark.parametrize(
  'name, enhancer',
  [
    ('colour', ImageEnhance.Color),
    ('contrast', ImageEnhance.Contrast),
    ('brightness', ImageEnhance.Brightness),
    ('sharpness', ImageEnhance.Sharpness),
  ],
)
def test_enhancements_are_those_of_pillow(image, name, enhancer, sign):
  actual = _apply(name, image, 0.5, sign)
  expected = enhancer(Image.fromarray(image)).enhance(1 + sign * 0.45)
  # Pillow leaves the border alone when it smooths, and rounds in between.
  inner = (slice(1, -1), slice(1, -1))
  difference = actual[inner] - np.asarray(expected, np.float32)[inner]
  assert np.abs(difference).max() < 2.5
  assert np.abs(actual - image).max() > 2


@pytest.mark.parametrize(
  'name, reference',
  [
    ('autocontrast', ImageOps.autocontrast),
    ('equalize', ImageOps.equalize),
    ('solarize', lambda image: ImageOps.solarize(image, 128)),
    ('posterize', lambda image: ImageOps.posterize(image, 6)),
    ('identity', lambda image: image),
  ],
)
def test_point_operations_are_those_of_pillow(image, name, reference):
  actual = _apply(name, image, 0.5)
  expected = np.asarray(reference(Image.fromarray(image)), np.float32)
  assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize('sign', [-1.0, 1.0])
@pytest.mark.parametrize(
  'name, coefficients',
  [
    ('shear_x', lambda s: (1, s * 0.3, 0, 0, 1, 0)),
    ('shear_y', lambda s: (1, 0, 0, s * 0.3, 1, 0)),
    ('translate_x', lambda s: (1, 0, s * 0.3 * SIZE, 0, 1, 0)),
    ('translate_y', lambda s: (1, 0, 0, 0, 1, s * 0.3 * SIZE)),
  ],
)
def test_warps_are_those_of_pillow(image, name, coefficients, sign):
  a, b, c, d, e, f = coefficients(sign)
  # Pillow's coordinates start at a corner, ours at the centre.
  middle = SIZE / 2
  c += middle - a * middle - b * middle
  f += middle - d * middle - e * middle
  expected = Image.fromarray(image).transform(
    (SIZE, SIZE),
    Image.Transform.AFFINE,
    (a, b, c, d, e, f),
    Image.Resampling.BILINEAR,
    fillcolor=(128, 128, 128),
  )
  difference = np.abs(
    _apply(name, image, 1.0, sign) - np.asarray(expected, np.float32)
  )
  # The two fade into the fill colour differently, in one pixel at the edge.
  assert np.median(difference) < 0.6
  assert (difference.max(-1) > 2).mean() < 0.1


@pytest.mark.parametrize('sign', [-1.0, 1.0])
def test_rotation_is_that_of_pillow(image, sign):
  expected = Image.fromarray(image).rotate(
    30 * sign, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
  )
  difference = np.abs(
    _apply('rotate', image, 1.0, sign) - np.asarray(expected, np.float32)
  )
  assert np.median(difference) < 0.6
  assert (difference.max(-1) > 2).mean() < 0.15


@pytest.mark.parametrize('name', sorted(randaugment.OPERATIONS))
def test_strength_zero_changes_nothing(image, name):
  if name in ('autocontrast', 'equalize'):
    pytest.skip('has no strength')
  np.testing.assert_allclose(_apply(name, image, 0.0), image, atol=1e-2)


def test_randaugment_is_keyed_per_example(image):
  images = np.repeat(image[None], 16, 0)
  index, view = np.arange(16), np.zeros(16, np.int32)
  draw = jax.jit(
    functools.partial(
      augment.augment,
      image_size=SIZE,
      crop='centre',
      flip=False,
      randaugment_ops=2,
    )
  )
  views = np.asarray(draw(images, 0, index, view))
  assert views.min() >= 0 and views.max() <= 255
  np.testing.assert_array_equal(
    draw(images, 0, index[::-1].copy(), view), views[::-1]
  )
  distinct = {v.tobytes() for v in views}
  assert len(distinct) > 10


def test_magnitude_out_of_range(image):
  with pytest.raises(ValueError, match='magnitude is 11'):
    randaugment.randaugment(
      image[None].astype(np.float32), jax.random.split(jax.random.key(0), 1),
      1, 11,
    )  # fmt: skip
