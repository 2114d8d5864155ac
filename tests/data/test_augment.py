import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlkd_jax.data import augment

SIZE, STORED, BATCH = 16, 20, 12
INDEX = np.arange(BATCH, dtype=np.int64) * 17 + 3
VIEW = np.zeros(BATCH, np.int32)
EVERYTHING = {
  'crop': 'random_resized',
  'flip': True,
  'brightness': 0.3,
  'contrast': 0.3,
  'saturation': 0.3,
}


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  shape = (BATCH, STORED, STORED, 3)
  return rng.integers(0, 256, shape, dtype=np.uint8)


@functools.cache
def _jitted(**options):
  return jax.jit(functools.partial(augment.augment, image_size=SIZE, **options))


def _draw(images, seed=0, index=INDEX, view=VIEW, **options):
  return np.asarray(_jitted(**options)(images, seed, index, view))


def test_shape_type_and_range(images):
  views = _draw(images, **EVERYTHING)
  assert views.shape == (BATCH, SIZE, SIZE, 3) and views.dtype == np.float32
  assert views.min() >= 0 and views.max() <= 255
  assert views.max() > 150


def test_a_view_does_not_depend_on_its_place_in_the_batch(images):
  views = _draw(images, **EVERYTHING)
  order = np.random.default_rng(1).permutation(BATCH)
  moved = _draw(images[order], index=INDEX[order], **EVERYTHING)
  np.testing.assert_array_equal(moved, views[order])
  alone = _draw(images[5:6], index=INDEX[5:6], view=VIEW[5:6], **EVERYTHING)
  np.testing.assert_allclose(alone, views[5:6], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize('what', ['seed', 'index', 'view'])
def test_each_part_of_the_key_matters(images, what):
  views = _draw(images, **EVERYTHING)
  np.testing.assert_array_equal(_draw(images, **EVERYTHING), views)
  changed = {'seed': 1, 'index': INDEX + 1, 'view': VIEW + 1}[what]
  others = _draw(images, **{what: changed}, **EVERYTHING)
  assert (np.abs(others - views).mean((1, 2, 3)) > 1).all()


def test_a_sharded_batch_gives_the_same_views(images):
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P('data'))
  sharded = jax.device_put((images, INDEX.astype(np.int32), VIEW), sharding)
  views = _jitted(**EVERYTHING)(sharded[0], 0, *sharded[1:])
  np.testing.assert_allclose(
    views, _draw(images, **EVERYTHING), rtol=1e-6, atol=1e-4
  )


def test_centre_crop_is_the_stored_centre(images):
  views = _draw(images, crop='centre', flip=False)
  np.testing.assert_array_equal(views, images[:, 2:18, 2:18])


def test_random_crop_keeps_pixels(images):
  views = _draw(images, crop='random', flip=False)
  corners = set()
  for image, view in zip(images, views, strict=True):
    found = [
      (y, x)
      for y in range(STORED - SIZE + 1)
      for x in range(STORED - SIZE + 1)
      if (image[y : y + SIZE, x : x + SIZE] == view).all()
    ]
    assert len(found) == 1
    corners.add(found[0])
  assert len(corners) > 5


def test_random_crop_reaches_every_corner_but_not_beyond():
  image = np.full((1, STORED, STORED, 3), 7, np.uint8)
  image[:, -1, -1] = 255
  count = 200
  images = np.repeat(image, count, 0)
  views = _draw(
    images,
    index=np.arange(count),
    view=np.zeros(count, np.int32),
    crop='random',
    flip=False,
  )
  assert views.min() == 7
  assert 0 < (views[:, -1, -1, 0] == 255).sum() < count / 5


def test_padding_is_black():
  images = np.full((BATCH, SIZE, SIZE, 3), 9, np.uint8)
  views = _draw(images, crop='random', flip=False, padding=3)
  assert set(np.unique(views)) == {0.0, 9.0}


def test_flip_mirrors_about_half(images):
  count = 200
  images = np.repeat(images[:1], count, 0)
  index, view = np.arange(count), np.zeros(count, np.int32)
  views = _draw(images, index=index, view=view, crop='centre', flip=True)
  plain = images[:, 2:18, 2:18].astype(np.float32)
  same = (views == plain).all((1, 2, 3))
  mirrored = (views == plain[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 0.35 < mirrored.mean() < 0.65


def test_without_flip_nothing_is_mirrored():
  ramp = np.tile(np.arange(STORED, dtype=np.uint8)[:, None] * 9, (STORED, 1, 3))
  ramp = np.repeat(ramp[None], BATCH, 0)
  views = _draw(ramp, crop='random_resized', flip=False)
  assert (np.diff(views[..., 0], axis=2) >= -1e-3).all()


def _boxes(count, **options):
  """Draws crops of coordinate planes; returns (top, left, height, width)."""
  grid = np.arange(STORED, dtype=np.float32)
  planes = np.stack(
    [*np.meshgrid(grid, grid, indexing='ij'), np.zeros((STORED, STORED))], -1
  ).astype(np.uint8)
  views = _draw(
    np.repeat(planes[None], count, 0),
    index=np.arange(count),
    view=np.zeros(count, np.int32),
    crop='random_resized',
    flip=False,
    **options,
  )
  # Inside the crop the coordinates are linear; steps tell its sides.
  middle = slice(4, 12)
  step_y = np.diff(views[:, middle, 8, 0], axis=1).mean(1)
  step_x = np.diff(views[:, 8, middle, 1], axis=1).mean(1)
  centre_y = views[:, 7:9, 8, 0].mean(1)
  centre_x = views[:, 8, 7:9, 1].mean(1)
  return centre_y, centre_x, step_y * SIZE, step_x * SIZE


def test_random_resized_crop_has_the_stated_area_and_ratio():
  centre_y, centre_x, height, width = _boxes(
    400, scale=(0.2, 0.6), ratio=(0.5, 2.0)
  )
  share = height * width / STORED**2
  ratio = width / height
  assert 0.19 < share.min() < 0.25 and 0.55 < share.max() < 0.61
  assert abs(share.mean() - 0.4) < 0.02
  assert 0.48 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.1
  assert abs(np.log(ratio).mean()) < 0.07
  for centre, side in [(centre_y, height), (centre_x, width)]:
    assert (centre - side / 2 > -0.6).all()
    assert (centre + side / 2 < STORED - 0.4).all()
    assert abs(centre.mean() - (STORED - 1) / 2) < 0.5


def test_the_whole_image_is_a_plain_resize(images):
  views = _draw(images, flip=False, scale=(1.0, 1.0), ratio=(1.0, 1.0))
  expected = augment.resize_for(jnp.asarray(images), SIZE)
  np.testing.assert_allclose(views, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
  'what, strength', [('brightness', 0.5), ('contrast', 0.5), ('saturation', 1)]
)
def test_colour_factors(images, what, strength):
  plain = _draw(images, crop='centre', flip=False) * 0.4 + 60
  # Far enough from 0 and 255 that nothing is clipped.
  plain = plain.round().astype(np.uint8)
  views = _draw(plain, crop='centre', flip=False, **{what: strength})
  grey = plain @ np.asarray([0.299, 0.587, 0.114])
  base = {
    'brightness': np.zeros((BATCH, 1, 1, 1)),
    'contrast': grey.mean((1, 2))[:, None, None, None],
    'saturation': grey[..., None],
  }[what]
  other = np.broadcast_to(base, plain.shape)
  spread = plain - other
  factors = ((views - other) * spread).sum((1, 2, 3)) / (spread**2).sum(
    (1, 2, 3)
  )
  expected = np.clip(factors[:, None, None, None] * spread + other, 0, 255)
  np.testing.assert_allclose(views, expected, atol=0.6)
  assert (np.abs(factors - 1) <= strength + 1e-3).all()
  assert factors.std() > strength / 4


def test_mistakes(images):
  with pytest.raises(ValueError, match="'middle'; accepted: random_resized"):
    augment.augment(images, 0, INDEX, VIEW, image_size=SIZE, crop='middle')
  with pytest.raises(ValueError, match='smaller than 32'):
    augment.augment(images, 0, INDEX, VIEW, image_size=32)


def test_normalize(images):
  normal = augment.normalize(jnp.asarray(images), (127.0,) * 3, (128.0,) * 3)
  np.testing.assert_allclose(
    normal, (images.astype(np.float32) - 127) / 128, rtol=1e-6
  )
  np.testing.assert_array_equal(
    normal, augment.normalize(jnp.asarray(images), 127.0, 128.0)
  )
  mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
  np.testing.assert_allclose(
    augment.normalize(jnp.asarray(images), mean, std),
    (images - np.float32(mean)) / np.float32(std),
    rtol=1e-6,
  )


def test_resize_for(images):
  same = augment.resize_for(jnp.asarray(images), STORED)
  np.testing.assert_array_equal(same, images)
  assert same.dtype == jnp.float32
  half = augment.resize_for(jnp.asarray(images), STORED // 2)
  assert half.shape == (BATCH, 10, 10, 3)
  # Antialiased: four pixels and their neighbours, not one, make a new one.
  assert np.asarray(half).std() < 0.7 * images.std()
